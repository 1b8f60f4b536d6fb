"""What the machine can do, for the cost model: rates of products, of element-wise passes, of exponentials and of messages.

Every function returns a `Task`, to be timed in a process of its own with one XLA device per core.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

TURN_SECONDS = 0.4  # of one timing, about


class Task(NamedTuple):
    """Work that can be timed: run(steps), what one step is worth (replica-steps, FLOP, bytes, ...), and how many steps
    a turn holds at least."""

    run: Callable[[int], None]
    worth: float = 1.0
    least: int = 1


def serve(tasks: dict[str, Task]):
    """Time all tasks, a turn for every line of standard input: a line of JSON is printed when ready, and at every turn
    the rate of each task, by its label, and the peak memory of the process."""
    steps = {label: _enough_steps(task) for label, task in tasks.items()}
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        rates = {}
        for label, task in tasks.items():
            started = time.perf_counter()
            task.run(steps[label])
            rates[label] = steps[label] * task.worth / (time.perf_counter() - started)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(dict(rates=rates, peak_bytes=peak)), flush=True)


def _enough_steps(task: Task) -> int:
    """Steps that take TURN_SECONDS, once everything is compiled; `least` of them at least."""
    steps = max(4, task.least)
    task.run(steps)
    while True:
        started = time.perf_counter()
        task.run(steps)
        seconds = time.perf_counter() - started
        if seconds > TURN_SECONDS / 2:
            return max(task.least, int(steps * TURN_SECONDS / seconds))
        steps *= 2


def _devices():
    from simulator.training.devices import use_all_cores

    use_all_cores(only_sweeps=True)
    import jax

    return jax.devices()


def _on_all(function, array, worth: float) -> Task:
    """A jitted function of one array on all devices at once; `worth` of one call on one device."""
    import jax

    devices = _devices()
    arrays = [jax.device_put(array, device) for device in devices]
    compiled = jax.jit(function)

    def run(steps):
        for _ in range(steps):
            results = [compiled(a) for a in arrays]
        jax.block_until_ready(results)

    return Task(run, len(devices) * worth)


def matmul(n: int) -> Task:
    """FLOP/s of products of n × n matrices in single precision."""
    _devices()
    import jax
    import jax.numpy as jnp

    product = lambda a: jax.lax.fori_loop(0, 4, lambda _, b: a @ b, a)
    return _on_all(product, jnp.ones((n, n)) / n, 4 * 2.0 * n**3)


def stream(n: int) -> Task:
    """Bytes read and written per second by element-wise passes b ← a + b/2 over n numbers."""
    _devices()
    import jax
    import jax.numpy as jnp

    passes = lambda a: jax.lax.fori_loop(0, 64, lambda _, b: a + 0.5 * b, a)
    return _on_all(passes, jnp.ones(n), 64 * 3 * 4.0 * n)


def exponentials(n: int) -> Task:
    """Exponentials per second, over n numbers again and again."""
    _devices()
    import jax
    import jax.numpy as jnp

    passes = lambda a: jax.lax.fori_loop(0, 64, lambda _, b: jnp.exp(-b), a)
    return _on_all(passes, jnp.ones(n), 64.0 * n)


def permutes(n: int) -> Task:
    """Permutes of n numbers around the ring of all devices per second."""
    devices = _devices()
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import PartitionSpec

    count = len(devices)
    mesh = jax.sharding.Mesh(np.asarray(devices), ("ring",), axis_types=(jax.sharding.AxisType.Auto,))
    onward = [(i, (i + 1) % count) for i in range(count)]

    def around(a):
        return jax.lax.fori_loop(0, 64, lambda _, b: jax.lax.ppermute(b, "ring", onward), a)

    spec = PartitionSpec("ring")
    program = jax.jit(jax.shard_map(around, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    numbers = jnp.ones(n * count)

    def run(steps):
        for _ in range(steps):
            result = program(numbers)
        jax.block_until_ready(result)

    return Task(run, 64.0)


MACHINE = dict(matmul=matmul, stream=stream, exponentials=exponentials, permutes=permutes)
