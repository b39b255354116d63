"""The row reductions in plain PyTorch, one tile of the similarity matrix at a time.

Log-sum-exp and top-k are associative: the result over the columns A and B follows from the results
over A and over B. Memory is O(N D). Exponentials are summed in one of two ways:

direct  if |scale * query . key| <= bound, with e^bound well inside the range of the dtype, no shift
        is needed: a tile costs one product and one exponential.
online  otherwise the running maximum of each row is subtracted: for any temperature and any length
        of vectors.

If `query` and `key` are the same object only tiles of the upper triangle are computed; each adds to
the sums of its rows and of its columns.

Direct sums in float32 on a CPU, and the nearest keys, are left to `native`, a small library that is
compiled on first use, wherever it is there and was measured to be quicker: `by_library` decides.
"""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.errors import UserError
from contrapose.similarity import native
from contrapose.similarity.nearest import TopK
from contrapose.similarity.pairs import EVERY, Pairs, two_views
from contrapose.similarity.passes import DirectLogSumExp, OnlineLogSumExp, SoftplusSum
from contrapose.similarity.tiles import ALONE, Tiles, workers
from contrapose.similarity.wide import precision_of, widen
from contrapose.threads import alone

MEASURED = 2048  # rows by which the library is measured


def logsumexp(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    pairs: Pairs = EVERY,
    match: Int[Tensor, " N"] | None = None,
    tile: int | None = None,
) -> Float[Tensor, " N"]:
    """log sum_j exp(scale * query_i . key_j) over the pairs that count; -inf where none does."""
    return logsumexps(query, key, scale=scale, rules=(pairs,), match=match, tile=tile)[0]


def logsumexps(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    rules: tuple[Pairs, ...],
    match: Int[Tensor, " N"] | None = None,
    tile: int | None = None,
) -> tuple[Float[Tensor, " N"], ...]:
    """`logsumexp` for several rules about which pairs count, in one pass over the tiles."""
    for pairs in rules:
        pairs.check(query.shape[0], key.shape[0])
    if (
        query is not key
        or not all(r.symmetric and r.diagonal_is_self for r in rules)
        or not _mutual(match)
    ):
        return _reduce(query, key, scale, rules, tile, match)
    group = next((r.row_group for r in rules if r.row_group is not None), None)
    if group is None:
        return _reduce(query, None, scale, tuple(r.by_group(None) for r in rules), tile, match)
    # Rows of a group next to each other: most tiles are then all of one group or none of it.
    order = group.argsort(stable=True)
    rules = tuple(r.by_group(order) for r in rules)
    if match is not None:
        match = order.argsort()[match[order]]
    ordered = _reduce(query.index_select(0, order), None, scale, rules, tile, match)
    return tuple(torch.zeros_like(x).index_copy(0, order, x) for x in ordered)


def logsumexp_both(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    match: Int[Tensor, " N"] | None = None,
    tile: int | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " M"]]:
    """Log-sum-exps of the rows and of the columns of scale * query . key, in one pass."""
    rows, cols = _reduce(query, key, scale, (EVERY,), tile, match, columns=True)
    return rows, cols


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
    pairs.check(query.shape[0], key.shape[0])
    precision = precision_of(query, key)
    query, key = widen(query), widen(key)
    tiles = Tiles(query, key, tile, precision)
    arguments = query, key, _factor(scale, query), widen(bias), pairs, tiles
    return cast(Tensor, SoftplusSum.apply(*arguments))


def topk(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    k: int,
    *,
    pairs: Pairs = EVERY,
    tile: int | None = None,
) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
    """The k most similar keys of every query, nearest first: (similarity, index).

    If fewer than k pairs of a query count, its remaining places have similarity -inf.
    """
    n, m = query.shape[0], key.shape[0]
    if not 1 <= k <= m:
        raise UserError(f"topk: asked for k={k} neighbours among {m} keys; use 1 <= k <= {m}")
    pairs.check(n, m)
    threads = workers(query, m, few=ALONE)
    query, key = widen(query), widen(key)
    compiled = tile is None and by_library(query, torch.float32) and _finite(query, key)
    value, index = TopK.apply(query, key, k, pairs, tile, threads, compiled)
    return value, index


