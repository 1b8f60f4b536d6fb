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
      ValueError: there is no Slurm.
    """
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "jobs are submitted through submitit: pip install 'modality-gap-simulator[slurm]'"
        ) from error
    try:
        jobs = submitit.AutoExecutor(folder=Path(store) / ".jobs", cluster=executor)
    except RuntimeError as error:
        raise ValueError(f"{error}: there is no Slurm here; --executor local runs the jobs on this machine") from error
    jobs.update_parameters(timeout_min=minutes, name="gapsim", cpus_per_task=cpus)
    if gpus:
        jobs.update_parameters(gpus_per_node=gpus)
    if executor == "slurm" and partition is not None:
        jobs.update_parameters(slurm_partition=partition)
    run = submitit.helpers.CommandFunction([sys.executable, "-m", "experiments", *arguments], verbose=False)
    return [jobs.submit(run) for _ in range(workers)]


def wait(jobs: list, store: Path) -> None:
    """Wait for jobs of this machine.

    Raises:
      ValueError: one failed; with what it said last.
    """
    import submitit

    for job in jobs:
        try:
            job.result()
        except submitit.core.utils.FailedJobError as error:
            said = (job.stderr() or str(error)).strip().splitlines()
            last = next((line for line in reversed(said) if line.startswith("gapsim: ")), said[-1])
            raise ValueError(
                f"job {job.job_id} failed: {last.removeprefix('gapsim: ')} (logs in {store / '.jobs'})"
            ) from error
