"""`contrapose reproduce`: runs the missing jobs of an experiment, here, on Slurm or on Ray.

    OUT/NAME-SCALE/JOB/...           a folder for each job (folders.py)
    OUT/NAME-SCALE/experiment.json   everything measured, published and claimed (collect.py)

The folders of the jobs are the only state. Finished jobs are skipped, jobs that another process has
locked are left to it, and a killed job continues from its folder.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from contrapose.errors import Interrupted, UserError
from contrapose.experiments import experiment as find
from contrapose.experiments.form import Experiment
from contrapose.experiments.running import clusters
from contrapose.experiments.running.folders import (
    ChangedCallError,
    fail,
)
from contrapose.experiments.running.task import PATIENCE, POLL, STOPPED, Task, job_folders, prepare
from contrapose.files import HeldElsewhere, said_of
from contrapose.partials import unknown
from contrapose.slurm import library

On = Literal["local", "slurm", "ray"]
TRIES = 3  # workers that may end without a reason


class StoppedByUser(Interrupted):
    """The experiment was stopped by Ctrl-C or SIGTERM; the same command continues it."""


@dataclass(frozen=True)
class Standing:
    """The state of the jobs of an invocation."""

    finished: tuple[str, ...]
    failed: tuple[str, ...]
    running: Mapping[str, float]  # name -> share done
    total: int
    seconds_left: float | None

    @property
    def elsewhere(self) -> int:
        """Number of jobs neither finished nor failed: of another process, or not started."""
        return self.total - len(self.finished) - len(self.failed)


def reproduce(
    which: str,
    *,
    scale: str | None = None,
    seeds: int = 1,
    jobs: int = 1,
    on: str = "local",
    out: Path = Path("runs"),
    redo: bool = False,
    resources: Mapping[str, Any] | None = None,
    begin: Callable[[Experiment, Task, Standing], None] = lambda experiment, task, at: None,
    watch: Callable[[Standing], None] = lambda at: None,
) -> tuple[Task, Standing]:
    """Run the missing jobs of the experiment `which`; returns the task and its state.

    jobs: number of processes at a time, which share the cores.
    resources: for Slurm the parameters of submitit (timeout_min=600, slurm_partition="gpu",
        gpus_per_node=1 ...), for Ray those of a task (num_gpus=0.25 ...).
    redo: if a folder has the result of another call, rename the folder and run the job again;
        without it ChangedCallError.
    Raises StoppedByUser after Ctrl-C.
    """
    resources = resources or {}
    threads = {"slurm": resources.get("cpus_per_task", 4), "ray": resources.get("num_cpus")}.get(on)
    task = prepare(which, scale=scale, seeds=seeds, jobs=jobs, out=out, threads=threads)
    if on not in _RUNNERS:
        raise UserError(f"--on {on}: there is no {unknown(on, _RUNNERS)}")
    if resources and on == "local":
        raise UserError("--resource is for --on slurm and --on ray; here, use --jobs")
    if on != "local":
        library(on)
    _refuse_changed(task, redo)
    watched = _Watched(task, jobs)
    begin(find(task.experiment), task, watched.look())
    with _terminated_as_interrupted():
        try:
            with contextlib.closing(_RUNNERS[on](task, jobs, resources)) as running:
                for _ in running:
                    watch(watched.look())
        except KeyboardInterrupt:
            at = watched.look()
            raise StoppedByUser(
                f"stopped with {len(at.finished)} of {at.total} jobs finished; what is done is "
                "kept, and the same command goes on"
            ) from None
    return task, watched.look()


class _Watched:
    """The folders of a task, read repeatedly; each result is read once."""

    def __init__(self, task: Task, jobs: int) -> None:
        self.task, self.jobs, self.job_folders = task, jobs, job_folders(task)
        self.started = time.time()
        self.took: dict[str, float] = {}  # finished job -> s

    def look(self) -> Standing:
        failed, running = [], {}
        for folder in self.job_folders:
            name = folder.job.name
            state = "finished" if name in self.took else folder.state
            if state == "finished" and name not in self.took:
                self.took[name] = float((folder.read("result.json") or {}).get("seconds", 0))
            elif state == "failed":
                failed.append(name)
            elif state == "waiting" and (at := folder.read("running.json")) is not None:
                if at["invocation"] == self.task.invocation:
                    running[name] = float((folder.read("progress.json") or {}).get("share", 0))
        finished = tuple(
            folder.job.name for folder in self.job_folders if folder.job.name in self.took
        )
        total = len(self.job_folders)
        seconds = self._seconds_left(total - len(finished) - len(failed), list(running.values()))
        return Standing(finished, tuple(failed), running, total, seconds)

    def _seconds_left(self, waiting: int, shares: Sequence[float]) -> float | None:
        """The remaining seconds, by the mean of finished jobs or the progress of running ones."""
        if self.took:
            each = sum(self.took.values()) / len(self.took)
        elif sum(shares) > 0.02:
            each = (time.time() - self.started) * len(shares) / sum(shares)
        else:
            return None
        return each * (waiting - sum(shares)) / max(1, min(self.jobs, waiting))


def errors(task: Task) -> dict[str, str]:
    """{job: the last line of its error}."""
    found = {folder.job.name: folder.read("error.json") for folder in job_folders(task)}
    return {name: str(error["error"]) for name, error in found.items() if error is not None}


def _local(task: Task, jobs: int, resources: Mapping[str, Any]) -> Generator[None]:
    """Run worker processes, each through the whole list of jobs; one that dies is replaced."""
    waiting = sum(folder.state in ("waiting", "failed") for folder in job_folders(task))
    workers = {number: _start(task, number) for number in range(min(jobs, waiting))}
    unexplained = 0
    try:
        while workers:
            time.sleep(POLL)
            for number, worker in list(workers.items()):
                code = worker.poll()
                if code is None:
                    continue
                worker.stdin.close()  # type: ignore[union-attr]
                del workers[number]
                if code == 0:
                    continue
                if code != STOPPED and not _mourn(task, worker.pid, code):
                    unexplained += 1
                    if unexplained > TRIES:
                        raise ChildProcessError(
                            f"workers end with {code} before they begin a job; see "
                            f"{Path(task.folder) / 'workers.log'}"
                        )
                workers[number] = _start(task, number)
            yield
    finally:
        _end(list(workers.values()))


def _start(task: Task, number: int) -> "subprocess.Popen[bytes]":
    threads = str(task.threads)
    limits = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    with said_of(Path(task.folder)):
        Path(task.folder).mkdir(parents=True, exist_ok=True)
    with open(Path(task.folder) / "workers.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "contrapose.experiments.running.worker", task.text()],
            stdin=subprocess.PIPE,  # closes with this process, which the worker notices
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches this process alone, which stops the others
            env=os.environ | limits | _gpu(number),
        )


def _gpu(number: int) -> dict[str, str]:
    """The environment that shows a worker one of several GPUs, in turn."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = range(torch.cuda.device_count()) if visible is None else visible.split(",")
    return {"CUDA_VISIBLE_DEVICES": str(gpus[number % len(gpus)])} if len(gpus) > 1 else {}


