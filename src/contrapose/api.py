"""Training, resuming and embedding as functions; the command line calls these."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from socket import gethostname
from typing import Any

from contrapose import adapt, plan, recipes
from contrapose.data import HELD_OUT, ImageSet, Request
from contrapose.encoders import Encoder, checkpoints, read_weights, step_of
from contrapose.errors import UserError
from contrapose.evaluation.embed import Embedded
from contrapose.evaluation.embed import embed as embed_images
from contrapose.files import as_file_name, holder, read_object, unfinished
from contrapose.machine import check_device_name, choose_bf16, environment, multiplies_bf16
from contrapose.partials import describe, revive, up_to_date
from contrapose.processes import Rank, launched, restarted
from contrapose.progress import stage
from contrapose.training import loop
from contrapose.training.dry_run import dry_run
from contrapose.training.parallel import check_ranks, check_same, check_sharable
from contrapose.training.precision import faster_precision
from contrapose.training.recipe import Recipe, classifies
from contrapose.training.run import FORMAT, START_FILE, Run, say
from contrapose.training.start import begin_from, source_of
from contrapose.training.state import Progress
from contrapose.version import __version__

LOOKED_AT = 32  # images of which `check` takes the mean and standard deviation of the input
FEWEST = 8  # images of a run of a named recipe without a test split: two judge it


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
    compiled: bool = False,
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
    freeze: parts of the encoder that stay as they are, such as "backbone". Everything is checked,
    and one step tried, before the folder is made. Raises UserError or FileNotFoundError for
    what cannot be trained.
    """
    where = device, precision
    with launched(device) as me:
        if (begun_before := me.first_does(lambda: _begun_before(me, out))) is not None:
            own = None if isinstance(recipe, str) and recipe in recipes.names() else recipe
            given = None if isinstance(images, str | Path) else images
            run = Run.open(begun_before)
            _resumed(run, me, own, given, None, where, compiled, watch, begin)
            return run
        request = me.all_do(lambda: _sized_as(start, Request.of(images, **how)))
        if out is not None:
            me.first_does(lambda: Run.refuse_existing(Path(out)))
        device = me.device
        bf16 = me.first_does(lambda: choose_bf16(precision, device))
        (chosen, source, network, data, begun), planned, choices = _planned(
            recipe, request, command, me, bf16, held_out=held_out, encoder=encoder, epochs=epochs,
            batch_size=batch_size, temperature=temperature, seed=seed, changes=changes,
            start=None if start is None else str(start), freeze=tuple(freeze),
        )  # fmt: skip
        check_ranks(chosen, source, me)
        measured = ""
        if precision == "auto" and device == "cpu" and multiplies_bf16(device):
            found = me.first_does(lambda: _measured_precision(chosen, source, network))
            bf16, measured = (bf16, measured) if found is None else found
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
            now = environment(device, bf16, where, measured) | _of_ranks(me)
            me.first_does(lambda: run.write("environment.json", now))
            if me.pulse is not None and me.first:
                me.pulse.note("folder", str(folder.absolute()))
            begin(run, chosen, source)
            if compiled:
                network.backbone.compile()
            loop.fit(chosen, source, run, network, device=device, bf16=bf16, watch=watch, me=me)
    return run


def check(
    recipe: str | Path | Recipe = "simclr",
    images: Any = "digits",
    *,
    ranks: int = 1,
    out: Path | str | None = None,
    start: str | Path | None = None,
    freeze: Sequence[str] = (),
    device: str = "auto",
    precision: str = "auto",
    how: Mapping[str, Any],
    **settings: Any,
) -> None:
    """Raise what `train` would raise before its first step on so many ranks of another machine.

    Images are listed and their headers read; some dozens are decoded, and a step is tried on a few.
    Device, memory and speed of the other machine are not known. how: fields of the request;
    settings: encoder, epochs, batch_size, temperature, seed and changes, as for `train`.
    """
    check_device_name(device)
    choose_bf16(precision, "cpu")
    if out is not None:
        Run.refuse_existing(Path(out))
    request = _unread(_sized_as(start, Request.of(images, **how)))
    source = request.open("train")
    made = _prepared(
        recipe, lambda size: (request, source), {}, held_out=None, freeze=tuple(freeze),
        start=None if start is None else str(start), measured=LOOKED_AT, **settings,
    )  # fmt: skip
    check_sharable(made.recipe, made.images, ranks)


