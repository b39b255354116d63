"""What corruptions are made of: filters as weight matrices, sampling by index, and plasma clouds.

Borders by the names of `numpy.pad`: edge (a a | a b c), symmetric (b a | a b c), reflect (c b | a b
c), however far outside. SciPy calls them nearest, reflect and mirror.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.machine import as_float64

Border = Literal["edge", "symmetric", "reflect"]
Image = Float[Tensor, "B C H W"]


def inside(index: Tensor, side: int, border: Border) -> Tensor:
    """The pixel of 0..side-1 that stands for a whole number anywhere."""
    if border == "edge":
        return index.clamp(0, side - 1)
    period = 2 * side if border == "symmetric" else max(2 * side - 2, 1)
    index = index % period
    return torch.minimum(index, (period - 1 if border == "symmetric" else period) - index)


def tap_matrix(weight: Float[Tensor, "K"], side: int, border: Border) -> Float[Tensor, "side side"]:
    """m_ij of pixel j in filtered pixel i, for an odd number of weights about the pixel."""
    radius = len(weight) // 2
    tap = torch.arange(-radius, radius + 1, device=weight.device)
    source = inside(torch.arange(side, device=weight.device)[:, None] + tap, side, border)
    matrix = torch.zeros(side, side, dtype=weight.dtype, device=weight.device)
    return matrix.scatter_add_(1, source, weight.expand(side, -1))


def both_ways(
    image: Float[Tensor, "... H W"], rows: Float[Tensor, "h H"], columns: Float[Tensor, "w W"]
) -> Float[Tensor, "... h w"]:
    """rows @ image @ columns^T."""
    return rows @ (image @ columns.mT)


def gaussian(
    image: Float[Tensor, "... H W"],
    sigma: float | tuple[float, float],
    *,
    border: Border = "edge",
    truncate: float = 4.0,
) -> Float[Tensor, "... H W"]:
    """exp(-k^2 / 2 sigma^2) over its sum, |k| <= truncate sigma rounded: SciPy's gaussian_filter;
    `sigma` px, for rows and columns apart if there are two.
    """
    pair = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    matrices = []
    for each, side in zip(pair, image.shape[-2:], strict=True):
        radius = int(truncate * each + 0.5)
        tap = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
        weight = torch.exp(-0.5 * (tap / max(each, 1e-15)).square())
        matrices.append(tap_matrix(weight / weight.sum(), side, border))
    return both_ways(image, *matrices)


def zoom_matrix(
    side: int, zoom: float, like: Tensor, size: int | None = None
) -> Float[Tensor, "size side"]:
    """The middle part of ceil(side / zoom) px enlarged again by `zoom`, linearly, corner pixels
    upon corner pixels (SciPy's zoom of order 1); of the result the first `size` px, or all.
    """
    kept = math.ceil(side / zoom)
    made = round(kept * zoom)
    at = torch.arange(made, dtype=torch.double) * ((kept - 1) / max(made - 1, 1))
    low = at.floor().clamp_max(max(kept - 2, 0)).long()
    share = (at - low).clamp(0, 1)[:, None]
    first = (side - kept) // 2 + low[:, None]
    matrix = torch.zeros(made, side, dtype=torch.double)
    matrix.scatter_add_(1, first, 1 - share)
    matrix.scatter_add_(1, (first + 1).clamp_max(side - 1), share)
    return matrix[:size].to(like.device, like.dtype)


def pick(
    image: Image, row: Int[Tensor, "B h w"], column: Int[Tensor, "B h w"]
) -> Float[Tensor, "B C h w"]:
    """image[b, c, row, column]."""
    count, channels, _, width = image.shape
    index = (row * width + column).view(count, 1, -1).expand(-1, channels, -1)
    return image.flatten(2).gather(2, index).view(count, channels, *row.shape[1:])


def sample(
    image: Image, row: Float[Tensor, "B h w"], column: Float[Tensor, "B h w"], border: Border
) -> Float[Tensor, "B C h w"]:
    """Bilinear between the four pixels about (row, column), px; pixel centres are whole numbers."""
    height, width = image.shape[2:]
    top, left = row.floor(), column.floor()
    down, right = (row - top)[:, None], (column - left)[:, None]
    rows = [inside(top.long() + k, height, border) for k in (0, 1)]
    columns = [inside(left.long() + k, width, border) for k in (0, 1)]
    upper = torch.lerp(pick(image, rows[0], columns[0]), pick(image, rows[0], columns[1]), right)
    lower = torch.lerp(pick(image, rows[1], columns[0]), pick(image, rows[1], columns[1]), right)
    return torch.lerp(upper, lower, down)


def motion(
    image: Image, radius: int, sigma: float, angle: Float[Tensor, "B"]
) -> Float[Tensor, "B C H W"]:
    """Half a Gaussian of `sigma` px along a line of 2 radius + 1 px, `angle` degrees from the
    right: sum_i k_i image(y + ceil(i sin - 1/2), x + ceil(i cos - 1/2)), borders repeated. What
    would reach past a whole image is left out.
    """
    height, width = image.shape[2:]
    length = 2 * radius + 1
    tap = torch.arange(length, dtype=torch.float32)
    weight = torch.exp(-tap.square() / (2 * sigma**2))
    shares = (weight / weight.sum()).tolist()
    radian = as_float64(angle).deg2rad()
    sin, cos = radian.sin(), radian.cos()
    y = torch.arange(height, device=image.device)[:, None]
    x = torch.arange(width, device=image.device)
    out = torch.zeros_like(image)
    reaches = torch.ones(len(image), dtype=torch.bool, device=image.device)
    for i, share in enumerate(shares):
        down = (i * sin - 0.5).ceil().long().to(image.device)
        right = (i * cos - 0.5).ceil().long().to(image.device)
        reaches = reaches & (down.abs() < height) & (right.abs() < width)
        row = (y + down[:, None, None]).clamp(0, height - 1).expand(-1, -1, width)
        column = (x + right[:, None, None]).clamp(0, width - 1).expand(-1, height, -1)
        out += share * reaches.to(image.dtype)[:, None, None, None] * pick(image, row, column)
    return out


def plasma(
    side: int, decay: float, draw: Callable[[int, int], Float[Tensor, "B h w"]]
) -> Float[Tensor, "B side side"]:
    """Clouds in [0, 1] by the diamond-square algorithm on a torus; `side` a power of 2.

    Each new point is the mean of four that are known plus w^2 U(-1, 1), w = 100 at first and
    divided by `decay` whenever the step is halved. `draw(h, w)` gives U(-1, 1) for each image.
    """
    first = draw(1, 1)
    cloud = torch.zeros(len(first), side, side, dtype=first.dtype, device=first.device)
    step, wobble, drawn = side, 100.0, first
    while step >= 2:
        half, count = step // 2, side // step
        corner = cloud[:, ::step, ::step]
        total = corner + corner.roll(-1, 1)
        total = total + total.roll(-1, 2)
        drawn = first if step == side else draw(count, count)
        middle = total / 4 + wobble**2 * drawn
        cloud[:, half::step, half::step] = middle
        above = middle + middle.roll(1, 1) + corner + corner.roll(-1, 2)
        cloud[:, ::step, half::step] = above / 4 + wobble**2 * draw(count, count)
        beside = middle + middle.roll(1, 2) + corner + corner.roll(-1, 1)
        cloud[:, half::step, ::step] = beside / 4 + wobble**2 * draw(count, count)
        step, wobble = half, wobble / decay
    cloud = cloud - cloud.amin(dim=(1, 2), keepdim=True)
    return cloud / cloud.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def power_of_two(side: int) -> int:
    """The least power of 2 that is not below `side`."""
    return 1 << max(side - 1, 0).bit_length()


def gray(image: Image) -> Float[Tensor, "B 1 H W"]:
    """0.299 R + 0.587 G + 0.114 B; of one channel itself."""
    if image.shape[1] == 1:
        return image
    weight = torch.tensor([0.299, 0.587, 0.114], device=image.device, dtype=image.dtype)
    return (image * weight.view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
