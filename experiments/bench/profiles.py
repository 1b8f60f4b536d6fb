"""Where the cycles of a training step go: XLA's own trace of the compiled program, gathered by the part of the step.

`python -m experiments.bench.profiles N REPLICAS DATA D` prints JSON: core-seconds per replica-step of every part. The
parts are the scopes that `simulator.training.replica` names in its step; "product" is a matrix product (with what XLA fused into
it), "rest" everything else: exponentials, sums, activations, updates, copies.
"""

from __future__ import annotations

import collections
import gzip
import json
import re
import sys
import tempfile
import time
from pathlib import Path

from experiments.bench.engines import trained_program

SCOPES = ("batch", "towers", "loss", "optimizer")
PARTS = (
    "towers: products", "towers: rest", "loss: products", "loss: rest", "optimizer", "batch", "other",
)  # fmt: skip
SECONDS = 1.0  # of the traced run, about


def profile(n: int, replicas: int, data: str, embed_dim: int) -> dict[str, float]:
    """Core-seconds per replica-step by part of the step, of XLA's thunks (the smallest pieces it runs)."""
    import jax

    program, arguments, keywords = trained_program(n, replicas, data, embed_dim)
    run = lambda steps: jax.block_until_ready(program(*arguments(steps), **keywords))
    run(4)
    started = time.perf_counter()
    run(8)
    steps = max(8, int(8 * SECONDS / (time.perf_counter() - started)))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(steps)
        (trace,) = Path(folder).glob("plugins/profile/*/*.trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    scopes = _op_names(program.lower(*arguments(steps), **keywords).compile().as_text())
    seconds = collections.Counter(dict.fromkeys(PARTS, 0.0))
    for event in events:
        name = event.get("args", {}).get("hlo_op")
        if name and name.split(".")[0] not in ("while", "conditional", "call"):  # these contain others
            seconds[_part(name, scopes.get(name, ""))] += event["dur"] * 1e-6
    return {part: value / (steps * replicas) for part, value in seconds.items()}


def _op_names(program_text: str) -> dict[str, str]:
    """Instruction -> the path of scopes and operations that it came from, of compiled HLO text."""
    pattern = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{[^}]*op_name="([^"]*)"', re.MULTILINE)
    return dict(pattern.findall(program_text))


def _part(instruction: str, op_name: str) -> str:
    """The part of the step that an instruction belongs to."""
    scope = next((s for s in SCOPES if re.search(rf"\b{s}\b", op_name)), None)
    if scope in ("towers", "loss"):
        is_product = instruction.startswith("dot") or op_name.endswith("dot_general")
        return f"{scope}: {'products' if is_product else 'rest'}"
    return scope or "other"


if __name__ == "__main__":
    n, replicas, data, embed_dim = sys.argv[1:5]
    print(json.dumps(profile(int(n), int(replicas), data, int(embed_dim))))
