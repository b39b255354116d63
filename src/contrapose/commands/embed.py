"""`contrapose embed`: h and z of images as a file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from contrapose.commands.options import (
    Data,
    Device,
    Ranks,
    RecipeAgain,
    RunFolder,
    about_images,
    others,
    start_ranks,
)


@about_images
def embed(
    run: RunFolder,
    data: Data,
    out: Annotated[Path, typer.Option(help="An .npz or .parquet file to write.")],
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    device: Device = "auto",
    recipe: RecipeAgain = None,
    ranks: Ranks = None,
    *,
    how: dict[str, Any],
) -> None:
    """Write h and z of every image of DATA, with its file, and its label where there is one.

    On many GPUs, or several machines: torchrun --nproc-per-node 8 -m contrapose embed RUN DATA ...
    """
    start_ranks(ranks)
    from contrapose import explain
    from contrapose.commands.console import print_images, working
    from contrapose.training.run import Run

    with working("embedding"):
        images = explain.write_embeddings(
            Run.open(run), others(data, how), out, split=split, device=device, recipe=recipe
        )
    print_images(images)
    typer.echo(f"Written: {out} ({len(images):,} images)")
