"""`contrapose demo`: a first result in two minutes."""

from pathlib import Path
from typing import Annotated

import typer

from contrapose.commands.train import explain_run, what_stands_is_said


def demo(
    out: Annotated[Path | None, typer.Option(help="The run folder to make.")] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the 1,438 training images.")] = 60,
) -> None:
    """A first result in two minutes: SimCLR on scikit-learn's digits, no network needed."""
    from contrapose import api
    from contrapose.commands.console import TrainingProgress

    watching = TrainingProgress()
    with what_stands_is_said(watching):
        with watching:
            run = api.train(
                "simclr", "digits", out=out, epochs=epochs, device="cpu",
                command=api.command_line(), watch=watching.step, begin=watching.begin,
            )  # fmt: skip
        explain_run(run, "cpu", None)
