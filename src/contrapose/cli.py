"""The command line. torch is imported by the command that needs it, so that help is quick."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from contrapose.training.run import Run

app = typer.Typer(
    name="contrapose",
    help="Contrastive learning: train an encoder from images, measure it, explain it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeAgain = Annotated[
    str | None, typer.Option("--recipe", help="Again, where the run's recipe was your own file.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Labels = Annotated[
    Path | None, typer.Option(help="Labels of an array or embedding file: .npy/.csv.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@app.command()
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
    labels: Labels = None,
    size: Annotated[int | None, typer.Option(help="Side in px to store images at.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch a named set.")] = False,
    max_bad_share: Annotated[
        float | None, typer.Option(help="Share of unreadable images to accept; 0.05 without it.")
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="torch.compile the backbone.")
    ] = False,
    explain: Annotated[bool, typer.Option(help="Evaluate, diagnose and report at the end.")] = True,
) -> None:
    """Train an encoder on DATA, then evaluate it, diagnose it and write its report."""
    flags = {
        "--encoder": encoder, "--epochs": epochs, "--batch-size": batch_size,
        "--temperature": temperature, "--seed": seed, "--out": out, "--set": set_ or None,
        "--labels": labels, "--size": size, "--download": download or None,
        "--max-bad-share": max_bad_share,
    }  # fmt: skip
    given = [name for name, value in flags.items() if value is not None]
    if resume is not None and given:
        raise ValueError(
            f"--resume {resume} keeps the recipe of that run; leave out {', '.join(given)}"
        )
    if resume is None and data is None:
        raise ValueError(
            "train: name the images, such as `contrapose train digits`, or --resume RUN"
        )
    from contrapose import api
    from contrapose.console import Watching

    with Watching() as watching:
        if resume is not None:
            run = api.resume(
                resume, recipe=recipe, images=data, device=device, precision=precision,
                compiled=compile_, watch=watching.step, begin=watching.begin,
            )  # fmt: skip
        else:
            run = api.train(
                recipe or "simclr", data, out=out, labels=labels, encoder=encoder, epochs=epochs,
                batch_size=batch_size, temperature=temperature, seed=seed, changes=set_ or (),
                device=device, precision=precision or "auto", compiled=compile_, size=size,
                download=download, max_bad_share=0.05 if max_bad_share is None else max_bad_share,
                command=api.command_line(), watch=watching.step,
                begin=watching.begin,
            )  # fmt: skip
    if explain:
        _explain(run, device, recipe)
    else:
        typer.echo(f"Trained: {run.path}")


@app.command()
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
) -> None:
    """Measure RUN with labels: nearest neighbours and linear probes, with intervals."""
    from contrapose import explain
    from contrapose.console import print_scores
    from contrapose.training.run import Run

    opened = Run.open(run)
    found = explain.evaluate(opened, data, protocol=protocol, device=device, recipe=recipe)
    print_scores(found)
    typer.echo(f"Written: {opened.path / 'evaluation.json'}")


@app.command()
def diagnose(
    target: Annotated[Path, typer.Argument(metavar="RUN|EMBEDDINGS.npy", help="What to examine.")],
    labels: Labels = None,
    device: Device = "auto",
    recipe: RecipeAgain = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for an embedding's figures.")] = None,
) -> None:
    """Say in words what RUN, or any matrix of embeddings, has learned and has not."""
    from contrapose import explain
    from contrapose.console import print_findings, print_repulsion, print_signals
    from contrapose.training.run import Run

    if target.suffix in (".npy", ".npz", ".parquet"):
        if recipe is not None:
            raise ValueError(f"--recipe {recipe}: embeddings have none; leave it out")
        found = explain.diagnose_embeddings(target, labels, out)
    else:
        if labels is not None or out is not None:
            raise ValueError(
                "--labels and --out are for embedding files: a run knows its labels, and keeps its "
                f"diagnosis in {target / 'diagnosis.json'}"
            )
        found = explain.diagnose(Run.open(target), device=device, recipe=recipe)
    print_signals(found["signals"])
    print_repulsion(found["repulsion"])
    print_findings(found["verdict"])


@app.command()
def embed(
    run: RunFolder,
    data: Annotated[str, typer.Argument(metavar="DATA", help="Images, as for `train`.")],
    out: Annotated[Path, typer.Option(help="An .npz or .parquet file to write.")],
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    device: Device = "auto",
    recipe: RecipeAgain = None,
) -> None:
    """Write h and z of every image of DATA, with labels where there are any."""
    from contrapose import explain
    from contrapose.training.run import Run

    rows = explain.write_embeddings(
        Run.open(run), data, out, split=split, device=device, recipe=recipe
    )
    typer.echo(f"Written: {out} ({rows:,} images)")


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="One run, or several; or one experiment's folder."),
    ],
    out: Annotated[Path | None, typer.Option(help="The HTML file to write.")] = None,
) -> None:
    """Write one self-contained HTML file about RUN, or several side by side."""
    from contrapose.report import write_experiment, write_report

    if len(runs) == 1 and (runs[0] / "experiment.json").is_file():
        typer.echo(f"Report: {write_experiment(runs[0], out)}")
        return
    typer.echo(f"Report: {write_report(runs, out)}")


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="The run folder to make.")] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the 1,438 training images.")] = 60,
) -> None:
    """A first result in two minutes: SimCLR on scikit-learn's digits, no network needed."""
    from contrapose import api
    from contrapose.console import Watching

    with Watching() as watching:
        run = api.train(
            "simclr", "digits", out=out, epochs=epochs, device="cpu", command=api.command_line(),
            watch=watching.step, begin=watching.begin,
        )  # fmt: skip
    _explain(run, "cpu", None)


