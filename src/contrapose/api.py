"""Training, resuming and embedding as functions; the command line calls these."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from contrapose import augment, encoders, plan, recipes
from contrapose.data import HELD_OUT, ImageSet, Request, evenly
from contrapose.data.values import RGB
from contrapose.encoders import Encoder, read_weights
from contrapose.errors import UserError, check_one_process
from contrapose.evaluation.embed import Embedded
from contrapose.evaluation.embed import embed as embed_images
from contrapose.files import as_file_name, holder, read_object, unfinished
from contrapose.machine import choose_bf16, choose_device, environment
from contrapose.partials import arguments, assign, describe, unknown, up_to_date
from contrapose.training import loop
from contrapose.training.batchnorm import estimate_statistics
from contrapose.training.recipe import Recipe
from contrapose.training.rehearsal import rehearse
from contrapose.training.run import FORMAT, Run
from contrapose.version import __version__

MEASURED = 4096  # images whose mean and standard deviation whiten the input


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
    device: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    held_out: float | None = None,
    command: str | None = None,
    watch: Callable[[loop.Progress], None] = lambda progress: None,
    begin: Callable[[Run, Recipe, ImageSet], None] = lambda run, recipe, images: None,
    **how: Any,
) -> Run:
    """Train an encoder; returns the run folder, whose weights `Encoder.load(run.path)` reads.

    recipe: a name (`contrapose list`), a Python file, or a `Recipe`. images: whatever
    `open_images` takes, or a `Request`; how: fields of that request, such as size=64 or
    labels="labels.csv". changes: "loss.temperature=0.1" and the like. held_out: share of images
    kept from training for evaluation; None is a fifth where positives are classes and there is no
    test split, else 0. Everything is checked, and one step rehearsed, before the folder is made.
    Raises UserError or FileNotFoundError for what cannot be trained.
    """
    check_one_process("contrapose.train")
    request, where = Request.of(images, **how), (device, precision)
    if out is not None:
        Run.refuse_existing(Path(out))
    device = choose_device(device)
    bf16 = choose_bf16(precision, device)
    (chosen, source, network, data), planned, choices = _planned(
        recipe, request, command, device, bf16, held_out=held_out, encoder=encoder, epochs=epochs,
        batch_size=batch_size, temperature=temperature, seed=seed, changes=changes,
    )  # fmt: skip
    folder = Path(out) if out else new_folder(source.name, chosen.name)
    written = {"format": FORMAT, "contrapose": __version__, "command": command}
    with Run.begun(
        folder,
        written | {"data": data, "recipe": describe(chosen), "plan": planned, "choices": choices},
    ) as run:
        run.write("environment.json", environment(device, bf16, where))
        begin(run, chosen, source)
        if compiled:
            network.backbone.compile()
        loop.fit(chosen, source, run, network, device=device, bf16=bf16, watch=watch)
    return run


def _planned(
    recipe: str | Path | Recipe,
    request: Request,
    command: str | None,
    device: str,
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
    if not isinstance(recipe, str) or recipe not in recipes.names():
        made = make({})
        return made, None, plan.choices(made, recipe, asked, {})
    kept = set(asked) | (set() if request.named else {"size"})  # an array is opened but once
    again = command or "contrapose train DATA"
    made, what = plan.planned(make, asked=kept, device=device, bf16=bf16, command=again)
    return made, what.as_json(), plan.choices(made, recipe, asked, what.chosen)


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
) -> plan.Made:
    """A run that could begin, all of it checked.

    instead: settings by flag (size, encoder, epochs) or path, in place of those not asked for.
    """
    left = dict(instead)
    request, source = opened(left.pop("size", None))
    batch_size = left.pop("batch_size", batch_size)
    chosen = recipes.recipe_for(recipe, source.size, source.shown)
    if batch_size is None and isinstance(recipe, str) and len(source) < chosen.batch_size:
        batch_size = max(2, len(source) // 4)  # said where training begins, as every batch is
    encoder, epochs = left.pop("encoder", encoder), left.pop("epochs", epochs)
    paths = [f"{path}={value}" for path, value in left.items()]
    chosen = changed(
        chosen, source, encoder, epochs, batch_size, temperature, seed, [*paths, *changes]
    )
    chosen = beside_constants(chosen, source)
    if held_out is None:
        untested = chosen.positives != "image" and not request.like(source).has_test(source)
        held_out = request.held_out or (HELD_OUT if untested else 0.0)
    request = dataclasses.replace(request, held_out=held_out)
    data = request.as_json(source)
    source = request.seen(chosen.seed, source)
    loop.check(chosen, source)
    network = build(chosen, source)
    rehearse(chosen, source, network)
    return plan.Made(chosen, source, network, data)


def resume(
    run: Run | Path | str,
    *,
    recipe: str | Path | Recipe | None = None,
    images: Any = None,
    device: str = "auto",
    precision: str | None = None,
    compiled: bool = False,
    watch: Callable[[loop.Progress], None] = lambda progress: None,
    begin: Callable[[Run, Recipe, ImageSet], None] = lambda run, recipe, images: None,
) -> Run:
    """Continue a run where its newest checkpoint stands; on a CPU bit for bit.

    recipe: needed again only where the run's recipe was your own file; or the recipe itself, where
    it was given as one. images: needed again only where they did not come from a name or a path.
    """
    check_one_process("contrapose.resume")
    run = run if isinstance(run, Run) else Run.open(run)
    written = run.read("recipe.json")
    request = request_of(run, images)
    with _own_images(run, images):
        source = request.seen(written["recipe"]["seed"])
    if isinstance(recipe, Recipe):
        recipe = beside_constants(recipe, source)
        if up_to_date(describe(recipe)) != up_to_date(written["recipe"]):
            raise UserError(f"{run.path} was begun with another recipe; start a new run")
        chosen = recipe
    else:
        own = None if recipe is None else recipes.module(recipe)
        chosen = run.recipe(own)
    file = run.path / "environment.json"
    before = read_object(file, _ENVIRONMENT) if file.exists() else {}
    where = device, precision or "auto"
    device = choose_device(device)
    bf16 = choose_bf16(precision or before.get("precision", "auto"), device)
    if len(source) < chosen.batch_size:  # the loop would name a flag that a run cannot take
        raise UserError(
            f"{run.path} was begun with batches of {chosen.batch_size}, and {source.name} now has "
            f"{len(source)} images; restore them, or start a new run with a smaller --batch-size"
        )
    network = build(chosen, source)
    with run.locked():
        now = environment(device, bf16, where)
        if precision is None and "precision" in before:
            now["why"]["precision"] = "as the run was begun"
        again = before | {"resumed": [*before.get("resumed", []), now]} if before else now
        run.write("environment.json", again)
        begin(run, chosen, source)
        if compiled:
            network.backbone.compile()
        loop.fit(chosen, source, run, network, device=device, bf16=bf16, watch=watch)
    return run


def embed(
    run: Run | Path | str,
    images: Any,
    *,
    split: str = "train",
    device: str = "auto",
    recipe: str | Path | None = None,
) -> tuple[Embedded, ImageSet]:
    """h and z of every image under the run's encoder, and the images in that order."""
    run = run if isinstance(run, Run) else Run.open(run)
    encoder = Encoder.load(run.path, None if recipe is None else recipes.module(recipe))
    source = request_of(run, images).open(split)
    size = run.read("recipe.json")["recipe"]["size"]
    return embed_images(encoder, source, size=size, device=choose_device(device)), source


