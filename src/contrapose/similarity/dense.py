"""The definition: what every other backend must agree with. Memory O(N M)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.similarity.pairs import EVERY, Pairs


def logsumexp(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    pairs: Pairs = EVERY,
) -> Float[Tensor, " N"]:
    return _logits(query, key, scale, pairs).logsumexp(dim=1)


def topk(
    query: Float[Tensor, "N D"], key: Float[Tensor, "M D"], k: int, *, pairs: Pairs = EVERY
) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
    value, index = _logits(query, key, 1.0, pairs).topk(k, dim=1)
    return value, index


def _logits(query: Tensor, key: Tensor, scale: float | Tensor, pairs: Pairs) -> Tensor:
    logits = scale * (query @ key.T)
    mask = pairs.mask()
    return logits if mask is None else torch.where(mask, logits, -math.inf)
