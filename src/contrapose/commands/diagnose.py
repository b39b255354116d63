"""`contrapose diagnose`: the diagnosis of a run or of a matrix of embeddings."""

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
    Ranks,
    RecipeAgain,
    start_ranks,
)
from contrapose.errors import UserError, check_one_process


def diagnose(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|EMBEDDINGS",
            help="A run folder, or embeddings [N x D] as .npy, .npz, .csv, .tsv or .parquet.",
        ),
    ],
    labels: EmbeddingLabels = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The array or column of the embeddings in their file."),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="That of their labels, or `none`."),
    ] = None,
    device: Device = "auto",
    recipe: RecipeAgain = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for an embedding's figures.")] = None,
    ranks: Ranks = None,
) -> None:
    """Say in words what RUN, or any matrix of embeddings, has learned and has not."""
    a_file = target.is_file() or (not target.exists() and bool(target.suffix))
    if a_file and ranks is not None and ranks > 1:
        raise UserError(f"--ranks {ranks}: a file of embeddings is one process's; leave it out")
    if a_file:
        check_one_process(f"contrapose diagnose {target}")
    start_ranks(ranks)
    from contrapose import explain
    from contrapose.commands.console import print_findings, working

    if a_file:
        if recipe is not None:
            raise UserError(f"--recipe {recipe}: embeddings have none; leave it out")
        with working("diagnosing"):
            found = explain.diagnose_embeddings(
                target, labels, out, key=key, label_key=label_column
            )
        print_taken(found["file"])
    else:
        flags = {
            "--labels": labels, "--out": out, "--key": key, "--label-column": label_column
        }  # fmt: skip
        if given := [flag for flag, value in flags.items() if value is not None]:
            raise UserError(
                f"{', '.join(given)}: for files of embeddings; a run knows its labels, and keeps "
                f"its diagnosis in {target / 'diagnosis.json'}"
            )
        with working("diagnosing"):
            found = explain.diagnose(target, device=device, recipe=recipe)
    print_signals(found["signals"])
    print_repulsion(found["repulsion"])
    print_duplicates(found.get("duplicates", []))
    print_findings(found["verdict"])


def print_taken(file: dict[str, Any]) -> None:
    """Print which arrays or columns of a file were examined, if there are others."""
    left = ", ".join(file["left"])
    others = f", not {left} (--key NAME chooses)" if left else ""
    console.print(f"embeddings: {file['embeddings']}{others}", highlight=False, markup=False)
    labels = file.get("labels", "none (--label-column NAME or --labels FILE tells them)")
    console.print(f"labels: {labels}", highlight=False, markup=False)


def print_signals(signals: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("signal")
    table.add_column("value", justify="right")
    for name, value in signals.items():
        text = f"{value:,.3f}" if isinstance(value, float) else str(value)
        table.add_row(name.replace("_", " "), text)
    console.print(table)


def print_duplicates(groups: Sequence[Sequence[str]]) -> None:
    """Print which files have the same image: the first few groups."""
    for group in groups[:5]:
        console.print(Text(f"  the same image: {', '.join(group)}"))
    if len(groups) > 5:
        console.print(f"  and {len(groups) - 5} more such groups, named in diagnosis.json")


def print_repulsion(rows: Sequence[dict[str, float]]) -> None:
    """Print how each temperature would distribute the repulsion over negatives."""
    table = Table(box=None, pad_edge=False)
    for name in ("temperature", "effective negatives", "90% of repulsion above"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = (f"{row['effective_negatives']:,.1f}", f"similarity {row['from_similarity']:.2f}")
        table.add_row(f"{row['temperature']:.3g}", *cells)
    console.print(table)
