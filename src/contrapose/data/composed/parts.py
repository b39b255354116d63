"""Parts that all composed sets share: their features, the new `ImageSet`, its name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from contrapose.data.composed.canvas import Canvas
from contrapose.data.images import ImageSet, Pixels, digest
from contrapose.errors import UserError
from contrapose.partials import unknown

Labels = Int[Tensor, " N"]
FeatureLabels = Mapping[str, tuple[Labels, tuple[str, ...]]]  # name -> (labels, class names)
SHAPE = ("canvas", "images", "channels")  # options that the shape of the pixels shows


def features_of(images: ImageSet) -> dict[str, Labels]:
    """The labels of every feature by name; a set with only one label has the feature `image`."""
    if images.features or images.label is None:
        return dict(images.features)
    return {"image": images.label}


def with_features(images: ImageSet, own: FeatureLabels, label: str | None) -> ImageSet:
    """The set with features in addition to those of its base; label: the feature to learn."""
    every = dict(images.features)
    for name, (value, _) in own.items():
        if name in every:
            raise UserError(f"{images.name}: its images already have a feature {name!r}")
        every[name] = value
    if label is None:
        return replace(images, features=every)
    if label not in every:
        raise UserError(f"{images.name}: label={label}: no feature {unknown(label, every)}")
    if label in own:
        classes = own[label][1]
    elif images.label is not None and torch.equal(every[label], images.label):
        classes = images.classes
    else:
        classes = tuple(map(str, range(int(every[label].max()) + 1)))
    print_ = digest(images.fingerprint.encode(), label.encode())
    return replace(images, features=every, label=every[label], classes=classes, fingerprint=print_)


def assembled(
    named: tuple[str, str],
    pixels: Pixels,
    base: ImageSet,
    *others: ImageSet,
    notes: Mapping[str, int] | None = None,
) -> ImageSet:
    """The base with other pixels; a canvas without images behind it has no `image` label."""
    alone = isinstance(pixels, Canvas) and pixels.base is None
    shape = repr((len(pixels), pixels.channels, pixels.side))
    prints = [part.fingerprint.encode() for part in (base, *others)]
    return replace(
        base,
        name=named[0],
        pixels=pixels,
        label=None if alone else base.label,
        classes=() if alone else base.classes,
        channels=pixels.channels,
        size=pixels.side,
        fingerprint=digest(named[1].encode(), shape.encode(), base.split.encode(), *prints),
        skipped=(*base.skipped, *(skipped for part in others for skipped in part.skipped)),
        notes={**base.notes, **(notes or {})},
        features={} if alone else features_of(base),
        names=() if alone else base.names,
        origin=None if alone else base.origin,
    )


def named_as(
    function: Callable[..., ImageSet], *sets: str, later: Sequence[str] = (), **options: object
) -> tuple[str, str]:
    """(the set as a call, the part of it that its shape does not show, for the fingerprint)

    later: options that earlier versions of the function did not have. With their default they are
    left out of the second, so that older run folders still open.
    """
    name = function.__name__.replace("_", "-")
    usual = {p.name: p.default for p in inspect.signature(function).parameters.values()}
    changed = {key: value for key, value in options.items() if value != usual[key]}
    # whether the shape was asked for or came by itself makes no other set: `assembled` has it
    rest = {
        key: value
        for key, value in options.items()
        if key not in SHAPE and (key in changed or key not in later)
    }
    asked = [f"{key}={value}" for key, value in changed.items()]
    return f"{name}({', '.join([*sets, *asked])})", f"{name} {rest}"