def _reduce(
    query: Tensor,
    key: Tensor | None,
    scale: float | Tensor,
    rules: tuple[Pairs, ...],
    tile: int | None,
    match: Tensor | None = None,
    columns: bool = False,
) -> tuple[Tensor, ...]:
    """Log-sum-exps of the rows for each rule, then of the columns where they are asked for."""
    precision = precision_of(query, query if key is None else key)
    query, key = widen(query), None if key is None else widen(key)
    factor = _factor(scale, query)
    bound = _bound(query, key, factor)
    # sums of exponentials, and their inverses, stay well inside the dtype
    direct = bound < (60 if query.dtype == torch.float32 else 500)
    if direct and tile is None and by_library(query, precision, len(rules)):
        threads = workers(query, len(query if key is None else key), few=native.ALONE)
        found = native.LogSumExp.apply(query, key, factor, rules, columns, match, bound, threads)
        return cast(tuple[Tensor, ...], found)
    tiles = Tiles(query, key, tile, precision, match)
    arguments = query, key, factor, rules, columns, tiles
    if direct:
        return cast(tuple[Tensor, ...], DirectLogSumExp.apply(*arguments, bound))
    return cast(tuple[Tensor, ...], OnlineLogSumExp.apply(*arguments))


def by_library(query: Tensor, precision: torch.dtype, rules: int = 1) -> bool:
    """True if native.c computes this here: there is a library, and it was measured to be quicker.

    Of torch's products only those in bf16 can be quicker, on a processor with a unit for them.
    """
    if query.device.type != "cpu" or query.dtype != torch.float32 or rules > native.RULES:
        return False
    if _library_or_not.get() is not None:
        return bool(_library_or_not.get())
    if native.LIBRARY.load() is None:
        return False
    products = torch.bfloat16 if precision == torch.bfloat16 else torch.float32
    ours, by_torch = (partial(_step, used, products) for used in (True, False))
    return native.LIBRARY.is_quicker(str(products).removeprefix("torch."), ours, by_torch)


@contextlib.contextmanager
def library(used: bool) -> Iterator[None]:
    """A context with native.c wherever it can compute, or nowhere: for tests and measurements."""
    token = _library_or_not.set(used)
    try:
        yield
    finally:
        _library_or_not.reset(token)


def _step(used: bool, products: torch.dtype) -> None:
    """Forward and backward of rows against the others: what the choice is measured by."""
    with library(used), torch.inference_mode(False), torch.enable_grad():
        rows, itself = _measured_rows(products).clone().requires_grad_(), torch.arange(MEASURED)
        pairs = Pairs(row_id=itself, col_id=itself, distinct=True)
        logsumexp(rows, rows, scale=10.0, pairs=pairs).sum().backward()  # type: ignore[no-untyped-call]


@lru_cache(maxsize=1)
def _measured_rows(products: torch.dtype) -> Tensor:
    z = torch.randn(MEASURED, 128, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(z, dim=1).to(products)


def _mutual(match: Tensor | None) -> bool:
    """True if the match of each row's match is that row, as far as a CPU can tell."""
    if match is None or match.device.type != "cpu":
        return match is None
    if len(match) % 2 == 0 and match is two_views(len(match))[0]:
        return True
    return torch.equal(match[match], torch.arange(len(match)))


def _factor(scale: float | Tensor, query: Tensor) -> float | Tensor:
    """The scale as a number; as a tensor if it needs a gradient or is on a GPU."""
    if isinstance(scale, Tensor) and (scale.requires_grad or scale.device.type != "cpu"):
        return scale.to(query)
    return float(scale.detach() if isinstance(scale, Tensor) else scale)


@alone
def _bound(query: Tensor, key: Tensor | None, scale: float | Tensor) -> float:
    """A bound: sums of e^(scale * query . key) over keys <= e^bound, every term >= e^-bound."""
    if query.device.type != "cpu":  # reading a value would stall the device
        return math.inf
    other = query if key is None else key
    if not query.shape[0] or not other.shape[0]:
        return 0.0
    longest = _longest(query)
    size = abs(float(scale.detach() if isinstance(scale, Tensor) else scale))
    reach = size * longest * (longest if key is None else _longest(other))
    return reach + math.log(other.shape[0])


def _finite(*operands: Tensor) -> bool:
    """True if every number is finite, as far as the lengths of rows tell."""
    return all(not len(x) or math.isfinite(_longest(x)) for x in operands)


def _longest(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x.detach(), dim=1).amax())


_library_or_not: ContextVar[bool | None] = ContextVar("library", default=None)
