"""`contrapose shortcuts`: easy features that the views of a set share."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from contrapose.commands.console import STYLES, console
from contrapose.commands.options import Changes, Device, about_images


@about_images
def shortcuts(
    data: Annotated[
        str, typer.Argument(metavar="DATA|RUN", help="Images, as for `train`; or a run folder.")
    ],
    recipe: Annotated[str, typer.Option(help="A name, or your own Python file.")] = "simclr",
    encoder: Annotated[str, typer.Option(help="Of the brief training.")] = "small_conv",
    steps: Annotated[int, typer.Option(help="Of the brief training.")] = 200,
    images: Annotated[int, typer.Option(help="At most.")] = 5000,
    set_: Changes = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of weights, order and views.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The folder to make; runs/shortcuts-DATA without it.")
    ] = None,
    *,
    how: dict[str, Any],
) -> None:
    """Say which easy features the views of DATA share, and which augmentation removes each.

    Colours, grey levels, position, border, sharpness, constant channels, duplicates. Trains twice,
    briefly. Stop it at any time: the same command goes on.
    """
    from contrapose.api import command_line
    from contrapose.commands.console import TrainingProgress
    from contrapose.studies import shortcuts as looking

    with TrainingProgress() as watching:
        found, page = looking.examine(
            data, recipe=recipe, encoder=encoder, steps=steps, images=images,
            changes=set_ or (), device=device, seed=seed, out=out, command=command_line(),
            watch=watching.step, begin=watching.begin, **how,
        )  # fmt: skip
    print_shortcuts(found)
    typer.echo(f"Report: {page}")


def print_shortcuts(found: dict[str, Any]) -> None:
    """Print each easy feature with its numbers, then the findings in words."""
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
    for pair in again["files"][:5]:
        console.print(Text(f"    {' and '.join(pair)}"))
