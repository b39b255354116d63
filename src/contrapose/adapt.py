"""A recipe adapted to its images: flags, number of channels, and its encoder."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from contrapose import augment, encoders
from contrapose.data import ImageSet, evenly
from contrapose.data.values import RGB
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.partials import arguments, assign, revive, unknown
from contrapose.training.batchnorm import estimate_statistics
from contrapose.training.objective import learned_label
from contrapose.training.recipe import Recipe
from contrapose.training.start import PUBLISHED, source_of

MEASURED = 4096  # images whose mean and standard deviation whiten the input


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
    """The recipe with the flags of the command line applied, `--set` last."""
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


def with_network_of(start: str, recipe: Recipe, images: ImageSet) -> Recipe:
    """The recipe with the backbone of the weights it starts from, or unchanged if they name
    none."""
    if start == PUBLISHED:
        return recipe
    written = source_of(start, recipe.backbone).architecture
    if written is None:
        return recipe
    try:
        backbone = revive(written["backbone"])
    except UserError as error:
        raise UserError(f"--start {start}: {error}; name the network with --encoder") from error
    function = getattr(backbone, "func", backbone)
    if "channels" in arguments(function):
        given = getattr(backbone, "keywords", {}) | {"channels": images.shown}
        backbone = partial(function, **given)
    return dataclasses.replace(recipe, backbone=backbone)


def beside_constants(recipe: Recipe, images: ImageSet) -> Recipe:
    """The recipe adapted to the channels of the images.

    Its views do not change constant channels (such as random bits), its backbone has as many
    channels as the images, and its colour augmentations change the channels that are `rgb`.
    """
    if images.rgb is not None:
        named = partial(_with_rgb, rgb=images.rgb)
        recipe = dataclasses.replace(recipe, views=augment.on_each_branch(recipe.views, named))
    if not images.constant:
        return recipe

    def left(views: Callable[..., Any]) -> Callable[..., Any]:
        if _leaves_constants(views):
            return views
        return partial(augment.on_channels, views=views, channels=images.shown)

    views = augment.on_each_branch(recipe.views, left)
    backbone = recipe.backbone
    function = getattr(backbone, "func", backbone)
    if "channels" in arguments(function):
        given = getattr(backbone, "keywords", {}) | {"channels": images.channels}
        backbone = partial(function, **given)
    return dataclasses.replace(recipe, views=views, backbone=backbone)


def _with_rgb(views: Callable[..., Any], rgb: RGB) -> Callable[..., Any]:
    """The policy and the policies inside it with `rgb`, if they have this argument."""
    given = getattr(views, "keywords", {})
    if "views" in given:
        given = given | {"views": _with_rgb(given["views"], rgb)}
    function = getattr(views, "func", views)
    if "rgb" in arguments(function) and given.get("rgb") is None:
        given = given | {"rgb": rgb}
    return partial(function, **given) if given else views


def _leaves_constants(views: Callable[..., Any]) -> bool:
    """True if the policy, or a policy inside it, is `on_channels`."""
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


def build(recipe: Recipe, images: ImageSet, *, measured: int = MEASURED) -> Encoder:
    """The untrained encoder of a recipe, by its seed, with mean and std of these images.

    measured: how many of the images are looked at for that; fewer of more than three channels.
    """
    sample = images.batch(evenly(len(images), max(2, 3 * measured // max(3, images.channels))))
    pixels = sample.float().div(255).transpose(0, 1).flatten(1)
    mean, std = pixels.mean(dim=1).tolist(), pixels.std(dim=1).clamp(min=0.01).tolist()
    classes = learned_label(recipe, images)[1] if recipe.needs_classifier else None
    torch.manual_seed(recipe.seed)
    try:
        encoder = drawn_encoder(recipe, mean, std, classes)
    except (TypeError, RuntimeError, MemoryError, LookupError, ArithmeticError) as error:
        raise UserError(f"the recipe's backbone and head cannot be built: {error}") from error
    encoder.freeze(recipe.freeze)
    return encoder


def drawn_encoder(
    recipe: Recipe, mean: Sequence[float], std: Sequence[float], classes: Sequence[str] | None
) -> Encoder:
    """The encoder of a recipe with weights drawn by the present state of torch's generator.

    classes: the classes of its classifier, if the recipe trains one.
    """
    return Encoder.build(
        recipe.backbone, recipe.head, mean, std, classes, bias=recipe.classifier_bias
    )


def untrained(
    recipe: Recipe, images: ImageSet, device: str = "cpu", *, like: Encoder | None = None
) -> Encoder:
    """The encoder before training, a control: what its h shows was not learned.

    It is in evaluation mode, with statistics of batch normalisation estimated on views of the
    images. like: the trained encoder, whose mean and std it has. The state of torch's generator is
    not changed.
    """
    with torch.random.fork_rng(devices=[]):
        if like is None:
            encoder = build(recipe, images)
        else:
            torch.manual_seed(recipe.seed)
            mean, std = like.mean.tolist(), like.std.tolist()
            encoder = drawn_encoder(recipe, mean, std, like.classes or None)
    estimate_statistics(
        encoder.train(), images, recipe.policy, seed=recipe.seed,
        number_of_views=recipe.number_of_views, device=device,
    )  # fmt: skip
    return encoder.to(device).eval()
