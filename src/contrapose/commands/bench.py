"""`contrapose bench`: time and memory of the losses beside other libraries."""

from pathlib import Path
from typing import Annotated

import typer

from contrapose.commands.options import (
    Device,
    names_of,
    numbers_of,
)


def bench(
    only: Annotated[
        str | None,
        typer.Option(
            metavar="CASE,...",
            help="Of nt_xent, supcon, supcon_in, clip, info_nce, hard, uniformity, topk.",
        ),
    ] = None,
    sizes: Annotated[str | None, typer.Option(metavar="N,...", help="Rows, or keys.")] = None,
    repeats: Annotated[int, typer.Option(help="Times each is run, in turn.")] = 7,
    threads: Annotated[int | None, typer.Option(help="All cores without it.")] = None,
    device: Device = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="In under a minute.")] = False,
    large: Annotated[
        bool, typer.Option("--large", help="Also 2 x 32,768 rows; on CUDA 2 x 262,144.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="The folder to make; runs/bench-1 ...")] = None,
) -> None:
    """Measure time and memory of the losses beside plain torch and other libraries."""
    from contrapose.bench import bench
    from contrapose.commands.bench_table import measuring, print_case, print_end

    with measuring() as watch:
        record = bench(
            names_of(only), sizes=numbers_of(sizes, "--sizes", "512,2048", int), repeats=repeats,
            threads=threads, device=device, quick=quick, large=large, out=out, watch=watch,
            show=print_case,
        )  # fmt: skip
    print_end(record)
    if record.disagreements():
        raise typer.Exit(1)
