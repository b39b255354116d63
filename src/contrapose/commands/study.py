"""`contrapose study`: which recipe suits one's own images."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from contrapose.commands.console import console
from contrapose.commands.options import Data, Device, about_images, of_images

if TYPE_CHECKING:
    from contrapose.studies.findings import Advice


@about_images
def study(
    data: Data,
    minutes: Annotated[float, typer.Option(help="What it may take, about.")] = 30,
    recipe: Annotated[
        str, typer.Option(help="The default that is varied: a name, or your own file.")
    ] = "simclr",
    encoder: Annotated[
        str | None, typer.Option(help="Without it the recipe's, or a small one where that is slow.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time.")] = 1,
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option(help="The folder of the study; runs/study-DATA without it.")
    ] = None,
    *,
    how: dict[str, Any],
) -> None:
    """Find the views, the loss with its temperature, and the head that suit DATA; write a recipe.

    Short runs on some of the images, the worse ones dropped, the rest run longer. Without labels
    signals that need none are compared. Stop it at any time: the same command goes on.
    """
    from contrapose.api import command_line
    from contrapose.commands.console import print_notes, working
    from contrapose.commands.jobs import JobsProgress, print_verdicts
    from contrapose.studies import study as studying

    with working("measuring what a run takes"):
        file, plan = studying.prepared(
            data, out=out, minutes=minutes, recipe=recipe, encoder=encoder, device=device, **how
        )
    print_notes(plan.notes, plan.left_out)
    console.print(Text(f"Plan: {plan.words()}"))
    if plan.smaller:
        console.print(
            Text(f"  network {plan.network}, images of {plan.size} px: others take too long here")
        )
    with JobsProgress() as watching:
        advice, errors, page = studying.study(
            file, jobs=jobs, begin=watching.begin, watch=watching.step, command=command_line()
        )
    print_verdicts(page.with_name("experiment.json"))
    print_advice(advice, errors, file.parent)
    typer.echo(f"Report: {page}")
    if advice is not None:
        told = ["--recipe", str(file.with_name("recipe.py")), *of_images(how)]
        typer.echo(f"Train with it: contrapose train {shlex.join([data, *told])}")
    if errors or advice is None:
        raise typer.Exit(1)


def print_advice(advice: "Advice | None", errors: dict[str, str], folder: Path) -> None:
    """Print what a study recommends, and what failed."""
    for name, error in errors.items():
        console.print(Text(f"failed: {name}: ", style="bold red") + Text(error), soft_wrap=True)
    if advice is None:
        console.print("Too few runs finished: nothing can be recommended.")
        return
    style = {"sure": "green", "fairly": "cyan", "cannot tell": "yellow"}[advice.sure]
    console.print(Text("Recommended: ", style="bold") + Text(advice.sentence, style=style))
    for change in advice.changes:
        console.print(Text(f"  --set {change}"))
    typer.echo(f"Recipe: {folder / 'recipe.py'}")
