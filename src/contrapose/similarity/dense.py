"""The row reductions by their definition, with the whole matrix: O(N M) memory.

Every other implementation is tested against these.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.similarity.pairs import EVERY, Pairs
from contrapose.similarity.wide import widen


def logsumexp(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    pairs: Pairs = EVERY,
    match: Int[Tensor, " N"] | None = None,
) -> Float[Tensor, " N"]:
    """log sum_j exp(scale * query_i . key_j) over the pairs that count; -inf where none does."""
    return safe_logsumexp(_logits(query, key, scale, pairs, match))


def logsumexps(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    rules: tuple[Pairs, ...],
    match: Int[Tensor, " N"] | None = None,
) -> tuple[Float[Tensor, " N"], ...]:
    """`logsumexp` for each of several rules about which pairs count."""
    return tuple(logsumexp(query, key, scale=scale, pairs=r, match=match) for r in rules)


def logsumexp_both(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    match: Int[Tensor, " N"] | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " M"]]:
    """Log-sum-exps of the rows and of the columns of scale * query . key."""
    logits = _logits(query, key, scale, EVERY, match)
    return safe_logsumexp(logits), safe_logsumexp(logits.T)


def softplus_sum(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""],
    bias: Float[Tensor, " N"],
    pairs: Pairs = EVERY,
) -> Float[Tensor, " N"]:
    """sum_j log(1 + exp(scale * query_i . key_j + bias_i)) over the pairs that count."""
    pairs.check(len(query), len(key))
    x = scale * (query @ key.T) + bias[:, None]
    terms, mask = torch.logaddexp(x, torch.zeros_like(x)), pairs.mask()
    return (terms if mask is None else torch.where(mask, terms, 0.0)).sum(dim=1)


def topk(
    query: Float[Tensor, "N D"], key: Float[Tensor, "M D"], k: int, *, pairs: Pairs = EVERY
) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
    """The k most similar keys of every query, nearest first: (similarity, index)."""
    value, index = _logits(query, key, 1.0, pairs).topk(k, dim=1)
    return value, index


def paired(query: Float[Tensor, "N D"], key: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """query_i . key_i, in float32 at least."""
    return (widen(query) * widen(key)).sum(dim=1)


def safe_logsumexp(logits: Float[Tensor, "N M"]) -> Float[Tensor, " N"]:
    """log sum_j exp(logits_ij); a row of nothing but -inf gives -inf and no gradient, never NaN."""
    empty = (logits == -math.inf).all(dim=1)
    lse = torch.where(empty[:, None], 0.0, logits).logsumexp(dim=1)
    return torch.where(empty, -math.inf, lse)


def _logits(
    query: Tensor,
    key: Tensor,
    scale: float | Tensor,
    pairs: Pairs,
    match: Int[Tensor, " N"] | None = None,
) -> Tensor:
    pairs.check(len(query), len(key))
    logits = scale * (query @ key.T)
    mask = pairs.mask()
    logits = logits if mask is None else torch.where(mask, logits, -math.inf)
    return logits if match is None else logits.scatter(1, match[:, None], -math.inf)
