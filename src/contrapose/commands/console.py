"""Output of the command line: progress, tables and the verdict, for 80 columns."""

import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from contrapose.errors import printable
from contrapose.progress import duration, listening

if TYPE_CHECKING:
    from contrapose.data import ImageSet
    from contrapose.evaluation.scores import Score
    from contrapose.training.recipe import Recipe
    from contrapose.training.run import Run
    from contrapose.training.state import Progress as RunProgress

STYLES = {"good": "green", "warn": "yellow", "bad": "bold red", "info": "cyan"}
NOTICED = 2.0  # s after a step from which what else is being done is said
WAITING = 0.05  # share of the time spent waiting for images from which it is said
EVERY = 60.0  # s between two lines of progress, where the output is no terminal


class PlainConsole(Console):
    """A console on which no name acts: control characters in what is printed are shown as escapes,
    those of the console's own lines apart."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


console = PlainConsole(highlight=False)


def begun_from(start: dict[str, Any]) -> str:
    """`backbone, head of runs/a-1 (sha256 0123456789ab); classifier drawn anew`."""
    said = f"{', '.join(start['taken'])} of {start['source']} (sha256 {start['sha256'][:12]})"
    said += f"; {', '.join(start['drawn'])} drawn anew" if start["drawn"] else ""
    return said + (f"; {start['unused']} of its weights unused" if start["unused"] else "")


def print_images(images: "ImageSet") -> None:
    """Print which images were opened, and how many were left out."""
    classes = f", {len(images.classes)} classes" if images.classes else ", no labels"
    classes += ", several for each image" if images.labels is not None else ""
    shape = f"{images.channels} x {images.size} x {images.size}"
    console.print(Text(f"{images.name}: {len(images):,} images {shape}{classes}"))
    print_notes(images.notes, ())
    print_left_out(images)


def print_notes(notes: Mapping[str, int], left_out: Sequence[str]) -> None:
    """Print what was done to how many images, and the first of those that were left out."""
    for note, count in notes.items():
        console.print(Text(f"  {count:,} {note}"))
    for words in left_out[:5]:
        line = words.replace("\n", "\\n")  # in the name of a file
        console.print(Text(f"  left out {line}", style="yellow"), soft_wrap=True)
    if len(left_out) > 5:
        console.print(f"  and {len(left_out) - 5:,} more")


def print_left_out(*images: "ImageSet") -> None:
    """Print the first of the files that were left out of any of these images."""
    every = [f"{s.path}: {s.reason}" for some in images for s in some.skipped]
    print_notes({}, list(dict.fromkeys(every)))


@contextmanager
def a_line_a_minute(words: Callable[[], str]) -> Iterator[None]:
    """A context that prints `words()` every EVERY seconds if the output is not a terminal.

    A thread prints them, so that a log file shows progress during one long call.
    """
    if console.is_terminal:
        yield
        return
    over = threading.Event()

    def beat() -> None:
        while not over.wait(EVERY):
            with suppress(OSError, ValueError):  # nobody reads what is written any more
                console.print(Text(f"  {words()}"), soft_wrap=True)

    threading.Thread(target=beat, name="progress", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def one_line() -> TextColumn:
    """The column of a progress bar with the current activity, cut at the width of the terminal."""
    return TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis"))


@contextmanager
def working(what: str) -> Iterator[None]:
    """A context that shows an activity and its time: one changing line, or a line a minute."""
    begun, said = time.monotonic(), what
    clock = TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7))
    columns = (SpinnerColumn(), one_line(), clock)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what)

        def show(doing: str) -> None:
            nonlocal said
            said = f"{what}: {doing}" if doing else what
            bar.update(task, description=said)

        with a_line_a_minute(lambda: f"{said} ({duration(time.monotonic() - begun)} so far)"):
            with listening(show):
                yield


class TrainingProgress:
    """A progress line of a training run, with the signals that matter most.

    On a terminal it changes with every step; in a file there is one a minute.
    """

    run: "Run | None" = None  # once it is begun

    def __enter__(self) -> "TrainingProgress":
        self.bar = Progress(
            BarColumn(bar_width=16), one_line(), TimeRemainingColumn(compact=True), console=console
        )
        self.task = self.bar.add_task("", total=None)
        self.knn, self.words, self.left = "", "", ""
        self.opening, self.training = ExitStack(), ExitStack()
        self.opening.enter_context(working("preparing"))
        return self

    def __exit__(self, *_: object) -> None:
        self.opening.close()
        self.training.close()

    def begin(self, run: "Run", recipe: "Recipe", images: "ImageSet") -> None:
        self.opening.close()
        self.run = run
        print_images(images)
        console.print(Text(f"{recipe.name} -> {run.path}"), soft_wrap=True)
        written = run.read("recipe.json")
        print_choices(run, written.get("choices") or {})
        if not run.status():  # what goes on has taken some of it
            print_plan(written.get("plan"))
        if begun := written.get("start"):
            print_indented(f"starts from {begun_from(begun)}")
        if frozen := written["recipe"].get("freeze"):
            print_indented(f"frozen: {', '.join(frozen)}")
        held = written["data"].get("held_out")
        if held:
            console.print(f"  {held:.0%} of the images are held out of training, for evaluation")
        self.batch, self.words, self.left = recipe.batch_size, "the first step", ""
        self.stepped = time.monotonic()
        self.training.close()  # of an earlier training, where there are several
        self.training.enter_context(listening(self.show))
        self.training.enter_context(a_line_a_minute(lambda: f"{self.words}{self.left}"))
        if console.is_terminal:
            self.training.enter_context(self.bar)

    def show(self, doing: str) -> None:
        """What else takes time: an epoch's look at all images, the statistics at the end."""
        if doing and time.monotonic() - self.stepped > NOTICED:
            self.words, self.left = doing, ""
            self.bar.update(self.task, description=doing)

    def step(self, at: "RunProgress") -> None:
        row = at.row or {}
        if "knn" in row:
            self.knn = f"  kNN {row['knn']:.3f}"
        self.stepped = time.monotonic()
        speed = f"{at.images_per_second:,.{0 if at.images_per_second >= 10 else 1}f} images/s"
        text = f"epoch {at.epoch:.1f}  loss {at.loss:.3f}{self.knn}  {speed}"
        if at.waiting_share > WAITING:
            text += f"  {at.waiting_share:.0%} waiting"  # for images
        self.bar.update(self.task, completed=at.step, total=at.steps, description=text)
        left = (at.steps - at.step) * self.batch / max(at.images_per_second, 1e-9)
        self.words = f"step {at.step:,}/{at.steps:,}  {text}"
        self.left = f"  {duration(left)} left"
        if at.step == at.steps:
            if not console.is_terminal:
                console.print(Text(f"  {self.words}"), soft_wrap=True)
            self.words, self.left = "saving the run", ""


