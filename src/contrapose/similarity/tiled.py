"""The row reductions in plain PyTorch, one tile of the similarity matrix at a time.

Log-sum-exp and top-k are associative: the result over columns A and B is a merge of the results
over A and over B. Memory O(N D + tile^2). Two ways to sum exponentials:

warm    |scale * query . key| <= bound with e^bound well inside the dtype: no shift is needed and
        a tile costs one product and one exponential. Where query *is* key only the upper triangle
        is visited: each tile serves its rows and its columns.
cold    the running maximum of each row is subtracted: any temperature, any length of vectors.
"""

import math
from collections.abc import Iterator
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.similarity.pairs import EVERY, Blocks, Pairs
from contrapose.similarity.wide import widen

TILE = 512  # rows and columns of a tile: 1 MB in float32, which a core keeps at hand
KEEP = 24 * 2**20  # bytes of exponentials kept for the backward pass; beyond, they are made again


def logsumexp(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    pairs: Pairs = EVERY,
    tile: int = TILE,
) -> Float[Tensor, " N"]:
    """log sum_j exp(scale * query_i . key_j) over the pairs that count; -inf where none does."""
    return logsumexps(query, key, scale=scale, rules=(pairs,), tile=tile)[0]


def logsumexps(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    rules: tuple[Pairs, ...],
    tile: int = TILE,
) -> Float[Tensor, "R N"]:
    """`logsumexp` for several rules about which pairs count, in one pass over the tiles."""
    for pairs in rules:
        pairs.check(len(query), len(key))
    scale = torch.as_tensor(scale, device=query.device, dtype=widen(query[:0]).dtype)
    query, key = (widen(query),) * 2 if query is key else (widen(query), widen(key))
    with torch.autocast(query.device.type, enabled=False):
        if not _warm(query, key, scale):
            return torch.stack([_Cold.apply(query, key, scale, r, tile) for r in rules])
        if query is not key or not all(r.symmetric and r.diagonal_is_self for r in rules):
            return cast(Tensor, _Warm.apply(query, key, scale, rules, tile))
        group = next((r.row_group for r in rules if r.row_group is not None), None)
        if group is None or len(query) <= tile:
            rules = tuple(r.by_group(None) for r in rules)
            return cast(Tensor, _WarmSelf.apply(query, scale, rules, tile))
        # Rows of a group next to each other: most tiles are then all of one group or none of it.
        order = group.argsort(stable=True)
        rules = tuple(r.by_group(order) for r in rules)
        lse = _WarmSelf.apply(query.index_select(0, order), scale, rules, tile)
        return torch.zeros_like(lse).index_copy(1, order, lse)


def softplus_sum(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""],
    bias: Float[Tensor, " N"],
    pairs: Pairs = EVERY,
    tile: int = TILE,
) -> Float[Tensor, " N"]:
    """sum_j log(1 + exp(scale * query_i . key_j + bias_i)) over the pairs that count."""
    pairs.check(len(query), len(key))
    scale = torch.as_tensor(scale, device=query.device, dtype=widen(query[:0]).dtype)
    with torch.autocast(query.device.type, enabled=False):
        operands = widen(query), widen(key), scale, widen(bias)
        return cast(Tensor, _SoftplusSum.apply(*operands, pairs, tile))


def topk(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    k: int,
    *,
    pairs: Pairs = EVERY,
    tile: int = TILE,
) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
    """The k most similar keys of every query, nearest first: (similarity, index).

    A query with fewer than k pairs that count has similarity -inf in the places left over.
    """
    if not 1 <= k <= len(key):
        raise ValueError(
            f"topk: asked for k={k} neighbours among {len(key)} keys; use 1 <= k <= {len(key)}"
        )
    pairs.check(len(query), len(key))
    with torch.autocast(query.device.type, enabled=False):
        value, index = _TopK.apply(widen(query), widen(key), k, pairs, tile)
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


