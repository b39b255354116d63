"""Forward and backward passes over the tiles: what `tiled` chooses among.

No pass stores the matrix: a backward pass makes its tiles again, or takes them from the forward
pass where all of them are small. Operands are float32 or float64, masks come block by block.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from contrapose.similarity.pairs import Blocks

KEEP = 24 * 2**20  # bytes of exponentials kept for the backward pass; beyond, they are made again


class Warm(torch.autograd.Function):
    """Rows against other keys; with `columns` also the keys against the rows, every pair counting.

    Returns the log-sum-exps of the rows, a line for each rule, and those of the columns.
    """

    @staticmethod
    def forward(ctx, query, key, scale, rules, tile, columns=False):  # type: ignore[no-untyped-def]
        scaled = query * scale
        rows, cols = _slices(len(query), tile), _slices(len(key), tile)
        blocks = [Blocks(pairs, rows, cols) for pairs in rules]
        total, below = query.new_zeros(len(rules), len(query)), query.new_zeros(len(key))
        kept = {}
        keep = any(ctx.needs_input_grad) and query.element_size() * len(query) * len(key) <= KEEP
        for i, I in enumerate(rows):
            for j, J in enumerate(cols):
                e = (scaled[I] @ key[J].T).exp_()
                for r, block in enumerate(blocks):
                    if (mask := block(i, j)) is not False:
                        total[r, I] += (e if mask is True else e * mask).sum(dim=1)
                if columns:
                    below[J] += e.sum(dim=0)
                if keep:
                    kept[i, j] = e
        ctx.save_for_backward(query, key, scale, total, below)
        ctx.rows, ctx.cols, ctx.blocks, ctx.kept, ctx.columns = rows, cols, blocks, kept, columns
        return total.log(), below.log()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_below):  # type: ignore[no-untyped-def]
        query, key, scale, total, below = ctx.saved_tensors
        scaled = query * scale
        weight = torch.where(total > 0, grad / total, 0.0)  # d L / d e_ij, the same along a row
        down = grad_below / below if ctx.columns else None  # and along a column
        dquery, dkey = torch.zeros_like(query), _room(ctx, key)
        with torch.autocast(query.device.type, enabled=False):
            for i, I in enumerate(ctx.rows):
                for j, J in enumerate(ctx.cols):
                    w = _weights(ctx.blocks, i, j, [u[I, None] for u in weight])
                    if w is None:
                        continue
                    if down is not None:
                        w = w + down[J]
                    e = ctx.kept.get((i, j))
                    e = (scaled[I] @ key[J].T).exp_() if e is None else e
                    _pull(ctx, dquery, dkey, query, key, I, J, e * w)
        return dquery * scale, _times(dkey, scale), (dquery * query).sum(), None, None, None


class WarmSelf(torch.autograd.Function):
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


class Cold(torch.autograd.Function):
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
        dquery, dkey = torch.zeros_like(query), _room(ctx, key)
        with torch.autocast(query.device.type, enabled=False):
            for I, J, logits in _logits(query * scale, key, ctx.block):
                p = logits.sub_(lse[I, None]).exp_().mul_(grad[I, None])
                _pull(ctx, dquery, dkey, query, key, I, J, p)
        return dquery * scale, _times(dkey, scale), (dquery * query).sum(), None, None


class SoftplusSum(torch.autograd.Function):
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
                _pull(ctx, dquery, dkey, query, key, I, J, g)
                dbias[I] += g.sum(dim=1)
        return dquery * scale, dkey * scale, (dquery * query).sum(), dbias, None, None


class TopK(torch.autograd.Function):
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
        dquery, dkey = torch.zeros_like(query), _room(ctx, key)
        with torch.autocast(query.device.type, enabled=False):
            for I in _slices(len(query), max(1, ctx.tile**2 // len(key))):
                g = query.new_zeros(I.stop - I.start, len(key)).scatter_add_(1, index[I], grad[I])
                dquery[I] = g @ key
                if ctx.needs_input_grad[1]:
                    dkey.addmm_(g.T, query[I])
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


def _pull(ctx, dquery, dkey, query, key, I, J, g) -> None:  # type: ignore[no-untyped-def]
    """Adds what g = d L / d logits of block (I, J) gives the query and, where asked, the key."""
    dquery[I].addmm_(g, key[J])  # also what the scale's gradient is made of
    if ctx.needs_input_grad[1]:
        dkey[J].addmm_(g.T, query[I])


def _room(ctx, key: Tensor) -> Tensor | None:  # type: ignore[no-untyped-def]
    """Zeros for the key's gradient, where one is asked for: a bank wants none, and is large."""
    return torch.zeros_like(key) if ctx.needs_input_grad[1] else None


def _times(x: Tensor | None, scale: Tensor) -> Tensor | None:
    return None if x is None else x * scale


def _weights(blocks: list[Blocks], i: int, j: int, weight: list[Tensor]) -> Tensor | None:
    """Sum over the rules that count at block (i, j) of their weights; None where none does."""
    total = None
    for block, w in zip(blocks, weight, strict=True):
        if (mask := block(i, j)) is not False:
            w = w if mask is True else w * mask
            total = w if total is None else total + w
    return total


def _triangle(rows: list[slice]) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(rows)) for j in range(i, len(rows))]


def _slices(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
