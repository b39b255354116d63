"""Log-sum-exps on a GPU in Triton, one kernel for each pass: tiles stay in on-chip memory.

Products use tensor cores, in the precision of the operands or that of `products`; the running
maximum and sum are float32. Memory is O(N D). For rows against themselves the gradient of row i
is sum_j (p_ij g_i + p_ji g_j) z_j, with p the softmax weights and g the incoming gradients; one
program sums it for its own rows, so that nothing has to be locked.

The kernels accept rows of up to WIDEST columns in bf16, in fp16 and, if torch may use TF32, in
float32. Everything else, and the other reductions, is left to `tiled`. (Full float32 would use no
tensor core, and more registers than the compiler finds on sm_90 and sm_80.)
"""

import math
from typing import Any, cast

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.similarity import kernels, tiled
from contrapose.similarity.pairs import EVERY, RELATIONS, Pairs
from contrapose.similarity.tiled import softplus_sum as softplus_sum
from contrapose.similarity.tiled import topk as topk
from contrapose.similarity.tiles import LOG2E
from contrapose.similarity.wide import LOW, precision_of

WIDEST = 256
NARROWEST = 16  # columns: the least that a tensor core multiplies
HEIGHT, WIDTH = 128, 64  # rows and columns of a tile in 16 bits; half of each in 32
PROGRAMS = 512  # the work is split until there are so many, some four for each multiprocessor
TINY = torch.finfo(torch.float32).tiny
NOWHERE = 3e38  # log-sum-exp of a row without pairs, for the backward pass: all weights become 0


def logsumexp(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    pairs: Pairs = EVERY,
    match: Int[Tensor, " N"] | None = None,
) -> Float[Tensor, " N"]:
    """log sum_j exp(scale * query_i . key_j) over the pairs that count; -inf where none does."""
    return logsumexps(query, key, scale=scale, rules=(pairs,), match=match)[0]


def logsumexps(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    rules: tuple[Pairs, ...],
    match: Int[Tensor, " N"] | None = None,
) -> tuple[Float[Tensor, " N"], ...]:
    """`logsumexp` for several rules about which pairs count."""
    for pairs in rules:
        pairs.check(query.shape[0], key.shape[0])
    found = rules if match is None else tuple(r.without(match, key.shape[0]) for r in rules)
    known = tuple(r for r in found if r is not None)
    if not takes(query, key) or len(known) < len(rules):
        return tiled.logsumexps(query, key, scale=scale, rules=rules, match=match)
    rules = known
    mirrored = query is key and all(r.symmetric for r in rules)
    return _reduce(query, None if mirrored else key, scale, rules, False)


def logsumexp_both(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    match: Int[Tensor, " N"] | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " M"]]:
    """Log-sum-exps of the rows and of the columns of scale * query . key."""
    if not takes(query, key):
        return tiled.logsumexp_both(query, key, scale=scale, match=match)
    pairs = EVERY if match is None else EVERY.without(match, key.shape[0])
    assert pairs is not None
    rows, cols = _reduce(query, key, scale, (pairs,), True)
    return rows, cols


def takes(query: Tensor, key: Tensor) -> bool:
    """True if the kernels accept these operands."""
    precision = precision_of(query, key)
    known = precision in LOW or (
        precision == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    )
    return known and min(len(query), len(key)) > 0 and 0 < query.shape[1] <= WIDEST


def _reduce(
    query: Tensor,
    key: Tensor | None,
    scale: float | Tensor,
    rules: tuple[Pairs, ...],
    columns: bool,
) -> tuple[Tensor, ...]:
    """Log-sum-exps of the rows for each rule, then of the columns where they are asked for."""
    factor = torch.as_tensor(scale, dtype=torch.float32, device=query.device)
    return cast(tuple[Tensor, ...], _LogSumExps.apply(query, key, factor, rules, columns))


