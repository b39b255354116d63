"""`contrapose finetune`: a run's encoder with few labels, beside what it is compared with."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from contrapose.commands.console import console
from contrapose.commands.options import (
    Device,
    RecipeAgain,
    RunFolder,
    about_images,
    names_of,
    others,
)


@about_images
def finetune(
    run: RunFolder,
    data: Annotated[str | None, typer.Argument(help="Other images than the run's own.")] = None,
    budgets: Annotated[
        str,
        typer.Option(
            metavar="1%,5-per-class",
            help="How many labels: shares, or so many of each class. --labels 1% says the same.",
        ),
    ] = "1%,10%,100%",
    draws: Annotated[int, typer.Option(help="Of the labels, for each number but all.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    protocol: Annotated[
        str, typer.Option(help="default, brief, or simclr as published.")
    ] = "default",
    device: Device = "auto",
    recipe: RecipeAgain = None,
    *,
    how: dict[str, Any],
) -> None:
    """Fine-tune RUN's encoder with few labels, beside the same network from scratch and a probe.

    Every training is a run in RUN/finetune. Stop it at any time: the same command goes on.
    """
    from contrapose import downstream
    from contrapose.commands.console import working

    budgets = how_many(how) or budgets
    with working("fine-tuning"):
        found = downstream.finetune(
            run, others(data, how), labels=names_of(budgets), draws=draws, seed=seed,
            protocol=protocol, device=device, recipe=recipe,
        )  # fmt: skip
    print_finetuning(found)
    last = max(found["rows"], key=lambda row: row["n"])["labels"]
    first = run / found["folder"] / f"{last}-draw{seed * draws}"
    typer.echo(f"Classifiers, each a run: {first}/finetuned ...")
    typer.echo(f"The curve as a page: contrapose report {shlex.quote(str(run))}")


def how_many(how: dict[str, Any]) -> str | None:
    """The budgets in `--labels 1%,5-per-class`, which is taken out of `how`; None for a file."""
    from contrapose.downstream.finetune import is_budget

    said = str(how.get("labels", ""))
    if not said or Path(said).exists() or not all(map(is_budget, names_of(said))):
        return None
    del how["labels"]
    return said


def print_finetuning(found: dict[str, Any]) -> None:
    """Print accuracy by number of labels and method, then what pretraining saves."""
    from contrapose.report.few_labels import measured_words, saved_words

    table = Table(box=None, pad_edge=False)
    for name, justify in (("labels", "left"), ("n", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    methods = list(dict.fromkeys(row["method"] for row in found["rows"]))
    for name in methods:
        table.add_column(name, justify="right")
    words = list(dict.fromkeys(row["labels"] for row in found["rows"]))
    for word in words:
        of = {row["method"]: row for row in found["rows"] if row["labels"] == word}
        cells = [f"{r['value']:.3f} ({r['low']:.3f}-{r['high']:.3f})" for r in of.values()]
        table.add_row(Text(word), f"{of[methods[0]]['n']:,}", *cells)
    console.print(table)
    console.print(Text(f"Test accuracy, {measured_words(found)}"))
    for name in methods:
        at = [(r["rate"], r["labels"]) for r in found["rows"] if r["method"] == name and r["rate"]]
        if at:
            told = ", ".join(f"{rate:g} with {words}" for rate, words in at)
            told = f"{at[0][0]:g}" if len({rate for rate, _ in at}) == 1 else told
            console.print(Text(f"Learning rate of {name}: {told}"))
    for row in found["saved"]:
        console.print(Text(saved_words(row)))
