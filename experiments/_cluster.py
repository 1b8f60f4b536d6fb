"""Many workers on one store, through submitit: Slurm jobs, or processes of this machine."""

from __future__ import annotations

import sys
from pathlib import Path


def submit(
    arguments: list[str], *, workers: int, executor: str, store: Path, minutes: int, cpus: int, gpus: int,
    partition: str | None,
) -> list:  # fmt: skip
    """Start `workers` copies of a `gapsim` command that share a store; chunks are dealt out through its locks.

    Args:
      arguments: of the command, after `gapsim`.
      workers: number of jobs.
      executor: "slurm", or "local" for processes of this machine.
      store: the store; the jobs' logs go to its folder `.jobs`.
      minutes: time limit of a job; what is not done by then is done by the next submission.
      cpus: cores of a job.
      gpus: GPUs of a job.
      partition: Slurm partition, None for the default.

    Returns:
      submitit jobs; `.result()` waits for one.

    Raises:
      ModuleNotFoundError: submitit is missing.
    """
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "jobs are submitted through submitit: pip install 'modality-gap-simulator[slurm]'"
        ) from error
    jobs = submitit.AutoExecutor(folder=Path(store) / ".jobs", cluster=executor)
    jobs.update_parameters(timeout_min=minutes, name="gapsim", cpus_per_task=cpus)
    if gpus:
        jobs.update_parameters(gpus_per_node=gpus)
    if executor == "slurm" and partition is not None:
        jobs.update_parameters(slurm_partition=partition)
    run = submitit.helpers.CommandFunction([sys.executable, "-m", "experiments", *arguments], verbose=False)
    return [jobs.submit(run) for _ in range(workers)]
