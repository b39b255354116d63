"""Options that several commands share, and readers of comma-separated values."""

import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from contrapose.errors import RanksEnded, UserError

Number = TypeVar("Number", int, float)

RecipeAgain = Annotated[
    str | None, typer.Option("--recipe", help="Again, where the run's recipe was your own file.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
EmbeddingLabels = Annotated[
    Path | None, typer.Option("--labels", help="Labels of the rows: .npy or .csv.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Ranks = Annotated[
    int | None,
    typer.Option(min=1, help="Processes that share the work, started on this machine."),
]
Resource = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="For Slurm or Ray: timeout_min=600, num_gpus=0.5."),
]
Data = Annotated[str, typer.Argument(metavar="DATA", help="Images, as for `train`.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="As for `train`.")
]

OF_IMAGES: dict[str, Any] = {  # the options that say which images: fields of a `Request`
    "labels": Annotated[
        Path | None, typer.Option(help="Labels: .npy, or .csv with columns of files and labels.")
    ],
    "label_column": Annotated[
        str | None, typer.Option(help="Of a .csv or of Parquet that has several.")
    ],
    "image_column": Annotated[str | None, typer.Option(help="Of Parquet that has several.")],
    "groups": Annotated[
        str | None,
        typer.Option(
            metavar="FILE|PATTERN",
            help="What belongs together (patient, clip): a .csv of files and groups, or a pattern "
            "of file names with one part in parentheses: 'clip([0-9]+)_'.",
        ),
    ],
    "size": Annotated[int | None, typer.Option(help="Side in px to store images at.")],
    "value_range": Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW:HIGH",
            help="Values of black and white, where images have more than 8 bits: 0:4095; or one "
            "pair a channel: 0:4095,0:255.",
        ),
    ],
    "rgb": Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="Channels, from 0, that are red, green, blue: 3,2,1."),
    ],
    "max_pixels": Annotated[
        int | None, typer.Option(help="Most of an image that is decoded; 178,956,970 without it.")
    ],
    "max_bad_share": Annotated[
        float | None, typer.Option(help="Share of unreadable images to accept; 0.05 without it.")
    ],
    "fps": Annotated[
        float | None, typer.Option(help="Frames a second, of a folder of frames of video.")
    ],
    "download": Annotated[bool, typer.Option("--download", help="Fetch a named set.")],
}


def about_images(command: Callable[..., None]) -> Callable[..., None]:
    """A decorator that adds the options OF_IMAGES to a command, which receives them as `how`.

    So every command that opens images has the same flags.
    """
    own = inspect.signature(command)
    hints = {name: p.annotation for name, p in own.parameters.items() if name != "how"}
    defaults = {name: False if name == "download" else None for name in OF_IMAGES}
    parameters = [p for name, p in own.parameters.items() if name != "how"]
    parameters += [
        inspect.Parameter(
            name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=defaults[name], annotation=kind
        )
        for name, kind in OF_IMAGES.items()
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        how = {name: given.pop(name) for name in OF_IMAGES}
        command(**given, how={n: v for n, v in how.items() if v is not None and v is not False})

    del run.__wrapped__
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = hints | OF_IMAGES
    return run


def start_ranks(ranks: int | None) -> None:
    """Start this command, less --ranks, in so many processes, and end with their exit status.

    With none or one it does nothing: the command runs here.
    """
    if ranks is None or ranks == 1:
        return
    if "WORLD_SIZE" in os.environ:
        raise UserError(f"--ranks {ranks}: torchrun has started the processes; leave --ranks out")
    from contrapose.processes.launch import launch

    raise RanksEnded(launch(ranks, arguments_without("--ranks")))


def arguments_without(*flags: str) -> list[str]:
    """The arguments of this command, less these flags and their values."""
    kept, found = sys.argv[1:], list[str]()
    while kept:
        word = kept.pop(0)
        if word in flags:
            kept.pop(0)
        elif not word.startswith(tuple(f"{flag}=" for flag in flags)):
            found.append(word)
    return found


def others(data: str | None, how: dict[str, Any]) -> Any:
    """A `Request` for other images than a run's own, or None; UserError for flags without data."""
    from contrapose.data import Request

    if data is not None:
        return Request(data, **how)
    if how:
        raise UserError(
            f"{flag_of(next(iter(how)))} is for other images than the run's own: name them"
        )
    return None


def flag_of(name: str) -> str:
    """The flag of an option of OF_IMAGES: value_range -> --range."""
    return {"value_range": "--range"}.get(name, f"--{name.replace('_', '-')}")


def of_images(how: Mapping[str, Any]) -> list[str]:
    """The arguments that ask for these images again: `--size 64 --download`."""
    return [
        word
        for name, value in how.items()
        for word in (flag_of(name), *([] if value is True else [str(value)]))
    ]


def names_of(given: str | None) -> list[str]:
    """The list of names in `a,b`; empty if nothing was given."""
    return [name.strip() for name in (given or "").split(",") if name.strip()]


def numbers_of(
    given: str | None, flag: str, example: str, kind: Callable[[str], Number]
) -> list[Number]:
    """The numbers in `1,2`; UserError with the flag and an example if they are not of `kind`."""
    try:
        return [kind(text) for text in names_of(given)]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{flag} {given}: give {what}, such as {example}") from None


def resource_of(text: str) -> tuple[str, Any]:
    """(KEY, VALUE) of --resource KEY=VALUE, a number where it is one."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UserError(f"--resource {text}: write it as KEY=VALUE, such as timeout_min=600")
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        if math.isfinite(number):
            return name, number
    return name, value