class _LogSumExps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, scale, rules, columns):  # type: ignore[no-untyped-def]
        mirrored, ctx.given = key is None, [None if x is None else x.dtype for x in (query, key)]
        precision = precision_of(query, query if mirrored else key)
        query = query.to(precision).contiguous()
        key = query if mirrored else key.to(precision).contiguous()
        lse = [_forward(query, key, scale, pairs) for pairs in rules]
        if columns:
            lse.append(_forward(key, query, scale, _turned(rules[0])))
        ctx.save_for_backward(query, key, scale, *lse)
        ctx.rules, ctx.columns, ctx.mirrored = rules, columns, mirrored
        return tuple(lse)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        query, key, scale, *lse = ctx.saved_tensors
        for_query, for_key, for_scale, *_ = ctx.needs_input_grad
        # a pair's weight is its share of its row's sum times the row's gradient, and likewise of
        # its column's; gradients are taken over the largest, so that fp16 holds the weights
        size = torch.stack([g.abs().amax() for g in grads]).amax().clamp(min=TINY)
        known = [
            torch.stack([torch.where(x == -math.inf, NOWHERE, x * LOG2E), g / size])
            for x, g in zip(lse, grads, strict=True)
        ]
        dquery = dkey = dscale = None
        for r, pairs in enumerate(ctx.rules):
            row = known[r]
            col = row if ctx.mirrored else known[-1] if ctx.columns else None
            if for_query or for_scale:
                found = _backward(query, key, scale, pairs, row, col)
                dquery = found if dquery is None else dquery + found
            if for_key and not ctx.mirrored:
                found = _backward(key, query, scale, _turned(pairs), col, row)
                dkey = found if dkey is None else dkey + found
        if for_scale:  # with rows against themselves each pair is in the sum twice
            dscale = (dquery * query).sum() * size / (1 + ctx.mirrored)
        factor = scale * size
        return (
            (dquery * factor).to(ctx.given[0]) if for_query else None,
            (dkey * factor).to(ctx.given[1]) if dkey is not None else None,
            dscale, None, None,
        )  # fmt: skip


def _turned(pairs: Pairs) -> Pairs:
    """The same pairs with rows and columns exchanged."""
    return Pairs(pairs.relation, pairs.col_group, pairs.row_group, pairs.col_id, pairs.row_id)


def _forward(query: Tensor, key: Tensor, scale: Tensor, pairs: Pairs) -> Tensor:
    """The log-sum-exps of the rows, in float32."""
    plan = _plan(query, key)
    part = query.new_empty(plan["grid"][1], query.shape[0], dtype=torch.float32)
    kernels.log_sum_exp[plan["grid"]](
        query, key, scale, part, *_mask(pairs, query, key), query.shape[0], key.shape[0],
        plan["span"], D=query.shape[1], **plan["constants"],
    )  # fmt: skip
    return part[0] if len(part) == 1 else part.logsumexp(dim=0)


def _backward(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    pairs: Pairs,
    row: Tensor | None,
    col: Tensor | None,
) -> Tensor:
    """sum_j (p_ij g_i + q_ij h_j) key_j in float32, p and q the shares in row i's and column j's
    sums; row and col hold their log-sum-exps (in powers of 2) and gradients g and h."""
    plan = _plan(query, key)
    part = query.new_empty(plan["grid"][1], *query.shape, dtype=torch.float32)
    kernels.gradient[plan["grid"]](
        query, key, scale, part, row, col, *_mask(pairs, query, key), query.shape[0],
        key.shape[0], plan["span"], D=query.shape[1], **plan["constants"],
    )  # fmt: skip
    return part[0] if len(part) == 1 else part.sum(dim=0)


def _plan(query: Tensor, key: Tensor) -> dict[str, Any]:
    """Sizes of the blocks of a program: over rows and, if rows are few, spans of columns."""
    wide = query.dtype == torch.float32
    depth = max(NARROWEST, triton.next_power_of_2(query.shape[1]))
    height, width = (HEIGHT // 2, WIDTH // 2) if wide or depth > 128 else (HEIGHT, WIDTH)
    rows = triton.cdiv(query.shape[0], height)
    blocks = triton.cdiv(key.shape[0], width)
    parts = max(1, min(blocks, PROGRAMS // rows))
    span = triton.cdiv(blocks, parts) * width
    constants = {
        "DEPTH": depth, "HEIGHT": height, "WIDTH": width,
        "num_warps": 4 if wide else 8, "num_stages": 2 if wide else 3,
    }  # fmt: skip
    return {
        "grid": (rows, triton.cdiv(key.shape[0], span)),
        "span": span,
        "constants": constants,
    }


def _mask(pairs: Pairs, query: Tensor, key: Tensor) -> tuple[Any, ...]:
    """The groups and ids of `pairs` on the device of `query`, and the number of the relation."""
    sides = (pairs.row_group, pairs.col_group, pairs.row_id, pairs.col_id)
    there = tuple(None if x is None else x.to(query.device).contiguous() for x in sides)
    if there[2] is None or there[3] is None:
        there = *there[:2], None, None
    return *there, RELATIONS[pairs.relation]
