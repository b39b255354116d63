"""`contrapose transfer`: a run's encoder on other sets of images, each by its own metric."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from contrapose.commands.console import console
from contrapose.commands.options import Device, RecipeAgain, RunFolder, names_of


def transfer(
    run: RunFolder,
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SET,...",
            help="Sets by name, or folders of your own; every known set at hand without it.",
        ),
    ] = None,
    how: Annotated[
        str, typer.Option(metavar="METHOD,...", help="linear, finetuned, scratch.")
    ] = "linear",
    protocol: Annotated[
        str, typer.Option(help="Of training: default, or simclr as published (days on a CPU).")
    ] = "default",
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Another run: a permutation test on each common set."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of held-out images and of training.")] = 0,
    device: Device = "auto",
    recipe: RecipeAgain = None,
) -> None:
    """Measure RUN's encoder on other sets: a linear classifier of h, or all of it fine-tuned.

    What is measured stays in RUN/transfer beside what was measured before. Stop it at any time: the
    same command goes on.
    """
    from contrapose import downstream
    from contrapose.commands.console import working
    from contrapose.downstream.transfer import read_transfer

    other = None if against is None else read_transfer(against)["sets"]
    with working("transferring"):
        found = downstream.transfer(
            run, [name for word in to or () for name in names_of(word)], methods=names_of(how),
            protocol=protocol, seed=seed, device=device, recipe=recipe,
        )  # fmt: skip
    print_transfer(found)
    if other is not None:
        print_against(found["sets"], other, str(against))
    typer.echo(f"Written: {run / 'transfer' / 'transfer.json'}")


def print_transfer(found: dict[str, Any]) -> None:
    """Print a row for each set, then how each was measured and what is not at hand."""
    table = Table(box=None, pad_edge=False)
    for name, justify in (("set", "left"), ("metric", "left"), ("n", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    methods = list(dict.fromkeys(r["method"] for e in found["sets"].values() for r in e["rows"]))
    for name in methods:
        table.add_column(name, justify="right")
    for name, entry in found["sets"].items():
        of = {row["method"]: row for row in entry["rows"]}
        cells = [cell(of[m]) if m in of else "" for m in methods]
        table.add_row(Text(name), entry["metric"], f"{entry['n']:,}", *cells)
    console.print(table)
    for name, entry in found["sets"].items():
        words = f"{name}: {entry['split']} (read: {entry['read']}); chosen on {entry['validation']}"
        console.print(Text(words))
        for note in entry["notes"]:
            console.print(Text(f"{name}: {note}"))
    if absent := found["absent"]:
        console.print(Text(f"Not at hand: {', '.join(absent)}"))


def cell(row: dict[str, Any]) -> str:
    """The value with its 95 % interval."""
    return f"{row['value']:.3f} ({row['low']:.3f}-{row['high']:.3f})"


def print_against(sets: dict[str, Any], others: dict[str, Any], name: str) -> None:
    """Print the difference to another run on each set that both have, with its p."""
    from contrapose import paired

    tested = 0
    for of, entry in sets.items():
        for row in entry["rows"]:
            found = None
            if of in others:
                found = paired.of_transfer(entry, others[of], row["method"])
            if found is None:
                continue
            tested += 1
            words = f"{of}, {row['method']}: {found.value:+.3f} ({found.low:+.3f} to "
            words += f"{found.high:+.3f}) over {name}, p = {found.p:.2g} by 100,000 exchanges"
            if entry["metric"] == "11-point mAP":
                words += ", of the share of labels told right"
            console.print(Text(words))
    if not tested:
        line = f"{name} has no set in common that was measured by the same method: transfer it too"
        console.print(Text(line))
