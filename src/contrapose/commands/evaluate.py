"""`contrapose evaluate`: the scores of a run with labels."""

from typing import Annotated, Any

import typer

from contrapose.commands.options import (
    Device,
    Ranks,
    RecipeAgain,
    RunFolder,
    about_images,
    others,
    start_ranks,
)


@about_images
def evaluate(
    run: RunFolder,
    data: Annotated[str | None, typer.Argument(help="Other images than the run's own.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Also a linear probe by SGD: simclr, simclr_cifar, supcon, moco, wang_liu."
        ),
    ] = None,
    device: Device = "auto",
    recipe: RecipeAgain = None,
    ranks: Ranks = None,
    *,
    how: dict[str, Any],
) -> None:
    """Measure RUN with labels: nearest neighbours and linear probes, with intervals.

    On many GPUs, or several machines: torchrun --nproc-per-node 8 -m contrapose evaluate RUN
    """
    start_ranks(ranks)
    from contrapose import explain
    from contrapose.commands.console import print_left_out, print_scores, working
    from contrapose.files import check_writable
    from contrapose.processes import launched

    check_writable(run)
    with launched(device):
        with working("opening the images"):
            subject = explain.Subject.open(run, others(data, how), device, recipe)
        print_left_out(subject.train, subject.test)
        with working("evaluating"):
            scores = explain.evaluate(subject, protocol=protocol)
    print_scores(scores)
    typer.echo(f"Written: {subject.run.path / subject.file('evaluation')}")
