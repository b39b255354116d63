"""Images that belong together: copies of each other, and images of a group that the user names.

A copy is the same image, exactly or nearly: saved twice, resized, compressed again, or the next
frame of a clip. Images are near copies if the cosine of their descriptors is above NEAR; the
descriptor is the image averaged to 16 x 16 px, minus its mean, of unit length. Of a set with more
than COMPARED images only this many are compared.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.data.images import ImageSet
from contrapose.data.labels import TABLES, read_labels
from contrapose.data.split import evenly, exact_keys, keys_among
from contrapose.errors import UserError
from contrapose.progress import counted, stage
from contrapose.similarity import Pairs, topk

NEAR = 0.985  # cosine; at most 0.3 % of CIFAR-10, flowers, Tiny-ImageNet and COCO are as near
NEAR_GLYPHS = 0.997  # of small grey images, which are alike: 0.03 % of MNIST, 0 of digits
COMPARED = 30_000  # images, as their similarities cost time in proportion to the square
SIDE = 16  # px of a descriptor
KEPT = 64  # principal axes in which neighbours are searched, before all are compared
NEIGHBOURS = 8  # of each image; longer chains of copies are linked through one another
FLAT = 2.0  # grey levels: an image of less contrast has no descriptor


@dataclass(frozen=True)
class Descriptors:
    """Digests of all images and descriptors of some, by which copies are recognised."""

    keys: list[bytes]  # of every image
    x: Float[Tensor, "M D"]  # descriptors, of the images that have contrast
    place: Int[Tensor, " M"]  # which images these are
    compared: int  # images of which a descriptor was asked
    near: float  # cosine above which two images are near copies


@dataclass(frozen=True)
class Copies:
    """The groups of images that are copies of each other, and how many were found how."""

    group: Int[Tensor, " N"]  # copies have one number
    exact: int  # images that repeat an earlier one byte for byte
    near: int  # further images that nearly repeat one
    compared: int  # images that were compared for near copies

    @property
    def repeats(self) -> int:
        return self.exact + self.near


def descriptors_of(images: ImageSet) -> Descriptors | None:
    """Digests and descriptors of a set; None if it has over COMPARED images, decoded on access."""
    if len(images) > COMPARED and not images.in_memory:
        return None
    chosen = evenly(len(images), COMPARED)
    x, seen = _descriptors(images, chosen)
    near = NEAR_GLYPHS if images.shown == 1 and images.size <= 64 else NEAR
    return Descriptors(exact_keys(images), x, chosen[seen], len(chosen), near)


def copies(images: ImageSet) -> Copies:
    """The copies among the images; none if there are over COMPARED, decoded on access."""
    found = descriptors_of(images)
    return Copies(torch.arange(len(images)), 0, 0, 0) if found is None else copies_in(found)


def copies_in(found: Descriptors) -> Copies:
    """The copies among images with these digests and descriptors."""
    n, first = len(found.keys), dict[bytes, int]()
    group = np.array([first.setdefault(key, i) for i, key in enumerate(found.keys)])
    exact = n - len(first)
    pairs = _near_pairs(found.x, found.x, found.near, own=True)
    group = joined(group, found.place[pairs].numpy())
    near = n - exact - len(np.unique(group))
    return Copies(torch.from_numpy(group), exact, near, found.compared)


def repeated(test: ImageSet, train: ImageSet) -> tuple[Int[Tensor, " K"], int]:
    """(positions of test images that repeat a train image, how many of them exactly)."""
    if max(len(test), len(train)) > COMPARED and not (test.in_memory and train.in_memory):
        return torch.empty(0, dtype=torch.long), 0
    of_test, of_train = descriptors_of(test), descriptors_of(train)
    assert of_test is not None and of_train is not None
    return repeated_in(of_test, of_train)


def repeated_in(test: Descriptors, train: Descriptors) -> tuple[Int[Tensor, " K"], int]:
    """As `repeated`, from digests and descriptors."""
    exact = set(keys_among(test.keys, train.keys))
    near = test.place[_near_pairs(test.x, train.x, train.near, own=False)[:, 0]].tolist()
    return torch.tensor(sorted(exact.union(near)), dtype=torch.long), len(exact)


def named_groups(images: ImageSet, told: str | Path, also: ImageSet | None = None) -> np.ndarray:
    """The group of each image from a table or a pattern; -1 for an image without a group.

    told: a .csv, .tsv or .npy file as for labels, with groups in their place; otherwise a regular
    expression with one part in parentheses, which is searched in the file names: 'clip(\\d+)_'.
    also: images that the table may list too. Raises UserError for a pattern that is invalid or
    matches no name.
    """
    path = Path(os.path.expanduser(told))
    if is_table(told):
        names = images.files + ([] if also is None else also.files)
        number, _, _ = read_labels(path, names)
        return np.asarray(number[: len(images)])
    try:
        pattern = re.compile(str(told))
    except re.error as error:
        raise UserError(
            f"--groups {told}: no regular expression ({error}), nor a .csv, .tsv or .npy"
        ) from None
    if pattern.groups != 1:
        raise UserError(
            f"--groups {told}: a pattern has one part in parentheses, which is the name of the "
            "group, such as 'clip(\\d+)_'; or give a .csv"
        )
    names = images.files
    found = [match.group(1) if (match := pattern.search(name)) else None for name in names]
    if not any(found):
        raise UserError(f"--groups {told}: fits none of the names, such as {names[0]!r}")
    numbers = {name: i for i, name in enumerate(dict.fromkeys(f for f in found if f))}
    return np.array([numbers[f] if f else -1 for f in found])


def is_table(told: str | Path) -> bool:
    """True if the groups are in a file, False if they are a pattern of names."""
    return Path(told).suffix.lower() in (*TABLES, ".npy")


def joined(group: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Groups [N] merged where a pair [P, 2] joins them; a group's number is its first position."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(group)
    own = np.stack([np.arange(n), group], axis=1)  # a group's number is the place of one of it
    edges = np.concatenate([own, pairs.reshape(-1, 2)])
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n))
    _, part = connected_components(graph, directed=False)
    _, first = np.unique(part, return_index=True)
    return np.asarray(first[part])


def as_places(number: np.ndarray) -> np.ndarray:
    """Each group number replaced by the group's first position; an image with -1 is alone."""
    places = np.arange(len(number))
    _, first, of = np.unique(number, return_index=True, return_inverse=True)
    return np.where(number < 0, places, first[of])


