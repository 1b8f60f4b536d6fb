"""Many replicas of one program on the devices that exist: blocks of a few, vmapped, one block after the other.

A vmap over all replicas streams their whole state through memory at every step; a block that fits a core's cache stays
there for all the steps of a call. So each device takes its blocks in turn, and the loop over blocks lies outside the
loop over steps, inside one compiled program. Blocks are cut before they are dealt to devices: with equal
`replicas_per_block` the results do not depend on how many devices there are, to the bit.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

CACHE_BYTES = 1 << 20  # of one core (level 2), where calibration has not measured anything better
CANDIDATES = (2, 4, 8, 16)  # replicas per block; 1 is left out: XLA lays a lone replica out badly


def over_replicas(function: Callable, *, in_blocks: bool) -> Callable:
    """Compile function(configuration, mapped, *shared) over a leading replica axis of `mapped`.

    The result is called as run(template, values, mapped, *shared, join=..., replicas_per_block=..., num_devices=...):
    `template` is static, `values` are the traced numbers [R] that `join(template, values)` puts into it, and
    R must be a multiple of replicas_per_block × num_devices.

    in_blocks=False takes the replicas of a device one at a time. What calls LAPACK needs it: its batched calls
    deadlock in XLA's CPU thread pool (seen with jaxlib 0.10.2: eigh of a batch of 4 on one device of a 2-core
    machine never returns).
    """

    @functools.partial(jax.jit, static_argnames=("template", "join", "replicas_per_block", "num_devices"))
    def run(template, values, mapped, *shared, join, replicas_per_block, num_devices):
        # Replicas never talk, so every device of this mesh of one axis runs the same program on its own blocks.
        devices = np.asarray(jax.devices()[:num_devices])
        mesh = jax.sharding.Mesh(devices, ("replica",), axis_types=(jax.sharding.AxisType.Auto,))
        one = lambda v, m, *s: function(join(template, v), m, *s)  # noqa: E731

        def on_a_device(values, mapped, *shared):
            if not in_blocks:
                return jax.lax.map(lambda pair: one(*pair, *shared), (values, mapped))
            several = jax.vmap(one, in_axes=(0, 0, *(None,) * len(shared)))
            cut = lambda leaf: leaf.reshape(len(leaf) // replicas_per_block, replicas_per_block, *leaf.shape[1:])  # noqa: E731
            done = jax.lax.map(lambda pair: several(*pair, *shared), jax.tree.map(cut, (values, mapped)))
            return jax.tree.map(lambda leaf: leaf.reshape(len(leaf) * replicas_per_block, *leaf.shape[2:]), done)

        split, same = PartitionSpec("replica"), PartitionSpec()
        return jax.shard_map(
            on_a_device, mesh=mesh, in_specs=(split, split, *(same,) * len(shared)), out_specs=split, check_vma=False
        )(values, mapped, *shared)

    return run


def plan(count: int, replicas_per_block: int) -> tuple[int, int, int]:
    """(replicas per block, devices, padded count) for `count` replicas: no device without a block."""
    replicas_per_block = min(replicas_per_block, count)
    blocks = -(-count // replicas_per_block)
    devices = min(jax.device_count(), blocks)
    return replicas_per_block, devices, -(-blocks // devices) * devices * replicas_per_block


def block_size_from_memory(bytes_per_replica: int, count: int) -> int:
    """Replicas per block by what one touches in a step: as many as two cores' worth of cache hold, from 2 to 8, and
    few enough that every device gets a block."""
    fitting = max(2, min(8, 2 * CACHE_BYTES // max(bytes_per_replica, 1)))
    return max(1, min(fitting, -(-count // jax.device_count())))


def calibrated_block_size(identity: str, seconds_per_replica: Callable[[int], float] | None) -> int | None:
    """The fastest of CANDIDATES by measurement, remembered on disk for this machine and these shapes.

    Args:
      identity: what the answer depends on, as text.
      seconds_per_replica: replicas per block -> measured seconds per replica; None only looks the answer up.
    """
    path = cache_folder() / "block_sizes.json"
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    if identity in known or seconds_per_replica is None:
        return known.get(identity)
    best = min(CANDIDATES, key=seconds_per_replica)
    from simulator.store import write_text

    write_text(path, json.dumps(known | {identity: best}, indent=1) + "\n")
    return best


def cache_folder() -> Path:
    """Where compiled programs and measured block sizes are kept: $XDG_CACHE_HOME/gapsim, or ~/.cache/gapsim."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gapsim"


def median_seconds(run: Callable[[], Any], *, least: float = 0.3) -> float:
    """Median time of a call, after one that is not counted, over at least three calls and `least` seconds."""
    jax.block_until_ready(run())
    times = []
    while len(times) < 3 or sum(times) < least:
        started = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - started)
    return float(np.median(times))
