"""Random resized crop and horizontal flip: the box of each image, and its pixels."""

import math

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Generator, Tensor

from contrapose.augment.draw import uniform
from contrapose.augment.resample import Filter, matrix, multiply, taps, weighted_sum
from contrapose.errors import UserError

ATTEMPTS = 10  # boxes tried before the centre is taken, as in torchvision
SMALL = 64  # px; up to this side a CPU is faster with whole matrices than with taps


def draw_box(
    count: int,
    height: int,
    width: int,
    generator: Generator,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Int[Tensor, "B 4"]:
    """(top, left, height, width) px of one box for each image, drawn as torchvision does.

    The share of the area is U(area), the logarithm of width/height U(log ratio). A box that does
    not fit is drawn again; after 10 attempts it is the largest centred box with a permitted ratio
    (the distribution of torchvision's RandomResizedCrop.get_params).
    Raises UserError unless 0 < area[0] <= area[1] and 0 < ratio[0] <= ratio[1].
    """
    if not 0 < area[0] <= area[1]:
        raise UserError(f"draw_box: asked for area={area}; use 0 < low <= high")
    if not 0 < ratio[0] <= ratio[1]:
        raise UserError(f"draw_box: asked for ratio={ratio}; use 0 < low <= high")
    share = uniform(count, *area, generator, ATTEMPTS) * (height * width)
    aspect = uniform(count, math.log(ratio[0]), math.log(ratio[1]), generator, ATTEMPTS).exp()
    place = uniform(count, 0.0, 1.0, generator, 2)

    w, h = (share * aspect).sqrt().round(), (share / aspect).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(dim=1, keepdim=True)  # the first attempt that fits
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]
    top = (place[:, 0] * (height - h + 1)).floor().minimum(height - h)
    left = (place[:, 1] * (width - w + 1)).floor().minimum(width - w)
    found, centre = fits.any(dim=1), _centre_box(height, width, ratio)
    drawn = [torch.where(found, x, c) for x, c in zip((top, left, h, w), centre, strict=True)]
    return torch.stack(drawn, dim=1).long()


def draw_box_tf(
    count: int,
    height: int,
    width: int,
    generator: Generator,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    covered: float = 0.1,
) -> Int[Tensor, "B 4"]:
    """(top, left, height, width) px of one box for each image, drawn as TensorFlow does.

    This is sample_distorted_bounding_box with the whole image as the object, which SimCLR's code
    and its notebooks use. width/height ~ U(ratio); the height is uniform over the whole px with a
    permitted area; top is uniform over 0 .. H-h-1 (the last place is never used), likewise left. A
    box that does not fit, or has less than `covered` of the area, is drawn again, so that SimCLR's
    least area of 0.08 is 0.1 in fact. After 10 attempts (TensorFlow: 100) it is the whole image.
    Computed in float32, as there.
    Raises UserError unless 0 < area[0] <= area[1] <= 1 and 0 < ratio[0] <= ratio[1].
    """
    if not 0 < area[0] <= area[1] <= 1:
        raise UserError(f"draw_box_tf: asked for area={area}; use 0 < low <= high <= 1")
    if not 0 < ratio[0] <= ratio[1]:
        raise UserError(f"draw_box_tf: asked for ratio={ratio}; use 0 < low <= high")
    smallest, largest = (share * height * width for share in area)
    aspect = uniform(count, *ratio, generator, ATTEMPTS)
    low, high = ((size / aspect).sqrt().round() for size in (smallest, largest))
    wide = ((width + 0.5 - 1e-7) / aspect).floor()  # the tallest that is no wider than the image
    wide = torch.where((wide * aspect).round() > width, wide - 1, wide)
    high = torch.where((high * aspect).round() > width, wide, high).clamp_max(height)
    low = low.minimum(high)
    h = low + (uniform(count, 0.0, 1.0, generator, ATTEMPTS) * (high - low + 1)).floor()
    h = torch.where(h * (h * aspect).round() < smallest, h + 1, h)  # rounding is forgiven one px
    h = torch.where(h * (h * aspect).round() > largest, h - 1, h)
    w = (h * aspect).round()
    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
    fits &= (h * w >= max(smallest, covered * height * width)) & (h * w <= largest)
    first = fits.int().argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    h = torch.where(found, h.gather(1, first)[:, 0], height)
    w = torch.where(found, w.gather(1, first)[:, 0], width)
    place = uniform(count, 0.0, 1.0, generator, 2)
    top, left = (place[:, 0] * (height - h)).floor(), (place[:, 1] * (width - w)).floor()
    return torch.stack([top, left, h, w], dim=1).long()


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
    out: Float[Tensor, "B C size size"] | None = None,
) -> Float[Tensor, "B C size size"]:
    """Each image's own box, resized with antialiasing to size x size px, mirrored where `flip`.

    Equals torchvision's `resized_crop(antialias=True)` at the same box, clamped to [0, 1] (a cubic
    overshoots); uint8 input counts 255 as 1. out: where to write it and what is returned, if given.
    Raises UserError when size < 1.
    """
    if size < 1:
        raise UserError(f"resized_crop: asked for size={size} px; use at least 1")
    if image.device.type != "cpu" or max(size, *image.shape[2:]) <= SMALL:
        made = _crop_by_matrix(image, box, size, flip, filter)
        out = made if out is None else out.copy_(made)
    else:
        if out is None:
            out = image.new_empty(len(image), image.shape[1], size, size, dtype=torch.float32)
        _crop_by_taps(image, box, flip, filter, out)
    return out.clamp_(0, 1)


def _crop_by_matrix(
    image: Tensor, box: Tensor, size: int, flip: Tensor | None, filter: Filter
) -> Tensor:
    top, left, h, w = box.unbind(dim=1)
    rows = matrix(top, h, image.shape[2], size, filter=filter)
    columns = matrix(left, w, image.shape[3], size, filter=filter, reverse=flip)
    if image.dtype == torch.uint8:
        rows.div_(255)
    return multiply(image.float(), rows, columns)


def _crop_by_taps(
    image: Tensor, box: Tensor, flip: Tensor | None, filter: Filter, out: Tensor
) -> None:
    if not len(image):
        return
    size = out.shape[2]
    row, row_weight, tall = taps(box[:, 2], size, filter=filter)
    column, column_weight, wide = taps(box[:, 3], size, filter=filter, reverse=flip)
    if image.dtype == torch.uint8:
        row_weight.div_(255)
    for i, (top, left, h, w) in enumerate(box.tolist()):  # few long operations: see `threads`
        piece = image[i, :, top : top + h, left : left + w].transpose(0, 1)
        piece = weighted_sum(piece.float(), row[i, :, : tall[i]], row_weight[i, :, : tall[i]])
        piece = piece.permute(2, 1, 0)  # rows are gathered far faster than columns
        piece = weighted_sum(piece, column[i, :, : wide[i]], column_weight[i, :, : wide[i]])
        out[i].copy_(piece.permute(1, 2, 0))
