"""`contrapose reproduce`: what is missing of an experiment is run, here, on Slurm or on Ray.

    OUT/NAME-SCALE/JOB/...           a folder for each job (folders.py)
    OUT/NAME-SCALE/experiment.json   everything measured, published and claimed (collect.py)

The jobs' folders are the only state. Finished jobs are skipped, jobs that another process holds are
left to it, and whatever was killed is begun again where its folder stands.
"""

import contextlib
import functools
import importlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from contrapose.experiments import experiment as find
from contrapose.experiments.folders import ChangedCallError, HeldElsewhere, Place, described, fail
from contrapose.experiments.form import SCALES, Experiment
from contrapose.experiments.worker import PATIENCE, STOPPED, Task
from contrapose.partials import unknown

On = Literal["local", "slurm", "ray"]
POLL = 0.3  # s
TRIES = 3  # workers that may end without a reason


class StoppedByUser(Exception):
    """Ctrl-C or SIGTERM; what is done is kept, and the same command goes on."""


@dataclass(frozen=True)
class Standing:
    """How far the jobs of an invocation are."""

    finished: tuple[str, ...]
    failed: tuple[str, ...]
    running: Mapping[str, float]  # name -> share done
    total: int
    seconds_left: float | None

    @property
    def elsewhere(self) -> int:
        """Jobs neither finished nor failed: held by another process, or not begun."""
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
    """Run what is missing of the experiment `which`; what there was to do, and how it stands.

    jobs: processes at a time, each with its share of the cores. resources: for Slurm submitit's
    parameters (timeout_min=600, slurm_partition="gpu", gpus_per_node=1 ...), for Ray those of a
    task (num_gpus=0.25 ...). redo: where a folder holds the result of another call, set that folder
    aside and run the job anew; without it ChangedCallError. Raises StoppedByUser after Ctrl-C.
    """
    resources = resources or {}
    threads = {"slurm": resources.get("cpus_per_task", 4), "ray": resources.get("num_cpus")}.get(on)
    task = prepare(which, scale=scale, seeds=seeds, jobs=jobs, out=out, threads=threads)
    if on not in _RUNNERS:
        raise ValueError(f"--on {on}: there is no {unknown(on, _RUNNERS)}")
    if resources and on == "local":
        raise ValueError("--resource is for --on slurm and --on ray; here, use --jobs")
    if on != "local":
        _library(on)
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


