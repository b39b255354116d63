"""Running the jobs of a task on a cluster: Slurm (by submitit) or Ray."""

import contextlib
import time
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from contrapose.experiments.running.folders import fail
from contrapose.experiments.running.task import POLL, Task, job_folders
from contrapose.experiments.running.worker import work
from contrapose.files import HeldElsewhere
from contrapose.slurm import DAY, executor, is_queued, library, submitting


def slurm(
    task: Task, jobs: int, resources: Mapping[str, Any], cluster: str = "slurm"
) -> Generator[None]:
    """Run the task as an array of Slurm jobs, `jobs` at a time; ends when all have ended."""
    parameters: dict[str, Any] = {"name": Path(task.folder).name, "cpus_per_task": task.threads}
    if cluster == "slurm":
        parameters |= {"slurm_array_parallelism": jobs, "timeout_min": DAY}
    made = executor(Path(task.folder) / "slurm", cluster, parameters, resources)
    names = [p.job.name for p in job_folders(task) if p.state in ("waiting", "failed")]
    with submitting():
        submitted = made.map_array(_Requeued(), [replace(task, jobs=(n,)).text() for n in names])
    array = submitted[0].job_id.partition("_")[0] if submitted else ""
    try:
        while not all(job.done() for job in submitted):
            time.sleep(POLL if cluster != "slurm" else 5.0)
            yield
            if cluster == "slurm" and not is_queued(array):
                break  # submitit learns of a job that was killed from sacct alone, which may be off
    except (KeyboardInterrupt, GeneratorExit):
        for job in submitted:
            job.cancel()
        raise
    ended = zip(names, submitted, strict=True)
    _note_lost(task, {n: j.exception() if j.done() else _NO_RESULT for n, j in ended})


_NO_RESULT = ChildProcessError("Slurm ended it, and it left no result")


class _Requeued:
    """A job that is queued again if Slurm preempts it, and continues in its folder."""

    def __call__(self, text: str) -> None:
        run_task(text)

    def checkpoint(self, text: str) -> Any:
        return library("slurm").helpers.DelayedSubmission(self, text)


def ray(task: Task, jobs: int, resources: Mapping[str, Any]) -> Generator[None]:
    """Run one Ray task for each job, on the cluster of RAY_ADDRESS or on this machine."""
    cluster = library("ray")
    mine = not cluster.is_initialized()
    if mine:
        cluster.init(log_to_driver=False, include_dashboard=False)
    options = {"num_cpus": task.threads, "max_retries": 3} | dict(resources)
    remote = cluster.remote(run_task).options(**options)
    names = [p.job.name for p in job_folders(task) if p.state in ("waiting", "failed")]
    pending: dict[Any, str] = {}
    lost: dict[str, Exception | None] = {}
    try:
        while names or pending:
            while names and len(pending) < jobs:
                name = names.pop(0)
                pending[remote.remote(replace(task, jobs=(name,)).text())] = name
            ready, _ = cluster.wait(list(pending), timeout=POLL)
            for done in ready:
                name = pending.pop(done)
                try:
                    cluster.get(done)
                except Exception as error:  # Ray wraps whatever ended the task
                    lost[name] = error
            yield
    except (KeyboardInterrupt, GeneratorExit):
        for reference in pending:
            cluster.cancel(reference)
        raise
    finally:
        if mine:
            cluster.shutdown()
    _note_lost(task, lost)


def run_task(text: str) -> None:
    """Run a task, given as text, in a process of Slurm or Ray."""
    work(Task.of(text))


def _note_lost(task: Task, lost: Mapping[str, Exception | None]) -> None:
    """Record an error for jobs whose process was lost by the cluster."""
    for folder in job_folders(task):
        error = lost.get(folder.job.name)
        if error is not None and folder.state == "waiting":
            with contextlib.suppress(HeldElsewhere), folder.locked():
                words = f"the cluster lost it: {str(error).strip().splitlines()[-1]}"
                fail(folder, task.invocation, words, str(error))
