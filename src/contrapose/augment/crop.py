"""Random resized crop and horizontal flip: where each image is looked at."""

import math

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Generator, Tensor

from contrapose.augment.draw import uniform
from contrapose.augment.resample import (
    Filter,
    banded,
    block_of,
    dense,
    dense_weights,
    window_weights,
)

ATTEMPTS = 10  # boxes tried before the centre is taken, as in torchvision


def draw_box(
    count: int,
    height: int,
    width: int,
    generator: Generator,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Int[Tensor, "B 4"]:
    """(top, left, height, width) px: share of the area U(area), log of width/height U(log ratio).

    A box that does not fit is drawn again; after 10 attempts the largest centred box of a permitted
    ratio is taken (the law of torchvision's RandomResizedCrop.get_params).
    Raises ValueError unless 0 < area[0] <= area[1] and 0 < ratio[0] <= ratio[1].
    """
    if not 0 < area[0] <= area[1]:
        raise ValueError(f"draw_box: asked for area={area}; use 0 < low <= high")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"draw_box: asked for ratio={ratio}; use 0 < low <= high")
    share = uniform(count, *area, generator, ATTEMPTS) * (height * width)
    aspect = uniform(count, math.log(ratio[0]), math.log(ratio[1]), generator, ATTEMPTS).exp()
    place = uniform(count, 0.0, 1.0, generator, 2)

    w, h = (share * aspect).sqrt().round(), (share / aspect).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(dim=1, keepdim=True)  # the first attempt that fits
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]
    top = (place[:, 0] * (height - h + 1)).floor().clamp(max=height - h)
    left = (place[:, 1] * (width - w + 1)).floor().clamp(max=width - w)
    found, centre = fits.any(dim=1), _centre_box(height, width, ratio)
    drawn = [torch.where(found, x, c) for x, c in zip((top, left, h, w), centre, strict=True)]
    return torch.stack(drawn, dim=1).long()


def _centre_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest centred box with ratio[0] <= width/height <= ratio[1]."""
    h = max(min(height, round(width / ratio[0])), 1)
    w = max(min(width, round(height * ratio[1])), 1)
    return (height - h) // 2, (width - w) // 2, h, w


def resized_crop(
    image: Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"],
    box: Int[Tensor, "B 4"],
    size: int,
    *,
    flip: Bool[Tensor, "B"] | None = None,
    filter: Filter = "bilinear",
) -> Float[Tensor, "B C size size"]:
    """Each image's own box, resized with antialiasing to size x size px, mirrored where `flip`.

    Equals torchvision's `resized_crop(antialias=True)` at the same box, clamped to [0, 1] (a cubic
    overshoots); uint8 input counts 255 as 1. Raises ValueError when size < 1.
    """
    if size < 1:
        raise ValueError(f"resized_crop: asked for size={size} px; use at least 1")
    count, channels = image.shape[:2]
    out = torch.empty(count, channels, size, size, device=image.device)
    block = block_of(size, image.device)
    if block == size:
        _dense_crop(image, box, flip, filter, out)
    elif count:
        _banded_crop(image, box, flip, filter, block, out)
    return out.clamp_(0, 1)


def _dense_crop(
    image: Tensor, box: Tensor, flip: Tensor | None, filter: Filter, out: Tensor
) -> None:
    height, width, size = image.shape[2], image.shape[3], out.shape[-1]
    top, left, h, w = box.unbind(dim=1)
    rows = dense_weights(top, h, height, size, filter=filter)
    columns = dense_weights(left, w, width, size, filter=filter, reverse=flip)
    if image.dtype == torch.uint8:
        rows.div_(255)
    dense(image.float(), rows, columns, out)


def _banded_crop(
    image: Tensor, box: Tensor, flip: Tensor | None, filter: Filter, block: int, out: Tensor
) -> None:
    size = out.shape[-1]
    rows, row_step, above = window_weights(box[:, 2], size, block, filter=filter)
    columns, column_step, before = window_weights(box[:, 3], size, block, filter=filter)
    if image.dtype == torch.uint8:
        rows.div_(255)
    blocks = size // block
    tall = max(row_step) * (blocks - 1) + rows.shape[-1]
    wide = max(column_step) * (blocks - 1) + columns.shape[-1]
    frame = torch.zeros(image.shape[1], tall, wide)  # what lies outside a box has no weight
    mirrored = flip.tolist() if flip is not None else [False] * len(image)
    for i, (top, left, h, w) in enumerate(box.tolist()):
        piece = image[i, :, top : top + h, left : left + w]
        frame[:, above : above + h, before : before + w] = piece.flip(-1) if mirrored[i] else piece
        banded(frame, rows[i], row_step[i], columns[i], column_step[i], out[i])
