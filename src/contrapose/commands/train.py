"""`contrapose train`: an encoder from images, then its evaluation, diagnosis and report."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contrapose.commands.options import (
    Device,
    Ranks,
    Resource,
    about_images,
    arguments_without,
    flag_of,
    names_of,
    resource_of,
    start_ranks,
)
from contrapose.errors import Interrupted, UserError, check_one_process
from contrapose.partials import unknown

if TYPE_CHECKING:
    from contrapose.commands.console import TrainingProgress
    from contrapose.training.run import Run


@about_images
def train(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="A named set (`contrapose list`), a folder of images, of class subfolders or of "
            "Parquet or tar shards, 'a-{000..099}.tar', or an .npz/.npy file.",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A name from `contrapose list`, or your own Python file.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="resnet18, small_conv, timm:NAME ...")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Divides the similarities.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|FILE", help="Begin with the weights of a run or of a file, not drawn ones."
        ),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Begin with the published weights of --encoder.")
    ] = False,
    freeze: Annotated[
        str | None,
        typer.Option(
            metavar="PARTS", help="Parts that training leaves as they are: backbone, head ..."
        ),
    ] = None,
    device: Device = "auto",
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and views.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to make.")] = None,
    resume: Annotated[Path | None, typer.Option(help="A run folder to continue.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Anything else: --set head.layers=3"),
    ] = None,
    ranks: Ranks = None,
    on: Annotated[
        str, typer.Option(help="local, or slurm: a job that is queued again until it is done.")
    ] = "local",
    nodes: Annotated[int | None, typer.Option(min=1, help="Of a job on Slurm; 1.")] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="Of each node on Slurm, a rank for each; else --ranks a node."),
    ] = None,
    resource: Resource = None,
    compile_: Annotated[
        str | None,
        typer.Option("--compile", help="The encoder, by torch.compile: auto, on, off or graphs."),
    ] = None,
    explain: Annotated[bool, typer.Option(help="Evaluate, diagnose and report at the end.")] = True,
    *,
    how: dict[str, Any],
) -> None:
    """Train an encoder on DATA, then evaluate it, diagnose it and write its report.

    On many GPUs, or several machines: torchrun --nproc-per-node 8 -m contrapose train DATA ...
    On Slurm: contrapose train DATA ... --out RUN --on slurm --nodes 2 --gpus 8
    """
    flags = {
        "--encoder": encoder, "--batch-size": batch_size, "--temperature": temperature,
        "--seed": seed, "--out": out, "--set": set_ or None, "--start": start,
        "--pretrained": pretrained or None, "--freeze": freeze,
    }  # fmt: skip
    given = [name for name, value in flags.items() if value is not None]
    given += [flag_of(name) for name in how]
    if resume is not None and given:
        raise UserError(
            f"--resume {resume} keeps the recipe of that run but for --epochs; leave out "
            f"{', '.join(given)}, or start a new run with it"
        )
    if resume is None and data is None:
        raise UserError(
            "train: name the images, such as `contrapose train digits`, or --resume RUN"
        )
    if start is not None and pretrained:
        raise UserError(f"--start {start} and --pretrained: weights come from one place; give one")
    elsewhere = on != "local" or nodes or gpus or resource
    if not elsewhere:
        start_ranks(ranks)
    from contrapose import api
    from contrapose.commands.console import TrainingProgress
    from contrapose.processes import launched
    from contrapose.training.run import Run
    from contrapose.training.start import PUBLISHED

    asked: dict[str, Any] = {
        "recipe": recipe, "images": data, "epochs": epochs, "device": device,
        "precision": precision, "compiled": compile_,
    }  # fmt: skip
    if resume is None:
        asked |= {
            "recipe": recipe or "simclr", "out": out, "encoder": encoder, "batch_size": batch_size,
            "temperature": temperature, "seed": seed, "changes": set_ or (),
            "start": PUBLISHED if pretrained else start, "freeze": names_of(freeze),
            "precision": precision or "auto", "compiled": compile_ or "auto",
        }  # fmt: skip
    if elsewhere:
        if resume is None:
            check = partial(api.check, how=how, **asked)
        else:
            check = partial(api.check_resumed, resume, **asked)
        submit(on, out or resume, ranks, nodes, gpus, resource or (), check, device)
        return
    watching = TrainingProgress()
    with what_stands_is_said(watching, recipe), launched(device):
        with watching:
            if resume is not None:
                before = Run.open(resume).status()
                run = api.resume(resume, **asked, watch=watching.step, begin=watching.begin)
            else:
                run = api.train(
                    **asked, command=api.command_line(), watch=watching.step, begin=watching.begin,
                    **how,
                )  # fmt: skip
        if resume is not None and before.get("state") == "finished":
            if run.status().get("step") == before.get("step"):
                steps = before.get("step")
                typer.echo(
                    f"{run.path} is finished, {steps} steps: nothing left to do; for more give "
                    "--epochs N"
                )
        if explain:
            explain_run(run, device, recipe)
        else:
            typer.echo(f"Trained: {run.path}")


def submit(
    on: str,
    out: Path | None,
    ranks: int | None,
    nodes: int | None,
    gpus: int | None,
    resource: Sequence[str],
    check: Callable[..., None],
    device: str = "auto",
) -> None:
    """Submit this command to Slurm, and print where its run and its log are.

    check: a function (ranks=) that raises what the training would refuse; called before.
    device: `auto` with gpus becomes cuda, so that a node without them is refused, and not slow.
    """
    given = {"--nodes": nodes, "--gpus": gpus, "--resource": resource or None}
    flags = ", ".join(name for name, value in given.items() if value is not None)
    if on == "local":
        raise UserError(f"{flags}: of a job on Slurm; add --on slurm, or leave it out")
    if on != "slurm":
        raise UserError(f"--on {on}: there is no {unknown(on, ('local', 'slurm'))}")
    if gpus is not None and ranks is not None:
        raise UserError(f"--gpus {gpus} --ranks {ranks}: a rank for each GPU; leave --ranks out")
    if out is None:
        raise UserError("--on slurm: name the run with --out, in a folder that all nodes share")
    check_one_process("contrapose train --on slurm")
    from contrapose import slurm
    from contrapose.commands.console import working

    wanted = arguments_without("--on", "--nodes", "--gpus", "--resource", "--ranks")
    if gpus and device == "auto":
        wanted += ["--device", "cuda"]
    nodes, per_node = nodes or 1, gpus or ranks or 1
    resources = dict(resource_of(text) for text in resource)
    jobs = slurm.executor_of(
        out, nodes=nodes, per_node=per_node, gpus=gpus or 0, resources=resources
    )
    with working("trying the recipe on a few images"):
        check(ranks=nodes * per_node)
    job, log = slurm.submit(jobs, wanted, out)
    typer.echo(f"Submitted: job {job}, {nodes * per_node} ranks; it is queued again by itself")
    typer.echo(f"Run: {out}\nLog: {log}\nStop it, saved: scancel {job}")


@contextmanager
def what_stands_is_said(watching: "TrainingProgress", recipe: str | None = None) -> Iterator[None]:
    """A context in which Ctrl-C or SIGTERM, after training, prints that the run is saved and how to
    continue."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        run = watching.run
        if run is None or run.status().get("state") != "finished":
            raise
        from contrapose.training.loop import trained

        raise Interrupted(trained(run) + (f" --recipe {recipe}" if recipe else "")) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def explain_run(run: "Run", device: str, recipe: str | None) -> None:
    """Evaluate and diagnose a trained run, and write its report; ranks share the work."""
    from contrapose import explain
    from contrapose.commands.console import print_findings, print_scores, working
    from contrapose.processes import rank_in_force
    from contrapose.report import write_report

    with working("opening the images again"):
        subject = explain.Subject.open(run, device=device, recipe=recipe)
    with working("evaluating"):
        scores = explain.evaluate(subject)
    print_scores(scores)
    with working("diagnosing"):
        found = explain.diagnose(subject)
    print_findings(found["verdict"])
    with working("writing the report"):
        page = rank_in_force().first_does(lambda: write_report([run.path]))
    typer.echo(f"Report: {page}")
