"""`contrapose train`: an encoder from images, then its evaluation, diagnosis and report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contrapose.commands.options import Device, about_images, flag_of
from contrapose.errors import UserError

if TYPE_CHECKING:
    from contrapose.training.run import Run


@about_images
def train(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="A named set (`contrapose list`), a folder of images, of class subfolders or of "
            "Parquet shards, or an .npz/.npy file.",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A name from `contrapose list`, or your own Python file.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="resnet18, small_conv, timm:NAME ...")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Divides the similarities.")] = None,
    device: Device = "auto",
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and views.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to make.")] = None,
    resume: Annotated[Path | None, typer.Option(help="A run folder to continue.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Anything else: --set head.layers=3"),
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="torch.compile the backbone.")
    ] = False,
    explain: Annotated[bool, typer.Option(help="Evaluate, diagnose and report at the end.")] = True,
    *,
    how: dict[str, Any],
) -> None:
    """Train an encoder on DATA, then evaluate it, diagnose it and write its report."""
    flags = {
        "--encoder": encoder, "--epochs": epochs, "--batch-size": batch_size,
        "--temperature": temperature, "--seed": seed, "--out": out, "--set": set_ or None,
    }  # fmt: skip
    given = [name for name, value in flags.items() if value is not None]
    given += [flag_of(name) for name in how]
    if resume is not None and given:
        raise UserError(
            f"--resume {resume} keeps the recipe of that run; leave out {', '.join(given)}, or "
            "start a new run with it"
        )
    if resume is None and data is None:
        raise UserError(
            "train: name the images, such as `contrapose train digits`, or --resume RUN"
        )
    from contrapose import api
    from contrapose.commands.console import TrainingProgress
    from contrapose.training.run import Run

    with TrainingProgress() as watching:
        if resume is not None:
            before = Run.open(resume).status()
            run = api.resume(
                resume, recipe=recipe, images=data, device=device, precision=precision,
                compiled=compile_, watch=watching.step, begin=watching.begin,
            )  # fmt: skip
        else:
            run = api.train(
                recipe or "simclr", data, out=out, encoder=encoder, epochs=epochs,
                batch_size=batch_size, temperature=temperature, seed=seed, changes=set_ or (),
                device=device, precision=precision or "auto", compiled=compile_,
                command=api.command_line(), watch=watching.step, begin=watching.begin, **how,
            )  # fmt: skip
    if resume is not None and before.get("state") == "finished":
        if run.status().get("step") == before.get("step"):
            typer.echo(f"{run.path} is finished, {before.get('step')} steps: nothing left to do")
    if explain:
        explain_run(run, device, recipe)
    else:
        typer.echo(f"Trained: {run.path}")


def explain_run(run: "Run", device: str, recipe: str | None) -> None:
    from contrapose import explain
    from contrapose.commands.console import print_findings, print_scores, working
    from contrapose.report import write_report

    with working("evaluating"):
        subject = explain.Subject.open(run, device=device, recipe=recipe)
        scores = explain.evaluate(subject)
    print_scores(scores)
    with working("diagnosing"):
        found = explain.diagnose(subject)
    with working("writing the report"):
        page = write_report([run.path])
    print_findings(found["verdict"])
    typer.echo(f"Report: {page}")