def check_resumed(
    run: Path | str,
    *,
    ranks: int = 1,
    recipe: str | Path | Recipe | None = None,
    images: Any = None,
    epochs: float | None = None,
    device: str = "auto",
    precision: str | None = None,
) -> None:
    """Raise what `resume` would raise before its first step on so many ranks of another machine.

    As `check`; that the images are those of the run is not looked at, as it may read all of them.
    """
    check_device_name(device)
    choose_bf16(precision or "auto", "cpu")
    _, source, chosen, _ = _reopened(Run.open(run), recipe, images, epochs, unread=True)
    check_sharable(chosen, source, ranks)


def _unread(request: Request) -> Request:
    """The request, with images that are decoded when they are asked for."""
    return dataclasses.replace(request, memory=0, copies_together=False)


def _measured_precision(
    recipe: Recipe, images: ImageSet, network: Encoder
) -> tuple[bool, str] | None:
    with stage("measuring steps in bf16 and in fp32"):
        return faster_precision(recipe, images, network)


def _begun_before(me: Rank, out: Path | str | None) -> str | None:
    """The folder of the run that processes before these began, which torchrun starts again."""
    if not restarted():
        return None
    found = out if me.pulse is None or out is not None else me.pulse.noted("folder")
    return None if found is None or unfinished(Path(found)) else str(found)


def _of_ranks(me: Rank) -> dict[str, Any]:
    """How many processes share the training, for environment.json; nothing of one alone."""
    return {} if me.world == 1 else {"ranks": me.world, "hosts": sorted({*me.every(gethostname())})}


def _planned(
    recipe: str | Path | Recipe,
    request: Request,
    command: str | None,
    me: Rank,
    bf16: bool,
    **settings: Any,
) -> tuple[plan.Made, dict[str, Any] | None, dict[str, Any]]:
    """The run to make; for a named recipe its plan as JSON; and why encoder, size, batch and
    epochs are what they are. settings: those of `_prepared`."""

    @cache  # a plan asks for several runs of the same images
    def opened(size: int | None) -> tuple[Request, ImageSet]:
        """The request, with another size where one is given, and its training images."""
        sized = request if size is None else dataclasses.replace(request, size=size)
        return sized, sized.open("train")

    def make(instead: Mapping[str, Any]) -> plan.Made:
        return _prepared(recipe, opened, instead, **settings)

    changes = settings["changes"]
    fields = {change.partition("=")[0].strip().partition(".")[0] for change in changes}
    flags = {"encoder": "backbone", "size": "size", "batch_size": "batch_size", "epochs": "epochs"}
    asked = {  # by which flag
        name: f"--set {field}" if field in fields else f"--{name.replace('_', '-')}"
        for name, field in flags.items()
        if field in fields or (request.size if name == "size" else settings[name])
    }
    if settings["start"] is not None:
        asked.setdefault("encoder", f"--start {settings['start']}")
    if not isinstance(recipe, str) or recipe not in recipes.names():
        made = me.all_do(lambda: make({}))
        return made, None, plan.choices(made, recipe, asked, {})
    kept = set(asked) | (set() if request.named else {"size"})  # an array is opened but once
    again = command or "contrapose train DATA"
    of_first: list[plan.Made] = []

    def measured() -> dict[str, Any]:
        made, what = plan.planned(make, asked=kept, device=me.device, bf16=bf16, command=again)
        of_first.append(made)
        return what.as_json()

    planned = me.first_does(measured)
    made = me.all_do(lambda: of_first[0] if of_first else make(planned["chosen"]))
    return made, planned, plan.choices(made, recipe, asked, planned["chosen"])


