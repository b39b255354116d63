"""The k most similar keys of every query.

If entries are put into groups, the k groups with the largest maxima contain the k largest entries,
because an entry outside them has at least k entries above it. So the maxima of groups are searched
first, and the maxima of groups of groups before them: less than half the work of a full search.
"""

import math

import numpy as np
import torch
from torch import Tensor

from contrapose.similarity import native
from contrapose.similarity.pairs import Blocks, Pairs
from contrapose.similarity.tiles import DEVICE_TILE, slices
from contrapose.threads import alone, share

HEIGHT, WIDTH = 128, 1024  # of the products on a CPU
AREA = 2**23  # similarities that all threads together hold at a time
GROUP = 4


class TopK(torch.autograd.Function):
    """(similarity, index) of the k nearest keys, nearest first; -inf and 0 if there are fewer."""

    @staticmethod
    @alone
    def forward(ctx, query, key, k, pairs, tile, threads, compiled):  # type: ignore[no-untyped-def]
        if compiled:
            value, index = native.nearest(query, key, k, pairs, threads)
        else:
            value, index = _by_products(query, key, k, pairs, tile, threads)
        ctx.save_for_backward(query, key, value, index)
        ctx.mark_non_differentiable(index)
        return value, index

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        query, key, value, index = ctx.saved_tensors
        grad = torch.where(value == -math.inf, 0.0, grad)
        dquery, dkey = torch.zeros_like(query), None
        if ctx.needs_input_grad[1]:
            dkey = torch.zeros_like(key)
        for I in slices(query.shape[0], max(1, AREA // key.shape[0])):
            g = query.new_zeros(I.stop - I.start, key.shape[0]).scatter_add_(1, index[I], grad[I])
            dquery[I].addmm_(g, key)
            if dkey is not None:
                dkey.addmm_(g.T, query[I])
        return dquery, dkey, None, None, None, None, None


def _by_products(
    query: Tensor, key: Tensor, k: int, pairs: Pairs, tile: int | None, threads: int
) -> tuple[Tensor, Tensor]:
    """The search in torch's operations: products of blocks, then the largest of each."""
    height, width, at_once = _shape(query, key, k, tile, threads)
    rows, cols = slices(query.shape[0], height), slices(key.shape[0], width)
    block = Blocks(pairs, rows, cols, query.dtype)
    value = query.new_full((query.shape[0], k), -math.inf)
    index = torch.zeros(query.shape[0], k, dtype=torch.long, device=query.device)

    def work(i: int) -> None:
        q = query[rows[i]]
        scratch = q.new_empty(len(q), min(key.shape[0], at_once * width))
        values, indices = [], []
        for first in range(0, len(cols), at_once):
            some = cols[first : first + at_once]
            start, stop = some[0].start, some[-1].stop
            for j, J in enumerate(some, start=first):
                out = scratch[:, J.start - start : J.stop - start]
                if (mask := block(i, j)) is False:
                    out.fill_(-math.inf)
                else:
                    torch.mm(q, key[J].T, out=out)
                    if mask is not True:
                        out.add_(mask.log_())
            found, place = _largest(scratch[:, : stop - start], min(k, stop - start))
            values.append(found)
            indices.append(place + start)
        value[rows[i]], best = _sorted(torch.cat(values, dim=1), k)
        index[rows[i]] = torch.cat(indices, dim=1).gather(1, best)

    share(work, range(len(rows)), threads)
    return value, index


def _shape(
    query: Tensor, key: Tensor, k: int, tile: int | None, threads: int
) -> tuple[int, int, int]:
    """Rows and columns of one product, and how many neighbouring products are searched at once."""
    if tile is not None:
        height = width = area = tile
    elif query.device.type == "cpu":
        height, width = max(16, min(HEIGHT, -(-query.shape[0] // threads))), WIDTH
        area = AREA // (threads * height)
    else:
        height, width, area = DEVICE_TILE, DEVICE_TILE, DEVICE_TILE
    return height, width, -(-max(k, area) // width)


def _largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(value, column) of the k largest entries of every row, in any order."""
    width = x.shape[1] // GROUP
    if width <= 2 * k:
        return _select(x, k)
    # group g: columns g, g + width, g + 2 width, ...
    groups = x[:, : GROUP * width].view(len(x), GROUP, width)
    _, best = _largest(groups.amax(dim=1), k)
    steps = torch.arange(0, GROUP * width, width, device=x.device)
    left_over = torch.arange(GROUP * width, x.shape[1], device=x.device).expand(len(x), -1)
    index = torch.cat([(best[:, None] + steps[:, None]).flatten(1), left_over], dim=1)
    value, place = _select(x.gather(1, index), k)
    return value, index.gather(1, place)


def _select(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `_largest`, for few columns: numpy's selection takes less than half of torch's time."""
    if x.device.type != "cpu":
        return x.topk(k, sorted=False)
    last = x.shape[1] - k
    place = torch.from_numpy(np.argpartition(x.numpy(), last, axis=1)[:, last:].copy())
    return x.gather(1, place), place


def _sorted(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest, largest first."""
    if x.device.type != "cpu":
        return x.topk(k)
    value, place = _select(x, k)
    order = torch.from_numpy(np.argsort(-value.numpy(), axis=1))
    return value.gather(1, order), place.gather(1, order)
