"""`contrapose show`: a contact sheet of images, or what the views of a recipe are of."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contrapose.commands.options import Changes, Data, about_images
from contrapose.errors import UserError

if TYPE_CHECKING:
    from contrapose.evaluation.crops import Crops


@about_images
def show(
    data: Data,
    out: Annotated[
        Path | None, typer.Option(help="The PNG to write, sheet.png; with a recipe views.html.")
    ] = None,
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    count: Annotated[int, typer.Option(help="Images on the sheet.")] = 24,
    recipe: Annotated[
        str | None,
        typer.Option(help="Whose views to draw: crops as boxes, colours as histograms; a page."),
    ] = None,
    set_: Changes = None,
    *,
    how: dict[str, Any],
) -> None:
    """Draw a contact sheet of DATA: some images, with the labels of every feature they hold.

    With --recipe, what its views are of: which pairs of crops, and what their colours tell.
    """
    from contrapose.api import command_line
    from contrapose.commands import console
    from contrapose.data import Request
    from contrapose.data.composed import write_sheet

    if set_ and recipe is None:
        raise UserError(f"--set {set_[0]} is of a recipe: add --recipe simclr")
    images = Request(data, **how).open(split)
    console.print_images(images)
    if recipe is not None:
        from contrapose.studies import views

        found, page = views.examine(
            images, recipe=recipe, changes=set_ or (), out=out or Path("views.html"),
            command=command_line(),
        )  # fmt: skip
        print_crops(found)
        typer.echo(f"Written: {page}")
        return
    typer.echo(f"Written: {write_sheet(images, out or Path('sheet.png'), count=count)}")


def print_crops(found: "Crops") -> None:
    """Print the shares of pairs of crops, and how often colours find a crop's image."""
    for kind, (value, low, high) in found.share.items():
        typer.echo(f"{kind} pairs of crops: {value:.1%} ({low:.1%} to {high:.1%})")
    typer.echo(f"n = {found.pairs:,} pairs; a crop covers {found.area:.0%} of the image")
    for words, by in (("crops alone", found.undistorted), ("views", found.seen)):
        s = by.score
        typer.echo(
            f"image found by the histogram of {words}: {s.value:.1%} ({s.low:.1%} to "
            f"{s.high:.1%}), chance {by.chance:.2%}"
        )
