"""Gradient caching: large batches in the memory of a small chunk (GradCache, arXiv 2101.06983).

A contrastive loss needs all embeddings of a batch at once, but not all activations, because
dL/dw = sum over chunks of (dz_chunk/dw)^T dL/dz_chunk. The first pass embeds every chunk without
keeping activations; the loss gives dL/dz; the second pass embeds each chunk again and propagates
its part of dL/dz back. It is activation checkpointing of whole chunks, with torch's `checkpoint`.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from contrapose.errors import UserError
from contrapose.portions import portion_in_force
from contrapose.similarity.sharded import shards_in_force, shards_kept


def chunked(encode: nn.Module, x: Tensor, *, chunk: int) -> Any:
    """`encode(x)` in chunks of at most `chunk` rows, with the activations of one chunk in memory.

    A loss of the result has the same gradient as without chunks; `backward` costs a second forward
    pass. That pass repeats the random state (dropout), autocast and buffers of the first, on a CPU
    and on CUDA, and running statistics see every chunk once. One thing differs: batch norm
    normalises each chunk on its own, as it does on several devices.

    encode: returns a tensor, or a tuple of tensors, with one row for each row of x. Under
    DistributedDataParallel call `chunked` in the forward of the wrapped module. A process that has
    a portion of a batch (`contrapose.portions`) has its rows of every chunk of the whole batch.
    Raises UserError for a chunk below 1.
    """
    if chunk < 1:
        raise UserError(f"chunked: chunk={chunk}; use at least 1 row")
    sizes = chunk_sizes(len(x), chunk)
    if len(sizes) == 1:
        return encode(x)

    parts = [
        checkpoint(encode, rows, use_reentrant=False, context_fn=_Replay(encode))
        for rows in torch.split(x, sizes)
    ]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def chunk_sizes(rows: int, chunk: int) -> list[int]:
    """How many rows each chunk has: as few chunks of at most `chunk` rows as there can be, alike.

    For a portion of a batch the rows of this process in each chunk of the whole batch, maybe none.
    """
    portion = portion_in_force()
    number = torch.arange(rows) if portion is None else portion.rows(rows).cpu()
    whole = rows if portion is None else portion.whole * (rows // len(portion.place))
    count = max(1, -(-whole // chunk))
    least, more = divmod(whole, count)  # alike: BN cannot do with one row
    ends = torch.tensor([least + (c < more) for c in range(count)]).cumsum(0)
    below = torch.searchsorted(number, ends)
    return below.diff(prepend=below.new_zeros(1)).tolist()


def cached(encode: nn.Module, x: Tensor, loss: Callable[[Any], Tensor], *, chunk: int) -> Tensor:
    """loss(encode(x)) in the memory of one chunk of x, for any loss. See `chunked`."""
    return loss(chunked(encode, x, chunk=chunk))


class _Replay:
    """A context for the second pass: buffers as before the first pass, restored afterwards."""

    def __init__(self, encode: nn.Module) -> None:
        self.held = [m._buffers for m in encode.modules() if m._buffers]
        self.shards = shards_in_force()  # the second pass of CUDA runs in another thread

    def __call__(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        before = [{name: x if x is None else x.clone() for name, x in b.items()} for b in self.held]
        return contextlib.nullcontext(), self._second(before)

    @contextlib.contextmanager
    def _second(self, before: list[dict[str, Tensor | None]]) -> Iterator[None]:
        now = [dict(buffers) for buffers in self.held]
        for buffers, old in zip(self.held, before, strict=True):
            buffers.update(old)
        try:
            with shards_kept(self.shards):
                yield
        finally:
            for buffers, own in zip(self.held, now, strict=True):
                buffers.update(own)
