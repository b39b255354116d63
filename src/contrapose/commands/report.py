"""`contrapose report`: one HTML file about a folder that contrapose wrote."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="One run, or several; or one experiment's folder."),
    ],
    out: Annotated[Path | None, typer.Option(help="The HTML file to write.")] = None,
) -> None:
    """Write one self-contained HTML file about RUN, or several side by side."""
    from contrapose.report import write_experiment, write_report

    if len(runs) == 1 and (runs[0] / "experiment.json").is_file():
        typer.echo(f"Report: {write_experiment(runs[0], out)}")
        return
    typer.echo(f"Report: {write_report(runs, out)}")