def _mourn(task: Task, pid: int, code: int) -> bool:
    """Record an error for the job of a dead worker; True if it had one."""
    for folder in job_folders(task):
        at = folder.read("running.json")
        if at is None or (at["pid"], at["host"]) != (pid, socket.gethostname()):
            continue
        if at["invocation"] != task.invocation or folder.state == "finished":
            continue
        how = f"signal {-code} ({_signal_name(-code)})" if code < 0 else f"exit status {code}"
        words = f"its process ended by {how}"
        if code == -signal.SIGKILL:
            words += "; if nobody killed it, the machine ran out of memory: use fewer --jobs"
        with contextlib.suppress(HeldElsewhere), folder.locked():
            fail(folder, task.invocation, words, f"{words}\nsee {folder.path / 'log.txt'}")
        return True
    return False


def _end(workers: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ask the workers to save and end; kill those that do not, and all at a second Ctrl-C."""
    for worker in workers:
        worker.terminate()
    try:
        until = time.monotonic() + PATIENCE
        for worker in workers:
            worker.wait(timeout=max(0.1, until - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for worker in workers:
            worker.kill()
    for worker in workers:
        worker.wait()
        worker.stdin.close()  # type: ignore[union-attr]


_RUNNERS: dict[str, Callable[..., Generator[None]]] = {
    "local": _local,
    "slurm": clusters.slurm,
    "ray": clusters.ray,
}


def _refuse_changed(task: Task, redo: bool) -> None:
    """ChangedCallError if a folder has the result of another call; with `redo` rename it."""
    changed = [folder for folder in job_folders(task) if folder.state == "changed"]
    if changed and not redo:
        first = changed[0]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ChangedCallError(
            f"{first.path} holds what another call made ({first.difference()}){more}; give another "
            "--out, or --redo to set such folders aside and run those jobs anew"
        )
    for folder in changed:
        with contextlib.suppress(HeldElsewhere), folder.locked():
            folder.set_aside()


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return "unknown"


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """A context in which SIGTERM ends an invocation as Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
