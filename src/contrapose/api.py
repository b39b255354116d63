"""Training, resuming and embedding as functions; the command line calls these."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from socket import gethostname
from typing import Any

import torch

from contrapose import adapt, recipes
from contrapose.data import ImageSet, Request, device_jpeg
from contrapose.encoders import Encoder, checkpoints, read_weights
from contrapose.errors import UserError
from contrapose.evaluation.embed import Embedded
from contrapose.evaluation.embed import embed as embed_images
from contrapose.files import RUNS, as_file_name, check_writable, holder, unfinished
from contrapose.machine import choose_bf16, environment, multiplies_bf16
from contrapose.partials import describe, revive
from contrapose.prepare import check as check
from contrapose.prepare import check_resumed as check_resumed
from contrapose.prepare import own_images, planned_run, reopened, sized_as
from contrapose.prepare import request_of as request_of
from contrapose.processes import Rank, launched
from contrapose.progress import stage
from contrapose.training import loop
from contrapose.training.compiling import check_name, chosen_way
from contrapose.training.parallel import check_ranks, check_same
from contrapose.training.precision import faster_precision
from contrapose.training.recipe import Recipe, classifies
from contrapose.training.run import FORMAT, START_FILE, Run
from contrapose.training.start import begin_from, source_of
from contrapose.training.state import Progress
from contrapose.version import __version__


def train(
    recipe: str | Path | Recipe = "simclr",
    images: Any = "digits",
    *,
    out: Path | str | None = None,
    encoder: str | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    changes: Sequence[str] = (),
    start: str | Path | None = None,
    freeze: Sequence[str] = (),
    device: str = "auto",
    precision: str = "auto",
    compiled: str = "auto",
    held_out: float | None = None,
    command: str | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    begin: Callable[[Run, Recipe, ImageSet], None] = lambda run, recipe, images: None,
    **how: Any,
) -> Run:
    """Train an encoder; returns the run folder, whose weights `Encoder.load(run.path)` reads.

    recipe: a name (`contrapose list`), a Python file, or a `Recipe`. images: whatever
    `open_images` takes, or a `Request`; how: fields of that request, such as size=64 or
    labels="labels.csv". changes: "loss.temperature=0.1" and the like. held_out: share of images
    kept from training for evaluation; None is a fifth where positives are classes and there is no
    test split, else 0. start: where weights come from (`training.start`): a run folder, a file of
    weights, or "pretrained"; its network and size are taken too, where they are not asked for.
    freeze: parts of the encoder that stay as they are, such as "backbone". compiled: auto, on, off
    or graphs (`training.compiling`). Everything is checked, and one step tried, before the folder
    is made. Raises UserError or FileNotFoundError for what cannot be trained.
    """
    check_name(compiled)
    where = device, precision, compiled
    with launched(device) as me:
        if (begun_before := me.first_does(lambda: _begun_before(me, out))) is not None:
            own = None if isinstance(recipe, str) and recipe in recipes.names() else recipe
            given = None if isinstance(images, str | Path) else images
            run = Run.open(begun_before)
            _resumed(run, me, own, given, None, where, watch, begin)
            return run
        request = me.all_do(lambda: sized_as(start, Request.of(images, **how)))
        me.first_does(lambda: Run.refuse_existing(Path(out)) if out else check_writable(RUNS))
        device = me.device
        bf16 = me.first_does(lambda: choose_bf16(precision, device))
        (chosen, source, network, data, begun), planned, choices = planned_run(
            recipe, request, command, me, bf16, held_out=held_out, encoder=encoder, epochs=epochs,
            batch_size=batch_size, temperature=temperature, seed=seed, changes=changes,
            start=None if start is None else str(start), freeze=tuple(freeze),
        )  # fmt: skip
        check_ranks(chosen, source, me)
        measured = ""
        if precision == "auto" and device == "cpu" and multiplies_bf16(device):
            found = me.first_does(lambda: _measured_precision(chosen, source, network))
            bf16, measured = (bf16, measured) if found is None else found
        way = _compiling(compiled, chosen, source, network, me, bf16)
        folder = me.first_does(lambda: Path(out) if out else new_folder(source.name, chosen.name))
        written = {"format": FORMAT, "contrapose": __version__, "command": command, "data": data}
        written |= {"recipe": describe(chosen), "plan": planned, "choices": choices}
        if begun is not None:
            written["start"] = dataclasses.asdict(begun)
        with me.first_holds(Run.begun(folder, written)):
            run = Run(folder)
            if begun is not None:
                weights = network.to_bytes()
                me.first_does(lambda: run.write_start(weights))
            now = _machine(me, source, bf16, where[:2], way, measured)
            me.first_does(lambda: run.write("environment.json", now))
            if me.pulse is not None and me.first:
                me.pulse.note("folder", str(folder.absolute()))
            begin(run, chosen, source)
            loop.fit(
                chosen, source, run, network, device=device, bf16=bf16, compiled=way[0],
                watch=watch, me=me,
            )  # fmt: skip
    return run


def _measured_precision(
    recipe: Recipe, images: ImageSet, network: Encoder
) -> tuple[bool, str] | None:
    with stage("measuring steps in bf16 and in fp32"):
        return faster_precision(recipe, images, network)


def _compiling(
    asked: str | None,
    recipe: Recipe,
    images: ImageSet,
    network: Encoder,
    me: Rank,
    bf16: bool,
    begun: str | None = None,
) -> tuple[str, str]:
    """How the encoder is compiled on all ranks, and why."""

    def chosen() -> tuple[str, str]:
        with stage("choosing whether to compile"):
            return chosen_way(
                asked, recipe, images, network, me.device, bf16=bf16, ranks=me.world, begun=begun
            )

    return me.first_does(chosen)


def _begun_before(me: Rank, out: Path | str | None) -> str | None:
    """The folder of the run that processes before these began, which torchrun starts again."""
    if not me.again:
        return None
    found = out if me.pulse is None or out is not None else me.pulse.noted("folder")
    return None if found is None or unfinished(Path(found)) else str(found)


def _machine(
    me: Rank,
    images: ImageSet,
    bf16: bool,
    asked: tuple[str, str],
    compiled: tuple[str, str],
    measured: str = "",
) -> dict[str, Any]:
    """What environment.json says: `machine.environment`, how the encoder is compiled (and why),
    what decodes JPEG for a GPU, and how many processes share the run."""
    found = environment(me.device, bf16, asked, measured)
    found["compile"], found["why"]["compile"] = compiled
    if me.device.startswith("cuda") and not images.in_memory:
        found["why"]["jpeg"] = device_jpeg.why(torch.device(me.device))
    ranks = (
        {} if me.world == 1 else {"ranks": me.world, "hosts": sorted({*me.every(gethostname())})}
    )
    return found | ranks


def resume(
    run: Run | Path | str,
    *,
    recipe: str | Path | Recipe | None = None,
    images: Any = None,
    epochs: float | None = None,
    device: str = "auto",
    precision: str | None = None,
    compiled: str | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    begin: Callable[[Run, Recipe, ImageSet], None] = lambda run, recipe, images: None,
) -> Run:
    """Continue a run from its newest checkpoint; on a CPU the result is the same bit for bit.

    recipe: needed again only where the run's recipe was your own file; or the recipe itself, where
    it was given as one. images: needed again only where they did not come from a name or a path.
    epochs: how many there are to be in all, in place of those that the run was begun with; the
    schedule is then that of as many, from where training stands on, which a warning says in
    numbers. Raises UserError for epochs that are past already.
    """
    check_name(compiled or "auto")
    with launched(device) as me:
        path = run
        run = me.all_do(lambda: path if isinstance(path, Run) else Run.open(path))
        _resumed(run, me, recipe, images, epochs, (device, precision, compiled), watch, begin)
    return run


def _resumed(
    run: Run,
    me: Rank,
    recipe: str | Path | Recipe | None,
    images: Any,
    epochs: float | None,
    asked: tuple[str, str | None, str | None],
    watch: Callable[[Progress], None],
    begin: Callable[[Run, Recipe, ImageSet], None],
) -> None:
    """`resume` on one of the ranks; asked: device, precision, and how to compile."""
    device, precision = me.device, asked[1]
    me.first_does(lambda: check_writable(run.path))
    written, source, chosen, before = me.all_do(lambda: reopened(run, recipe, images, epochs))
    where = asked[0], precision or "auto"
    kept = precision or before.get("precision", "auto")
    bf16 = me.first_does(lambda: choose_bf16(kept, device))
    check_ranks(chosen, source, me)
    network = adapt.build(chosen, source)
    begun = before.get("compile")
    way = _compiling(asked[2], chosen, source, network, me, bf16, begun=begun)
    if chosen.start is not None:
        _begin_again(run, chosen, network, me)
    with me.first_holds(run.locked()):
        if chosen.epochs != written["recipe"]["epochs"]:
            me.first_does(lambda: _note_epochs(run, chosen.epochs))
        now = _machine(me, source, bf16, where, way)
        if precision is None and "precision" in before:
            now["why"]["precision"] = "as the run was begun"
        again = before | {"resumed": [*before.get("resumed", []), now]} if before else now
        me.first_does(lambda: run.write("environment.json", again))
        begin(run, chosen, source)
        loop.fit(
            chosen, source, run, network, device=device, bf16=bf16, compiled=way[0], watch=watch,
            me=me,
        )  # fmt: skip


def _note_epochs(run: Run, epochs: float) -> None:
    """Write the new number of epochs into recipe.json, and keep the old one beside it."""
    written = run.read("recipe.json")
    changed = {"from": written["recipe"]["epochs"], "to": epochs, "step": run.status().get("step")}
    written["epochs_changed"] = [*written.get("epochs_changed", []), changed]
    written["recipe"]["epochs"] = epochs
    if "epochs" in (written.get("choices") or {}):
        why = f"asked for by --epochs, of a run begun with {changed['from']:g}"
        written["choices"]["epochs"] = [f"{epochs:g}", why]
    run.write("recipe.json", written)


def _begin_again(run: Run, recipe: Recipe, network: Encoder, me: Rank) -> None:
    """Set the weights to those that the run started from; its checkpoints, if any, come after."""
    file = run.path / START_FILE
    if me.first_does(file.exists):
        network.load_state_dict(read_weights(file)[0])
    elif not checkpoints(run.path):  # killed before the file was written
        assert recipe.start is not None
        begun = begin_from(network, source_of(recipe.start, recipe.backbone))
        if begun.sha256 != run.read("recipe.json")["start"]["sha256"]:
            raise UserError(f"{recipe.start} has changed since {run.path} was begun; begin anew")
        me.first_does(lambda: run.write_start(network.to_bytes()))


def embed(
    run: Run | Path | str,
    images: Any,
    *,
    split: str = "train",
    device: str = "auto",
    recipe: str | Path | None = None,
) -> tuple[Embedded, ImageSet]:
    """(h and z of every image by the run's encoder, the images in that order).

    Processes of torchrun share the images, and all of them hold the result.
    """

    def opened() -> tuple[Encoder, ImageSet, int]:
        found = run if isinstance(run, Run) else Run.open(run)
        encoder = Encoder.load(found.path, None if recipe is None else recipes.module(recipe))
        source = request_of(found, images).open(split)
        return encoder, source, found.read("recipe.json")["recipe"]["size"]

    with launched(device) as me:
        encoder, source, size = me.all_do(opened)
        check_same(me, source, encoder=encoder)
        return embed_images(encoder, source, size=size, device=me.device, me=me), source


def encoder_in(
    folder: Path,
    recipe: Recipe,
    images: ImageSet,
    device: str = "auto",
    watch: Callable[[Progress], None] = lambda progress: None,
    begin: Callable[[Run, Recipe, ImageSet], None] = lambda run, recipe, images: None,
) -> Encoder:
    """The recipe's encoder after training on all the images, from the run in `folder`.

    The run is started, continued or, if it is finished, only read. Raises InterruptedTraining
    without the name of a folder, since the caller continues it.
    """
    how: dict[str, Any] = {"device": device, "watch": watch, "begin": begin}
    try:
        if not unfinished(folder):
            run = resume(folder, recipe=recipe, images=images, **how)
        else:
            run = train(recipe, images, out=folder, held_out=0.0, **how)
    except loop.InterruptedTraining as error:
        words = str(error).partition("; continue with")[0]
        raise loop.InterruptedTraining(f"{words}; the same command goes on from there") from None
    encoder = adapt.build(recipe, images)  # as `Encoder.load`, for recipes of the user's own too
    encoder.load_state_dict(read_weights(run.path)[0])
    return encoder


def train_and_test(run: Run, images: Any = None) -> tuple[ImageSet, ImageSet, str]:
    """(train, test, what the test images are in words).

    A fifth of train is held out if there is no test split, or only one without labels.
    """
    written = run.read("recipe.json")
    request = request_of(run, images)
    with own_images(run, images):
        train_images, test, words = request.train_and_test(int(written["recipe"]["seed"]))
    if images is not None and request.open("train").fingerprint != written["data"]["fingerprint"]:
        return train_images, test, f"{train_images.name}, {words}"
    if words.startswith("held-out") and not request.held_out:
        labelled = "with" if _saw_labels(written["recipe"]) else "without"
        words += f", which the encoder saw {labelled} labels"
    return train_images, test, words


def _saw_labels(written: dict[str, Any]) -> bool:
    """Whether the recipe of a run, as recipe.json has it, learns from labels."""
    if written["positives"] != "image" or written.get("classifier") is not None:
        return True
    with suppress(UserError):  # a loss of the user's own
        return classifies(revive(written["loss"]))
    return False


def new_folder(data: str, recipe: str) -> Path:
    """The first free folder of the form runs/cifar10-simclr-1."""
    stem, number = as_file_name(data), 1
    while not unfinished(path := RUNS / f"{stem}-{recipe}-{number}") or holder(path):
        number += 1
    return path


def command_line() -> str:
    return shlex.join(["contrapose", *sys.argv[1:]])
