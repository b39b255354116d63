"""Autograd functions over tiles of the similarity matrix: the work that `tiled` gives out.

No pass stores the matrix. The forward pass keeps as many tiles as fit into KEEP bytes; the backward
pass computes the others again. Operands are float32 or float64, masks are computed block by block.

Rows against themselves (key is None) never count the pairs (i, i). Since s_ij = s_ji, a tile off
the diagonal then adds to the sums of its rows and to those of its columns.

Each function returns the log-sum-exps of the rows for each rule, then of the columns if asked.
"""

import math
from contextlib import nullcontext
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from contrapose.similarity.tiles import LOG2E, Scratch, Tiles
from contrapose.threads import Function, serial

KEEP = 12 * 2**20  # bytes of exponentials kept for the backward pass; the rest are made again


def _planned(work: Function) -> Function:
    """`work` without torch's own threads, unless the matrix is a single tile meant for them."""

    @wraps(work)
    def run(ctx: Any, *args: Any) -> Any:
        given = (x for x in args if isinstance(x, Tiles))
        tiles = next(given, None) or ctx.tiles
        with nullcontext() if tiles.parallel else serial():
            return work(ctx, *args)

    return run  # type: ignore[return-value]


class DirectLogSumExp(torch.autograd.Function):
    """Log-sum-exps without a shift: for logits whose exponentials are within e^-bound, e^bound."""

    @staticmethod
    @_planned
    def forward(ctx, query, key, scale, rules, columns, tiles, bound):  # type: ignore[no-untyped-def]
        scale, key = _value(scale), query if tiles.mirrored else key
        both = tiles.mirrored or columns
        logits = _Logits(tiles, query, key, scale * LOG2E)
        blocks = [tiles.blocks(pairs) for pairs in rules]
        total = [query.new_zeros(query.shape[0]) for _ in rules]
        below = [query.new_zeros(key.shape[0]) for _ in rules] if columns else total
        down, right = [tiles.by_row(x) for x in total], [tiles.by_col(x) for x in below]
        keep = KEEP // tiles.bytes if any(ctx.needs_input_grad) else 0
        kept: dict[tuple[int, int], Tensor] = {}

        def work(i: int, j: int, scratch: Scratch) -> None:
            if len(kept) < keep:
                e = kept[i, j] = scratch.new()
            else:
                e = scratch(0)
            logits(i, j, e).exp2_()
            for r, block in enumerate(blocks):
                if (mask := block(i, j, partial(scratch, 1))) is not False:
                    counted = e if mask is True else mask.mul_(e)
                    down[r][i].add_(counted.sum(dim=1))
                    if both and not tiles.on_diagonal(i, j):
                        right[r][j].add_(counted.sum(dim=0))

        tiles.visit(work)
        total = total + below if columns else total
        ctx.save_for_backward(query, key, *total)
        ctx.scale, ctx.tiles, ctx.blocks, ctx.kept, ctx.bound = scale, tiles, blocks, kept, bound
        return tuple(x.log() for x in total)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @_planned
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        query, key, *total = ctx.saved_tensors
        tiles, rules, both = ctx.tiles, len(ctx.blocks), _both(ctx, grads)
        gradient = _Gradient(ctx, query, key)
        logits = _Logits(tiles, query, key, ctx.scale * LOG2E)
        # d L / d e_ij is one number along a row, one along a column, or the sum of the two; in a
        # row without pairs every e_ij is 0, whatever that number is
        weight = [g / x.clamp(min=math.exp(-ctx.bound)) for g, x in zip(grads, total, strict=True)]
        down = [tiles.by_row(x) for x in weight[:rules]]
        right = [tiles.by_col(x) for x in (weight[-rules:] if both else ())]

        def work(i: int, j: int, scratch: Scratch) -> None:
            g = None
            for r, block in enumerate(ctx.blocks):
                if (mask := block(i, j, partial(scratch, 2 * r + 1))) is not False:
                    w = down[r][i][:, None]
                    w = torch.add(w, right[r][j], out=scratch(2 * r + 2)) if both else w
                    w = w if mask is True else mask.mul_(w)
                    g = w if g is None else g + w
            if g is not None:
                e = ctx.kept.get((i, j))
                e = logits(i, j, scratch(0)).exp2_() if e is None else e
                gradient.add(i, j, torch.mul(e, g, out=scratch(0)))

        tiles.visit(work)
        return *gradient.result(), None, None, None, None


