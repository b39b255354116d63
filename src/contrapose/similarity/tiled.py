"""The row reductions in plain PyTorch, one tile of the similarity matrix at a time.

Log-sum-exp and top-k are associative: the result over columns A and B is a merge of the results
over A and over B. Memory O(N D + tile^2). Two ways to sum exponentials:

warm    |scale * query . key| <= bound with e^bound well inside the dtype: no shift is needed and
        a tile costs one product and one exponential. Where query *is* key only the upper triangle
        is visited: each tile serves its rows and its columns.
cold    the running maximum of each row is subtracted: any temperature, any length of vectors.
"""

import math
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.similarity.pairs import EVERY, Pairs
from contrapose.similarity.passes import Cold, SoftplusSum, TopK, Warm, WarmSelf
from contrapose.similarity.wide import widen

TILE = 512  # rows and columns of a tile: 1 MB in float32, which a core keeps at hand
DEVICE_TILE = 4096  # on an accelerator, where few large products are quickest


def logsumexp(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    pairs: Pairs = EVERY,
    tile: int | None = None,
) -> Float[Tensor, " N"]:
    """log sum_j exp(scale * query_i . key_j) over the pairs that count; -inf where none does."""
    return logsumexps(query, key, scale=scale, rules=(pairs,), tile=tile)[0]


def logsumexps(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    rules: tuple[Pairs, ...],
    tile: int | None = None,
) -> Float[Tensor, "R N"]:
    """`logsumexp` for several rules about which pairs count, in one pass over the tiles."""
    tile = tile or _tile(query)
    for pairs in rules:
        pairs.check(len(query), len(key))
    scale = torch.as_tensor(scale, device=query.device, dtype=widen(query[:0]).dtype)
    query, key = (widen(query),) * 2 if query is key else (widen(query), widen(key))
    with torch.autocast(query.device.type, enabled=False):
        if not _warm(query, key, scale):
            return torch.stack([Cold.apply(query, key, scale, r, tile) for r in rules])
        if query is not key or not all(r.symmetric and r.diagonal_is_self for r in rules):
            return cast(Tensor, Warm.apply(query, key, scale, rules, tile)[0])
        group = next((r.row_group for r in rules if r.row_group is not None), None)
        if group is None or len(query) <= tile:
            rules = tuple(r.by_group(None) for r in rules)
            return cast(Tensor, WarmSelf.apply(query, scale, rules, tile))
        # Rows of a group next to each other: most tiles are then all of one group or none of it.
        order = group.argsort(stable=True)
        rules = tuple(r.by_group(order) for r in rules)
        lse = WarmSelf.apply(query.index_select(0, order), scale, rules, tile)
        return torch.zeros_like(lse).index_copy(1, order, lse)


def logsumexp_both(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    tile: int | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " M"]]:
    """Log-sum-exps of the rows and of the columns of scale * query . key, in one pass."""
    tile = tile or _tile(query)
    factor = torch.as_tensor(scale, device=query.device, dtype=widen(query[:0]).dtype)
    query, key = widen(query), widen(key)
    if not len(query) or not len(key) or not _warm(query, key, factor):
        rows = logsumexp(query, key, scale=factor, tile=tile)
        return rows, logsumexp(key, query, scale=factor, tile=tile)
    with torch.autocast(query.device.type, enabled=False):
        rows, cols = Warm.apply(query, key, factor, (EVERY,), tile, True)
    return rows[0], cols


def softplus_sum(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""],
    bias: Float[Tensor, " N"],
    pairs: Pairs = EVERY,
    tile: int | None = None,
) -> Float[Tensor, " N"]:
    """sum_j log(1 + exp(scale * query_i . key_j + bias_i)) over the pairs that count."""
    tile = tile or _tile(query)
    pairs.check(len(query), len(key))
    scale = torch.as_tensor(scale, device=query.device, dtype=widen(query[:0]).dtype)
    with torch.autocast(query.device.type, enabled=False):
        operands = widen(query), widen(key), scale, widen(bias)
        return cast(Tensor, SoftplusSum.apply(*operands, pairs, tile))


def topk(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    k: int,
    *,
    pairs: Pairs = EVERY,
    tile: int | None = None,
) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
    """The k most similar keys of every query, nearest first: (similarity, index).

    A query with fewer than k pairs that count has similarity -inf in the places left over.
    """
    if not 1 <= k <= len(key):
        raise ValueError(
            f"topk: asked for k={k} neighbours among {len(key)} keys; use 1 <= k <= {len(key)}"
        )
    tile = tile or _tile(query)
    pairs.check(len(query), len(key))
    with torch.autocast(query.device.type, enabled=False):
        value, index = TopK.apply(widen(query), widen(key), k, pairs, tile)
    return value, index


def _warm(query: Tensor, key: Tensor, scale: Tensor) -> bool:
    """Whether sums of e^(scale * query . key), and their inverses, stay well inside the dtype."""
    if query.device.type != "cpu":  # reading a value would stall the device
        return False
    if not len(query) or not len(key):
        return True
    a = _longest(query.detach())
    b = a if query is key else _longest(key.detach())
    bound = abs(float(scale.detach())) * a * b + math.log(len(key))
    return bound < (60 if query.dtype == torch.float32 else 500)


def _longest(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dim=1).amax())


def _tile(x: Tensor) -> int:
    return TILE if x.device.type == "cpu" else DEVICE_TILE