def encoder_in(
    folder: Path,
    recipe: Recipe,
    images: ImageSet,
    device: str = "auto",
    watch: Callable[[loop.Progress], None] = lambda progress: None,
    begin: Callable[[Run, Recipe, ImageSet], None] = lambda run, recipe, images: None,
) -> Encoder:
    """The recipe's encoder after training on all the images, from a run in `folder`: one that is
    begun, goes on where it was stopped, or is finished already.

    Raises InterruptedTraining that names no folder: who asked for the encoder goes on with it.
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
    encoder = build(recipe, images)  # as `Encoder.load`, for recipes of the user's own too
    encoder.load_state_dict(read_weights(run.path)[0])
    return encoder


def changed(
    recipe: Recipe,
    images: ImageSet,
    encoder: str | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    changes: Sequence[str] = (),
) -> Recipe:
    """The recipe with the flags of the command line applied, the general `--set` last."""
    if encoder is not None:
        recipe = dataclasses.replace(recipe, backbone=backbone_named(encoder, images))
    if epochs is not None:
        if not epochs > 0:
            raise UserError(f"--epochs {epochs}: use a positive number")
        warmup = min(recipe.warmup, epochs / 10)
        recipe = dataclasses.replace(recipe, epochs=epochs, warmup=warmup)
    if batch_size is not None:
        recipe = dataclasses.replace(recipe, batch_size=batch_size)
    if seed is not None:
        recipe = dataclasses.replace(recipe, seed=seed)
    if temperature is not None:
        recipe = assign(recipe, "loss.temperature", str(temperature))
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"--set {change}: write it as path=value, such as loss.temperature=0.1")
        recipe = assign(recipe, path.strip(), text.strip())
    return recipe


def beside_constants(recipe: Recipe, images: ImageSet) -> Recipe:
    """The recipe for images with channels that are no picture, such as random bits: its views leave
    them as they are, and its backbone takes them. Its colour operations change the channels that
    the images name as `rgb`."""
    if images.rgb is not None:
        recipe = dataclasses.replace(recipe, views=_with_rgb(recipe.views, images.rgb))
    if not images.constant:
        return recipe
    views = recipe.views
    if not _leaves_constants(views):
        views = partial(augment.on_channels, views=views, channels=images.shown)
    backbone = recipe.backbone
    function = getattr(backbone, "func", backbone)
    if "channels" in arguments(function):
        given = getattr(backbone, "keywords", {}) | {"channels": images.channels}
        backbone = partial(function, **given)
    return dataclasses.replace(recipe, views=views, backbone=backbone)


def _with_rgb(views: Callable[..., Any], rgb: RGB) -> Callable[..., Any]:
    """The policy, and those that it is put on top of, with `rgb` where they take it."""
    given = getattr(views, "keywords", {})
    if "views" in given:
        given = given | {"views": _with_rgb(given["views"], rgb)}
    function = getattr(views, "func", views)
    if "rgb" in arguments(function) and given.get("rgb") is None:
        given = given | {"rgb": rgb}
    return partial(function, **given) if given else views


def _leaves_constants(views: Callable[..., Any]) -> bool:
    """Whether the policy, or one that it is put on top of, is `on_channels`."""
    if getattr(views, "func", None) is augment.on_channels:
        return True
    below = getattr(views, "keywords", {}).get("views")
    return below is not None and _leaves_constants(below)


def backbone_named(name: str, images: ImageSet) -> Callable[..., Any]:
    """`resnet18` with the stem and channels that suit the images; `timm:NAME` for timm's."""
    known = {function.__name__: function for function in encoders.BACKBONES}
    if name.startswith("timm:"):
        return partial(encoders.timm, name=name.removeprefix("timm:"), channels=images.channels)
    if name not in known or name == "timm":
        raise UserError(
            f"--encoder {name}: there is no encoder {unknown(name, known)}; or timm:NAME"
        )
    chosen = partial(known[name], channels=images.channels)
    if name.startswith("resnet"):
        chosen = partial(chosen, stem="cifar" if images.size <= 64 else "imagenet")
    return chosen