def _prepared(
    recipe: str | Path | Recipe,
    opened: Callable[[int | None], tuple[Request, ImageSet]],
    instead: Mapping[str, Any],
    *,
    held_out: float | None,
    encoder: str | None,
    epochs: float | None,
    batch_size: int | None,
    temperature: float | None,
    seed: int | None,
    changes: Sequence[str],
    start: str | None,
    freeze: tuple[str, ...],
    measured: int = adapt.MEASURED,
) -> plan.Made:
    """A run that is ready to start, with everything checked.

    instead: settings by flag (size, encoder, epochs) or path, for those that were not asked for.
    measured: images of which the input's mean and standard deviation are taken.
    """
    left = dict(instead)
    request, source = opened(left.pop("size", None))
    batch_size = left.pop("batch_size", batch_size)
    chosen = recipes.recipe_for(recipe, source.size, source.shown)
    if start is not None:
        chosen = dataclasses.replace(chosen, start=start)
        named = isinstance(recipe, str) and recipe in recipes.names()
        if named and encoder is None and not any(c.startswith("backbone") for c in changes):
            chosen = adapt.with_network_of(start, chosen, source)
    if freeze:
        chosen = dataclasses.replace(chosen, freeze=freeze)
    few = isinstance(recipe, str) and len(source) < FEWEST
    if few and not request.like(source).has_test(source):
        raise UserError(
            f"{source.name} has {len(source)} images: too few to train on some and to be judged by "
            f"others; give {FEWEST} at least"
        )
    if batch_size is None and isinstance(recipe, str) and len(source) < chosen.batch_size:
        batch_size = max(2, len(source) // 4)  # said where training begins, as every batch is
        batch_size -= batch_size % 2 * (chosen.positives == "time")  # of pairs of frames
    encoder, epochs = left.pop("encoder", encoder), left.pop("epochs", epochs)
    paths = [f"{path}={value}" for path, value in left.items()]
    chosen = adapt.changed(
        chosen, source, encoder, epochs, batch_size, temperature, seed, [*paths, *changes]
    )
    chosen = adapt.beside_constants(chosen, source)
    if held_out is None:
        learns = chosen.learns_from_labels or chosen.positives == "shared"
        learns = learns and not chosen.of_time  # times are no labels that a test would need
        untested = learns and not request.like(source).has_test(source)
        held_out = request.held_out or (HELD_OUT if untested else 0.0)
    request = dataclasses.replace(request, held_out=held_out)
    data = request.as_json(source)
    request.check_groups(source)
    source = request.seen(chosen.seed, source)
    loop.check(chosen, source)
    network, begun = adapt.build(chosen, source, measured=measured), None
    if chosen.start is not None:
        begun = begin_from(network, source_of(chosen.start, chosen.backbone))
    dry_run(chosen, source, network)
    return plan.Made(chosen, source, network, data, begun)


def _sized_as(start: str | Path | None, request: Request) -> Request:
    """The request at the size of the run that weights come from, where none is asked for."""
    folder = Path(start or "")
    own = request.size is not None or not isinstance(request.source, str | Path)
    if start is None or own or not Path(str(request.source)).exists():
        return request
    if not (folder / "recipe.json").is_file():
        return request
    size = Run.open(folder).read("recipe.json")["data"]["size"]
    return dataclasses.replace(request, size=size)


def resume(
    run: Run | Path | str,
    *,
    recipe: str | Path | Recipe | None = None,
    images: Any = None,
    epochs: float | None = None,
    device: str = "auto",
    precision: str | None = None,
    compiled: bool = False,
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
    with launched(device) as me:
        path = run
        run = me.all_do(lambda: path if isinstance(path, Run) else Run.open(path))
        _resumed(run, me, recipe, images, epochs, (device, precision), compiled, watch, begin)
    return run


def _resumed(
    run: Run,
    me: Rank,
    recipe: str | Path | Recipe | None,
    images: Any,
    epochs: float | None,
    asked: tuple[str, str | None],
    compiled: bool,
    watch: Callable[[Progress], None],
    begin: Callable[[Run, Recipe, ImageSet], None],
) -> None:
    """`resume` on one of the ranks; asked: device and precision."""
    device, precision = me.device, asked[1]
    written, source, chosen, before = me.all_do(lambda: _reopened(run, recipe, images, epochs))
    where = asked[0], precision or "auto"
    kept = precision or before.get("precision", "auto")
    bf16 = me.first_does(lambda: choose_bf16(kept, device))
    check_ranks(chosen, source, me)
    network = adapt.build(chosen, source)
    if chosen.start is not None:
        _begin_again(run, chosen, network, me)
    with me.first_holds(run.locked()):
        if chosen.epochs != written["recipe"]["epochs"]:
            me.first_does(lambda: _note_epochs(run, chosen.epochs))
        now = environment(device, bf16, where) | _of_ranks(me)
        if precision is None and "precision" in before:
            now["why"]["precision"] = "as the run was begun"
        again = before | {"resumed": [*before.get("resumed", []), now]} if before else now
        me.first_does(lambda: run.write("environment.json", again))
        begin(run, chosen, source)
        if compiled:
            network.backbone.compile()
        loop.fit(chosen, source, run, network, device=device, bf16=bf16, watch=watch, me=me)


def _reopened(
    run: Run,
    recipe: str | Path | Recipe | None,
    images: Any,
    epochs: float | None,
    *,
    unread: bool = False,
) -> tuple[dict[str, Any], ImageSet, Recipe, dict[str, Any]]:
    """(recipe.json, training images, recipe, environment.json) of a run that is to go on.

    unread: images are decoded when they are asked for.
    """
    written = run.read("recipe.json")
    request = request_of(run, images)
    request = _unread(request) if unread else request
    with _own_images(run, images):
        source = request.seen(written["recipe"]["seed"])
    if isinstance(recipe, Recipe):
        recipe = adapt.beside_constants(recipe, source)
        begun_by = _later_fields(recipe) | written["recipe"]
        if up_to_date(describe(recipe)) != up_to_date(begun_by):
            raise UserError(f"{run.path} was begun with another recipe; start a new run")
        chosen = recipe
    else:
        own = None if recipe is None else recipes.module(recipe)
        chosen = run.recipe(own)
    file = run.path / "environment.json"
    before = read_object(file, _ENVIRONMENT) if file.exists() else {}
    if len(source) < chosen.batch_size:  # the loop would name a flag that a run cannot take
        raise UserError(
            f"{run.path} was begun with batches of {chosen.batch_size}, and {source.name} now has "
            f"{len(source)} images; restore them, or start a new run with a smaller --batch-size"
        )
    if epochs is not None and epochs != chosen.epochs:
        chosen = _with_epochs(run, chosen, epochs, source)
    return written, source, chosen, before


def _with_epochs(run: Run, recipe: Recipe, epochs: float, images: ImageSet) -> Recipe:
    """The recipe with so many epochs; what the schedule does then is said."""
    kept = checkpoints(run.path)
    at = (step_of(kept[-1]) if kept else 0) / (len(images) // recipe.batch_size)
    if recipe.second_stage is not None and at >= recipe.epochs:
        raise UserError(
            f"--epochs {epochs:g}: {run.path} is in its second stage, for which the first is "
            f"frozen; begin a run from its weights with --start {run.path}"
        )
    if not epochs > at:
        raise UserError(
            f"--epochs {epochs:g}: {run.path} stands at epoch {at:g} already; give more than that"
        )
    if not kept and run.status().get("state") == "finished":
        raise UserError(
            f"--epochs {epochs:g}: the checkpoints of {run.path} were removed, so it cannot go on; "
            f"begin a run from its weights with --start {run.path}"
        )
    longer = dataclasses.replace(recipe, epochs=epochs)
    before, now = (
        r.schedule(min(at, r.epochs), r.epochs, warmup=r.warmup) for r in (recipe, longer)
    )
    say(
        f"{run.path} goes on from epoch {at:g} to {epochs:g}, not {recipe.epochs:g}: the learning "
        f"rate, {before:.3g} of its peak there by the schedule over {recipe.epochs:g} epochs, is "
        f"{now:.3g} of it by the schedule over {epochs:g}, which holds from here on"
    )
    return longer


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


def _later_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields that recipe.json of an older version lacks, as they stand where not asked for."""
    fields = dataclasses.fields(recipe)
    return {f.name: describe(f.default) for f in fields if f.default is not dataclasses.MISSING}


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


_ENVIRONMENT = {"precision?": frozenset({"fp32", "bf16"}), "resumed?": [dict]}


def request_of(run: Run, images: Any = None) -> Request:
    """The request of a run's images, or of others (a `Request` or a source) read in the same
    way."""
    try:
        own = Request.from_json(run.read("recipe.json")["data"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{run.path / 'recipe.json'}: data: {error}; restore it") from error
    if images is None:
        if own.source is None:
            raise UserError(
                f"{run.path} was trained on arrays in memory, which a folder cannot name; "
                "give the images again"
            )
        return own
    if isinstance(images, ImageSet) or callable(images):
        return Request(images, subset=own.subset, few_labels=own.few_labels, held_out=own.held_out)
    given = Request.of(images)
    if isinstance(given.source, ImageSet) or callable(given.source):
        return given
    return dataclasses.replace(
        given, size=own.size, channels=own.channels, rgb=own.rgb,
        value_range=given.value_range or own.value_range,
        max_pixels=given.max_pixels or own.max_pixels, max_bad_share=own.max_bad_share,
        held_out=own.held_out,
    )  # fmt: skip


@contextmanager
def _own_images(run: Run, images: Any) -> Iterator[None]:
    """A context in which errors about a run's own images say where they were and what to do."""
    try:
        yield
    except (ValueError, OSError) as error:
        if images is not None:
            raise
        raise UserError(
            f"{run.path / 'recipe.json'} names images that cannot be opened: {error}; restore "
            "them, or give DATA again"
        ) from error


def train_and_test(run: Run, images: Any = None) -> tuple[ImageSet, ImageSet, str]:
    """(train, test, what the test images are in words).

    A fifth of train is held out if there is no test split, or only one without labels.
    """
    written = run.read("recipe.json")
    request = request_of(run, images)
    with _own_images(run, images):
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
    while not unfinished(path := Path("runs") / f"{stem}-{recipe}-{number}") or holder(path):
        number += 1
    return path


def command_line() -> str:
    return shlex.join(["contrapose", *sys.argv[1:]])