@app.command()
def verify(
    only: Annotated[str | None, typer.Option(metavar="LOSS,...", help="These losses.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="In under a minute.")] = False,
    json: Annotated[Path | None, typer.Option(help="A file for every number.")] = None,
    ranks: Annotated[int, typer.Option(min=1, max=3, help="Processes to start.")] = 3,
    device: Device = "auto",
) -> None:
    """Prove the losses: gradients on many ranks against one process in float64.

    On GPUs, or several machines: torchrun --nproc-per-node 8 -m contrapose verify
    """
    from contrapose import verification
    from contrapose.verification.table import checking, print_record

    with checking() as watch:
        record = verification.verify(
            _names(only), quick=quick, ranks=ranks, device=device, out=json, watch=watch
        )
    if record is None:  # this is not the first process of torchrun
        return
    print_record(record)
    if json is not None:
        typer.echo(f"Written: {json}")
    if not record.passed:
        raise typer.Exit(1)


@app.command()
def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="An experiment from --list, or your own Python file."),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Show each with its cost at each scale.")
    ] = False,
    scale: Annotated[
        str | None, typer.Option(help="smoke, cpu or paper; cpu, where there is one, without it.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds 0 to K-1.", metavar="K")] = 1,
    jobs: Annotated[
        int, typer.Option(help="Processes at a time, each with its share of the cores.")
    ] = 1,
    on: Annotated[str, typer.Option(help="local, slurm or ray.")] = "local",
    resource: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="For Slurm or Ray: timeout_min=600, num_gpus=0.5."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the experiment's folder is made.")] = Path(
        "runs"
    ),
    redo: Annotated[
        bool, typer.Option("--redo", help="Run anew jobs whose definition changed since.")
    ] = False,
) -> None:
    """Reproduce a paper's figure or table: run what is missing, then say which claims hold.

    Stop it at any time: the same command goes on. Exit status 0: all is done, 1: a job failed,
    3: jobs are left to another process.
    """
    from contrapose import reproduce as reproducing

    if list_ or name is None:
        reproducing.print_experiments()
        return
    from contrapose.api import command_line

    status = reproducing.run(
        name, scale=scale, seeds=seeds, jobs=jobs, on=on, out=out, redo=redo,
        resources=resource or (), command=command_line(),
    )  # fmt: skip
    if status:
        raise typer.Exit(status)