def build(recipe: Recipe, images: ImageSet) -> Encoder:
    """The encoder of a recipe with weights drawn from its seed, whitening these images."""
    sample = images.batch(evenly(len(images), max(2, 3 * MEASURED // max(3, images.channels))))
    pixels = sample.float().div(255).transpose(0, 1).flatten(1)
    mean, std = pixels.mean(dim=1).tolist(), pixels.std(dim=1).clamp(min=0.01).tolist()
    torch.manual_seed(recipe.seed)
    try:
        return Encoder.build(recipe.backbone, recipe.head, mean, std)
    except (TypeError, RuntimeError, MemoryError, LookupError, ArithmeticError) as error:
        raise UserError(f"the recipe's backbone and head cannot be built: {error}") from error


def untrained(
    recipe: Recipe, images: ImageSet, device: str = "cpu", *, like: Encoder | None = None
) -> Encoder:
    """The encoder as it is before training, as a control: what is read of it was not learned.

    In evaluation mode, with statistics of batch normalisation estimated over views of the images,
    as those of a trained encoder are. like: the encoder that it is a control for, whose whitening
    it then has. The state of torch's generator stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        if like is None:
            encoder = build(recipe, images)
        else:
            torch.manual_seed(recipe.seed)
            mean, std = like.mean.tolist(), like.std.tolist()
            encoder = Encoder.build(recipe.backbone, recipe.head, mean, std)
    estimate_statistics(
        encoder.train(), images, recipe.policy, seed=recipe.seed,
        number_of_views=recipe.number_of_views, device=device,
    )  # fmt: skip
    return encoder.to(device).eval()


_ENVIRONMENT = {"precision?": frozenset({"fp32", "bf16"}), "resumed?": [dict]}


def request_of(run: Run, images: Any = None) -> Request:
    """The images a run was trained on, or others (`Request`, or its source) stored the same way."""
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
    """Errors about a run's own images say where it has them from, and what to do."""
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
    """(train, test, what the test images are), a fifth of train held out where no test split
    serves: there is none, or it has no labels while train has."""
    written = run.read("recipe.json")
    request = request_of(run, images)
    with _own_images(run, images):
        train_images, test, words = request.train_and_test(int(written["recipe"]["seed"]))
    if images is not None and request.open("train").fingerprint != written["data"]["fingerprint"]:
        return train_images, test, f"{train_images.name}, {words}"
    if words.startswith("held-out") and not request.held_out:
        labelled = "with" if written["recipe"]["positives"] != "image" else "without"
        words += f", which the encoder saw {labelled} labels"
    return train_images, test, words


def new_folder(data: str, recipe: str) -> Path:
    """runs/cifar10-simclr-1, the first number that is free."""
    stem, number = as_file_name(data), 1
    while not unfinished(path := Path("runs") / f"{stem}-{recipe}-{number}") or holder(path):
        number += 1
    return path


def command_line() -> str:
    return shlex.join(["contrapose", *sys.argv[1:]])
