"""What the machine can do, for the cost model: rates of products, of element-wise passes, of exponentials and of messages.

Every function returns rates of several repetitions, in a process of its own with one XLA device per core.
"""

from __future__ import annotations

import time

LEAST_SECONDS = 0.6  # of one repetition
REPETITIONS = 3


def repeat(run, steps_of) -> list[float]:
    """Rates of `run(steps)` over REPETITIONS, each long enough to time."""
    steps = 4
    run(steps)
    while True:
        started = time.perf_counter()
        run(steps)
        seconds = time.perf_counter() - started
        if seconds > LEAST_SECONDS / 2:
            break
        steps *= 2
    steps = max(1, int(steps * LEAST_SECONDS / seconds))
    rates = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        run(steps)
        rates.append(steps_of(steps) / (time.perf_counter() - started))
    return rates


def _devices():
    from experiments.__main__ import _use_all_cores

    _use_all_cores(only_sweeps=True)
    import jax

    return jax.devices()


def _rates_on_all(function, array, amount: float) -> list[float]:
    """`amount` times the calls per second of a jitted function of one array, on all devices at once."""
    import jax

    devices = _devices()
    arrays = [jax.device_put(array, device) for device in devices]
    compiled = jax.jit(function)

    def run(steps):
        for _ in range(steps):
            results = [compiled(a) for a in arrays]
        jax.block_until_ready(results)

    return repeat(run, lambda steps: steps * len(devices) * amount)


def matmul(n: int) -> list[float]:
    """FLOP/s of products of n × n matrices in single precision."""
    _devices()
    import jax
    import jax.numpy as jnp

    product = lambda a: jax.lax.fori_loop(0, 4, lambda _, b: a @ b, a)  # noqa: E731
    return _rates_on_all(product, jnp.ones((n, n)) / n, 4 * 2.0 * n**3)


def stream(n: int) -> list[float]:
    """Bytes read and written per second by element-wise passes b ← a + b/2 over n numbers."""
    _devices()
    import jax
    import jax.numpy as jnp

    passes = lambda a: jax.lax.fori_loop(0, 64, lambda _, b: a + 0.5 * b, a)  # noqa: E731
    return _rates_on_all(passes, jnp.ones(n), 64 * 3 * 4.0 * n)


def exponentials(n: int) -> list[float]:
    """Exponentials per second, over n numbers again and again."""
    _devices()
    import jax
    import jax.numpy as jnp

    passes = lambda a: jax.lax.fori_loop(0, 64, lambda _, b: jnp.exp(-b), a)  # noqa: E731
    return _rates_on_all(passes, jnp.ones(n), 64.0 * n)


def permutes(n: int) -> list[float]:
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

    return repeat(run, lambda steps: 64.0 * steps)


MACHINE = dict(matmul=matmul, stream=stream, exponentials=exponentials, permutes=permutes)