class _Warm(torch.autograd.Function):
    """Rows against other keys."""

    @staticmethod
    def forward(ctx, query, key, scale, rules, tile):  # type: ignore[no-untyped-def]
        scaled = query * scale
        rows, cols = _slices(len(query), tile), _slices(len(key), tile)
        blocks = [Blocks(pairs, rows, cols) for pairs in rules]
        total = query.new_zeros(len(rules), len(query))
        kept = {}
        keep = any(ctx.needs_input_grad) and query.element_size() * len(query) * len(key) <= KEEP
        for i, I in enumerate(rows):
            for j, J in enumerate(cols):
                e = (scaled[I] @ key[J].T).exp_()
                for r, block in enumerate(blocks):
                    if (mask := block(i, j)) is not False:
                        total[r, I] += (e if mask is True else e * mask).sum(dim=1)
                if keep:
                    kept[i, j] = e
        ctx.save_for_backward(query, key, scale, total)
        ctx.rows, ctx.cols, ctx.blocks, ctx.kept = rows, cols, blocks, kept
        return total.log()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        query, key, scale, total = ctx.saved_tensors
        scaled = query * scale
        weight = torch.where(total > 0, grad / total, 0.0)  # d L / d e_ij, the same along a row
        dquery, dkey = torch.zeros_like(query), torch.zeros_like(key)
        with torch.autocast(query.device.type, enabled=False):
            for i, I in enumerate(ctx.rows):
                for j, J in enumerate(ctx.cols):
                    w = _weights(ctx.blocks, i, j, [u[I, None] for u in weight])
                    if w is None:
                        continue
                    e = ctx.kept.get((i, j))
                    g = (scaled[I] @ key[J].T).exp_() * w if e is None else e * w
                    dquery[I].addmm_(g, key[J])
                    dkey[J].addmm_(g.T, query[I])
        return dquery * scale, dkey * scale, (dquery * query).sum(), None, None


class _WarmSelf(torch.autograd.Function):
    """Rows against the other rows: tiles of the upper triangle serve their rows and columns."""

    @staticmethod
    def forward(ctx, z, scale, rules, tile):  # type: ignore[no-untyped-def]
        scaled = z * scale
        rows = _slices(len(z), tile)
        blocks = [Blocks(pairs, rows, rows) for pairs in rules]
        total = z.new_zeros(len(rules), len(z))
        kept = {}
        keep = any(ctx.needs_input_grad) and z.element_size() * len(z) ** 2 <= 2 * KEEP
        for i, j in _triangle(rows):
            I, J = rows[i], rows[j]
            e = _exponentials(scaled, z, I, J)
            for r, block in enumerate(blocks):
                if (mask := block(i, j)) is not False:
                    counted = e if mask is True else e * mask
                    total[r, I] += counted.sum(dim=1)
                    if i != j:
                        total[r, J] += counted.sum(dim=0)
            if keep:
                kept[i, j] = e
        ctx.save_for_backward(z, scale, total)
        ctx.rows, ctx.blocks, ctx.kept = rows, blocks, kept
        return total.log()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        z, scale, total = ctx.saved_tensors
        scaled = z * scale
        weight = torch.where(total > 0, grad / total, 0.0)
        dz = torch.zeros_like(z)
        with torch.autocast(z.device.type, enabled=False):
            for i, j in _triangle(ctx.rows):
                I, J = ctx.rows[i], ctx.rows[j]
                # e_ij stands in the sums of row i and of row j: one exponential, two weights
                w = _weights(ctx.blocks, i, j, [u[I, None] + u[J] for u in weight])
                if w is None:
                    continue
                e = ctx.kept.get((i, j))
                g = w.mul_(_exponentials(scaled, z, I, J) if e is None else e)
                dz[I].addmm_(g, z[J])
                if i != j:
                    dz[J].addmm_(g.T, z[I])
        return dz * scale, (dz * z).sum() / 2, None, None


class _Cold(torch.autograd.Function):
    """Any temperature: the running maximum of each row is taken out of the sum."""

    @staticmethod
    def forward(ctx, query, key, scale, pairs, tile):  # type: ignore[no-untyped-def]
        scaled = query * scale
        rows, cols = _slices(len(query), tile), _slices(len(key), tile)
        block = Blocks(pairs, rows, cols)
        lse = query.new_full((len(query),), -math.inf)
        for I, _, logits in _logits(scaled, key, block):
            top = torch.maximum(lse[I], logits.amax(dim=1))
            shift = torch.where(top == -math.inf, 0.0, top)  # a row without pairs so far
            total = (logits - shift[:, None]).exp_().sum(dim=1) + (lse[I] - shift).exp()
            lse[I] = shift + total.log()
        ctx.save_for_backward(query, key, scale, lse)
        ctx.block = block
        return lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        # d lse_i / d logit_ij is the softmax weight p_ij, rebuilt from lse instead of stored.
        query, key, scale, lse = ctx.saved_tensors
        lse = torch.where(lse == -math.inf, 0.0, lse)  # a row without pairs: every p_ij is 0
        dquery, dkey = torch.zeros_like(query), torch.zeros_like(key)
        with torch.autocast(query.device.type, enabled=False):
            for I, J, logits in _logits(query * scale, key, ctx.block):
                p = logits.sub_(lse[I, None]).exp_().mul_(grad[I, None])
                dquery[I] += p @ key[J]
                dkey[J] += p.T @ query[I]
        return dquery * scale, dkey * scale, (dquery * query).sum(), None, None


