"""Gradient caching: a batch bounded by time, not by memory (GradCache, arXiv 2101.06983).

A contrastive loss needs every embedding at once, but not every activation: d L / d w is the sum
over chunks of (d z_chunk / d w)^T d L / d z_chunk. The first pass embeds the chunks without keeping
activations, the loss gives d L / d z, the second pass embeds each chunk again and sends its share
back. This is activation checkpointing of whole chunks, and torch's checkpoint does it.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from contrapose.errors import UserError


def chunked(encode: nn.Module, x: Tensor, *, chunk: int) -> Any:
    """`encode(x)`, at most `chunk` rows of x at a time, keeping activations of one chunk alone.

    Any loss of the result has the gradient that it would have without chunks, at the price of a
    second forward pass in `backward`. Its random state (dropout), autocast and buffers are those of
    the first, on a CPU and on CUDA; running statistics take in every chunk once. BatchNorm
    normalises by the chunk, so a network with BN computes something else than on the whole batch,
    as it does on several devices. `encode` may return a tensor or a tuple of them, each with a row
    for every row of x. Under DistributedDataParallel call it in the forward of the module that is
    wrapped. Raises ValueError for a chunk below 1.
    """
    if chunk < 1:
        raise UserError(f"chunked: chunk={chunk}; use at least 1 row")
    if len(x) <= chunk:
        return encode(x)

    parts = [
        checkpoint(encode, rows, use_reentrant=False, context_fn=_Replay(encode))
        for rows in x.tensor_split(-(-len(x) // chunk))  # alike: BN cannot do with one row
    ]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def cached(encode: nn.Module, x: Tensor, loss: Callable[[Any], Tensor], *, chunk: int) -> Tensor:
    """loss(encode(x)) in the memory of one chunk of x: see `chunked`. Any loss; call `backward`."""
    return loss(chunked(encode, x, chunk=chunk))


class _Replay:
    """The second pass sees the buffers as the first one found them, and leaves none changed."""

    def __init__(self, encode: nn.Module) -> None:
        self.held = [m._buffers for m in encode.modules() if m._buffers]

    def __call__(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        before = [{name: x if x is None else x.clone() for name, x in b.items()} for b in self.held]
        return contextlib.nullcontext(), self._second(before)

    @contextlib.contextmanager
    def _second(self, before: list[dict[str, Tensor | None]]) -> Iterator[None]:
        now = [dict(buffers) for buffers in self.held]
        for buffers, old in zip(self.held, before, strict=True):
            buffers.update(old)
        try:
            yield
        finally:
            for buffers, own in zip(self.held, now, strict=True):
                buffers.update(own)
