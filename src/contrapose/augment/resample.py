"""Antialiased resampling of a box of each image, by a weight matrix for each axis and image.

out = rows @ image @ columns^T, with the weights of torch's `interpolate(antialias=True)`. For small
images, and on a GPU, these are two products for the whole batch. For large images on a CPU only the
few nonzero weights of each row (its taps) are used.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Filter = Literal["bilinear", "bicubic"]
RADIUS: dict[Filter, float] = {"bilinear": 1.0, "bicubic": 2.0}  # px of the coarser grid


def matrix(
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
    cubic with a = -1/2 (bicubic). Pixels outside [low, low + length) have weight 0, as if the box
    had been cut out first. reverse: outputs in the opposite order, which is a flip.
    """
    low, length = low.float()[:, None, None], length.float()[:, None, None]
    scale = length / size
    width = scale.clamp_min(1.0)
    pixel = torch.arange(source, device=low.device) + 0.5
    inside = (pixel > low) & (pixel < low + length)
    at = torch.where(inside, pixel / width, math.inf)  # [B, 1, source]
    output = torch.arange(size, device=low.device)[:, None] + 0.5
    if reverse is not None:
        output = torch.where(reverse[:, None, None], size - output, output)
    weight = _kernel(at - (low + output * scale) / width, filter)
    return weight.div_(weight.sum(dim=2, keepdim=True))


def taps(
    length: Int[Tensor, "B"],
    size: int,
    *,
    filter: Filter,
    reverse: Bool[Tensor, "B"] | None = None,
) -> tuple[Int[Tensor, "B size T"], Float[Tensor, "B size T"], list[int]]:
    """The weights of `matrix` that can differ from zero: (source px from the box's edge, weight,
    how many taps each image needs); T is the most that any image needs.
    """
    scale = length.double()[:, None, None] / size
    width = scale.clamp_min(1.0)
    support = RADIUS[filter] * width
    needed = (2 * support).ceil().int()
    output = torch.arange(size)[:, None] + 0.5
    if reverse is not None:
        output = torch.where(reverse[:, None, None], size - output, output)
    centre = output * scale  # [B, size, 1]
    first = (centre - support + 0.5).floor()
    index = first + torch.arange(int(needed.max()))
    inside = (index >= 0) & (index < length[:, None, None])
    offset = torch.where(inside, (index + 0.5 - centre) / width, math.inf).float()
    weight = _kernel(offset, filter)
    weight.div_(weight.sum(dim=2, keepdim=True))
    index = torch.minimum(index.long().clamp_min_(0), length[:, None, None] - 1)
    return index.int(), weight, needed.flatten().tolist()


def _kernel(offset: Tensor, filter: Filter) -> Tensor:
    """k(|offset|), zero at infinity; works in place."""
    offset.abs_()
    if filter == "bilinear":
        return offset.neg_().add_(1.0).clamp_min_(0.0)
    x = offset.clamp_max_(2.0)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, inner, outer)


def multiply(
    image: Float[Tensor, "B C H W"], rows: Float[Tensor, "B S H"], columns: Float[Tensor, "B S W"]
) -> Float[Tensor, "B C S S"]:
    """rows_b @ image_bc @ columns_b^T for the whole batch."""
    count, channels, height, width = image.shape
    narrow = torch.bmm(image.reshape(count, channels * height, width), columns.mT)
    narrow = narrow.view(count * channels, height, columns.shape[1])
    out = torch.bmm(rows.repeat_interleave(channels, dim=0), narrow)
    return out.view(count, channels, *out.shape[1:])


def weighted_sum(
    image: Float[Tensor, "H C W"], index: Int[Tensor, "S T"], weight: Float[Tensor, "S T"]
) -> Float[Tensor, "S C W"]:
    """out_i = sum_t weight_it image[index_it]: the product with a matrix of T weights a row."""
    rows = image.flatten(1)
    out = F.embedding_bag(index, rows, per_sample_weights=weight.contiguous(), mode="sum")
    return out.view(len(index), *image.shape[1:])
