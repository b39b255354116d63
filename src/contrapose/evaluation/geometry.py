"""The geometry of embeddings: measures of a matrix of vectors of any origin.

Unless a function says otherwise, rows are brought to unit length, s_ij = x_i . x_j is their cosine,
and memory is linear in the number of rows. Invalid rows or labels raise UserError.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrapose.encoders import unit
from contrapose.errors import UserError
from contrapose.losses import temperature as perplexity
from contrapose.similarity import logsumexp, negatives, others, positive_similarity, topk


def alignment(x: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, alpha: float = 2.0) -> float:
    """Mean of |x_i - x_j|^alpha over pairs of rows of one group (2005.10242); 0 is perfect.

    Raises UserError where no group has two rows.
    """
    x = _unit("alignment", x)
    x, group, count = _grouped("alignment", x, group)
    if alpha == 2:  # sum of squared distances in a group = 2 n (sum of squares about its mean)
        wide = x.double()
        total = wide.new_zeros(len(count), x.shape[1]).index_add(0, group, wide)
        about_mean = (wide - (total / count[:, None])[group]).square().sum(dim=1)
        return float((2 * count[group] * about_mean).sum() / (count * (count - 1)).sum())
    order = group.argsort(stable=True)
    x, group = x[order].double(), group[order]
    sums, pairs = x.new_zeros(()), 0
    for shift in range(1, int(count.max())):
        same = group[shift:] == group[:-shift]
        sums += (x[shift:] - x[:-shift])[same].norm(dim=1).pow(alpha).sum()
        pairs += int(same.sum())
    return float(sums / pairs)


def uniformity(x: Float[Tensor, "N D"], *, t: float = 2.0) -> float:
    """log E exp(-t |x_i - x_j|^2) over pairs of different rows (2005.10242).

    0 if all rows are equal; -3.94 for rows spread uniformly over the sphere in 128 dimensions. It
    is a log-sum-exp, so it is always finite. Raises UserError for fewer than two rows.
    """
    x, n = _unit("uniformity", x, rows=2), len(x)
    rows = logsumexp(x, x, scale=2 * t, pairs=others(n, x.device))  # |x - y|^2 = 2 - 2 x.y
    return float(rows.double().logsumexp(dim=0)) - 2 * t - math.log(n * (n - 1))


def tolerance(x: Float[Tensor, "N D"], label: Int[Tensor, " N"]) -> float:
    """Mean s_ij over pairs of different rows of one class (Wang & Liu 2021, eq. 11). O(N D).

    The mean is over pairs of one class, not over all pairs, since the published values are higher
    than the latter can be. Rows labelled -1 are left out. Raises UserError if no class has two
    rows.
    """
    x = _unit("tolerance", x)
    x, label, count = _grouped("tolerance", x, label)
    total = x.new_zeros(len(count), x.shape[1], dtype=torch.float64).index_add(0, label, x.double())
    same_class = total.square().sum() - x.double().square().sum()
    return float(same_class / (count * (count - 1)).sum())


def effective_rank(x: Float[Tensor, "N D"]) -> float:
    """exp of the entropy of sigma / sum sigma, sigma the singular values of x (RankMe, 2210.02885).

    Rows are neither centred nor normalised, so equal rows with a little noise have a rank near 1.
    Between 1 and min(N, D); 0 for a matrix of zeros. Computed from the eigenvalues of the smaller
    Gram matrix, in float64.
    """
    _finite("effective_rank", x)
    wide = x.detach().double()
    gram = wide.T @ wide if x.shape[0] > x.shape[1] else wide @ wide.T
    sigma = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    # the Gram matrix squares: below this an eigenvalue is rounding
    sigma = sigma[sigma > sigma.max() * math.sqrt(len(sigma) * torch.finfo(torch.float64).eps)]
    p = sigma / sigma.sum()
    return float(torch.special.entr(p).sum().exp()) if len(sigma) else 0.0


def lidar(x: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, delta: float = 1e-4) -> float:
    """LiDAR (arXiv 2312.04000): effective rank between images, in units of the spread of views.

    exp of the entropy of lambda / sum lambda, with lambda the eigenvalues of S_w^-1/2 S_b S_w^-1/2,
    S_b the covariance of the means of images and S_w that of views around them. Between 1 and D;
    directions in which views differ as much as images do count little. `delta` times the mean
    variance is added to the diagonal of S_w (the paper adds 1e-4). In float64.
    Raises UserError where no group has two rows.
    """
    _finite("lidar", x)
    x, group, count = _grouped("lidar", x.detach(), group)
    wide = x.double()
    mean = wide.new_zeros(len(count), x.shape[1]).index_add(0, group, wide) / count[:, None]
    about, between = wide - mean[group], mean - mean.mean(dim=0)
    within = about.T @ about / len(x)
    within += delta * within.diagonal().mean().clamp(min=1e-300) * torch.eye(len(within)).to(within)
    value, axes = torch.linalg.eigh(within)
    white = between @ axes * value.rsqrt()
    p = torch.linalg.eigvalsh(white.T @ white).clamp(min=0)
    p = p / p.sum().clamp(min=1e-300)
    return float(torch.special.entr(p).sum().exp()) if bool(p.any()) else 0.0


def effective_negatives(
    x: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, temperature: float
) -> float:
    """exp of the entropy of the softmax of s_ij / T over negatives j, mean over anchors i.

    It is the number of rows of other groups that share the repulsion of an anchor: all of them at a
    high temperature, only the nearest at a low one (Wang & Liu 2021: the entropy of r_i, eq. 5).
    Raises UserError where all rows are of one group.
    """
    if not 0 < temperature < math.inf:
        raise UserError(f"effective_negatives: temperature={temperature}; must be positive")
    x = _unit("effective_negatives", x, rows=2)
    if len(group) != len(x) or bool((group == group[0]).all()):
        raise UserError(
            f"effective_negatives: {len(x)} rows, {len(group)} group numbers, "
            f"{len(torch.unique(group))} different; needs rows of two groups at least"
        )
    return perplexity.effective_negatives(x, x, temperature=temperature, pairs=negatives(group))


def contrastive_accuracy(x: Float[Tensor, "N D"], group: Int[Tensor, " N"]) -> float:
    """Share of anchors whose nearest other row is of their group; anchors without one left out.

    Raises UserError where no group has two rows.
    """
    return float(contrastive_hits(x, group).double().mean())


def contrastive_hits(x: Float[Tensor, "N D"], group: Int[Tensor, " N"]) -> Bool[Tensor, " A"]:
    """True for anchors whose nearest other row is of their group; those without one left out."""
    x = _unit("contrastive_accuracy", x)
    x, group, count = _grouped("contrastive_accuracy", x, group)
    _, nearest = topk(x, x, 1, pairs=others(len(x), x.device))
    return (group[nearest[:, 0]] == group)[count[group] > 1]


def local_separation(
    x: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, k: int = 10
) -> Float[Tensor, " K1"]:
    """Mean similarity of anchors to their positives, then to their k nearest rows of other groups.

    [positive, n1, ..., nk], n1 the nearest, averaged over the anchors that have a positive (Wang &
    Liu 2021, figure 8). Raises UserError where there are no positives or fewer than k negatives.
    """
    x = _unit("local_separation", x)
    x, group, count = _grouped("local_separation", x, group)
    if k < 1 or len(x) - int(count.max()) < k:
        raise UserError(
            f"local_separation: k={k} negatives of {len(x)} rows, {int(count.max())} of one group; "
            f"use k from 1 to {len(x) - int(count.max())}"
        )
    anchors = count[group] > 1
    nearest = topk(x, x, k, pairs=negatives(group))[0][anchors].double().mean(dim=0)
    mean, _ = positive_similarity(x, group)
    return torch.cat([mean[anchors].double().mean()[None], nearest])


@dataclass(frozen=True)
class SimilarityHistogram:
    """Counts of pairs by similarity; a pair is counted once, in one of the three."""

    edges: Float[Tensor, " E"]  # one more than the counts
    positive: Int[Tensor, " n"]  # of one group
    same_class: Int[Tensor, " n"]  # of two groups, one class; all zero without labels
    negative: Int[Tensor, " n"]  # the others


def similarity_histogram(
    x: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    label: Int[Tensor, " N"] | None = None,
    *,
    bins: int = 100,
    tile: int = 1024,
) -> SimilarityHistogram:
    """How similar positives, other pairs of a class, and the other pairs are; `bins` over [-1, 1].

    Time N^2 D. A pair in which a row has no label (-1) counts as negative.
    """
    x = _unit("similarity_histogram", x, rows=2)
    if len(group) != len(x) or (label is not None and len(label) != len(x)):
        raise UserError(
            f"similarity_histogram: {len(x)} rows, {len(group)} group numbers, "
            f"{None if label is None else len(label)} labels"
        )
    counts = torch.zeros(3, bins, dtype=torch.long, device=x.device)
    for start in range(0, len(x), tile):
        rows = slice(start, start + tile)
        s = x[rows] @ x[start:].T
        kind = torch.zeros_like(s, dtype=torch.long)  # columns from `start`: upper triangle only
        if label is not None:
            known = (label >= 0)[rows, None]
            kind[known & (label[rows, None] == label[None, start:])] = 1
        kind[group[rows, None] == group[None, start:]] = 2
        which = kind * bins + ((s + 1) * (bins / 2)).long().clamp(0, bins - 1)
        upper = torch.ones_like(s, dtype=torch.bool).triu(diagonal=1)
        counts += torch.bincount(which[upper], minlength=3 * bins).view(3, bins)
    negative, same_class, positive = counts.cpu()
    edges = torch.linspace(-1, 1, bins + 1)
    return SimilarityHistogram(edges, positive, same_class, negative)


def _unit(name: str, x: Tensor, rows: int = 1) -> Tensor:
    if len(x) < rows:
        raise UserError(f"{name}: got {len(x)} rows; needs {rows} at least")
    _finite(name, x)
    return unit(x.detach())


def _finite(name: str, x: Tensor) -> None:
    bad = int((~x.isfinite()).any(dim=1).sum())
    if bad:
        raise UserError(f"{name}: {bad} of {len(x)} rows hold a number that is not finite")


def _grouped(name: str, x: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with a group, group numbers without gaps, and the number of rows of each group."""
    if len(group) != len(x):
        raise UserError(f"{name}: {len(x)} rows, {len(group)} labels or group numbers")
    known = group >= 0
    values, compact, count = torch.unique(group[known], return_inverse=True, return_counts=True)
    if len(values) == 0 or int(count.max()) < 2:
        raise UserError(
            f"{name}: no two of the {len(x)} rows are of one class or group "
            f"({len(values)} different, {int((~known).sum())} rows without one)"
        )
    return x[known], compact, count
