"""`contrapose show`: a contact sheet of images."""

from pathlib import Path
from typing import Annotated, Any

import typer

from contrapose.commands.options import Data, about_images


@about_images
def show(
    data: Data,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("sheet.png"),
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    count: Annotated[int, typer.Option(help="Images on it.")] = 24,
    *,
    how: dict[str, Any],
) -> None:
    """Draw a contact sheet of DATA: some images, with the labels of every feature they hold."""
    from contrapose.commands import console
    from contrapose.data import Request
    from contrapose.data.composed import write_sheet

    images = Request(data, **how).open(split)
    console.print_images(images)
    typer.echo(f"Written: {write_sheet(images, out, count=count)}")
