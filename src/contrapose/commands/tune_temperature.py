"""`contrapose tune-temperature`: a search for the temperature on one's own images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from contrapose.commands.console import console
from contrapose.commands.options import Changes, Data, Device, about_images, numbers_of

if TYPE_CHECKING:
    from contrapose.studies.tuning import Recommendation

SHORT = {  # headings that leave room at 80 columns
    "linear_probe": "linear",
    "instance_retrieval": "retrieved",
    "uniformity": "uniformity",
    "tolerance": "tolerance",
    "effective_negatives": "negatives",
}


@about_images
def tune_temperature(
    data: Data,
    recipe: Annotated[str, typer.Option(help="A name, or your own Python file.")] = "simclr",
    encoder: Annotated[
        str | None, typer.Option(help="small_conv is quick where there is no GPU.")
    ] = None,
    temperatures: Annotated[
        str, typer.Option(metavar="T,...", help="The grid.")
    ] = "0.05,0.1,0.2,0.5,1",
    epochs: Annotated[float, typer.Option(help="Of each short run.")] = 20,
    images: Annotated[int, typer.Option(help="At most; a fifth of them is held out.")] = 5000,
    seeds: Annotated[int, typer.Option(help="Runs of each temperature: they show the noise.")] = 2,
    jobs: Annotated[int, typer.Option(help="Runs at a time.")] = 1,
    set_: Changes = None,
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option(help="The folder of the search; runs/tune-DATA without it.")
    ] = None,
    *,
    how: dict[str, Any],
) -> None:
    """Search for the temperature that suits DATA, by short runs; labels are not needed.

    Stop it at any time: the same command goes on.
    """
    from contrapose.api import command_line
    from contrapose.commands.jobs import JobsProgress
    from contrapose.studies import tuning

    file = tuning.prepared(
        data, out=out, recipe=recipe, encoder=encoder,
        temperatures=numbers_of(temperatures, "--temperatures", "0.05,0.1,0.5", float),
        epochs=epochs, images=images, changes=set_ or (), device=device, **how,
    )  # fmt: skip
    with JobsProgress() as watching:
        advice, rows, errors, page = tuning.search(
            file, seeds=seeds, jobs=jobs, begin=watching.begin, watch=watching.step,
            command=command_line(),
        )  # fmt: skip
    print_recommendation(advice, rows, errors)
    typer.echo(f"Report: {page}")
    if errors or advice is None:
        raise typer.Exit(1)


def print_recommendation(
    advice: "Recommendation | None", rows: Sequence[dict[str, Any]], errors: dict[str, str]
) -> None:
    """Print the means by temperature, the recommendation and its reasons."""
    for name, error in errors.items():
        console.print(Text(f"failed: {name}: ", style="bold red") + Text(error), soft_wrap=True)
    if advice is None:
        console.print("Fewer than two temperatures were measured: nothing can be recommended.")
        return
    names = [n for n in SHORT if any(n in row for row in rows)]
    table = Table(box=None, pad_edge=False)
    for heading in ("temperature", *(SHORT[n] for n in names), "seeds"):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [f"{row[n]:.3g}" if n in row else "" for n in names]
        mark = " *" if row["temperature"] == advice.temperature else "  "
        table.add_row(f"{row['temperature']:g}{mark}", *cells, str(row["seeds"]))
    console.print(table)
    style = {"sure": "green", "fairly": "cyan", "cannot tell": "yellow"}[advice.sure]
    how = {"sure": "sure", "fairly": "fairly sure", "cannot tell": "cannot tell it from others"}
    words = Text(f"Recommended temperature: {advice.temperature:g}", style="bold")
    console.print(words + Text(f" ({how[advice.sure]})", style=style))
    for sentence in advice.sentences:
        console.print(Text(f"  {sentence}"))