def _descriptors(
    images: ImageSet, chosen: Int[Tensor, " K"]
) -> tuple[Float[Tensor, "M D"], Int[Tensor, " M"]]:
    """(descriptors of the chosen images that are not uniform, which of them these are)."""
    parts = []
    for index in counted(torch.split(chosen, 1024), "looking for copies"):
        x = images.batch(index)[:, : images.shown].float().cpu()
        x = F.adaptive_avg_pool2d(x, SIDE) if images.size > SIDE else x
        x = x.flatten(1)
        parts.append(x - x.mean(dim=1, keepdim=True))
    x = torch.cat(parts)
    length = torch.linalg.vector_norm(x, dim=1)
    seen = torch.nonzero(length > FLAT * x.shape[1] ** 0.5).flatten()
    return x[seen] / length[seen, None], seen


def _near_pairs(
    x: Float[Tensor, "N D"], y: Float[Tensor, "M D"], above: float, *, own: bool
) -> Int[Tensor, "P 2"]:
    """Pairs (row of x, row of y) with a cosine above the bound, among the nearest rows of each
    x."""
    if len(x) < 2 or len(y) < 2:
        return torch.empty(0, 2, dtype=torch.long)
    short, other = x, y
    if x.shape[1] > KEPT:
        axes = torch.linalg.eigh((y.T @ y).double())[1][:, -KEPT:].float()
        short, other = x @ axes, y @ axes
        short, other = (F.normalize(v, dim=1) for v in (short, other))
    rows = torch.arange(len(x))
    pairs = Pairs(row_id=rows, col_id=torch.arange(len(y))) if own else Pairs()
    k = min(NEIGHBOURS, len(y) - own)
    with stage("comparing images with one another"):
        _, index = topk(short, other, k, pairs=pairs)
    similarity = torch.stack([(x * y[index[:, j]]).sum(dim=1) for j in range(k)], dim=1)
    row, column = torch.nonzero(similarity > above, as_tuple=True)
    return torch.stack([row, index[row, column]], dim=1)