class _SoftplusSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, scale, bias, pairs, tile):  # type: ignore[no-untyped-def]
        rows, cols = _slices(len(query), tile), _slices(len(key), tile)
        block = Blocks(pairs, rows, cols)
        total = query.new_zeros(len(query))
        for I, _, x in _logits(query * scale, key, block):
            x += bias[I, None]
            total[I] += torch.nn.functional.softplus(x, threshold=40).sum(dim=1)
        ctx.save_for_backward(query, key, scale, bias)
        ctx.block = block
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        query, key, scale, bias = ctx.saved_tensors
        dquery, dkey, dbias = (torch.zeros_like(x) for x in (query, key, bias))
        with torch.autocast(query.device.type, enabled=False):
            for I, J, x in _logits(query * scale, key, ctx.block):
                g = x.add_(bias[I, None]).sigmoid_().mul_(grad[I, None])
                dquery[I].addmm_(g, key[J])
                dkey[J].addmm_(g.T, query[I])
                dbias[I] += g.sum(dim=1)
        return dquery * scale, dkey * scale, (dquery * query).sum(), dbias, None, None


class _TopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, k, pairs, tile):  # type: ignore[no-untyped-def]
        value = query.new_full((len(query), k), -math.inf)
        index = torch.zeros(len(query), k, dtype=torch.long, device=query.device)
        rows, cols = _slices(len(query), tile), _slices(len(key), max(tile, k))
        for I, J, logits in _logits(query, key, Blocks(pairs, rows, cols)):
            column = torch.arange(J.start, J.stop, device=query.device).expand_as(logits)
            value[I], best = torch.cat([value[I], logits], dim=1).topk(k, dim=1)
            index[I] = torch.cat([index[I], column], dim=1).gather(1, best)
        ctx.save_for_backward(query, key, value, index)
        ctx.tile = tile
        ctx.mark_non_differentiable(index)
        return value, index

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        query, key, value, index = ctx.saved_tensors
        grad = torch.where(value == -math.inf, 0.0, grad)
        dquery, dkey = torch.zeros_like(query), torch.zeros_like(key)
        with torch.autocast(query.device.type, enabled=False):
            for I in _slices(len(query), max(1, ctx.tile**2 // len(key))):
                g = query.new_zeros(I.stop - I.start, len(key)).scatter_add_(1, index[I], grad[I])
                dquery[I] = g @ key
                dkey += g.T @ query[I]
        return dquery, dkey, None, None, None


def _logits(query: Tensor, key: Tensor, block: Blocks) -> Iterator[tuple[slice, slice, Tensor]]:
    for i, I in enumerate(block.rows):
        for j, J in enumerate(block.cols):
            if (mask := block(i, j)) is not False:
                logits = query[I] @ key[J].T
                yield I, J, logits if mask is True else torch.where(mask, logits, -math.inf)


def _exponentials(scaled: Tensor, z: Tensor, rows: slice, cols: slice) -> Tensor:
    """e^(scale z_i . z_j), 0 where a row meets itself."""
    e = (scaled[rows] @ z[cols].T).exp_()
    return e.fill_diagonal_(0.0) if rows == cols else e


def _weights(blocks: list[Blocks], i: int, j: int, weight: list[Tensor]) -> Tensor | None:
    """Sum over the rules that count at block (i, j) of their weights; None where none does."""
    total = None
    for block, w in zip(blocks, weight, strict=True):
        if (mask := block(i, j)) is not False:
            w = w if mask is True else w * mask
            total = w if total is None else total + w
    return total


def _longest(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dim=1).amax())


def _triangle(rows: list[slice]) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(rows)) for j in range(i, len(rows))]


def _slices(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
