"""`contrapose verify`: the losses on many ranks and precisions against float64."""

from pathlib import Path
from typing import Annotated

import typer

from contrapose.commands.options import (
    Device,
    names_of,
)


def verify(
    only: Annotated[str | None, typer.Option(metavar="LOSS,...", help="These losses.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="In under a minute.")] = False,
    json: Annotated[Path | None, typer.Option(help="A file for every number.")] = None,
    ranks: Annotated[int, typer.Option(min=1, max=3, help="Processes to start.")] = 3,
    device: Device = "auto",
) -> None:
    """Prove the losses: gradients on many ranks against one process in float64.

    On GPUs, or several machines: torchrun --nproc-per-node 8 -m contrapose verify
    """
    from contrapose import verification
    from contrapose.commands.verify_table import checking, print_record

    with checking() as watch:
        record = verification.verify(
            names_of(only), quick=quick, ranks=ranks, device=device, out=json, watch=watch
        )
    if record is None:  # this is not the first process of torchrun
        return
    print_record(record)
    if json is not None:
        typer.echo(f"Written: {json}")
    if not record.passed:
        raise typer.Exit(1)
