"""What the command line shows: progress, tables, the verdict; readable at 80 columns."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from contrapose.data import ImageSet
    from contrapose.evaluation.scores import Score
    from contrapose.training.loop import Progress as Step
    from contrapose.training.recipe import Recipe
    from contrapose.training.run import Run
    from contrapose.tuning import Recommendation

STYLES = {"good": "green", "warn": "yellow", "bad": "bold red", "info": "cyan"}
SHORT = {  # headings that leave room at 80 columns
    "linear_probe": "linear",
    "found_again": "found again",
    "uniformity": "uniformity",
    "tolerance": "tolerance",
    "effective_negatives": "negatives",
}
console = Console(highlight=False)


def print_images(images: "ImageSet") -> None:
    """What was opened, and what was left out of it."""
    classes = f", {len(images.classes)} classes" if images.classes else ", no labels"
    shape = f"{images.channels} x {images.size} x {images.size}"
    console.print(Text(f"{images.name}: {len(images):,} images {shape}{classes}"))
    for note, count in images.notes.items():
        console.print(Text(f"  {count:,} {note}"))
    for skipped in images.skipped[:5]:
        console.print(Text(f"  left out {skipped.path}: {skipped.reason}", style="yellow"))
    if len(images.skipped) > 5:
        console.print(f"  and {len(images.skipped) - 5} more; all are named in recipe.json")


class Watching:
    """A progress line of a training run, with the signals that matter most."""

    def __enter__(self) -> "Watching":
        self.bar = Progress(
            BarColumn(bar_width=16),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self.task = self.bar.add_task("", total=None)
        self.knn = ""
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def begin(self, run: "Run", recipe: "Recipe", images: "ImageSet") -> None:
        print_images(images)
        what = f"{recipe.name}: {recipe.epochs:g} epochs of batch {recipe.batch_size}"
        console.print(Text(f"{what} -> {run.path}"))
        held = run.read("recipe.json")["data"]["held_out"]
        if held:
            console.print(f"  {held:.0%} of the images are held out of training, for evaluation")
        self.bar.start()

    def step(self, at: "Step") -> None:
        row = at.row or {}
        if "knn" in row:
            self.knn = f"  kNN {row['knn']:.3f}"
        speed = f"{at.images_per_second:,.0f} images/s"
        text = f"epoch {at.epoch:.1f}  loss {at.loss:.3f}{self.knn}  {speed}"
        self.bar.update(self.task, completed=at.step, total=at.steps, description=text)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner while something takes seconds."""
    with Progress(SpinnerColumn(), TextColumn(what), console=console, transient=True) as bar:
        bar.add_task("")
        yield


