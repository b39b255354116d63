"""Products may be of half precision; running results never are: they would lose a digit a tile."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor

from contrapose.errors import UserError

WIDE = torch.float32, torch.float64
LOW = torch.bfloat16, torch.float16


def widen(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x in float32 at least (the same object where it already is)."""
    return x if x.dtype in WIDE else x.to(torch.float32)


@contextlib.contextmanager
def products(precision: torch.dtype) -> Iterator[None]:
    """Inside, similarities of float32 embeddings are products of that precision: bf16 or fp16.

        with similarity.products(torch.bfloat16):
            loss = losses.nt_xent(z, group, temperature=0.1)

    Sums, maxima and gradients stay float32. An embedding rounded to bf16 moves a similarity by
    some 1e-3; of embeddings that are bf16 already only the weights in the gradient are rounded,
    which moves that of NT-Xent by some 2e-4 of its length. Tensor cores on CUDA and processors
    with bf16 instructions are several times faster so; elsewhere nothing changes.
    Raises ValueError for another precision.
    """
    if precision not in LOW:
        raise UserError(f"products: precision {precision}; use torch.bfloat16 or torch.float16")
    token = _products.set(precision)
    try:
        yield
    finally:
        _products.reset(token)


def precision_of(query: Tensor, key: Tensor) -> torch.dtype:
    """Of their products: the wider of their own, or what `products` says where that is float32."""
    widest = torch.promote_types(query.dtype, key.dtype)
    return (_products.get() or widest) if widest == torch.float32 else widest


@contextlib.contextmanager
def instructions_for(precision: torch.dtype) -> Iterator[None]:
    """Inside, torch may multiply float32 matrices by the instructions for that precision.

    Factors are rounded to bf16 and summed in float32 by processors that have instructions for it;
    bf16 and fp16 numbers are TF32 numbers on CUDA.
    """
    if precision not in LOW:  # torch's switches are everybody's: leave them alone
        yield
        return
    on_cpu, on_cuda = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = on_cpu.fp32_precision, on_cuda.fp32_precision
    if precision == torch.bfloat16:
        on_cpu.fp32_precision = "bf16"
    on_cuda.fp32_precision = "tf32"
    try:
        yield
    finally:
        on_cpu.fp32_precision, on_cuda.fp32_precision = before


_products: ContextVar[torch.dtype | None] = ContextVar("products", default=None)
