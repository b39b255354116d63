"""At most k positives for each anchor (SupCon, arXiv 2004.11362, table 5).

Further positives are left out of the numerator and the denominator. Those that are kept follow from
the ids of the images, without random numbers: first the other views of the anchor's image, then the
images of its class that come next in the cyclic order of ids, beginning with the view that has the
anchor's number. So every row is a positive of equally many anchors, and since batches are drawn at
random, so are these positives.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrapose.losses.temperature import tempered_logsumexps
from contrapose.similarity import gather_rows, negatives, paired, row_ids, safe_logsumexp


def capped_supcon(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    image: Int[Tensor, " N"],
    t: float | Float[Tensor, "..."],
    k: int,
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
    """(loss, number of positives) of each row, with K(i) the kept positives, at most k of them.

    log(sum_{p in K(i)} e^{s_ip/t} + sum_{n in N(i)} e^{s_in/t}) - mean_{p in K(i)} s_ip/t
    Memory O(N k D).
    """
    every = gather_rows(z)
    index, kept = kept_positives(group, image, k)
    s = torch.stack([paired(z, every[column]) for column in index.unbind(dim=1)], dim=1)
    logits = s / (t[:, None] if isinstance(t, Tensor) and t.ndim else t)
    (push,) = tempered_logsumexps(z, every, t, (negatives(group),))
    count = kept.sum(dim=1)
    pull = torch.where(kept, logits, 0.0).sum(dim=1) / count.clamp(min=1)
    # over the mean of the positives: 0 for a single one, whatever the rounding
    above = safe_logsumexp(torch.where(kept, logits - pull[:, None], -math.inf))
    return torch.where(count > 0, torch.logaddexp(push - pull, above), 0.0), count


def kept_positives(
    group: Int[Tensor, " N"], image: Int[Tensor, " N"], k: int
) -> tuple[Int[Tensor, "N k"], Bool[Tensor, "N k"]]:
    """For each of my rows: the rows of all processes kept as positives, and which of them exist."""
    groups, images = gather_rows(group), gather_rows(image)
    order = images.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]  # by group, then image, then row
    place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)).to(order))
    new_group = _differs(groups[order])
    start, n = _runs(new_group)
    first, views = _runs(new_group | _differs(images[order]))
    mine = place[row_ids(len(group), group.device)[0]]
    at, start, n, first, v = (
        x[:, None] for x in (mine, start[mine], n[mine], first[mine], views[mine])
    )
    turn = torch.arange(k, device=group.device)
    own_view = first + (at - first + 1 + turn) % v
    m = turn - (
        v - 1
    )  # the m-th of the later images' rows, from the same view of the next image on
    most = n - v - (at - first)
    later = torch.where(m < most, at + v + m, first + v + m - most)
    column = torch.where(turn < v - 1, own_view, start + (later - start) % n)
    return order[column], turn < n - 1


def _differs(x: Int[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """True for the first row and for rows that differ from the one before."""
    differs = torch.ones_like(x, dtype=torch.bool)
    differs[1:] = x[1:] != x[:-1]
    return differs


def _runs(first: Bool[Tensor, " N"]) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """(start, length) of the run of each row. first: True where a run begins."""
    number = first.long().cumsum(0) - 1
    length = torch.zeros_like(number).index_add_(0, number, torch.ones_like(number))
    begin = length.cumsum(0) - length
    return begin[number], length[number]
