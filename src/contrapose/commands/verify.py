"""`contrapose verify`: the losses on many ranks and precisions against float64."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from contrapose.commands.options import (
    Device,
    names_of,
)
from contrapose.errors import UserError


def verify(
    only: Annotated[str | None, typer.Option(metavar="LOSS,...", help="These losses.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="In under a minute.")] = False,
    json: Annotated[Path | None, typer.Option(help="A file for every number.")] = None,
    ranks: Annotated[int, typer.Option(min=1, max=3, help="Processes to start.")] = 3,
    device: Device = "auto",
    training: Annotated[
        bool, typer.Option("--training", help="Whole trainings, on 1 to 3 ranks, not the losses.")
    ] = False,
    data: Annotated[
        str, typer.Option(metavar="SET,...", help="With --training: what is trained on.")
    ] = "digits",
    epoch: Annotated[
        bool, typer.Option("--epoch", help="With --training: a whole epoch, not 10 steps.")
    ] = False,
    subset: Annotated[
        int | None, typer.Option(min=200, help="With --epoch: of so many images at most.")
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="fp64,fp32", help="With --training: float64, beside it others.")
    ] = "fp32,fp64",
) -> None:
    """Prove the losses: gradients on many ranks against one process in float64.

    On GPUs, or several machines: torchrun --nproc-per-node 8 -m contrapose verify
    With --training: each way of training on 2 and 3 ranks ends in the weights of one process.
    """
    if training:
        if quick and epoch:
            raise UserError("--quick --epoch: 3 steps or an epoch; give one of them")
        if subset is not None and not epoch:
            raise UserError(f"--subset {subset}: the images of a whole epoch; add --epoch")
        steps = None if epoch else 3 if quick else 10
        verify_trainings(
            names_of(only), names_of(data), names_of(precision), steps, subset, ranks, device, json
        )
        return
    if epoch or subset is not None:
        raise UserError("--epoch, --subset: of trainings; add --training")
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


def verify_trainings(
    only: Sequence[str],
    data: Sequence[str],
    precisions: Sequence[str],
    steps: int | None,
    subset: int | None,
    ranks: int,
    device: str,
    json: Path | None,
) -> None:
    """Train every case on 1 to `ranks` processes, and print the table of differences."""
    if ranks < 2:
        raise UserError(f"verify --training --ranks {ranks}: compares with one process; use 2 or 3")
    from contrapose.commands.verify_table import checking, print_laws
    from contrapose.verification.training import verify_training

    with checking() as watch:
        done = verify_training(
            only, data=data, precisions=precisions, ranks=ranks, steps=steps, subset=subset,
            device=device, out=json,
            watch=lambda law, done, of: watch(f"{law.data} {law.case} {law.precision}", done, of),
        )  # fmt: skip
    if done is None:  # this is not the first process of torchrun
        return
    print_laws(done)
    if json is not None:
        typer.echo(f"Written: {json}")
    if not all(law.passed for law in done):
        raise typer.Exit(1)
