"""`contrapose robustness`: a run's classifier under corruptions, its accuracy and calibration."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contrapose.commands.options import (
    Device,
    RecipeAgain,
    RunFolder,
    about_images,
    names_of,
    numbers_of,
    others,
)

if TYPE_CHECKING:
    from contrapose.evaluation.robustness import Robustness


@about_images
def robustness(
    run: RunFolder,
    data: Annotated[str | None, typer.Argument(help="Other images than the run's own.")] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Corruptions, as fog,snow; `all` for 19. By default the 15 of ImageNet-C.",
        ),
    ] = None,
    severity: Annotated[
        str, typer.Option(metavar="N,...", help="Severities, from 1 (weakest) to 5.")
    ] = "1,2,3,4,5",
    published: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="CIFAR-10-C or ImageNet-C as published, to read."),
    ] = None,
    bins: Annotated[int, typer.Option(help="Of the calibration error.")] = 15,
    seed: Annotated[int, typer.Option(help="Of what corruptions draw.")] = 0,
    device: Device = "auto",
    recipe: RecipeAgain = None,
    *,
    how: dict[str, Any],
) -> None:
    """Measure RUN's classifier on corrupted images: accuracy, calibration, temperature scaling."""
    from contrapose import explain
    from contrapose.commands.console import print_left_out, working
    from contrapose.files import check_writable
    from contrapose.training.run import Run

    opened = Run.open(run)
    check_writable(opened.path)
    with working("opening the images"):
        subject = explain.Subject.open(opened, others(data, how), device, recipe)
    print_left_out(subject.train, subject.test)
    with working("corrupting"):
        found = explain.robustness(
            subject,
            corruptions=None if only is None else names_of(only),
            severities=numbers_of(severity, "--severity", "1,3,5", int),
            at=published, bins=bins, seed=seed,
        )  # fmt: skip
    print_robustness(found)
    typer.echo(f"Written: {opened.path / subject.file('robustness')}")


def print_robustness(found: "Robustness") -> None:
    """By severity and by corruption, each with accuracy and calibration before and after."""
    from rich.table import Table
    from rich.text import Text

    from contrapose.commands.console import console
    from contrapose.evaluation.corruptions import BENCHMARK
    from contrapose.evaluation.robustness import complete, mce

    def table(first: str, rows: dict[str, dict[str, float]]) -> None:
        made = Table(box=None, pad_edge=False)
        made.add_column(first)
        for name in ("accuracy", "ECE", "ECE after scaling"):
            made.add_column(name, justify="right")
        for name, row in rows.items():
            made.add_row(name, *(f"{row[key]:.3f}" for key in row))
        console.print(made)

    def named(severity: int) -> str:
        return "clean" if severity == 0 else str(severity)

    table("severity", {named(s): row for s, row in found.by_severity().items()})
    table("corruption", found.by_corruption())
    before = found.clean.before
    lines = [
        f"n = {before.n:,}, {before.bins} bins; ECE of clean images {before.ece:.3f} "
        f"(95% {before.low:.3f}-{before.high:.3f}); temperature {found.temperature:.3f}; "
        f"images {found.source}, seed {found.seed}"
    ]
    errors = found.errors()
    if set(errors) & set(BENCHMARK):
        lines.append(f"mean error under corruption {found.mean_error():.3f}")
    if complete(errors):
        lines.append(
            f"mCE {mce(errors):.1f} (divided by AlexNet's errors on ImageNet-C: of other images "
            "compare it among runs alone). Relative mCE is left out: AlexNet's error on clean "
            "images was found in no source"
        )
    lines += found.notes
    for line in lines:
        console.print(Text(line))
