"""`contrapose show`: a contact sheet of images."""

from pathlib import Path
from typing import Annotated

import typer


def show(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Images, as for `train`.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("sheet.png"),
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    count: Annotated[int, typer.Option(help="Images on it.")] = 24,
    size: Annotated[int | None, typer.Option(help="Side in px to store images at.")] = None,
) -> None:
    """Draw a contact sheet of DATA: some images, with the labels of every feature they hold."""
    from contrapose.commands import console
    from contrapose.data import open_images
    from contrapose.data.composed import write_sheet

    images = open_images(data, split=split, size=size)
    console.print_images(images)
    typer.echo(f"Written: {write_sheet(images, out, count=count)}")
