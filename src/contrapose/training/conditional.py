"""Negatives that share what is too easy: contrast within groups that an encoder cannot tell apart.

Where views share a shortcut s beside the content c, InfoNCE over all images is solved by s alone as
soon as s names an image. Conditioned on s it cannot be: among images with (nearly) the same s the
other view is found by c only,

    L = mean over i of  log sum_{j in G(i)} e^{z_i.z'_j/t}  -  z_i.z'_i/t,    G(i): images with s_i

s need not be known. An encoder trained for one epoch, the finder, holds what is easiest and little
else, so that its neighbours share s; groups are cut from its embeddings once and kept. Groups made
anew from the encoder that learns within them fail: it forgets s, and its groups lose their point.

It rests on two assumptions: the shortcut is learnt before the content, and enough images share
each value of it; with as many values as images no group can be made. Where there is no shortcut the
groups hold images that are alike, and contrast among them costs: `group_size` asks first whether
anything is suppressed. What the groups hold constant is no longer taught, though h may keep it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.encoders import unit

SIZES = (40, 20, 10, 5)  # of groups, tried from the largest
ASKED = 200  # groups of each size that are looked at
COLD = 5.0  # how far below that of training a temperature speaks of suppression


def neighbour_groups(
    z: Float[Tensor, "N D"], size: int, generator: torch.Generator, *, count: int | None = None
) -> Int[Tensor, "G size"]:
    """Groups of rows, no row in two: one drawn among the free, and its nearest free rows.

    By the cosine of z. `count` groups, by default N // size: then the N % size rows that are left
    at the end are in none. O(count N D). Raises ValueError for a size below 2 or above N.
    """
    n = len(z)
    if not 2 <= size <= n:
        raise ValueError(f"neighbour_groups: size={size} of {n} rows; use 2 to {n}")
    z = unit(z)
    free = torch.ones(n, dtype=torch.bool)
    rows, columns = torch.arange(n), z
    groups: list[Tensor] = []
    for first in torch.randperm(n, generator=generator).tolist():
        if not free[first]:
            continue
        if len(groups) == (n // size if count is None else min(count, n // size)):
            break
        if len(rows) > 1.25 * int(free.sum()):  # forget those that are taken
            kept = free[rows]
            rows, columns = rows[kept], columns[kept]
        similarity = (columns @ z[first]).masked_fill(~free[rows], -2.0)
        similarity[rows == first] = 2.0
        chosen = rows[similarity.topk(size).indices]
        free[chosen] = False
        groups.append(chosen)
    return torch.stack(groups)


def conditional_info_nce(
    a: Float[Tensor, "B D"], b: Float[Tensor, "B D"], *, size: int, temperature: float
) -> Float[Tensor, ""]:
    """InfoNCE of views a among the views b of their group, plus that of b among a.

    Rows come group by group, `size` of each, and both are of unit length. Raises ValueError for a
    batch that does not consist of whole groups.
    """
    if size < 2 or len(a) % size:
        raise ValueError(f"conditional_info_nce: {len(a)} rows are no whole groups of {size}")
    logits = _within(a, b, size) / temperature
    own = logits.diagonal(dim1=1, dim2=2)
    return (logits.logsumexp(dim=2) - own).mean() + (logits.logsumexp(dim=1) - own).mean()


def read_colder(
    a: Float[Tensor, "B D"], b: Float[Tensor, "B D"], *, size: int, temperature: float
) -> bool:
    """Are the members of the groups told apart best at a temperature below this one?

    L, the conditional loss, is convex in x = 1 / t, so that its least value lies at a larger x
    exactly where at this x its slope is negative:

        dL/dx = mean over i of  sum_j p_ij s_ij - s_ii  < 0,   p = softmax(x s), in both directions
    """
    s = _within(a, b, size)
    own = s.diagonal(dim1=1, dim2=2)
    slopes = [((s / temperature).softmax(dim=d) * s).sum(dim=d) - own for d in (1, 2)]
    return bool(torch.stack(slopes).mean() < 0)


def group_size(
    z: Float[Tensor, "N D"],
    a: Float[Tensor, "N D"],
    b: Float[Tensor, "N D"],
    generator: torch.Generator,
    *,
    temperature: float,
    sizes: Sequence[int] = SIZES,
) -> int | None:
    """The largest size of neighbour groups in which something is suppressed; None: nowhere.

    z: the finder's embeddings of the images; a, b: those of two views of each, made in the same
    batches where a batch has statistics of its own, or their noise hides what is small. InfoNCE at
    t makes similarities that are read at t. Where the members of a group are told apart at a far
    lower temperature, below t / COLD, the finder has seen what tells them apart and keeps it too
    small to be felt, since something else already did: a loss within such groups brings it out.
    COLD lies between what was seen on MNIST with 8 or more bits (6 to 36 times colder, groups of
    40) and without (at most 4.5, and that after 312 steps; within one epoch about 1). On CIFAR-10
    without a shortcut groups are best read warmer than t.
    """
    for size in sizes:
        index = neighbour_groups(z, size, generator, count=ASKED).flatten()
        if read_colder(a[index], b[index], size=size, temperature=temperature / COLD):
            return size
    return None


def _within(
    a: Float[Tensor, "B D"], b: Float[Tensor, "B D"], size: int
) -> Float[Tensor, "G size size"]:
    """Products of the rows of each group."""
    return torch.bmm(a.view(-1, size, a.shape[1]), b.view(-1, size, b.shape[1]).mT)