def prepare(
    which: str, *, scale: str | None, seeds: int, jobs: int, out: Path, threads: int | None = None
) -> Task:
    """The request, checked: ValueError that repeats it and says what there is."""
    experiment = find(which)
    if scale is None:
        scale = "cpu" if "cpu" in experiment.costs else next(iter(experiment.costs))
    if scale not in SCALES:
        raise ValueError(f"--scale {scale}: there is no scale {unknown(scale, SCALES)}")
    if scale not in experiment.costs:
        raise ValueError(
            f"--scale {scale}: experiment {which} has {', '.join(experiment.costs)} only"
        )
    for name, value in (("--seeds", seeds), ("--jobs", jobs)):
        if value < 1:
            raise ValueError(f"{name} {value}: use 1 or more")
    task = Task(
        experiment=str(Path(which).resolve()) if which.endswith(".py") else which,
        scale=scale,
        seeds=tuple(range(seeds)),
        folder=str((Path(out) / f"{experiment.name}-{scale}").resolve()),
        invocation=uuid.uuid4().hex[:12],
        threads=threads or max(1, _cores() // jobs),
    )
    places(task)
    return task


@functools.lru_cache(maxsize=4)
def places(task: Task) -> tuple[Place, ...]:
    """The jobs of the task in their folders; ValueError for an experiment with two of one name."""
    experiment = find(task.experiment)
    made = experiment.jobs(task.scale, task.seeds)
    names = [job.name for job in made]
    if not names or len(set(names)) < len(names):
        twice = next((name for name in names if names.count(name) > 1), None)
        what = "no jobs" if twice is None else f"two jobs named {twice!r}"
        raise ValueError(f"experiment {experiment.name} has {what} at scale {task.scale}")
    for job in made:
        described(job)
        if clash := sorted(job.facts.keys() & experiment.measures.keys()):
            raise ValueError(
                f"experiment {experiment.name}: {', '.join(clash)} is a measure and a fact of job "
                f"{job.name}; give one of them another name"
            )
    return tuple(Place(job, Path(task.folder) / job.name) for job in made)


class _Watched:
    """The folders of a task, looked at again and again; results are read once."""

    def __init__(self, task: Task, jobs: int) -> None:
        self.task, self.jobs, self.places = task, jobs, places(task)
        self.started = time.time()
        self.took: dict[str, float] = {}  # finished job -> s

    def look(self) -> Standing:
        failed, running = [], {}
        for place in self.places:
            name = place.job.name
            state = "finished" if name in self.took else place.state
            if state == "finished" and name not in self.took:
                self.took[name] = float((place.read("result.json") or {}).get("seconds", 0))
            elif state == "failed":
                failed.append(name)
            elif state == "waiting" and (at := place.read("running.json")) is not None:
                if at["invocation"] == self.task.invocation:
                    running[name] = float((place.read("progress.json") or {}).get("share", 0))
        finished = tuple(place.job.name for place in self.places if place.job.name in self.took)
        total = len(self.places)
        seconds = self._seconds_left(total - len(finished) - len(failed), list(running.values()))
        return Standing(finished, tuple(failed), running, total, seconds)

    def _seconds_left(self, waiting: int, shares: Sequence[float]) -> float | None:
        """From the mean of the finished jobs; before any is, from how far the running ones are."""
        if self.took:
            each = sum(self.took.values()) / len(self.took)
        elif sum(shares) > 0.02:
            each = (time.time() - self.started) * len(shares) / sum(shares)
        else:
            return None
        return each * (waiting - sum(shares)) / max(1, min(self.jobs, waiting))


def errors(task: Task) -> dict[str, str]:
    """Job -> the last line of what went wrong."""
    found = {place.job.name: place.read("error.json") for place in places(task)}
    return {name: str(error["error"]) for name, error in found.items() if error is not None}


# ---- where jobs run: each yields while they do ---------------------------------------------------


def _local(task: Task, jobs: int, resources: Mapping[str, Any]) -> Generator[None]:
    """Processes that go through the list by themselves; one that dies is replaced."""
    waiting = sum(place.state in ("waiting", "failed") for place in places(task))
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
    Path(task.folder).mkdir(parents=True, exist_ok=True)
    with open(Path(task.folder) / "workers.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "contrapose.experiments.worker", task.text()],
            stdin=subprocess.PIPE,  # closes with this process, which the worker notices
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches this process alone, which stops the others
            env=os.environ | limits | _gpu(number),
        )


def _gpu(number: int) -> dict[str, str]:
    """Where there are several GPUs, each worker sees one of them, in turn."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = range(torch.cuda.device_count()) if visible is None else visible.split(",")
    return {"CUDA_VISIBLE_DEVICES": str(gpus[number % len(gpus)])} if len(gpus) > 1 else {}


def _mourn(task: Task, pid: int, code: int) -> bool:
    """Note the job that a dead worker ran; whether there was one."""
    for place in places(task):
        at = place.read("running.json")
        if at is None or (at["pid"], at["host"]) != (pid, socket.gethostname()):
            continue
        if at["invocation"] != task.invocation or place.state == "finished":
            continue
        how = f"signal {-code} ({_signal_name(-code)})" if code < 0 else f"exit status {code}"
        words = f"its process ended by {how}"
        if code == -signal.SIGKILL:
            words += "; if nobody killed it, the machine ran out of memory: use fewer --jobs"
        with contextlib.suppress(HeldElsewhere), place.locked():
            fail(place, task.invocation, words, f"{words}\nsee {place.path / 'log.txt'}")
        return True
    return False


def _end(workers: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ask the workers to save and end; those that do not, or at a second Ctrl-C, are killed."""
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


def _slurm(
    task: Task, jobs: int, resources: Mapping[str, Any], cluster: str = "slurm"
) -> Generator[None]:
    """An array of Slurm jobs by submitit, `jobs` of them at a time; ends when they have."""
    submitit = _library("slurm")
    executor = submitit.AutoExecutor(folder=Path(task.folder) / "slurm", cluster=cluster)
    executor.update_parameters(name=Path(task.folder).name, cpus_per_task=task.threads)
    if cluster == "slurm":
        executor.update_parameters(slurm_array_parallelism=jobs)
    executor.update_parameters(**resources)
    names = [p.job.name for p in places(task) if p.state in ("waiting", "failed")]
    submitted = executor.map_array(_Requeued(), [replace(task, jobs=(n,)).text() for n in names])
    try:
        while not all(job.done() for job in submitted):
            time.sleep(POLL if cluster != "slurm" else 5.0)
            yield
    except (KeyboardInterrupt, GeneratorExit):
        for job in submitted:
            job.cancel()
        raise
    _note_lost(task, {n: j.exception() for n, j in zip(names, submitted, strict=True)})


class _Requeued:
    """A job that Slurm preempts is put in the queue again, and goes on in its folder."""

    def __call__(self, text: str) -> None:
        run_task(text)

    def checkpoint(self, text: str) -> Any:
        return _library("slurm").helpers.DelayedSubmission(self, text)


def _ray(task: Task, jobs: int, resources: Mapping[str, Any]) -> Generator[None]:
    """One Ray task for each job, on the cluster of RAY_ADDRESS or else on this machine."""
    ray = _library("ray")
    mine = not ray.is_initialized()
    if mine:
        ray.init(log_to_driver=False, include_dashboard=False)
    options = {"num_cpus": task.threads, "max_retries": 3} | dict(resources)
    remote = ray.remote(run_task).options(**options)
    names = [p.job.name for p in places(task) if p.state in ("waiting", "failed")]
    pending: dict[Any, str] = {}
    lost: dict[str, Exception | None] = {}
    try:
        while names or pending:
            while names and len(pending) < jobs:
                name = names.pop(0)
                pending[remote.remote(replace(task, jobs=(name,)).text())] = name
            ready, _ = ray.wait(list(pending), timeout=POLL)
            for done in ready:
                name = pending.pop(done)
                try:
                    ray.get(done)
                except Exception as error:  # Ray wraps whatever ended the task
                    lost[name] = error
            yield
    except (KeyboardInterrupt, GeneratorExit):
        for reference in pending:
            ray.cancel(reference)
        raise
    finally:
        if mine:
            ray.shutdown()
    _note_lost(task, lost)


def run_task(text: str) -> None:
    """What a process of Slurm or Ray runs."""
    from contrapose.experiments.worker import work

    work(Task.of(text))


_RUNNERS: dict[str, Callable[..., Generator[None]]] = {
    "local": _local,
    "slurm": _slurm,
    "ray": _ray,
}


def _note_lost(task: Task, lost: Mapping[str, Exception | None]) -> None:
    """Note jobs whose process the cluster lost before they could do so themselves."""
    for place in places(task):
        error = lost.get(place.job.name)
        if error is not None and place.state == "waiting":
            with contextlib.suppress(HeldElsewhere), place.locked():
                words = f"the cluster lost it: {str(error).strip().splitlines()[-1]}"
                fail(place, task.invocation, words, str(error))


def _library(on: str) -> Any:
    name = {"slurm": "submitit", "ray": "ray"}[on]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"--on {on} needs the library {name}: pip install 'contrapose[{on}]'"
        ) from error


def _refuse_changed(task: Task, redo: bool) -> None:
    """Results of another call are never taken for this one's."""
    changed = [place for place in places(task) if place.state == "changed"]
    if changed and not redo:
        first = changed[0]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ChangedCallError(
            f"{first.path} holds what another call made ({first.difference()}){more}; give another "
            "--out, or --redo to set such folders aside and run those jobs anew"
        )
    for place in changed:
        with contextlib.suppress(HeldElsewhere), place.locked():
            place.set_aside()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return "unknown"


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends an invocation as Ctrl-C does."""

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


def command(which: str, scale: str, seeds: int, jobs: int) -> str:
    """The command that makes the same again."""
    words = ["contrapose", "reproduce", which, "--scale", scale, "--seeds", str(seeds)]
    return shlex.join([*words, "--jobs", str(jobs)])
