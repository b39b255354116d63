"""How embeddings lie on the sphere: alignment, uniformity, tolerance."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.similarity import group_sum, logsumexp, others


def uniformity(z: Float[Tensor, "N D"], *, t: float = 2.0) -> Float[Tensor, ""]:
    """log E exp(-t |x - y|^2) over pairs of different rows (arXiv 2005.10242)."""
    n = len(z)
    rows = logsumexp(z, z, scale=2 * t, pairs=others(n))  # |x - y|^2 = 2 - 2 x.y
    return rows.logsumexp(dim=0) - 2 * t - math.log(n * (n - 1))


def tolerance(z: Float[Tensor, "N D"], label: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean similarity of two different rows of one class (Wang & Liu 2021, eq. 11). O(N D)."""
    sums, count = group_sum(z, label), torch.bincount(label)
    same_class = (sums * sums).sum() - (z * z).sum()
    return same_class / (count * (count - 1)).sum()
