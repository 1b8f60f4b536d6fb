"""Many replicas of one program on the devices that exist: blocks of a few, vmapped, one block after the other.

A vmap over all replicas streams their whole state through memory at every step; a block that fits a core's cache stays
there for all the steps of a call. So each device takes its blocks in turn, and the loop over blocks lies outside the
loop over steps, inside one compiled program. Blocks are cut before they are dealt to devices: with equal
`replicas_per_block` the results are the same to the bit on any number of devices from two up, where every device has one
thread (`--xla_cpu_multi_thread_eigen=false`, as `gapsim sweep` sets it). XLA optimises the program for a single device
differently, so that there the last bits move.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import PartitionSpec

from simulator.training import compiler
from simulator.training.devices import cache_folder

CACHE_BYTES = 1 << 20  # of one core (level 2), where calibration has not measured anything better
CANDIDATES = (2, 4, 8, 16)  # replicas per block; 1 is left out: XLA lays a lone replica out badly


class Values(NamedTuple):
    """What a template lacks, by dotted path: numbers [R], one for each replica, and arrays that all replicas share."""

    numbers: dict[str, Any]
    arrays: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How replicas lie on devices: blocks of `replicas_per_block`, dealt to `num_groups` groups of `batch_shards` devices."""

    replicas_per_block: int
    num_groups: int
    batch_shards: int = 1

    def mesh(self) -> jax.sharding.Mesh:
        """[replica, batch]."""
        devices = np.asarray(jax.devices()[: self.num_groups * self.batch_shards])
        devices = devices.reshape(self.num_groups, self.batch_shards)
        return jax.sharding.Mesh(devices, ("replica", "batch"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


# For what runs once: XLA on CPUs then compiles up to three times faster; what a version does not know is left out.
LITTLE_EFFORT = dict(xla_backend_optimization_level=1, xla_cpu_use_fusion_emitters=False)


def over_replicas(function: Callable, *, in_blocks: bool, runs_once: bool = False) -> Callable:
    """Compile function(configuration, mapped, *shared) over a leading replica axis of `mapped`.

    The result is called as run(template, values, mapped, *shared, layout=...): `template` (`simulator.settings.Template`) is
    static, `values` are `Values`, and their R must be what `plan` padded it to. The function runs inside a mesh with the axes
    "replica" and "batch"; along the latter all its inputs are the same.

    in_blocks=False takes the replicas of a device one at a time. What calls LAPACK needs it: its batched calls
    deadlock in XLA's CPU thread pool (seen with jaxlib 0.10.2: eigh of a batch of 4 on one device of a 2-core
    machine never returns). runs_once compiles with LITTLE_EFFORT; other backends ignore it.
    """

    compiled = functools.partial(compiler.jit, options=LITTLE_EFFORT) if runs_once else jax.jit

    @functools.partial(compiled, static_argnames=("template", "layout"))
    def run(template, values, mapped, *shared, layout: Layout):
        size = layout.replicas_per_block

        def on_a_device(values, mapped, *shared):
            one = lambda numbers, m: function(template.join(numbers | values.arrays), m, *shared)
            if not in_blocks:
                return jax.lax.map(lambda pair: one(*pair), (values.numbers, mapped))
            cut = lambda leaf: leaf.reshape(len(leaf) // size, size, *leaf.shape[1:])
            blocks = jax.tree.map(cut, (values.numbers, mapped))
            done = jax.lax.map(lambda pair: jax.vmap(one)(*pair), blocks)
            return jax.tree.map(lambda leaf: leaf.reshape(len(leaf) * size, *leaf.shape[2:]), done)

        split, same = PartitionSpec("replica"), PartitionSpec()
        # Replicas never talk, so every device runs the same program on its own blocks.
        return jax.shard_map(
            on_a_device,
            mesh=layout.mesh(),
            in_specs=(Values(*cast(Any, (split, same))), split, *(same,) * len(shared)),
            out_specs=split,
            check_vma=False,
        )(values, mapped, *shared)

    return run


def plan(count: int, replicas_per_block: int, batch_shards: int) -> tuple[Layout, int]:
    """The layout for `count` replicas, and the count padded to it: a block for every device that takes part; in one
    process, these are no more than there are blocks."""
    if batch_shards > jax.device_count():
        raise ValueError(
            f"batch_shards is {batch_shards} and there are {jax.device_count()} devices; lower it, or set "
            "jax_num_cpu_devices before anything else"
        )
    blocks = -(-count // replicas_per_block)
    groups = jax.device_count() // batch_shards
    if jax.process_count() == 1:
        groups = min(groups, blocks)
    elif jax.device_count() % batch_shards:  # every process must hold a part of every array
        raise ValueError(
            f"batch_shards is {batch_shards} and {jax.process_count()} processes have {jax.device_count()} devices; it must "
            "divide their number"
        )
    padded = -(-blocks // groups) * groups * replicas_per_block
    return Layout(replicas_per_block, groups, batch_shards), padded


def fetch(tree: Any) -> Any:
    """Arrays on the host, also when they lie on the devices of several processes."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def gather(leaf):
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return multihost_utils.process_allgather(leaf, tiled=True)
        words = multihost_utils.process_allgather(jax.random.key_data(leaf), tiled=True)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))

    return jax.tree.map(gather, tree)


def require_one_process(what: str, mend: str) -> None:
    """Raise ValueError where several processes run one program."""
    if jax.process_count() > 1:
        raise ValueError(f"{what} is for a single process and jax.distributed runs {jax.process_count()}; {mend}")


def agreed(number: int) -> int:
    """The first process's number, in all processes. What hangs on a clock or a machine must be agreed on: were a call cut
    at different steps, the messages of one block of replicas would meet those of another, and gradients be wrong in silence."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def spread(keys: jax.Array, layout: Layout) -> jax.Array:
    """Random keys [R] laid over the devices of all processes; every process passes the same keys."""
    if jax.process_count() == 1:
        return keys
    sharding = jax.sharding.NamedSharding(layout.mesh(), PartitionSpec("replica"))
    wrap = functools.partial(jax.random.wrap_key_data, impl=jax.random.key_impl(keys))
    return jax.jit(wrap, out_shardings=sharding)(np.asarray(jax.random.key_data(keys)))


def on_all_devices(arrays: dict[str, Any], layout: Layout) -> dict[str, jax.Array]:
    """Arrays as a whole on every device, so that no call of a program copies them; every process passes the same."""
    sharding = jax.sharding.NamedSharding(layout.mesh(), PartitionSpec())
    return {path: jax.device_put(np.asarray(array), sharding) for path, array in arrays.items()}


def block_size_from_memory(bytes_per_replica: int, count: int) -> int:
    """Replicas per block by what one touches in a step: as many as two cores' worth of cache hold, from 2 to 8, and
    few enough that every device gets a block."""
    fitting = max(2, min(8, 2 * CACHE_BYTES // max(bytes_per_replica, 1)))
    return max(1, min(fitting, -(-count // jax.device_count())))


def calibrated_block_size(identity: str, seconds_per_replica: Callable[[int], float] | None) -> int | None:
    """The fastest of CANDIDATES by measurement, remembered on disk for this machine and these shapes. They are tried in
    order until one is a fifth slower than the best before it: beyond the cache it only gets worse. A larger block must
    win by a twentieth: where cores share a cache, it loses more when others use that too.

    Args:
      identity: what the answer depends on, as text.
      seconds_per_replica: replicas per block -> measured seconds per replica; None only looks the answer up.
    """
    path = cache_folder() / "block_sizes.json"
    known = _block_sizes(path)
    if identity in known or seconds_per_replica is None:
        return known.get(identity)
    best, least = CANDIDATES[0], float("inf")
    for candidate in CANDIDATES:
        seconds = seconds_per_replica(candidate)
        if seconds < 0.95 * least:
            best, least = candidate, seconds
        elif seconds > 1.2 * least:
            break
    from simulator.storage.files import whole_file

    with contextlib.suppress(OSError), whole_file(path) as draft:  # a home that is read-only: it is measured again
        draft.write_text(json.dumps(known | {identity: best}, indent=1) + "\n")
    return best


def _block_sizes(path: Path) -> dict[str, int]:
    """What was measured before; of a damaged file, what can be an answer."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    found = known.items() if isinstance(known, dict) else ()
    return {name: size for name, size in found if type(size) is int and size in CANDIDATES}


def release_programs(*, share: float = 0.5) -> None:
    """Forget all compiled programs once they fill this share of the memory maps that Linux grants a process.

    XLA's CPU compiler takes about a thousand maps for a training program, of 65,530 in all; beyond them the process dies
    of a segmentation fault (seen with jaxlib 0.10.2 after some 60 programs).
    """
    try:
        used = Path("/proc/self/maps").read_bytes().count(b"\n")
        granted = int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):  # not Linux
        return
    if used > share * granted:
        jax.clear_caches()


def median_seconds(run: Callable[[], Any], *, least: float = 0.3) -> float:
    """Median time of a call, after one that is not counted, over at least three calls and `least` seconds."""
    jax.block_until_ready(run())
    times = []
    while len(times) < 3 or sum(times) < least:
        started = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - started)
    return float(np.median(times))
