"""`contrapose align`: two videos matched in time by a run's embedding."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from contrapose.commands.console import console, print_notes
from contrapose.commands.options import Device, RecipeAgain, RunFolder


def align(
    run: RunFolder,
    video: Annotated[str, typer.Argument(help="A video file, or a folder of frames.")],
    other: Annotated[
        str | None, typer.Argument(help="Another one; without it VIDEO mirrored and darker.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second, of folders of frames.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="In ms, of a match that is right.")] = 200.0,
    device: Device = "auto",
    recipe: RecipeAgain = None,
    out: Annotated[Path | None, typer.Option(help="The page to write, in RUN without it.")] = None,
) -> None:
    """Match the frames of VIDEO with those of OTHER in time, by the embedding of RUN.

    Two recordings of one action, each from its start to its end, or a clip and its altered copy.
    """
    from contrapose import downstream
    from contrapose.api import command_line
    from contrapose.commands.console import working
    from contrapose.data import Request

    sources = [None if name is None else Request(name, fps=fps) for name in (video, other)]
    with working("aligning"):
        found, page = downstream.align(
            run, *sources, tolerance=tolerance, device=device, recipe=recipe, out=out,
            command=command_line(),
        )  # fmt: skip
    print_notes(found["notes"], found["left_out"])
    table = Table(box=None, pad_edge=False)
    for name in ("features", "error", "at random", "right", "at random"):
        table.add_column(name, justify="left" if name == "features" else "right")
    for words, a in found["by"].items():
        right = f"{a['within']:.1%} ({a['low']:.1%} to {a['high']:.1%})"
        cells = f"{a['error']:.1%}", f"{a['random']:.1%}", right, f"{a['random_within']:.1%}"
        table.add_row(Text(words), *cells)
    console.print(table)
    console.print(
        Text(
            f"error: share of the duration; right within {tolerance:g} ms; "
            f"n = {found['by']['z']['n']:,} frames of both, which are not independent"
        )
    )
    typer.echo(f"Page: {page}")
