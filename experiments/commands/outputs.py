"""Where commands write, and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS, SHIPPED = Path("results"), Path("figures")  # the default; what is published, written only by --out


def write_json(path: Path, value: Any) -> None:
    """The file appears whole or not at all, in UTF-8 on any machine."""
    from simulator.storage.files import whole_file

    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with whole_file(path) as draft:
        # A file name that is no UTF-8 holds lone surrogates; written out like this they are JSON's own escapes.
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
