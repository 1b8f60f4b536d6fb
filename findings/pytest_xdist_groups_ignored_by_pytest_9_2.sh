#!/usr/bin/env bash
# `--dist loadgroup` of pytest-xdist 3.8.0 spreads the tests of one xdist_group over all workers, without a word, under pytest 9.2.0.
#
# pytest-xdist writes the name of a group into the private `_nodeid` of a test, and pytest 9.2.0 reports another `nodeid`
# than that; so the scheduler never sees a group. Under pytest 9.0.2 a group stays with one worker. A suite that relies on groups
# for a shared database or an expensive fixture goes on passing, or fails at random. `--dist loadfile` is as it was.
# Exits 0 while this is so, and 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >test_groups.py <<'PYTHON'
import time

import pytest


@pytest.mark.xdist_group("together")
@pytest.mark.parametrize("number", range(8))
def test_number(number, worker_id):
    with open("workers", "a") as file:
        file.write(worker_id + "\n")
    time.sleep(0.3)
PYTHON
# How many workers ran the tests of one group.
workers() {
  python3 -m venv "venv$1"
  "venv$1/bin/pip" install --quiet "pytest==$1" pytest-xdist==3.8.0 execnet==2.1.2
  rm -f workers
  "venv$1/bin/python" -m pytest -q -p no:cacheprovider -n 2 --dist "$2" >&2
  sort -u workers | wc -l
}
old=$(workers 9.0.2 loadgroup)
new=$(workers 9.2.0 loadgroup)
file=$(workers 9.2.0 loadfile)
echo "workers of one group: $old under pytest 9.0.2, $new under pytest 9.2.0; with loadfile $file"
[ "$old" = 1 ] && [ "$new" = 2 ] && [ "$file" = 1 ]
