"""The two row reductions in plain PyTorch, one tile of the similarity matrix at a time.

Log-sum-exp and top-k are associative: the result over columns A and B is a merge of the
results over A and over B. So one loop over tiles (here), over blocks in a kernel (triton.py)
and over machines (ring.py) compute the same thing. Memory O(N D + tile^2).
"""

import math
from collections.abc import Iterator

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
    tile: int = 4096,
) -> Float[Tensor, " N"]:
    """log sum_j exp(scale * query_i . key_j) over the pairs that count; -inf where none does."""
    scale = torch.as_tensor(scale, dtype=_wide(query), device=query.device)
    return _LogSumExp.apply(query, key, scale, pairs, tile)  # type: ignore[no-any-return, no-untyped-call]


def topk(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    k: int,
    *,
    pairs: Pairs = EVERY,
    tile: int = 4096,
) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
    """The k most similar keys of every query, nearest first: (similarity, index)."""
    if k > len(key):
        raise ValueError(f"topk: asked for k={k} neighbours among {len(key)} keys")
    value = query.new_full((len(query), k), -math.inf, dtype=_wide(query))
    index = torch.zeros(len(query), k, dtype=torch.long, device=query.device)
    for rows, cols, logits in _tiles(query.detach(), key.detach(), 1.0, pairs, tile):
        column = torch.arange(len(key), device=query.device)[cols].expand_as(logits)
        value[rows], best = torch.cat([value[rows], logits], dim=1).topk(k, dim=1)
        index[rows] = torch.cat([index[rows], column], dim=1).gather(1, best)
    similarity = torch.einsum("nd,nkd->nk", query, key[index]).to(value.dtype)
    return torch.where(value == -math.inf, value, similarity), index


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, scale, pairs, tile):  # type: ignore[no-untyped-def]
        lse = query.new_full((len(query),), -math.inf, dtype=_wide(query))
        for rows, _, logits in _tiles(query, key, scale, pairs, tile):
            lse[rows] = torch.logaddexp(lse[rows], logits.logsumexp(dim=1))
        ctx.save_for_backward(query, key, scale, lse)
        ctx.pairs, ctx.tile = pairs, tile
        return lse

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        # d lse_i / d logit_ij is the softmax weight p_ij, rebuilt from lse instead of stored.
        query, key, scale, lse = ctx.saved_tensors
        lse = torch.where(lse == -math.inf, 0.0, lse)  # a row without pairs: every p_ij is 0
        dquery, dkey = (torch.zeros_like(x, dtype=_wide(x)) for x in (query, key))
        dscale = torch.zeros_like(scale)
        for rows, cols, logits in _tiles(query, key, scale, ctx.pairs, ctx.tile):
            p = grad[rows, None] * torch.exp(logits - lse[rows, None])
            pull = p @ key[cols].to(p.dtype)
            dquery[rows] += scale * pull
            dkey[cols] += scale * (p.T @ query[rows].to(p.dtype))
            dscale += (pull * query[rows]).sum()
        return dquery.to(query.dtype), dkey.to(key.dtype), dscale, None, None


def _tiles(
    query: Tensor, key: Tensor, scale: float | Tensor, pairs: Pairs, tile: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    pairs.check(len(query), len(key))
    for rows in _slices(len(query), tile):
        for cols in _slices(len(key), tile):
            logits = scale * (query[rows] @ key[cols].T).to(_wide(query))
            mask = pairs.mask(rows, cols)
            yield rows, cols, logits if mask is None else torch.where(mask, logits, -math.inf)


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _wide(x: Tensor) -> torch.dtype:
    """Products may be bf16; running results never are (they would lose a digit per tile)."""
    return torch.promote_types(x.dtype, torch.float32)
