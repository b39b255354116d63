"""Antialiased resampling of each image's own box, as two small matrix products per image.

A separable filter is `out = rows @ image @ columns^T` with one weight matrix per axis and image.
For small images (and on an accelerator) the matrices are dense and the whole batch is one product.
For large images on a CPU they are banded: `size` outputs fall into blocks, and each block reads
only the window of the source that its filter covers. The weights are those of torch's
`interpolate(antialias=True)`.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Filter = Literal["bilinear", "bicubic"]
RADIUS: dict[Filter, float] = {"bilinear": 1.0, "bicubic": 2.0}  # px of the coarser grid
DENSE = 64  # px; up to this side a dense product beats the bookkeeping of a banded one


def dense_weights(
    low: Int[Tensor, "B"],
    length: Int[Tensor, "B"],
    source: int,
    size: int,
    *,
    filter: Filter,
    reverse: Bool[Tensor, "B"] | None = None,
) -> Float[Tensor, "B size source"]:
    """w_ij = k((j + 1/2 - c_i) / max(scale, 1)), rows summing to 1, c_i = low + (i + 1/2) scale.

    scale = length / size; `low` and `length` in source px; k is a triangle (bilinear) or Keys'
    cubic with a = -1/2 (bicubic); pixels outside [low, low + length) have no weight, as if the box
    had been cut out first. `reverse` lists the outputs from the far end: a flip at no cost.
    """
    low, length = low.float()[:, None, None], length.float()[:, None, None]
    scale = length / size
    width = scale.clamp_min(1.0)
    pixel = torch.arange(source, device=low.device) + 0.5
    inside = (pixel > low) & (pixel < low + length)
    at = torch.where(inside, pixel / width, math.inf)  # [B, 1, source]
    centre = torch.arange(size, device=low.device)[:, None] + 0.5
    if reverse is not None:
        centre = torch.where(reverse[:, None, None], size - centre, centre)
    return _normalised(at - (low + centre * scale) / width, filter)


def window_weights(
    length: Int[Tensor, "B"], size: int, block: int, *, filter: Filter
) -> tuple[Float[Tensor, "B blocks block K"], list[int], int]:
    """The same weights, cut into windows: (weights, step of each image in px, margin in px).

    Output block k of an image reads K source pixels from `step * k - margin` (counted from the
    box's edge) on. One step per image is a whole number of px, so the windows of an image are one
    strided view of it; K makes up for the rounding.
    """
    blocks = size // block
    scale = length.double() / size
    step = (block * scale).floor()
    margin = math.ceil(RADIUS[filter] * max(float(scale.max()), 1.0))
    drift = block * scale + (blocks - 1) * (block * scale - step)
    window = math.ceil(float(drift.max())) + 2 * margin + 1
    k = torch.arange(blocks)
    start = step[:, None] * k - margin  # of each window
    ahead = (block * scale[:, None] * k - start).float()[..., None, None]  # small, so exact enough
    pixel = torch.arange(window) + 0.5
    inside = (pixel > -start[..., None]) & (pixel < (length[:, None] - start)[..., None])
    scale = scale.float()[:, None, None, None]
    width = scale.clamp_min(1.0)
    at = torch.where(inside[:, :, None], pixel / width, math.inf)  # [B, blocks, 1, K]
    centre = ahead + (torch.arange(block)[:, None] + 0.5) * scale  # [B, blocks, block, 1]
    return _normalised(at - centre / width, filter), step.int().tolist(), margin


def _normalised(offset: Tensor, filter: Filter) -> Tensor:
    """k(|offset|), normalised over the last axis; in place, an infinite offset weighs nothing."""
    offset.abs_()
    if filter == "bilinear":
        weight = offset.neg_().add_(1.0).clamp_min_(0.0)
    else:
        x = offset.clamp_max_(2.0)
        inner = (1.5 * x - 2.5) * x * x + 1
        outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
        weight = torch.where(x < 1, inner, outer)
    return weight.div_(weight.sum(dim=-1, keepdim=True))


def dense(
    image: Float[Tensor, "B C H W"],
    rows: Float[Tensor, "B S H"],
    columns: Float[Tensor, "B S W"],
    out: Float[Tensor, "B C S S"],
) -> None:
    """out_bc = rows_b @ image_bc @ columns_b^T for the whole batch."""
    count, channels, height, width = image.shape
    narrow = torch.bmm(image.reshape(count, channels * height, width), columns.mT)
    narrow = narrow.view(count, channels, height, -1)
    for c in range(channels):
        torch.bmm(rows, narrow[:, c], out=out[:, c])


def banded(
    image: Float[Tensor, "C H W"],
    rows: Float[Tensor, "blocks block Ky"],
    row_step: int,
    columns: Float[Tensor, "blocks block Kx"],
    column_step: int,
    out: Float[Tensor, "C S S"],
) -> None:
    """out_c = rows @ image_c @ columns^T for one image whose windows start every `step` px.

    `image` is contiguous and long enough for the last window: step (blocks - 1) + K px.
    """
    channels, _, width = image.shape
    blocks, block, tall = rows.shape
    wide, size = columns.shape[2], out.shape[-1]
    short = image.new_empty(channels, size, width)
    for c in range(channels):
        windows = image[c].as_strided((blocks, tall, width), (row_step * width, width, 1))
        torch.bmm(rows, windows, out=short[c].view(blocks, block, width))
    windows = short.as_strided((blocks, channels * size, wide), (column_step, width, 1))
    target = out.view(channels * size, blocks, block).transpose(0, 1)
    torch.bmm(windows, columns.mT, out=target)


def block_of(size: int, device: torch.device) -> int:
    """Outputs per block: `size` itself (dense) or, for a large side on a CPU, a divisor near 32."""
    if device.type != "cpu" or size <= DENSE:
        return size
    block = max(d for d in range(1, 41) if size % d == 0)
    return block if block >= 16 else size
