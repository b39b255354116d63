"""Training, resuming and embedding as functions; the command line calls these."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from contrapose import augment, encoders, recipes
from contrapose.data import NAMED, ImageSet, NoSuchSplit, evenly, hold_out, open_images
from contrapose.data.composed.spec import absolute
from contrapose.data.values import RGB, ValueRange
from contrapose.encoders import Encoder, read_weights
from contrapose.evaluation.embed import Embedded
from contrapose.evaluation.embed import embed as embed_images
from contrapose.files import holder, unfinished
from contrapose.machine import choose_bf16, choose_device, environment
from contrapose.partials import arguments, assign, describe, unknown, up_to_date
from contrapose.training import loop
from contrapose.training.recipe import Recipe, recipe_from
from contrapose.training.rehearsal import rehearse
from contrapose.training.run import FORMAT, Run
from contrapose.version import __version__

HELD_OUT = 0.2  # share of images for evaluation where there is no test split
MEASURED = 4096  # images whose mean and standard deviation whiten the input


def train(
    recipe: str | Path | Recipe = "simclr",
    images: Any = "digits",
    *,
    out: Path | str | None = None,
    labels: Any = None,
    encoder: str | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    changes: Sequence[str] = (),
    device: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    size: int | None = None,
    value_range: ValueRange | Sequence[float] | str | None = None,
    rgb: Sequence[int] | str | None = None,
    max_pixels: int | None = None,
    download: bool = False,
    max_bad_share: float = 0.05,
    held_out: float | None = None,
    command: str | None = None,
    watch: Callable[[loop.Progress], None] = lambda progress: None,
    begin: Callable[[Run, Recipe, ImageSet], None] = lambda run, recipe, images: None,
) -> Run:
    """Train an encoder; returns the run folder, whose weights `Encoder.load(run.path)` reads.

    recipe: a name (`contrapose list`), a Python file, or a `Recipe`. images: whatever
    `open_images` takes, and value_range, rgb, max_pixels as it takes them: the run records them and
    its test split and other images are read alike. changes: "loss.temperature=0.1" and the like.
    held_out: share of images kept from training for evaluation; None is a fifth where positives are
    classes and there is no test split, else 0. Everything is checked, and one step rehearsed,
    before the folder is made.
    Raises ValueError or FileNotFoundError for what cannot be trained.
    """
    of_images = {
        "labels": labels, "size": size, "value_range": value_range, "rgb": rgb,
        "max_pixels": max_pixels, "download": download or None,
    }  # fmt: skip
    given = [name for name, value in of_images.items() if value is not None]
    if isinstance(images, ImageSet) and given:
        raise ValueError(f"an ImageSet is open already; leave out {', '.join(given)}")
    if out is not None:
        Run.refuse_existing(Path(out))
    device, bf16 = choose_device(device), choose_bf16(precision, device)
    source = (
        images
        if isinstance(images, ImageSet)
        else open_images(
            images, split="train", size=size, labels=labels, download=download,
            value_range=value_range, rgb=rgb, max_pixels=max_pixels, max_bad_share=max_bad_share,
        )
    )  # fmt: skip
    chosen = recipes.recipe_for(recipe, source.size, source.shown)
    chosen = changed(chosen, source, encoder, epochs, batch_size, temperature, seed, changes)
    chosen = beside_constants(chosen, source)
    asked = None if isinstance(images, ImageSet) else images
    if held_out is None:
        untested = chosen.positives == "class" and not has_test_split(asked, source, max_pixels)
        held_out = HELD_OUT if untested else 0.0
    data = data_json(source, asked, labels, held_out, max_bad_share, max_pixels)
    source = without_held_out(source, data, chosen.seed)
    loop.check(chosen, source)
    network = build(chosen, source)
    rehearse(chosen, source, network)
    folder = Path(out) if out else new_folder(source.name, chosen.name)
    written = {"format": FORMAT, "contrapose": __version__, "command": command}
    with Run.begun(folder, written | {"data": data, "recipe": describe(chosen)}) as run:
        run.write("environment.json", environment(device, bf16))
        begin(run, chosen, source)
        if compiled:
            network.backbone.compile()
        loop.fit(chosen, source, run, network, device=device, bf16=bf16, watch=watch)
    return run


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
    run = run if isinstance(run, Run) else Run.open(run)
    written = run.read("recipe.json")
    opened = run_images(run, "train", images)
    source = without_held_out(opened, written["data"], written["recipe"]["seed"])
    if isinstance(recipe, Recipe):
        recipe = beside_constants(recipe, source)
        if up_to_date(describe(recipe)) != up_to_date(written["recipe"]):
            raise ValueError(f"{run.path} was begun with another recipe; start a new run")
        chosen = recipe
    else:
        own = None if recipe is None else recipes.module(recipe)
        chosen = recipe_from(written["recipe"], own)
    before = run.read("environment.json") if (run.path / "environment.json").exists() else {}
    device = choose_device(device)
    bf16 = choose_bf16(precision or before.get("precision", "auto"), device)
    network = build(chosen, source)
    with run.locked():
        now = environment(device, bf16)
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
    source = images if isinstance(images, ImageSet) else run_images(run, split, images)
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
    begun, goes on where it was stopped, or is finished already."""
    if not unfinished(folder):
        run = resume(folder, recipe=recipe, images=images, device=device, watch=watch, begin=begin)
    else:
        run = train(
            recipe, images, out=folder, device=device, held_out=0.0, watch=watch, begin=begin
        )
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
            raise ValueError(f"--epochs {epochs}: use a positive number")
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
            raise ValueError(
                f"--set {change}: write it as path=value, such as loss.temperature=0.1"
            )
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
        raise ValueError(
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
    return Encoder.build(recipe.backbone, recipe.head, mean, std)


def run_images(run: Run, split: str, images: Any = None) -> ImageSet:
    """The images a run was trained on, or their other split, or others stored the same way."""
    data, labels = run.read("recipe.json")["data"], None
    if isinstance(images, ImageSet):
        if split != "train":
            raise NoSuchSplit(f"an ImageSet has no {split!r} split")
        return images
    if images is None:
        images, labels = data["source"], data["labels"] if split == "train" else None
        if images is None:
            raise ValueError(
                f"{run.path} was trained on arrays in memory, which a folder cannot name; "
                "give the images again"
            )
    return open_images(
        images, split=split, size=data["size"], channels=data["channels"], labels=labels,
        value_range=range_in(data), rgb=data.get("rgb"), max_pixels=data.get("max_pixels"),
        max_bad_share=data["max_bad_share"],
    )  # fmt: skip


def train_and_test(run: Run, images: Any = None) -> tuple[ImageSet, ImageSet, str]:
    """(train, test, what the test images are), a fifth of train held out where no test split
    serves: there is none, or it has no labels while train has."""
    written = run.read("recipe.json")
    train_images = run_images(run, "train", images)
    own = images is None or train_images.fingerprint == written["data"]["fingerprint"]
    other = "" if own else f"{train_images.name}, "
    why = ""
    try:
        test = run_images(run, "test", images)
        if _serves(test, train_images):
            known = _same_classes(test, train_images)
            lost = _with_label(test) - _with_label(known)
            left_out = f", {lost:,} images of classes unknown to training left out" if lost else ""
            return train_images, known, f"{other}test{left_out}"
        why = f", since the {len(test):,} images of the test split have no labels"
    except NoSuchSplit:
        pass
    # the share that training held out, so that nothing it saw is tested
    share = written["data"]["held_out"] or HELD_OUT
    kept, held = hold_out(train_images, share, seed=int(written["recipe"]["seed"]))
    labelled = "with" if written["recipe"]["positives"] == "class" else "without"
    seen = "" if written["data"]["held_out"] else f", which the encoder saw {labelled} labels"
    return kept, held, f"{other}held-out {share:.0%}{'' if other else seen}{why}"


def has_test_split(source: Any, images: ImageSet, max_pixels: int | None = None) -> bool:
    if not isinstance(source, str | Path):
        return False
    try:
        test = open_images(
            source, split="test", size=images.size, channels=images.shown,
            value_range=images.value_range, rgb=images.rgb, max_pixels=max_pixels,
        )  # fmt: skip
    except NoSuchSplit:
        return False
    return _serves(test, images)


def _serves(test: ImageSet, train: ImageSet) -> bool:
    """False for a test split without labels beside labelled training images, as competitions give
    them: nothing can be scored on it."""
    return test.label is not None or train.label is None


def data_json(
    images: ImageSet,
    source: Any,
    labels: Any,
    held_out: float,
    max_bad_share: float,
    max_pixels: int | None = None,
) -> dict[str, Any]:
    """Which images a run takes, as recipe.json records it."""
    named, labelled = isinstance(source, str | Path), isinstance(labels, str | Path)
    over = images.value_range
    return {
        "name": images.name,
        "source": _absolute(source) if named and (labels is None or labelled) else None,
        "labels": _absolute(labels) if labelled else None,
        "split": images.split,
        "held_out": held_out,
        "max_bad_share": max_bad_share,
        "images": len(images),
        "size": images.size,
        "channels": images.shown,
        "value_range": None if over is None else dataclasses.asdict(over),
        "rgb": images.rgb,
        "max_pixels": max_pixels,
        "classes": list(images.classes),
        "fingerprint": images.fingerprint,
        "skipped": [f"{s.path}: {s.reason}" for s in images.skipped],
        "notes": dict(images.notes),
    }


def range_in(data: dict[str, Any]) -> ValueRange | None:
    """The range of values that recipe.json records; None in runs that were begun before it did."""
    found = data.get("value_range")
    return None if found is None else ValueRange(**found)


def without_held_out(images: ImageSet, data: dict[str, Any], seed: int) -> ImageSet:
    """The images that training may see: all, or those that a supervised run does not hold out."""
    return hold_out(images, data["held_out"], seed=seed)[0] if data["held_out"] else images


def _with_label(images: ImageSet) -> int:
    return 0 if images.label is None else int((images.label >= 0).sum())


def _same_classes(test: ImageSet, train: ImageSet) -> ImageSet:
    """`test` with the class numbers of `train`; a class that `train` lacks loses its label."""
    if test.label is None or test.classes == train.classes:
        return test
    number = {name: i for i, name in enumerate(train.classes)}
    known = torch.tensor([*(number.get(name, -1) for name in test.classes), -1])
    return dataclasses.replace(test, label=known[test.label], classes=train.classes)


def new_folder(data: str, recipe: str) -> Path:
    """runs/cifar10-simclr-1, the first number that is free."""
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(data).name) or "images"
    number = 1
    while not unfinished(path := Path("runs") / f"{stem}-{recipe}-{number}") or holder(path):
        number += 1
    return path


def command_line() -> str:
    return shlex.join(["contrapose", *sys.argv[1:]])


def _absolute(source: str | Path) -> str:
    """A path that other working directories understand; a set's name stays what it is."""
    return absolute(str(source), keep=NAMED)
