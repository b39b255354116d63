"""`contrapose reproduce`: experiments of papers, their claims checked."""

from pathlib import Path
from typing import Annotated

import typer

from contrapose.commands.options import Resource


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="An experiment from --list, or your own Python file."),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Show each with its cost at each scale.")
    ] = False,
    scale: Annotated[
        str | None, typer.Option(help="smoke, cpu or paper; cpu, where there is one, without it.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds 0 to K-1.", metavar="K")] = 1,
    jobs: Annotated[
        int, typer.Option(help="Processes at a time, each with its share of the cores.")
    ] = 1,
    on: Annotated[str, typer.Option(help="local, slurm or ray.")] = "local",
    resource: Resource = None,
    out: Annotated[Path, typer.Option(help="Where the experiment's folder is made.")] = Path(
        "runs"
    ),
    redo: Annotated[
        bool, typer.Option("--redo", help="Run anew jobs whose definition changed since.")
    ] = False,
) -> None:
    """Reproduce a paper's figure or table: run what is missing, then say which claims hold.

    Stop it at any time: the same command goes on. Exit status 0: all is done, 1: a job failed,
    3: jobs are left to another process.
    """
    from contrapose.commands import jobs as shown

    if list_ or name is None:
        shown.print_experiments()
        return
    from contrapose.api import command_line

    status = shown.run(
        name, scale=scale, seeds=seeds, jobs=jobs, on=on, out=out, redo=redo,
        resources=resource or (), command=command_line(),
    )  # fmt: skip
    if status:
        raise typer.Exit(status)
