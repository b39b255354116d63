"""Options that several commands share, and readers of comma-separated values."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from contrapose.errors import UserError

Number = TypeVar("Number", int, float)

RecipeAgain = Annotated[
    str | None, typer.Option("--recipe", help="Again, where the run's recipe was your own file.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Labels = Annotated[
    Path | None, typer.Option(help="Labels of an array or embedding file: .npy/.csv.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Data = Annotated[str, typer.Argument(metavar="DATA", help="Images, as for `train`.")]
Size = Annotated[int | None, typer.Option(help="Side in px to store images at.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="As for `train`.")
]
Download = Annotated[bool, typer.Option("--download", help="Fetch a named set.")]
MaxBadShare = Annotated[
    float | None, typer.Option(help="Share of unreadable images to accept; 0.05 without it.")
]


def names_of(given: str | None) -> list[str]:
    """`a,b` as a list; nothing where nothing was given."""
    return [name.strip() for name in (given or "").split(",") if name.strip()]


def numbers_of(
    given: str | None, flag: str, example: str, kind: Callable[[str], Number]
) -> list[Number]:
    """`1,2` as numbers of that kind; UserError that repeats the flag and shows an example."""
    try:
        return [kind(text) for text in names_of(given)]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{flag} {given}: give {what}, such as {example}") from None
