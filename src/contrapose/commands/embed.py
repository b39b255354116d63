"""`contrapose embed`: h and z of images as a file."""

from pathlib import Path
from typing import Annotated

import typer

from contrapose.commands.options import (
    Device,
    RecipeAgain,
    RunFolder,
)


def embed(
    run: RunFolder,
    data: Annotated[str, typer.Argument(metavar="DATA", help="Images, as for `train`.")],
    out: Annotated[Path, typer.Option(help="An .npz or .parquet file to write.")],
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    device: Device = "auto",
    recipe: RecipeAgain = None,
) -> None:
    """Write h and z of every image of DATA, with labels where there are any."""
    from contrapose import explain
    from contrapose.training.run import Run

    rows = explain.write_embeddings(
        Run.open(run), data, out, split=split, device=device, recipe=recipe
    )
    typer.echo(f"Written: {out} ({rows:,} images)")