def print_scores(scores: Sequence["Score"]) -> None:
    """Each number with its interval, n and protocol beside it."""
    if not scores:
        console.print("Fewer than two classes with labels, so no accuracy: see the diagnosis.")
        return
    table = Table(box=None, pad_edge=False)
    for name, justify in (("measured", "left"), ("value", "right"), ("95% interval", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("n", justify="right")
    for score in scores:
        interval = f"{score.low:.3f}-{score.high:.3f}"
        what = score.metric + ("" if score.features == "none" else f" on {score.features}")
        table.add_row(Text(what), f"{score.value:.3f}", interval, f"{score.n:,}")
    console.print(table)
    console.print(Text(f"split: {scores[0].split}, seed {scores[0].seed}; protocols in the report"))


def print_signals(signals: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("signal")
    table.add_column("value", justify="right")
    for name, value in signals.items():
        text = f"{value:,.3f}" if isinstance(value, float) else str(value)
        table.add_row(name.replace("_", " "), text)
    console.print(table)


def print_repulsion(rows: Sequence[dict[str, float]]) -> None:
    """How a temperature would share the repulsion of these embeddings among their negatives."""
    table = Table(box=None, pad_edge=False)
    for name in ("temperature", "effective negatives", "90% of repulsion above"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = (f"{row['effective_negatives']:,.1f}", f"similarity {row['from_similarity']:.2f}")
        table.add_row(f"{row['temperature']:.3g}", *cells)
    console.print(table)


def print_findings(findings: Sequence[dict[str, str]]) -> None:
    """The verdict in words: one line of sentence each, its state in front."""
    console.print(Text("Verdict", style="bold"))
    for finding in findings:
        mark = Text(f"  {finding['state']}: ", style=STYLES[finding["level"]])
        console.print(mark + Text(finding["sentence"]))


def print_recommendation(
    advice: "Recommendation | None", rows: Sequence[dict[str, Any]], errors: dict[str, str]
) -> None:
    """The means by temperature, the recommended one and what it rests on."""
    for name, error in errors.items():
        console.print(Text(f"failed: {name}: ", style="bold red") + Text(error), soft_wrap=True)
    if advice is None:
        console.print("Fewer than two temperatures were measured: nothing can be recommended.")
        return
    names = [n for n in SHORT if any(n in row for row in rows)]
    table = Table(box=None, pad_edge=False)
    for heading in ("temperature", *(SHORT[n] for n in names), "seeds"):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [f"{row[n]:.3g}" if n in row else "" for n in names]
        mark = " *" if row["temperature"] == advice.temperature else "  "
        table.add_row(f"{row['temperature']:g}{mark}", *cells, str(row["seeds"]))
    console.print(table)
    style = {"sure": "green", "fairly": "cyan", "cannot tell": "yellow"}[advice.sure]
    how = {"sure": "sure", "fairly": "fairly sure", "cannot tell": "cannot tell it from others"}
    words = Text(f"Recommended temperature: {advice.temperature:g}", style="bold")
    console.print(words + Text(f" ({how[advice.sure]})", style=style))
    for sentence in advice.sentences:
        console.print(Text(f"  {sentence}"))


def print_shortcuts(found: dict[str, Any]) -> None:
    """Each easy feature with its numbers, then what was found in words."""
    table = Table(box=None, pad_edge=False)
    table.add_column("easy feature", max_width=26)
    for name in ("found by it", "bits", "h R2", "untrained", "bits*", "h R2*"):
        table.add_column(name, justify="right")

    def number(score: dict[str, Any] | None, digits: int) -> str:
        value = math.nan if score is None or score["value"] is None else score["value"]
        return "-" if math.isnan(value) else f"{value:.{digits}f}"

    for row in found["candidates"]:
        table.add_row(
            Text(row["title"]), f"{row['found']['value']:.1%}", number(row["bits"], 1),
            number(row["h"], 2), number(row["untrained"], 2), number(row["bits_after"], 1),
            number(row["h_after"], 2),
        )  # fmt: skip
    console.print(table)
    n, most = found["compared"], found["at_most"]
    console.print(Text(f"{n:,} images, {most:.1f} bits name one; * with what is suggested"))
    for row in found["candidates"]:
        console.print(Text(f"  {row['state']}: ", style=STYLES[row["level"]]) + Text(row["title"]))
        if row["suggested"]:
            console.print(Text(f"    {row['sentence']} {row['instead']}"))
    again = found["duplicates"]
    console.print(
        Text(f"  {again['state']}: ", style=STYLES[again["level"]]) + Text(again["sentence"])
    )


def print_inventory() -> None:
    """Everything that a name on the command line can mean."""
    from contrapose import augment, encoders, experiments, keys, losses, recipes
    from contrapose.data import COMPOSED, NAMED
    from contrapose.partials import alike, public_functions
    from contrapose.training import batches, optim

    def section(title: str, rows: dict[str, str]) -> None:
        console.print(Text(title, style="bold"))
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=max(23, *(len(name) + 2 for name in rows)), no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for name, says in rows.items():
            table.add_row(Text(f"  {name}"), Text(says))
        console.print(table)

    def first_lines(functions: Sequence[Any]) -> dict[str, str]:
        return {f.__name__: (f.__doc__ or "").strip().partition("\n")[0] for f in functions}

    section("recipes (--recipe)", {name: recipes.summary(name) for name in recipes.names()})
    section("named sets (DATA)", {name: record.about for name, record in NAMED.items()})
    section(
        "composed sets (DATA, written as random-bits(mnist, bits=8))",
        dict(zip(COMPOSED, first_lines(list(COMPOSED.values())).values(), strict=True)),
    )
    section("encoders (--encoder)", first_lines(encoders.BACKBONES))
    section("heads (--set head=...)", first_lines(encoders.HEADS))
    usable, against_keys = alike(losses.nt_xent), alike(losses.info_nce)
    against_keys |= alike(losses.supcon_memory)
    section("losses (--set loss=...)", first_lines(list(usable.values())))
    section("keys from elsewhere (--set keys=...)", first_lines(list(alike(keys.bank).values())))
    section("losses with such keys (--set loss=...)", first_lines(list(against_keys.values())))
    usable |= against_keys
    others = [f for name, f in public_functions(losses).items() if name not in usable]
    section("losses of other inputs (in Python)", first_lines(others))
    section("batches (--set batches=...)", first_lines(list(alike(batches.conditional).values())))
    section("views (--set views=...)", first_lines(list(alike(augment.simclr).values())))
    section("optimisers (--set optimizer=...)", first_lines(optim.OPTIMISERS))
    section("schedules (--set schedule=...)", first_lines(optim.SCHEDULES))
    found = {name: experiments.experiment(name) for name in experiments.names()}
    described = {name: f"{e.title} ({', '.join(e.costs)})" for name, e in found.items()}
    section("experiments (contrapose reproduce)", described)
