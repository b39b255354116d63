"""Losses of distances and margins: pairs, triplets and how their negatives are chosen, logistic.

Distances are d_ij = |z_i - z_j|^2 = 2 - 2 s_ij between unit vectors, P(i) and N(i) as in
`softmax.py`. Choosing among all triplets does not fit the row reductions: memory is O(N M) for N
rows against the M of all processes, except where stated. Every loss is a mean over the anchors
that have a positive and a negative of the mean over the anchor's own pairs or triplets.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrapose.errors import UserError
from contrapose.losses.checks import (
    check_groups,
    check_lengths,
    check_positive,
    mean_over_anchors,
    warn_of_rows_left_out,
)
from contrapose.losses.terms import softplus
from contrapose.similarity import (
    Pairs,
    anchor_mean,
    gather_rows,
    logsumexp,
    negatives,
    others,
    paired,
    positive_count,
    positives,
    softplus_sum,
    whole_numbers,
    widen,
)

MeanOver = Literal["anchors", "pairs"]

BOTH = "a positive and a negative"


def max_margin(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, margin: float
) -> Float[Tensor, ""]:
    """Max-margin contrastive loss of pairs (Hadsell, Chopra, LeCun 2006, eq. 4).

    mean over pairs i != j of  D^2/2 in one group, max(0, margin - D)^2/2 otherwise, D = |z_i - z_j|
    """
    z, group = check_groups("max_margin", z, group)
    squared, same, different = _distances(z, group)
    near = different & (squared < margin**2)
    gap = margin - torch.where(near, squared, 1.0).clamp(min=1e-12).sqrt()
    terms = torch.where(same, squared, 0.0) + torch.where(near, gap.square(), 0.0)
    return anchor_mean(terms.sum(dim=1) / 2 / max(squared.shape[1] - 1, 1))


def triplet(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, margin: float
) -> Float[Tensor, ""]:
    """Triplet loss (FaceNet, arXiv 1503.03832, eq. 1) of all triplets.

    mean over i of mean over p in P(i), n in N(i) of  max(0, d_ip - d_in + margin)
    SimCLR's margin loss max(0, s_in - s_ip + m) is half of it at margin 2 m. The triplets are not
    listed: with a row's negatives sorted, those that a positive violates are the first ones.
    """
    z, group = check_groups("triplet", z, group)
    d, same, different = _distances(z, group)
    ordered = torch.where(different, d, math.inf).sort(dim=1).values
    reach = d + margin
    count = torch.searchsorted(ordered.detach(), reach.detach())
    sums = torch.where(ordered < math.inf, ordered, 0.0).cumsum(dim=1)
    below = torch.where(count > 0, sums.gather(1, (count - 1).clamp(min=0)), 0.0)
    hinge = torch.where(same, count * reach - below, 0.0).sum(dim=1)
    triplets = same.sum(dim=1) * different.sum(dim=1)
    return _mean("triplet", hinge / triplets.clamp(min=1), same, different)


def triplet_batch_hard(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, margin: float
) -> Float[Tensor, ""]:
    """Batch-hard triplet loss (arXiv 1703.07737, eq. 5): farthest positive, nearest negative.

    mean over i of  max(0, max_{p in P(i)} d_ip - min_{n in N(i)} d_in + margin)
    """
    return _mean("triplet_batch_hard", *_batch_hard("triplet_batch_hard", z, group, margin))


def triplet_ohem(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, margin: float, share: float
) -> Float[Tensor, ""]:
    """Triplet loss with online hard example mining (arXiv 1604.03540): only the worst anchors.

    `triplet_batch_hard` over the `share` of the anchors, of all processes, whose loss is greatest.
    Anchors as bad as the last one are kept with it. Raises UserError unless 0 < share <= 1.
    """
    if not 0 < share <= 1:
        raise UserError(f"triplet_ohem: share={share}; give a share of anchors, 0 < share <= 1")
    loss, same, different = _batch_hard("triplet_ohem", z, group, margin)
    usable = same.any(dim=1) & different.any(dim=1)
    losses = gather_rows(torch.where(usable, loss.detach(), -math.inf))
    ranked = losses[gather_rows(usable)].sort(descending=True).values
    worst = ranked[max(1, round(share * len(ranked))) - 1] if len(ranked) else math.inf
    warn_of_rows_left_out("triplet_ohem", usable, torch.ones_like(usable), BOTH)
    return anchor_mean(loss, usable & (loss >= worst))


def triplet_semi_hard(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    margin: float,
    mean_over: MeanOver = "anchors",
) -> Float[Tensor, ""]:
    """Triplet loss with semi-hard negatives (FaceNet; the rule of TensorFlow and of TCN's code).

    mean over i of mean_{p in P(i)} of  max(0, d_ip - d_in* + margin)    with n* the nearest
    negative farther than p, and the farthest of all where none is farther than p.
    mean_over="pairs" is the mean over all (i, p) in its place, as in TensorFlow's code, where
    large groups weigh more.
    """
    z, group = check_groups("triplet_semi_hard", z, group)
    distances = _distances(z, group)
    return _semi_hard_triplets("triplet_semi_hard", *distances, margin, mean_over)


def triplet_distance_weighted(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    margin: float,
    generator: torch.Generator | None = None,
    nearest: float = 0.5,
    farthest: float | None = None,
) -> Float[Tensor, ""]:
    """Triplet loss with distance-weighted negatives (arXiv 1706.07567, eq. 1 to 3).

    mean over i of mean_{p in P(i)} of  max(0, d_ip - d_in + margin)    with n drawn from N(i) in
    proportion to 1/q(D), q(D) = D^{dim-2} (1 - D^2/4)^{(dim-3)/2} the density of distances between
    uniform points of the sphere, D = sqrt(d) no less than `nearest` (0.5 in the paper).
    `farthest` (1.4 in the released code, not in the paper) leaves out negatives at that distance
    and beyond; an anchor with no other draws from all of its negatives alike. Raises UserError
    unless farthest > nearest.
    """
    if farthest is not None and not farthest > nearest:
        raise UserError(
            f"triplet_distance_weighted: farthest={farthest}, nearest={nearest}; give a greater one"
        )
    z, group = check_groups("triplet_distance_weighted", z, group)
    d, same, different = _distances(z, group)
    with torch.no_grad():
        squared = d.clamp(nearest**2, 4 - 1e-3)
        dim = z.shape[1]
        log_q = (dim - 2) / 2 * squared.log() + (dim - 3) / 2 * torch.log1p(-squared / 4)
        lonely = ~different.any(dim=1, keepdim=True)
        height = -log_q
        if farthest is not None:
            inside = different & (d < farthest**2)
            none = ~inside.any(dim=1, keepdim=True)
            height = torch.where(inside, height, torch.where(none, 0.0, -math.inf))
        weight = torch.where(different | lonely, height, -math.inf).softmax(dim=1)
    if not len(z):
        return anchor_mean(d.sum(dim=1))
    drawn = torch.multinomial(weight, d.shape[1], replacement=True, generator=generator)
    hinge = torch.where(same, (d - d.gather(1, drawn) + margin).relu(), 0.0)
    loss = hinge.sum(dim=1) / same.sum(dim=1).clamp(min=1)
    return _mean("triplet_distance_weighted", loss, same, different)


def time_contrastive(
    z: Float[Tensor, "N D"],
    time: Int[Tensor, " N"],
    *,
    near: int,
    far: int,
    margin: float,
    mean_over: MeanOver = "anchors",
) -> Float[Tensor, ""]:
    """Single-view time-contrastive triplets (TCN, arXiv 1704.06888): near frames attract.

    `triplet_semi_hard` with P(i) = {j: 0 < |time_i - time_j| <= near}, N(i) = {j: |..| > far};
    frames between are neither. In frames; the released code: near = 6, far = 12, margin = 0.2, and
    mean_over="pairs": the mean over all (i, p) in place of the mean over anchors of theirs.
    """
    z, _ = check_groups("time_contrastive", z, time)
    time = whole_numbers("time_contrastive", "time", time)
    if not 0 < near <= far:
        raise UserError(f"time_contrastive: near={near}, far={far}; give 0 < near <= far")
    d, _, _ = _distances(z, time)
    apart = (time[:, None] - gather_rows(time)[None, :]).abs()
    other = others(len(z), z.device).mask()
    assert other is not None
    near_by = (apart <= near) & other
    return _semi_hard_triplets("time_contrastive", d, near_by, apart > far, margin, mean_over)


def nt_logistic(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, temperature: float | Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """NT-Logistic (SimCLR, table 2). Memory O(N + M).

    mean over i of  mean_{p in P(i)} -log sigma(s_ip/t)  +  mean_{n in N(i)} -log sigma(-s_in/t)
    """
    check_positive("nt_logistic", temperature=temperature)
    z, group = check_groups("nt_logistic", z, group)
    every, zero, scale = gather_rows(z), z.new_zeros(len(z)), 1 / temperature
    count = positive_count(group)
    rest = len(every) - 1 - count
    pull = softplus_sum(z, every, scale=-scale, bias=zero, pairs=positives(group))
    push = softplus_sum(z, every, scale=scale, bias=zero, pairs=negatives(group))
    loss = pull / count.clamp(min=1) + push / rest.clamp(min=1)
    where = (count > 0) & (rest > 0)
    return mean_over_anchors("nt_logistic", loss, where, lacking=BOTH)


def nt_logistic_semi_hard(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, temperature: float | Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """NT-Logistic with semi-hard negatives (SimCLR, table 4).

    mean over i of mean_{p in P(i)} of  -log sigma(s_ip/t) - log sigma(-s_in*/t)
    with n* chosen for (i, p) as in `triplet_semi_hard`.
    """
    check_positive("nt_logistic_semi_hard", temperature=temperature)
    z, group = check_groups("nt_logistic_semi_hard", z, group)
    d, same, different = _distances(z, group)
    s, chosen = 1 - d / 2, 1 - _semi_hard(d, different) / 2
    terms = softplus(-s / temperature) + softplus(chosen / temperature)
    loss = torch.where(same, terms, 0.0).sum(dim=1) / same.sum(dim=1).clamp(min=1)
    return _mean("nt_logistic_semi_hard", loss, same, different)


def large_margin_softmax(
    x: Float[Tensor, "N D"],
    classes: Float[Tensor, "C D"],
    label: Int[Tensor, " N"],
    *,
    m: int,
    blend: float = 0.0,
) -> Float[Tensor, ""]:
    """Large-margin softmax (arXiv 1612.02295, eq. 4 to 6): the "Max-Margin" row of SupCon's tables.

    mean over i of  -log e^{f_i} / (e^{f_i} + sum_{c != y_i} e^{w_c.x_i})    with theta the angle of
    x_i and w_{y_i},  psi = (-1)^k cos(m theta) - 2 k for theta in [k pi/m, (k+1) pi/m],
    f_i = |w_{y_i}| |x_i| (blend cos(theta) + psi) / (blend + 1).
    `classes` are the rows w_c of a classifier without bias; m = 1 is cross-entropy. Vectors of any
    length; memory O(N + C). Training starts with a large `blend` and lets it fall. Rows without a
    label (below 0) are counted and left out. Raises UserError for a label that is no class.
    """
    name = "large_margin_softmax"
    if m < 1 or not blend >= 0:
        raise UserError(f"{name}: m={m}, blend={blend}; give m >= 1 and blend >= 0")
    label = whole_numbers(name, "labels", label)
    if label.shape != x.shape[:1]:
        raise UserError(f"{name}: {len(x)} rows but labels of shape {tuple(label.shape)}")
    if label.device.type == "cpu" and len(label) and int(label.max()) >= len(classes):
        raise UserError(
            f"{name}: label {int(label.max())} among {len(classes)} classes; use 0 to "
            f"{len(classes) - 1}, or -1 for no label"
        )
    for rows in (x, classes):
        check_lengths(name, rows, unit=False)
    x, classes, known = widen(x), widen(classes), label >= 0
    own = classes[label.clamp(min=0)]
    length = (torch.linalg.vector_norm(v, dim=1) for v in (x, own))
    size = torch.stack(list(length)).prod(dim=0)
    cosine = (paired(x, own) / size.clamp(min=1e-12)).clamp(-1, 1)
    k = (m * cosine.detach().acos() / math.pi).floor().clamp(max=m - 1)
    before, chebyshev = torch.ones_like(cosine), cosine  # cos(n theta) for n = 0, 1
    for _ in range(m - 1):
        before, chebyshev = chebyshev, 2 * cosine * chebyshev - before
    psi = (1 - 2 * (k % 2)) * chebyshev - 2 * k
    target = size * (blend * cosine + psi) / (blend + 1)
    wrong = Pairs(row_id=label, col_id=torch.arange(len(classes), device=label.device))
    gap = logsumexp(x, classes, pairs=wrong) - target
    return mean_over_anchors(name, softplus(gap), known, lacking="a label")


def _distances(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"]
) -> tuple[Float[Tensor, "N M"], Bool[Tensor, "N M"], Bool[Tensor, "N M"]]:
    """Squared distances to the rows of all processes; which are positives; which are negatives."""
    same, different = positives(group).mask(), negatives(group).mask()
    assert same is not None and different is not None
    with torch.autocast(z.device.type, enabled=False):
        return 2 - 2 * (z @ gather_rows(z).T), same, different


def _batch_hard(
    name: str, z: Tensor, group: Tensor, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    z, group = check_groups(name, z, group)
    d, same, different = _distances(z, group)
    if not d.shape[1]:  # no process has a row
        return d.sum(dim=1), same, different
    farthest = torch.where(same, d, -math.inf).amax(dim=1)
    nearest = torch.where(different, d, math.inf).amin(dim=1)
    return (farthest - nearest + margin).relu(), same, different


def _semi_hard(d: Tensor, different: Tensor) -> Tensor:
    """For every (i, p): d_in of the nearest negative beyond p, or else of the farthest negative."""
    ordered = torch.where(different, d, math.inf).sort(dim=1).values
    beyond = torch.searchsorted(ordered.detach(), d.detach(), right=True)
    last = (different.sum(dim=1, keepdim=True) - 1).clamp(min=0)
    chosen = ordered.gather(1, torch.minimum(beyond, last))
    return torch.where(different.any(dim=1, keepdim=True), chosen, 0.0)


def _semi_hard_triplets(
    name: str, d: Tensor, same: Tensor, different: Tensor, margin: float, mean_over: str
) -> Tensor:
    if mean_over not in ("anchors", "pairs"):
        raise UserError(f"{name}: mean_over={mean_over!r}; use 'anchors' or 'pairs'")
    hinge = (d - _semi_hard(d, different) + margin).relu()
    loss, count = torch.where(same, hinge, 0.0).sum(dim=1), same.sum(dim=1)
    if mean_over == "anchors":
        return _mean(name, loss / count.clamp(min=1), same, different)
    counts = gather_rows(torch.where(different.any(dim=1), count, 0))
    per_anchor = counts.sum().to(loss.dtype) / (counts > 0).sum().clamp(min=1)
    return _mean(name, loss, same, different) / per_anchor.clamp(min=1)


def _mean(name: str, loss: Tensor, same: Tensor, different: Tensor) -> Tensor:
    where = same.any(dim=1) & different.any(dim=1)
    return mean_over_anchors(name, loss, where, lacking=BOTH)
