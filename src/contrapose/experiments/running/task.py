"""A task: the jobs of an experiment to run, as text for other processes, and their folders."""

import functools
import json
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contrapose.errors import UserError
from contrapose.experiments import experiment as find
from contrapose.experiments.form import SCALES
from contrapose.experiments.running.folders import (
    JobFolder,
    described,
)
from contrapose.machine import cores
from contrapose.partials import unknown

PATIENCE = 120.0  # s that a stopped job has to save its state
POLL = 0.3  # s between two looks at what runs
STOPPED = 130  # exit status of a worker that was asked to end


@dataclass(frozen=True, kw_only=True)
class Task:
    """The jobs of an experiment to run, in values that can be written as text."""

    experiment: str  # a name, or the absolute path of a file
    scale: str
    seeds: tuple[int, ...]
    folder: str  # of the experiment; its jobs' folders are in it
    invocation: str
    threads: int
    jobs: tuple[str, ...] = ()  # names; none: all

    def text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> "Task":
        given: dict[str, Any] = json.loads(text)
        return cls(**given | {"seeds": tuple(given["seeds"]), "jobs": tuple(given["jobs"])})


@functools.lru_cache(maxsize=4)
def job_folders(task: Task) -> tuple[JobFolder, ...]:
    """The jobs of the task in their folders; UserError for an experiment with two of one name."""
    experiment = find(task.experiment)
    made = experiment.jobs(task.scale, task.seeds)
    names = [job.name for job in made]
    if not names or len(set(names)) < len(names):
        twice = next((name for name in names if names.count(name) > 1), None)
        what = "no jobs" if twice is None else f"two jobs named {twice!r}"
        raise UserError(f"experiment {experiment.name} has {what} at scale {task.scale}")
    for job in made:
        described(job)
        if clash := sorted(job.facts.keys() & experiment.measures.keys()):
            raise UserError(
                f"experiment {experiment.name}: {', '.join(clash)} is a measure and a fact of job "
                f"{job.name}; give one of them another name"
            )
    return tuple(JobFolder(job, Path(task.folder) / job.name) for job in made)


def prepare(
    which: str, *, scale: str | None, seeds: int, jobs: int, out: Path, threads: int | None = None
) -> Task:
    """The task of a request; UserError that repeats the request and lists what there is."""
    experiment = find(which)
    if scale is None:
        scale = "cpu" if "cpu" in experiment.costs else next(iter(experiment.costs))
    if scale not in SCALES:
        raise UserError(f"--scale {scale}: there is no scale {unknown(scale, SCALES)}")
    if scale not in experiment.costs:
        raise UserError(
            f"--scale {scale}: experiment {which} has {', '.join(experiment.costs)} only"
        )
    for name, value in (("--seeds", seeds), ("--jobs", jobs)):
        if value < 1:
            raise UserError(f"{name} {value}: use 1 or more")
    task = Task(
        experiment=str(Path(which).resolve()) if which.endswith(".py") else which,
        scale=scale,
        seeds=tuple(range(seeds)),
        folder=str((Path(out) / f"{experiment.name}-{scale}").resolve()),
        invocation=uuid.uuid4().hex[:12],
        threads=threads or max(1, cores() // jobs),
    )
    job_folders(task)
    return task