class OnlineLogSumExp(torch.autograd.Function):
    """Log-sum-exps for any temperature: the running maximum is subtracted before exponentials.

    This is the online softmax of Milakov and Gimelshein (2018), over tiles.
    """

    @staticmethod
    @_planned
    def forward(ctx, query, key, scale, rules, columns, tiles):  # type: ignore[no-untyped-def]
        scale, key = _value(scale), query if tiles.mirrored else key
        both = tiles.mirrored or columns
        logits = _Logits(tiles, query, key, scale)
        blocks = [tiles.blocks(pairs) for pairs in rules]
        rows = [_running(query, query.shape[0]) for _ in rules]
        cols = [_running(query, key.shape[0]) for _ in rules] if columns else rows
        down, right = [tiles.by_row(x) for x in rows], [tiles.by_col(x) for x in cols]

        def work(i: int, j: int, scratch: Scratch) -> None:
            x = logits(i, j, scratch(0))
            for r, block in enumerate(blocks):
                if (mask := block(i, j, partial(scratch, 1))) is not False:
                    counted = x if mask is True else mask.log_().add_(x)
                    _merge(down[r][i], counted, 1, scratch(2))
                    if both and not tiles.on_diagonal(i, j):
                        _merge(right[r][j], counted, 0, scratch(2))

        tiles.visit(work)
        lse = tuple(top + total.log() for top, total in (rows + cols if columns else rows))
        ctx.save_for_backward(query, key, *lse)
        ctx.scale, ctx.tiles, ctx.blocks = scale, tiles, blocks
        return lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    @_planned
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        # d lse_i / d logit_ij is the softmax weight p_ij, rebuilt from lse instead of stored.
        query, key, *lse = ctx.saved_tensors
        tiles, rules, both = ctx.tiles, len(ctx.blocks), _both(ctx, grads)
        logits = _Logits(tiles, query, key, ctx.scale)
        gradient = _Gradient(ctx, query, key)
        # where there are no pairs all logits are -inf, from which -inf cannot be taken
        known = [torch.stack([x.clamp(min=_least(x)), g]) for g, x in zip(grads, lse, strict=True)]
        down = [tiles.by_row(x) for x in known[:rules]]
        right = [tiles.by_col(x) for x in (known[-rules:] if both else ())]

        def work(i: int, j: int, scratch: Scratch) -> None:
            x, g = logits(i, j, scratch(0)), None
            for r, block in enumerate(ctx.blocks):
                if (mask := block(i, j, partial(scratch, 1))) is not False:
                    counted = x if mask is True else mask.log_().add_(x)
                    p = _softmax(counted, down[r][i][:, :, None], scratch(2 * r + 2))
                    if both:
                        p.add_(_softmax(counted, right[r][j], scratch(2 * r + 3)))
                    g = p if g is None else g.add_(p)
            if g is not None:
                gradient.add(i, j, g)

        tiles.visit(work)
        return *gradient.result(), None, None, None


class SoftplusSum(torch.autograd.Function):
    """sum_j log(1 + e^x_ij) of each row, with x_ij = scale * query_i . key_j + bias_i."""

    @staticmethod
    @_planned
    def forward(ctx, query, key, scale, bias, pairs, tiles):  # type: ignore[no-untyped-def]
        scale = _value(scale)
        logits, block = _Logits(tiles, query, key, scale), tiles.blocks(pairs)
        total = torch.zeros_like(bias)
        down, offset = tiles.by_row(total), tiles.by_row(bias)

        def work(i: int, j: int, scratch: Scratch) -> None:
            if (mask := block(i, j, partial(scratch, 1))) is not False:
                x = logits(i, j, scratch(0)).add_(offset[i][:, None])
                x = x if mask is True else x.add_(mask.log_())
                down[i].add_(torch.nn.functional.softplus(x, threshold=40).sum(dim=1))

        tiles.visit(work)
        ctx.save_for_backward(query, key, bias)
        ctx.scale, ctx.tiles, ctx.block = scale, tiles, block
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    @_planned
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        query, key, bias = ctx.saved_tensors
        logits = _Logits(ctx.tiles, query, key, ctx.scale)
        gradient, dbias = _Gradient(ctx, query, key), torch.zeros_like(bias)
        down, offset, slope = (ctx.tiles.by_row(x) for x in (grad, bias, dbias))

        def work(i: int, j: int, scratch: Scratch) -> None:
            if (mask := ctx.block(i, j, partial(scratch, 1))) is not False:
                x = logits(i, j, scratch(0)).add_(offset[i][:, None])
                x = x if mask is True else x.add_(mask.log_())
                g = x.sigmoid_().mul_(down[i][:, None])
                gradient.add(i, j, g)
                slope[i].add_(g.sum(dim=1))

        ctx.tiles.visit(work)
        return *gradient.result(), dbias, None, None


