"""`contrapose evaluate`: the scores of a run with labels."""

from typing import Annotated, Any

import typer

from contrapose.commands.options import Device, RecipeAgain, RunFolder, about_images, others


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
    *,
    how: dict[str, Any],
) -> None:
    """Measure RUN with labels: nearest neighbours and linear probes, with intervals."""
    from contrapose import explain
    from contrapose.commands.console import print_scores, working
    from contrapose.training.run import Run

    opened = Run.open(run)
    with working("opening the images"):
        subject = explain.Subject.open(opened, others(data, how), device, recipe)
    with working("evaluating"):
        scores = explain.evaluate(subject, protocol=protocol)
    print_scores(scores)
    typer.echo(f"Written: {opened.path / subject.file('evaluation')}")
