"""Output about the jobs of an experiment: list, progress, verdicts and files."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.padding import Padding
from rich.progress import BarColumn, Progress
from rich.table import Table
from rich.text import Text

from contrapose import experiments
from contrapose.commands.console import STYLES, a_line_a_minute, console, one_line
from contrapose.commands.options import resource_of
from contrapose.experiments.form import Experiment
from contrapose.experiments.running.collect import collect
from contrapose.experiments.running.engine import Standing, errors, reproduce
from contrapose.experiments.running.task import Task, job_folders
from contrapose.progress import duration
from contrapose.report import read_experiment, write_experiment
from contrapose.report.experiment import claim as claim_of


class JobsProgress:
    """A line for each finished job, and a line of progress with the remaining time."""

    def __init__(self) -> None:
        self.told: set[str] = set()
        self.task: Task | None = None
        self.words = ""
        self.lines = ExitStack()

    def __enter__(self) -> "JobsProgress":
        self.bar = Progress(
            BarColumn(bar_width=16),
            one_line(),
            console=console,
            transient=True,
        )
        self.line = self.bar.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        self.lines.close()

    def begin(self, experiment: Experiment, task: Task, at: Standing) -> None:
        again, self.task = self.task is not None, task
        self.told = set(at.finished)
        if again:  # more jobs of the same experiment
            return
        cost = experiment.costs[task.scale]
        console.print(Text(f"{experiment.title} ({experiment.source})"))
        done = f", {len(at.finished)} of them done before" if at.finished else ""
        seeds = f"{len(task.seeds)} seed{'s' * (len(task.seeds) > 1)}"
        console.print(Text(f"scale {task.scale} ({cost}), {seeds}, {at.total} jobs{done}"))
        console.print(Text(f"-> {task.folder}"), soft_wrap=True)
        self.bar.start()
        self.lines.enter_context(a_line_a_minute(lambda: self.words))

    def step(self, at: Standing) -> None:
        assert self.task is not None
        for name in (*at.finished, *at.failed):
            if name not in self.told:
                self.told.add(name)
                console.print(self._said(name, name in at.failed), soft_wrap=True)
        names = sorted(at.running)
        doing = f"  {names[0]}" + (f" +{len(names) - 1}" if len(names) > 1 else "") if names else ""
        left = f"  {duration(at.seconds_left)} left" if at.seconds_left else ""
        failed = f", {len(at.failed)} failed" if at.failed else ""
        self.words = f"{len(at.finished)} of {at.total}{failed}{left}{doing}"
        done = len(at.finished) + len(at.failed) + sum(at.running.values())
        self.bar.update(self.line, completed=done, total=at.total, description=self.words)

    def _said(self, name: str, failed: bool) -> Text:
        assert self.task is not None
        folder = next(folder for folder in job_folders(self.task) if folder.job.name == name)
        if failed:
            error = (folder.read("error.json") or {}).get("error", "")
            return Text("  failed  ", style="bold red") + Text(f"{name}: {error}")
        seconds = (folder.read("result.json") or {}).get("seconds")
        return Text("  done    ", style="green") + Text(f"{name}  {duration(seconds or 0)}")


def run(
    which: str,
    *,
    scale: str | None,
    seeds: int,
    jobs: int,
    on: str,
    out: Path,
    redo: bool,
    resources: Sequence[str],
    command: str | None,
) -> int:
    """Run the missing jobs, write the report and print the verdicts; returns the exit status.

    0: every job is finished. 1: a job failed. 3: another process works on the remaining jobs.
    """
    with JobsProgress() as watching:
        task, at = reproduce(
            which, scale=scale, seeds=seeds, jobs=jobs, on=on, out=out, redo=redo,
            resources=dict(resource_of(text) for text in resources),
            begin=watching.begin, watch=watching.step,
        )  # fmt: skip
        watching.step(at)
    written = collect(task, command)
    page = write_experiment(written.parent)
    print_verdicts(written)
    for name, error in errors(task).items():
        console.print(Text(f"failed: {name}: ", style="bold red") + Text(error), soft_wrap=True)
        console.print(Text(f"  see {Path(task.folder) / name / 'error.json'}"), soft_wrap=True)
    if at.elsewhere:
        console.print(
            f"{at.elsewhere} jobs are held by another process; run this again when it has ended"
        )
    console.print(Text(f"Report: {page}"), soft_wrap=True)
    return 1 if at.failed else 3 if at.elsewhere else 0


def print_verdicts(written: Path) -> None:
    """Print each claim with its verdict and evidence."""
    for claim in map(claim_of, read_experiment(written.parent)["claims"]):
        console.print(
            Text(f"{claim.word.lower()}: ", style=STYLES[claim.level]) + Text(claim.sentence)
        )
        for line in claim.evidence.splitlines():
            console.print(Padding(Text(line, style="dim"), (0, 0, 0, 2)))


def print_experiments() -> None:
    """Print each experiment with its title and its cost at each scale."""
    for name in experiments.names():
        found = experiments.experiment(name)
        console.print(Text(name, style="bold") + Text(f"  {found.title}"))
        table = Table.grid(padding=(0, 2))
        for scale, cost in found.costs.items():
            table.add_row(Text(f"    {scale}"), Text(cost))
        console.print(Text(f"    {found.source}", style="dim"))
        console.print(Padding(Text(experiments.expectation(name)), (0, 0, 0, 4)))
        console.print(table)
