"""Many workers on one store, through submitit: Slurm jobs, or processes of this machine."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
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
    folder = Path(store) / ".jobs"
    # submitit ends what does not requeue itself when it sends its warning: some seconds before the limit, not half a minute.
    if executor == "local":
        jobs = submitit.LocalExecutor(folder=folder)
        jobs.update_parameters(timeout_min=minutes, signal_delay_s=5, gpus_per_node=gpus)
    else:
        try:
            jobs = submitit.AutoExecutor(folder=folder, cluster=executor)
        except RuntimeError as error:
            raise ValueError(
                f"{error}: there is no Slurm here; --executor local runs the jobs on this machine"
            ) from error
        jobs.update_parameters(timeout_min=minutes, name="gapsim", cpus_per_task=cpus, slurm_signal_delay_s=10)
        if gpus:
            jobs.update_parameters(gpus_per_node=gpus)
        if partition is not None:
            jobs.update_parameters(slurm_partition=partition)
    run = submitit.helpers.CommandFunction([sys.executable, "-m", "experiments", *arguments], verbose=False)
    return [jobs.submit(run) for _ in range(workers)]


def end_with_parent() -> None:
    """End this process soon after the job that started it: a job that is killed leaves nobody behind."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def wait(jobs: list, store: Path, minutes: int) -> None:
    """Wait for jobs of this machine.

    Raises:
      ValueError: they ended before everything was stored; with their reasons.
    """
    import submitit

    reasons = {}
    try:
        for job in jobs:
            try:
                job.result()
            except submitit.core.utils.UncompletedJobError as error:  # of a job that failed as well
                reasons.setdefault(_reason(job.stderr() or "", str(error), minutes), []).append(job.job_id)
    except KeyboardInterrupt:
        for job in jobs:
            job.cancel()
        raise
    if not reasons:
        return
    done, total = _progress(store)
    said = "; ".join(f"job {', '.join(ids)} {reason}" for reason, ids in reasons.items())
    if done < total or not total:
        stored = f"{done} of {total} chunks are stored" if total else "nothing is stored yet"
        raise ValueError(f"{said}; {stored}; run the same command to continue (logs in {store / '.jobs'})")
    print(f"gapsim: {said}; the other jobs did its work", file=sys.stderr)


def _reason(log: str, error: str, minutes: int) -> str:
    """Why a job ended, from its log and submitit's error."""
    if own := re.findall("^gapsim: (?!note: ).*", log, re.MULTILINE):
        return f"failed: {own[-1].removeprefix('gapsim: ')}"
    if "timed-out" in log + error:
        return f"reached its limit of {minutes} minute{'s' if minutes > 1 else ''}"
    signal = re.search(r"died with <Signals\.(\w+)", error)
    if signal or "has not produced any output" in error:
        return f"was ended by {signal[1] if signal else 'a signal'} (out of memory, or by hand)"
    lines = [line for line in (log or error).splitlines() if line.strip()]
    return f"failed: {lines[-1] if lines else 'it said nothing'}"


def _progress(store: Path) -> tuple[int, int]:
    """(chunks that are done, chunks) of a store; (0, 0) where there is none yet."""
    from simulator.storage import sweeps

    try:
        done = sweeps.finished(sweeps.stored(store))
    except ValueError:
        return 0, 0
    return int(done.sum()), done.size