class _Logits:
    """scale * query . key, tile by tile; -inf where a row meets itself or its match."""

    def __init__(self, tiles: Tiles, query: Tensor, key: Tensor, scale: float | Tensor) -> None:
        scaled, self.alpha = (query * scale, 1.0) if isinstance(scale, Tensor) else (query, scale)
        self.tiles = tiles
        self.rows, self.cols = tiles.by_row(scaled, 0), tiles.by_col(key.T)

    def __call__(self, i: int, j: int, out: Tensor) -> Tensor:
        torch.addmm(out, self.rows[i], self.cols[j], beta=0, alpha=self.alpha, out=out)
        return self.tiles.leave_out(i, j, out)


class _Gradient:
    """The gradients of query, key and scale, summed tile by tile from g = dL / dlogits."""

    def __init__(self, ctx, query: Tensor, key: Tensor) -> None:  # type: ignore[no-untyped-def]
        tiles = ctx.tiles
        _, for_key, self.for_scale, *_ = ctx.needs_input_grad
        self.tiles, self.scale, self.query = tiles, ctx.scale, query
        self.dquery = torch.zeros_like(query)
        self.dkey = torch.zeros_like(key) if for_key and not tiles.mirrored else None
        into = self.dquery if tiles.mirrored else self.dkey
        self.rows, self.cols = tiles.by_row(query, 0), tiles.by_col(key, 0)
        self.drows = tiles.by_row(self.dquery, 0)
        self.dcols = None if into is None else tiles.by_col(into, 0)

    def add(self, i: int, j: int, g: Tensor) -> None:
        self.drows[i].addmm_(g, self.cols[j])
        if self.dcols is not None and not self.tiles.on_diagonal(i, j):
            self.dcols[j].addmm_(g.T, self.rows[i])

    def result(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        dscale = None
        if self.for_scale:  # with rows against themselves each pair is in the sum twice
            dscale = (self.dquery * self.query).sum() / (1 + self.tiles.mirrored)
        for x in (self.dquery, self.dkey):
            if x is not None:
                x.mul_(self.scale)
        return self.dquery, self.dkey, dscale


def _value(scale: float | Tensor) -> float | Tensor:
    """The scale as a number, if it is on the CPU; reading it from a GPU would wait for the GPU."""
    return scale.item() if isinstance(scale, Tensor) and scale.device.type == "cpu" else scale


def _both(ctx, grads: tuple[Tensor, ...]) -> bool:  # type: ignore[no-untyped-def]
    """True if tile (i, j) also adds to column sums: symmetric input, or columns asked for."""
    return ctx.tiles.mirrored or len(grads) > len(ctx.blocks)


def _running(like: Tensor, n: int) -> Tensor:
    """The start of the running [maximum, sum of e^(x - maximum)] of n rows: no terms yet."""
    return torch.stack([like.new_full((n,), _least(like)), like.new_zeros(n)])


def _merge(running: Tensor, logits: Tensor, dim: int, out: Tensor) -> None:
    """Add the logits, along `dim`, to the running (maximum, sum)."""
    top = torch.maximum(running[0], logits.amax(dim))
    e = torch.sub(logits, top.unsqueeze(dim), out=out).exp_()
    running[1].mul_((running[0] - top).exp_()).add_(e.sum(dim))
    running[0].copy_(top)


def _softmax(logits: Tensor, known: Tensor, out: Tensor) -> Tensor:
    """Softmax weights e^(logits - lse), times the gradient."""
    lse, grad = known
    return torch.sub(logits, lse, out=out).exp_().mul_(grad)


def _least(x: Tensor) -> float:
    return torch.finfo(x.dtype).min
