"""Triton kernels over blocks of rows and spans of columns: what `fused` runs."""

# mypy: ignore-errors
# (its language has no types)

import triton
import triton.language as tl


@triton.jit
def _block(x, rows, n, D: tl.constexpr, DEPTH: tl.constexpr):
    """Rows of x, which are D wide; 0 beyond its n rows and its columns."""
    depth = tl.arange(0, DEPTH)
    inside = (rows < n)[:, None] & (depth < D)[None, :]
    return tl.load(x + rows.to(tl.int64)[:, None] * D + depth[None, :], mask=inside, other=0.0)


@triton.jit
def _logits(q, k, scale, row_group, col_group, row_id, col_id, RELATION,
            rows, cols, n, m):  # fmt: skip
    """log2(e) * scale * q . k; -inf where a pair does not count."""
    x = tl.dot(q, tl.trans(k)) * (scale * 1.4426950408889634)
    counts = (rows < n)[:, None] & (cols < m)[None, :]
    if RELATION != 0:
        a = tl.load(row_group + rows, mask=rows < n, other=0)
        b = tl.load(col_group + cols, mask=cols < m, other=0)
        if RELATION == 1:
            counts = counts & (a[:, None] == b[None, :])
        else:
            counts = counts & (a[:, None] != b[None, :])
    if row_id is not None:
        a = tl.load(row_id + rows, mask=rows < n, other=0)
        b = tl.load(col_id + cols, mask=cols < m, other=0)
        counts = counts & (a[:, None] != b[None, :])
    return tl.where(counts, x, float("-inf"))


@triton.jit
def log_sum_exp(query, key, scale, out, row_group, col_group, row_id, col_id,
                RELATION: tl.constexpr, n, m, span, D: tl.constexpr, DEPTH: tl.constexpr,
                HEIGHT: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """One block of rows over one span of columns: out[part, row] = log-sum-exp."""
    rows = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    part = tl.program_id(1)
    q = _block(query, rows, n, D, DEPTH)
    factor = tl.load(scale)
    top = tl.full((HEIGHT,), float("-inf"), tl.float32)
    total = tl.zeros((HEIGHT,), tl.float32)
    first = part * span
    for start in range(first, tl.minimum(first + span, m), WIDTH):
        cols = start + tl.arange(0, WIDTH)
        k = _block(key, cols, m, D, DEPTH)
        x = _logits(q, k, factor, row_group, col_group, row_id, col_id, RELATION, rows, cols,
                    n, m)  # fmt: skip
        new = tl.maximum(top, tl.max(x, axis=1))
        shift = tl.where(new == float("-inf"), 0.0, new)  # -inf less -inf is no number
        total = total * tl.exp2(top - shift) + tl.sum(tl.exp2(x - shift[:, None]), axis=1)
        top = new
    lse = (top + tl.log2(tl.where(total > 0.0, total, 1.0))) * 0.6931471805599453  # or -inf
    tl.store(out + part.to(tl.int64) * n + rows, lse, mask=rows < n)


@triton.jit
def gradient(query, key, scale, out, row, col, row_group, col_group, row_id, col_id,
             RELATION: tl.constexpr, n, m, span, D: tl.constexpr, DEPTH: tl.constexpr,
             HEIGHT: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """One block of rows over one span of columns: out[part, row] = sum_j weight_ij key_j."""
    rows = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    part = tl.program_id(1)
    q = _block(query, rows, n, D, DEPTH)
    factor = tl.load(scale)
    if row is not None:
        row_lse = tl.load(row + rows, mask=rows < n, other=0.0)
        row_grad = tl.load(row + n + rows, mask=rows < n, other=0.0)
    total = tl.zeros((HEIGHT, DEPTH), tl.float32)
    first = part * span
    for start in range(first, tl.minimum(first + span, m), WIDTH):
        cols = start + tl.arange(0, WIDTH)
        k = _block(key, cols, m, D, DEPTH)
        x = _logits(q, k, factor, row_group, col_group, row_id, col_id, RELATION, rows, cols,
                    n, m)  # fmt: skip
        weight = tl.zeros((HEIGHT, WIDTH), tl.float32)
        if row is not None:
            weight += tl.exp2(x - row_lse[:, None]) * row_grad[:, None]
        if col is not None:
            col_lse = tl.load(col + cols, mask=cols < m, other=0.0)
            col_grad = tl.load(col + m + cols, mask=cols < m, other=0.0)
            weight += tl.exp2(x - col_lse[None, :]) * col_grad[None, :]
        total += tl.dot(weight.to(k.dtype), k)
    depth = tl.arange(0, DEPTH)
    inside = (rows < n)[:, None] & (depth < D)[None, :]
    place = part.to(tl.int64) * n * D + rows.to(tl.int64)[:, None] * D + depth[None, :]
    tl.store(out + place, total, mask=inside)
