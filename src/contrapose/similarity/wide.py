"""Products may be of half precision; running results never are: they would lose a digit a tile."""

import contextlib
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

WIDE = torch.float32, torch.float64


def widen(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x in float32 at least (the same object where it already is)."""
    return x if x.dtype in WIDE else x.to(torch.float32)


@contextlib.contextmanager
def products_of(operands: torch.dtype) -> Iterator[None]:
    """Inside, float32 products of what came in that precision may use its instructions.

    A processor with bf16 instructions then rounds the factors of a product to bf16 and sums in
    float32; on CUDA bf16 and fp16 numbers are TF32 numbers, so that nothing but weights is rounded.
    Elsewhere, and for wider operands, nothing changes. Relative error of a gradient: some 2e-4.
    """
    on_cpu, on_cuda = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = on_cpu.fp32_precision, on_cuda.fp32_precision
    if operands == torch.bfloat16:
        on_cpu.fp32_precision = "bf16"
    if operands not in WIDE:
        on_cuda.fp32_precision = "tf32"
    try:
        yield
    finally:
        on_cpu.fp32_precision, on_cuda.fp32_precision = before