def print_choices(run: "Run", choices: dict[str, Any]) -> None:
    """What the run has and where it computes, each with its reason."""
    where = run.read("environment.json")
    where = (where.get("resumed") or [where])[-1]
    why = where.get("why", {})
    rows = choices | {
        "device": [where.get("device"), why.get("device", "")],
        "precision": [where.get("precision"), why.get("precision", "")],
    }
    if where.get("compile", "off") != "off" or str(why.get("compile")).startswith("measured"):
        rows["compile"] = [where.get("compile"), why.get("compile", "")]
    if "jpeg" in why:
        rows["jpeg"] = ["decoded", why["jpeg"]]
    table = Table.grid(padding=(0, 2))
    for name, row in rows.items():
        if isinstance(row, list):
            cells = (Text(str(cell)) for cell in row[:2])
            table.add_row(Text(f"  {name.replace('_size', '')}"), *cells)
    console.print(table)
    for sentence in (row for row in rows.values() if isinstance(row, str) and row):
        print_indented(sentence)


def print_plan(plan: dict[str, Any] | None) -> None:
    """What the run takes, and why it was made smaller than the recipe where it was."""
    if plan is None:
        return
    print_indented(f"it takes {plan['words']}")
    if plan["chosen"]:
        print_indented(
            f"chosen for this machine, since {plan['reason']}; for a GPU: {plan['otherwise']}",
            style="yellow",
        )


def print_indented(sentence: str, style: str = "") -> None:
    """A sentence whose further lines are indented by two more."""
    console.print(Text("\n".join(wrapped(sentence)), style=style), soft_wrap=True)


def wrapped(sentence: str) -> list[str]:
    """Its lines on the terminal: the first indented by two, the others by four."""
    return textwrap.wrap(
        sentence, max(40, console.width), initial_indent="  ", subsequent_indent="    ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def print_scores(scores: Sequence["Score"]) -> None:
    """Print each score with its interval, n and protocol."""
    if not scores:
        console.print("Fewer than two classes with labels, so no accuracy: see the diagnosis.")
        return
    table = Table(box=None, pad_edge=False)
    for name, justify in (("measured", "left"), ("value", "right"), ("95% interval", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("n", justify="right")
    for score in scores:
        interval = f"{score.low:.3f}-{score.high:.3f}"
        n = f"{score.n:,}" + (f" in {score.groups:,} groups" if score.groups else "")
        what = score.metric + ("" if score.features == "none" else f" on {score.features}")
        table.add_row(Text(what), f"{score.value:.3f}", interval, n)
    console.print(table)
    console.print(Text(f"split: {scores[0].split}, seed {scores[0].seed}; protocols in the report"))


def print_findings(findings: Sequence[dict[str, str]]) -> None:
    """Print the verdict: a paragraph for each finding, with its state first."""
    console.print(Text("Verdict", style="bold"))
    for finding in findings:
        mark = f"{finding['state']}: "
        lines = wrapped(mark + finding["sentence"])
        text = Text("\n".join(lines))
        text.stylize(STYLES[finding["level"]], 2, 2 + len(mark))
        console.print(text, soft_wrap=True)
