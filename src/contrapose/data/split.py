"""Splitting a set into parts, and finding images that occur twice."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from contrapose.data.images import ImageSet, InMemory, digest
from contrapose.errors import UserError

_CHUNK = 1024  # images decoded at a time


def hold_out(
    images: ImageSet,
    share: float = 0.2,
    seed: int = 0,
    group: Int[Tensor, " N"] | None = None,
) -> tuple[ImageSet, ImageSet]:
    """(kept, held out): a set in two parts, of which the second has `share` of each class.

    Both parts keep the order of the images and contain every class with two or more images. Classes
    of a single image are drawn from together, as one class, and so are images without a label. The
    same set, share and seed give the same parts. All images of a group, such as copies, are in one
    part; the share is then met as closely as whole groups allow. Raises UserError for a share
    outside (0, 1), and for one image.
    """
    if not 0 < share < 1:
        raise UserError(f"hold_out: share={share} must lie between 0 and 1")
    if len(images) < 2:
        raise UserError(f"hold_out: {images.name} has {len(images)} image; two are needed")
    kept, held = stratified(
        images.label, len(images), share, seed, None if group is None else group.numpy()
    )
    return replace(images.subset(kept), split="train"), replace(images.subset(held), split="test")


def concatenated(first: ImageSet, second: ImageSet) -> ImageSet:
    """The images of both sets as one, in memory, with the names and classes of the first.

    Raises UserError for sets of other classes or shapes, of which labels would not mean the same.
    """
    same = (first.classes, first.channels, first.size) == (
        second.classes, second.channels, second.size
    )  # fmt: skip
    if not same or (first.label is None) != (second.label is None):
        raise UserError(f"concatenated: {first!r} and {second!r} differ in classes or shape")
    parts = [x.batch(torch.arange(len(x))).cpu() for x in (first, second)]
    label = None
    if first.label is not None and second.label is not None:
        label = torch.cat([first.label, second.label])
    return ImageSet(
        name=first.name, split=first.split, pixels=InMemory(torch.cat(parts)), label=label,
        classes=first.classes, channels=first.channels, size=first.size, constant=first.constant,
        fingerprint=digest(first.fingerprint.encode(), second.fingerprint.encode()),
        value_range=first.value_range, rgb=first.rgb,
    )  # fmt: skip


def balanced(images: ImageSet, n: int, seed: int = 0) -> ImageSet:
    """n of the images with equally many of each class, in the order of the set.

    If a class has too few, the others have more. Without labels all images are one class; images
    without a label (-1) are left out if others have one. Raises UserError for more images than
    there are.
    """
    return images.subset(_balanced("balanced", images, n, seed))


def few_labels(images: ImageSet, n: int, seed: int = 0) -> ImageSet:
    """The same images, of which n keep their label, chosen as by `balanced`; the others get -1.

    Raises UserError for images without labels, and for more labels than there are.
    """
    if images.label is None:
        raise UserError(f"few_labels: {images.name} has no labels to keep")
    kept = _balanced("few_labels", images, n, seed)
    label = torch.full_like(images.label, -1)
    label[kept] = images.label[kept]
    return replace(images, label=label)


def _balanced(caller: str, images: ImageSet, n: int, seed: int) -> Int[Tensor, " n"]:
    """Positions of n images, ascending, spread over the classes as evenly as possible."""
    y = np.zeros(len(images), np.int64) if images.label is None else images.label.numpy()
    usable = np.flatnonzero(y >= 0) if (y >= 0).any() else np.arange(len(y))
    if not 1 <= n <= len(usable):
        raise UserError(f"{caller}: {n} of {images.name}; it has {len(usable)} images to give")
    drawn = np.random.default_rng(seed).permutation(usable)
    drawn = drawn[np.argsort(y[drawn], kind="stable")]  # class by class, shuffled within
    first = np.searchsorted(y[drawn], y[drawn])
    rank = np.arange(len(drawn)) - first
    chosen = drawn[np.argsort(rank, kind="stable")[:n]]
    return torch.from_numpy(np.sort(chosen))


def stratified(
    label: Int[Tensor, " N"] | None,
    n: int,
    share: float,
    seed: int,
    group: Int[np.ndarray, " N"] | None = None,
) -> tuple[Int[Tensor, " K"], Int[Tensor, " H"]]:
    """Positions (kept, held out), ascending; of class c, round(share * n_c) are held out, at least
    1.

    A group is in one part as a whole, and counts for the class of most of its images.
    """
    y = np.zeros(n, np.int64) if label is None else label.numpy()
    if group is not None and len(np.unique(group)) < n:
        return _by_groups(y, group, share, seed)
    values, kind = np.unique(y, return_inverse=True)
    lonely = np.bincount(kind) == 1
    kind = np.where(lonely[kind], len(values), kind)
    random = np.random.default_rng(seed)
    held = np.zeros(n, bool)
    for g in np.unique(kind):
        members = np.flatnonzero(kind == g)
        if len(members) > 1:
            count = min(max(round(share * len(members)), 1), len(members) - 1)
            held[random.permutation(members)[:count]] = True
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


def _by_groups(
    y: Int[np.ndarray, " N"], group: Int[np.ndarray, " N"], share: float, seed: int
) -> tuple[Int[Tensor, " K"], Int[Tensor, " H"]]:
    _, of = np.unique(group, return_inverse=True)
    classes, number = np.unique(y, return_inverse=True)
    votes = np.zeros((of.max() + 1, len(classes)), np.int64)
    np.add.at(votes, (of, number), 1)
    size, kind = votes.sum(axis=1), votes.argmax(axis=1)
    lonely = np.bincount(kind, minlength=len(classes)) == 1
    kind = np.where(lonely[kind], len(classes), kind)
    random = np.random.default_rng(seed)
    held = np.zeros(len(size), bool)
    for k in np.unique(kind):
        members = random.permutation(np.flatnonzero(kind == k))
        wanted, taken = share * size[members].sum(), 0
        for i in members[:-1]:  # never all of a class
            if taken == 0 or taken + size[i] / 2 <= wanted:
                held[i], taken = True, taken + size[i]
    if not held.any() or held.all():
        raise UserError(
            f"hold_out: the {len(of):,} images are {len(size)} group; nothing can be held out"
        )
    image = held[of]
    return torch.from_numpy(np.flatnonzero(~image)), torch.from_numpy(np.flatnonzero(image))


def evenly(count: int, most: int) -> Int[Tensor, " K"]:
    """At most `most` positions among `count`, evenly spaced from the first to the last."""
    return torch.linspace(0, count - 1, min(most, count)).long()


def exact_duplicates(images: ImageSet) -> tuple[tuple[int, ...], ...]:
    """Groups of positions with exactly the same stored pixels."""
    return equal_keys(exact_keys(images))


def equal_keys(keys: Sequence[bytes]) -> tuple[tuple[int, ...], ...]:
    """Groups of positions that have the same key."""
    seen: dict[bytes, list[int]] = {}
    for i, key in enumerate(keys):
        seen.setdefault(key, []).append(i)
    return tuple(tuple(group) for group in seen.values() if len(group) > 1)


def overlap(train: ImageSet, test: ImageSet) -> Int[Tensor, " K"]:
    """Positions in `test` of the images with exactly the pixels of an image in `train`."""
    return torch.tensor(keys_among(exact_keys(test), exact_keys(train)), dtype=torch.int64)


def keys_among(keys: Sequence[bytes], others: Sequence[bytes]) -> list[int]:
    """Positions of the keys that are among the others."""
    known = set(others)
    return [i for i, key in enumerate(keys) if key in known]


def exact_keys(images: ImageSet) -> list[bytes]:
    """A digest of the stored pixels of each image, equal for exact copies."""
    keys = []
    for start in range(0, len(images), _CHUNK):
        index = torch.arange(start, min(start + _CHUNK, len(images)))
        for square in images.batch(index).cpu().numpy():
            keys.append(hashlib.blake2b(square.data, digest_size=16).digest())
    return keys
