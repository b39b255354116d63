"""Precision of similarities: products may be in bf16 or fp16, sums are in float32 or float64.

A sum in half precision would lose accuracy with every tile that is added.
"""

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
    """A context in which products of float32 embeddings are computed in bf16 or fp16.

        with similarity.products(torch.bfloat16):
            loss = losses.nt_xent(z, group, temperature=0.1)

    Sums, maxima and gradients stay float32. Rounding an embedding to bf16 changes a similarity by
    about 1e-3. If embeddings are bf16 already, only the weights in the gradient are rounded, which
    changes the gradient of NT-Xent by about 2e-4 of its length. Tensor cores and processors with
    bf16 instructions are several times faster; on other machines nothing changes.
    Raises UserError for another precision.
    """
    if precision not in LOW:
        raise UserError(f"products: precision {precision}; use torch.bfloat16 or torch.float16")
    token = _products.set(precision)
    try:
        yield
    finally:
        _products.reset(token)


def precision_of(query: Tensor, key: Tensor) -> torch.dtype:
    """Precision of the products: the wider of the two; if it is float32, that of `products`."""
    widest = torch.promote_types(query.dtype, key.dtype)
    return (_products.get() or widest) if widest == torch.float32 else widest


@contextlib.contextmanager
def instructions_for(precision: torch.dtype) -> Iterator[None]:
    """A context in which torch may use the instructions of `precision` for float32 matrices.

    A processor with bf16 instructions then rounds factors to bf16 and sums in float32. On CUDA it
    is TF32, which represents every bf16 and fp16 number exactly.
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