@app.command(name="tune-temperature")
def tune_temperature(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Images, as for `train`.")],
    recipe: Annotated[str, typer.Option(help="A name, or your own Python file.")] = "simclr",
    encoder: Annotated[
        str | None, typer.Option(help="small_conv is quick where there is no GPU.")
    ] = None,
    temperatures: Annotated[
        str, typer.Option(metavar="T,...", help="The grid.")
    ] = "0.05,0.1,0.2,0.5,1",
    epochs: Annotated[float, typer.Option(help="Of each short run.")] = 20,
    images: Annotated[int, typer.Option(help="At most; a fifth of them is held out.")] = 5000,
    seeds: Annotated[int, typer.Option(help="Runs of each temperature: they show the noise.")] = 2,
    jobs: Annotated[int, typer.Option(help="Runs at a time.")] = 1,
    labels: Labels = None,
    size: Annotated[int | None, typer.Option(help="Side in px to store images at.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="As for `train`.")
    ] = None,
    device: Device = "auto",
    download: Annotated[bool, typer.Option("--download", help="Fetch a named set.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The folder of the search; runs/tune-DATA without it.")
    ] = None,
) -> None:
    """Search for the temperature that suits DATA, by short runs; labels are not needed.

    Stop it at any time: the same command goes on.
    """
    from contrapose import tuning
    from contrapose.api import command_line
    from contrapose.console import print_recommendation
    from contrapose.reproduce import Watching

    file = tuning.prepared(
        data, out=out, recipe=recipe, encoder=encoder, temperatures=_temperatures(temperatures),
        epochs=epochs, images=images, labels=labels, size=size, changes=set_ or (), device=device,
        download=download,
    )  # fmt: skip
    with Watching() as watching:
        advice, rows, errors, page = tuning.search(
            file, seeds=seeds, jobs=jobs, begin=watching.begin, watch=watching.step,
            command=command_line(),
        )  # fmt: skip
    print_recommendation(advice, rows, errors)
    typer.echo(f"Report: {page}")
    if errors or advice is None:
        raise typer.Exit(1)


@app.command()
def shortcuts(
    data: Annotated[
        str, typer.Argument(metavar="DATA|RUN", help="Images, as for `train`; or a run folder.")
    ],
    recipe: Annotated[str, typer.Option(help="A name, or your own Python file.")] = "simclr",
    encoder: Annotated[str, typer.Option(help="Of the brief training.")] = "small_conv",
    steps: Annotated[int, typer.Option(help="Of the brief training.")] = 200,
    images: Annotated[int, typer.Option(help="At most.")] = 5000,
    labels: Labels = None,
    size: Annotated[
        int | None, typer.Option(help="Side in px to store images at; at most 64 without it.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="As for `train`.")
    ] = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of weights, order and views.")] = 0,
    download: Annotated[bool, typer.Option("--download", help="Fetch a named set.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The folder to make; runs/shortcuts-DATA without it.")
    ] = None,
) -> None:
    """Say which easy features the views of DATA share, and which augmentation removes each.

    Colours, grey levels, position, border, sharpness, constant channels, duplicates. Trains twice,
    briefly. Stop it at any time: the same command goes on.
    """
    from contrapose import shortcuts as looking
    from contrapose.api import command_line
    from contrapose.console import Watching, print_shortcuts

    with Watching() as watching:
        found, page = looking.examine(
            data, recipe=recipe, encoder=encoder, steps=steps, images=images, labels=labels,
            size=size, changes=set_ or (), device=device, seed=seed, download=download, out=out,
            command=command_line(), watch=watching.step, begin=watching.begin,
        )  # fmt: skip
    print_shortcuts(found)
    typer.echo(f"Report: {page}")


@app.command()
def show(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Images, as for `train`.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("sheet.png"),
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    count: Annotated[int, typer.Option(help="Images on it.")] = 24,
    size: Annotated[int | None, typer.Option(help="Side in px to store images at.")] = None,
) -> None:
    """Draw a contact sheet of DATA: some images, with the labels of every feature they hold."""
    from contrapose import console
    from contrapose.data import open_images
    from contrapose.data.composed import write_sheet

    images = open_images(data, split=split, size=size)
    console.print_images(images)
    typer.echo(f"Written: {write_sheet(images, out, count=count)}")


@app.command()
def bench(
    only: Annotated[
        str | None,
        typer.Option(
            metavar="CASE,...",
            help="Of nt_xent, supcon, supcon_in, clip, info_nce, hard, uniformity, topk.",
        ),
    ] = None,
    sizes: Annotated[str | None, typer.Option(metavar="N,...", help="Rows, or keys.")] = None,
    repeats: Annotated[int, typer.Option(help="Times each is run, in turn.")] = 7,
    threads: Annotated[int | None, typer.Option(help="All cores without it.")] = None,
    device: Device = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="In under a minute.")] = False,
    large: Annotated[
        bool, typer.Option("--large", help="Also 2 x 32,768 rows; on CUDA 2 x 262,144.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="The folder to make; runs/bench-1 ...")] = None,
) -> None:
    """Measure time and memory of the losses beside plain torch and other libraries."""
    from contrapose.bench import bench
    from contrapose.bench.table import measuring, print_case, print_end

    with measuring() as watch:
        record = bench(
            _names(only), sizes=_numbers(sizes), repeats=repeats, threads=threads, device=device,
            quick=quick, large=large, out=out, watch=watch, show=print_case,
        )  # fmt: skip
    print_end(record)
    if record.disagreements():
        raise typer.Exit(1)


@app.command(name="list")
def list_() -> None:
    """Show the recipes, named sets, encoders, heads, views, losses and optimisers there are."""
    from contrapose.console import print_inventory

    print_inventory()


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from contrapose import __version__

        typer.echo(f"contrapose {__version__}")
        raise typer.Exit


def main() -> None:
    """The entry point: errors of the user are one message, not a traceback."""
    # OpenMP threads that spin while they wait make a shared machine two to three times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        _stop("interrupted", 130)
    except Exception as error:
        if os.environ.get("CONTRAPOSE_TRACEBACK"):
            raise
        if type(error).__name__ in ("InterruptedTraining", "StoppedByUser"):
            _stop(str(error), 130, "")
        if isinstance(error, ValueError | OSError | ImportError | ArithmeticError):
            _stop(str(error), 2)
        raise


def _explain(run: "Run", device: str, recipe: str | None) -> None:
    from contrapose import explain
    from contrapose.console import print_findings, print_scores, working
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


def _names(given: str | None) -> list[str]:
    """`a,b` as a list; nothing where nothing was given."""
    return [name.strip() for name in (given or "").split(",") if name.strip()]


def _numbers(given: str | None) -> list[int]:
    try:
        return [int(text) for text in _names(given)]
    except ValueError:
        raise ValueError(f"--sizes {given}: give whole numbers, such as 512,2048") from None


def _temperatures(given: str) -> list[float]:
    try:
        return [float(text) for text in _names(given)]
    except ValueError:
        raise ValueError(f"--temperatures {given}: give numbers, such as 0.05,0.1,0.5") from None


def _stop(message: str, code: int, prefix: str = "error: ") -> Any:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(prefix, style="bold red") + Text(message), soft_wrap=True)
    sys.exit(code)
