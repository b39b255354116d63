"""The row reductions, each passed on to the implementation that suits its operands.

That is `fused` on CUDA if Triton is installed and its kernels accept the operands, else `tiled`,
which for its part chooses between torch's operations and a compiled library.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from types import ModuleType

from jaxtyping import Float, Int
from torch import Tensor

from contrapose.similarity import tiled
from contrapose.similarity.pairs import EVERY, Pairs


def logsumexp(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    pairs: Pairs = EVERY,
    match: Int[Tensor, " N"] | None = None,
) -> Float[Tensor, " N"]:
    """log sum_j exp(scale * query_i . key_j) over the pairs that count; -inf where none does.

    Differentiable in query, key and scale. Sums are kept in float32 or float64, whatever the
    precision of the operands. Memory grows with N + M. If `query` and `key` are the same object
    (rows against themselves) the matrix is symmetric, and half the work is saved. match: the index
    of one key for each query that does not count, such as its positive, at no cost. Raises
    UserError if `pairs` describe other numbers of rows.
    """
    return _chosen(query).logsumexp(query, key, scale=scale, pairs=pairs, match=match)  # type: ignore[no-any-return]


def logsumexps(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    rules: tuple[Pairs, ...],
    match: Int[Tensor, " N"] | None = None,
) -> tuple[Float[Tensor, " N"], ...]:
    """`logsumexp` for several `rules`, each a `Pairs`, in one pass: one result for each rule."""
    return _chosen(query).logsumexps(query, key, scale=scale, rules=rules, match=match)  # type: ignore[no-any-return]


def logsumexp_both(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    match: Int[Tensor, " N"] | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " M"]]:
    """Log-sum-exps of the rows [N] and of the columns [M] of scale * query @ key.T.

    The pairs (i, match_i) count in neither.
    """
    return _chosen(query).logsumexp_both(query, key, scale=scale, match=match)  # type: ignore[no-any-return]


def softplus_sum(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""],
    bias: Float[Tensor, " N"],
    pairs: Pairs = EVERY,
) -> Float[Tensor, " N"]:
    """sum_j log(1 + exp(scale * query_i . key_j + bias_i)) over the pairs that count.

    Sigmoid losses (SigLIP) are written with it. Differentiable in query, key, scale and bias.
    """
    return _chosen(query).softplus_sum(query, key, scale=scale, bias=bias, pairs=pairs)  # type: ignore[no-any-return]


def topk(
    query: Float[Tensor, "N D"], key: Float[Tensor, "M D"], k: int, *, pairs: Pairs = EVERY
) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
    """The k most similar keys of every query, nearest first: (similarity, index).

    Differentiable in query and key. If fewer than k pairs of a query count, its remaining places
    have similarity -inf. Raises UserError unless 1 <= k <= M.
    """
    return _chosen(query).topk(query, key, k, pairs=pairs)  # type: ignore[no-any-return]


@contextlib.contextmanager
def using(implementation: ModuleType) -> Iterator[None]:
    """A context in which this module's reductions run, for example `dense`: for tests."""
    token = _backend.set(implementation)
    try:
        yield
    finally:
        _backend.reset(token)


def _chosen(query: Tensor) -> ModuleType:
    return _backend.get() or (_kernels() if query.is_cuda else tiled)


@cache
def _kernels() -> ModuleType:
    """The module `fused`, imported only if a GPU can run it, since the import takes a second."""
    if importlib.util.find_spec("triton") is None:
        return tiled
    from contrapose.similarity import fused

    return fused


_backend: ContextVar[ModuleType | None] = ContextVar("backend", default=None)
