"""`contrapose diagnose`: a run, or a matrix of embeddings, examined mostly without labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from contrapose.commands.console import console
from contrapose.commands.options import (
    Device,
    EmbeddingLabels,
    RecipeAgain,
)
from contrapose.errors import UserError


def diagnose(
    target: Annotated[Path, typer.Argument(metavar="RUN|EMBEDDINGS.npy", help="What to examine.")],
    labels: EmbeddingLabels = None,
    device: Device = "auto",
    recipe: RecipeAgain = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for an embedding's figures.")] = None,
) -> None:
    """Say in words what RUN, or any matrix of embeddings, has learned and has not."""
    from contrapose import explain
    from contrapose.commands.console import print_findings
    from contrapose.training.run import Run

    if target.suffix in (".npy", ".npz", ".parquet"):
        if recipe is not None:
            raise UserError(f"--recipe {recipe}: embeddings have none; leave it out")
        found = explain.diagnose_embeddings(target, labels, out)
    else:
        if labels is not None or out is not None:
            raise UserError(
                "--labels and --out are for embedding files: a run knows its labels, and keeps its "
                f"diagnosis in {target / 'diagnosis.json'}"
            )
        found = explain.diagnose(Run.open(target), device=device, recipe=recipe)
    print_signals(found["signals"])
    print_repulsion(found["repulsion"])
    print_duplicates(found.get("duplicates", []))
    print_findings(found["verdict"])


def print_signals(signals: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("signal")
    table.add_column("value", justify="right")
    for name, value in signals.items():
        text = f"{value:,.3f}" if isinstance(value, float) else str(value)
        table.add_row(name.replace("_", " "), text)
    console.print(table)


def print_duplicates(groups: Sequence[Sequence[str]]) -> None:
    """Which files hold the same image; the first of them."""
    for group in groups[:5]:
        console.print(Text(f"  the same image: {', '.join(group)}"))
    if len(groups) > 5:
        console.print(f"  and {len(groups) - 5} more such groups, named in diagnosis.json")


def print_repulsion(rows: Sequence[dict[str, float]]) -> None:
    """How a temperature would share the repulsion of these embeddings among their negatives."""
    table = Table(box=None, pad_edge=False)
    for name in ("temperature", "effective negatives", "90% of repulsion above"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = (f"{row['effective_negatives']:,.1f}", f"similarity {row['from_similarity']:.2f}")
        table.add_row(f"{row['temperature']:.3g}", *cells)
    console.print(table)
