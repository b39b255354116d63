"""Conditional contrast: InfoNCE within groups of images that an early encoder confuses.

If views share a shortcut s (an easy feature) beside the content c, InfoNCE over all images is
solved by s alone as soon as s identifies an image. Conditioned on s it cannot be: among images with
(nearly) the same s only c identifies the other view,

    L = mean over i of  log sum_{j in G(i)} e^{z_i.z'_j/t}  -  z_i.z'_i/t,    G(i): images with s_i

s need not be known. An encoder trained for one epoch, the finder, represents what is easiest and
little else, so that its neighbours share s. Groups are made from its embeddings once and kept:
groups that are made again from the encoder which learns within them fail, since it forgets s.

Without a shortcut the images of a group have similar content, and contrast among them costs
accuracy. So `group_size` tests two conditions first. Neither depends on the loss or its
temperature, and the first does not depend on the batch or the length of training either:

1. An untrained network identifies images by their views. With L(x) the loss at x = 1 / t over
   random groups of S images, in both directions,

       shared information = 1 - min_x L(x) / (2 log S),     0: guessing, 1: every view is identified

   (By InfoNCE's bound two views share at least log S - L / 2 nats through the network.) An
   untrained network represents shortcuts, but not content. Below EASY there is no shortcut, and
   training continues without groups.

2. The finder distinguishes neighbours only at a temperature below COLDEST. If views differ by noise
   of variance v in each dimension, L is least at t = v: the noise of the content. It is that small
   if embeddings of unit length represent mostly the shortcut. Since it also falls during training
   without a shortcut, it is not sufficient alone. Groups have the largest size for which it holds.

Found are random bits on images of glyphs, from 6 or 8 bits on. Not found, so that training
continues without groups, are a frame, a colour cast, a watermark and a level of grey (0 of 7
tried), and a large digit beside a small one. With 8 bits on photographs the encoder stays near
untrained weights either way. If the shortcut has as many values as there are images, no group
shares one. What is constant within groups is no longer learned, though h may keep it.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.encoders import unit
from contrapose.errors import UserError

SIZES = (40, 20, 10, 5)  # of groups, tried from the largest
ASKED = 200  # groups of each size that are looked at
EASY = 0.76  # of log(size): what an untrained encoder tells apart where a shortcut names images
COLDEST = 0.04  # temperature below which neighbours differ in what is kept small
HIGHEST = 1e4  # 1 / temperature up to which the least loss is looked for


def neighbour_groups(
    z: Float[Tensor, "N D"], size: int, generator: torch.Generator, *, count: int | None = None
) -> Int[Tensor, "G size"]:
    """Disjoint groups of rows: each is a row drawn among the free ones and its nearest free rows.

    By the cosine of z. count: number of groups, by default N // size, so that the last N % size
    rows are in none. O(count N D). Raises UserError for a size below 2 or above N.
    """
    n = len(z)
    if not 2 <= size <= n:
        raise UserError(f"neighbour_groups: size={size} of {n} rows; use 2 to {n}")
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

    Rows come group by group, `size` of each, and both are of unit length. Raises UserError for a
    batch that does not consist of whole groups.
    """
    if size < 2 or len(a) % size:
        raise UserError(f"conditional_info_nce: {len(a)} rows are no whole groups of {size}")
    logits = _within(a, b, size) / temperature
    own = logits.diagonal(dim1=1, dim2=2)
    return (logits.logsumexp(dim=2) - own).mean() + (logits.logsumexp(dim=1) - own).mean()


def read_colder(
    a: Float[Tensor, "B D"], b: Float[Tensor, "B D"], *, size: int, temperature: float
) -> bool:
    """True if the loss within groups has its minimum at a temperature below this one.

    L is convex in x = 1 / t, so that its least value lies at a larger x exactly where at this x
    its slope is negative: see `_slope`.
    """
    return _slope(_within(a, b, size), 1 / temperature) < 0


def shared_information(
    a: Float[Tensor, "N D"], b: Float[Tensor, "N D"], *, size: int = SIZES[0]
) -> float:
    """InfoNCE's bound on the information that two views share, as a share of its maximum.

    1 - min_x L(x) / (2 log size) over at most ASKED groups of `size` rows in their order: 0 is
    guessing, 1 if every view is identified. It does not change if all similarities are multiplied
    by a number. Rows are images in random order; those after the last whole group are left out.
    Raises UserError for fewer rows than a group has.
    """
    if not 2 <= size <= len(a):
        raise UserError(f"shared_information: size={size} of {len(a)} rows; use 2 to {len(a)}")
    rows = min(len(a) // size, ASKED) * size
    s = _within(a[:rows], b[:rows], size)
    low, high = math.log(1 / HIGHEST), math.log(HIGHEST)
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(s, math.exp(middle)) < 0 else (low, middle)
    return 1 - _loss(s, math.exp(low)) / (2 * math.log(size))


def group_size(
    z: Float[Tensor, "N D"],
    a: Float[Tensor, "N D"],
    b: Float[Tensor, "N D"],
    generator: torch.Generator,
    *,
    untrained: float,
    sizes: Sequence[int] = SIZES,
) -> int | None:
    """The largest size of neighbour groups in which a feature is suppressed, or None.

    z: the finder's embeddings of the images. a, b: embeddings of two views of each, of the same
    batches if batch norm uses the statistics of the batch, whose noise would hide small differences
    otherwise. All are of unit length. untrained: `shared_information` of an untrained encoder. EASY
    and COLDEST were measured: docs/results/competing-features.md has the data sets, temperatures,
    batches and lengths of training that they separate.
    """
    if untrained < EASY:
        return None
    for size in sizes:
        index = neighbour_groups(z, size, generator, count=ASKED).flatten()
        if read_colder(a[index], b[index], size=size, temperature=COLDEST):
            return size
    return None


def _slope(s: Float[Tensor, "G size size"], x: float) -> float:
    """dL/dx = mean over i of  sum_j p_ij s_ij - s_ii,  p = softmax(x s), in both directions."""
    own = s.diagonal(dim1=1, dim2=2)
    return float(sum((((x * s).softmax(dim=d) * s).sum(dim=d) - own).mean() for d in (1, 2)))


def _loss(s: Float[Tensor, "G size size"], x: float) -> float:
    """L(x) of similarities s, in both directions."""
    own = x * s.diagonal(dim1=1, dim2=2)
    return float(sum(((x * s).logsumexp(dim=d) - own).mean() for d in (1, 2)))


def _within(
    a: Float[Tensor, "B D"], b: Float[Tensor, "B D"], size: int
) -> Float[Tensor, "G size size"]:
    """Products of the rows of each group."""
    return torch.bmm(a.view(-1, size, a.shape[1]), b.view(-1, size, b.shape[1]).mT)
