"""A run prepared: its settings, images and network, checked by one step before anything is made."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from contrapose import adapt, plan, recipes
from contrapose.data import HELD_OUT, ImageSet, Request
from contrapose.encoders import checkpoints, step_of
from contrapose.errors import UserError
from contrapose.files import read_object
from contrapose.machine import check_device_name, choose_bf16
from contrapose.partials import describe, up_to_date
from contrapose.processes import Rank
from contrapose.training import loop
from contrapose.training.compiling import WAYS, check_name
from contrapose.training.dry_run import dry_run
from contrapose.training.parallel import check_sharable
from contrapose.training.recipe import Recipe
from contrapose.training.run import Run, say
from contrapose.training.start import begin_from, source_of

LOOKED_AT = 32  # images of which `check` takes the mean and standard deviation of the input
FEWEST = 8  # images of a run of a named recipe without a test split: two judge it
_ENVIRONMENT = {
    "precision?": frozenset({"fp32", "bf16"}), "compile?": frozenset(WAYS), "resumed?": [dict],
}  # fmt: skip


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
    compiled: str = "auto",
    how: Mapping[str, Any],
    **settings: Any,
) -> None:
    """Raise what `train` would raise before its first step on so many ranks of another machine.

    Images are listed and their headers read; some dozens are decoded, and a step is tried on a few.
    Device, memory and speed of the other machine are not known. how: fields of the request;
    settings: encoder, epochs, batch_size, temperature, seed and changes, as for `train`.
    """
    check_device_name(device)
    check_name(compiled)
    choose_bf16(precision, "cpu")
    if out is not None:
        Run.refuse_existing(Path(out))
    request = _unread(sized_as(start, Request.of(images, **how)))
    source = request.open("train")
    made = prepared(
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
    compiled: str | None = None,
) -> None:
    """Raise what `resume` would raise before its first step on so many ranks of another machine.

    As `check`; that the images are those of the run is not looked at, as it may read all of them.
    """
    check_device_name(device)
    check_name(compiled or "auto")
    choose_bf16(precision or "auto", "cpu")
    _, source, chosen, _ = reopened(Run.open(run), recipe, images, epochs, unread=True)
    check_sharable(chosen, source, ranks)


def sized_as(start: str | Path | None, request: Request) -> Request:
    """The request at the size of the run that weights come from, where none is asked for."""
    folder = Path(start or "")
    own = request.size is not None or not isinstance(request.source, str | Path)
    if start is None or own or not Path(str(request.source)).exists():
        return request
    if not (folder / "recipe.json").is_file():
        return request
    size = Run.open(folder).read("recipe.json")["data"]["size"]
    return dataclasses.replace(request, size=size)


def _unread(request: Request) -> Request:
    """The request, with images that are decoded when they are asked for."""
    return dataclasses.replace(request, memory=0, copies_together=False)


def planned_run(
    recipe: str | Path | Recipe,
    request: Request,
    command: str | None,
    me: Rank,
    bf16: bool,
    **settings: Any,
) -> tuple[plan.Made, dict[str, Any] | None, dict[str, Any]]:
    """The run to make; for a named recipe its plan as JSON; and why encoder, size, batch and
    epochs are what they are. settings: those of `prepared`."""

    @cache  # a plan asks for several runs of the same images
    def opened(size: int | None) -> tuple[Request, ImageSet]:
        """The request, with another size where one is given, and its training images."""
        sized = request if size is None else dataclasses.replace(request, size=size)
        return sized, sized.open("train")

    def make(instead: Mapping[str, Any]) -> plan.Made:
        return prepared(recipe, opened, instead, **settings)

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


def prepared(
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
    if batch_size is None and isinstance(recipe, str) and len(source) < chosen.batch_size:
        batch_size = max(2, len(source) // 4)  # said where training begins, as every batch is
        batch_size -= batch_size % 2 * (chosen.positives == "time")  # of pairs of frames
    encoder, epochs = left.pop("encoder", encoder), left.pop("epochs", epochs)
    paths = [f"{path}={value}" for path, value in left.items()]
    chosen = adapt.changed(
        chosen, source, encoder, epochs, batch_size, temperature, seed, [*paths, *changes]
    )
    chosen = adapt.beside_constants(chosen, source)
    learns = chosen.learns_from_labels or chosen.positives == "shared"
    learns = learns and not chosen.of_time  # times are no labels that a test would need
    few = isinstance(recipe, str) and len(source) < FEWEST
    judged = few or (held_out is None and learns)
    untested = judged and not request.has_test(source)
    if few and untested:
        raise UserError(
            f"{source.name} has {len(source)} images: too few to train on some and to be judged by "
            f"others; give {FEWEST} at least"
        )
    if held_out is None:
        held_out = request.held_out or (HELD_OUT if learns and untested else 0.0)
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


def reopened(
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
    with own_images(run, images):
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


def _later_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields that recipe.json of an older version lacks, as they stand where not asked for."""
    fields = dataclasses.fields(recipe)
    return {f.name: describe(f.default) for f in fields if f.default is not dataclasses.MISSING}


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
def own_images(run: Run, images: Any) -> Iterator[None]:
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
