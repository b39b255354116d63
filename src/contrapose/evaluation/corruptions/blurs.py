"""Blurs. `x` in [0, 1], [B C H W]; constants and their units in `table`."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

from contrapose.augment import uniform
from contrapose.evaluation.corruptions.filters import (
    Image,
    both_ways,
    gaussian,
    inside,
    motion,
    pick,
    sample,
    zoom_matrix,
)


def gaussian_blur(x: Image, c: float, generator: Generator) -> Tensor:
    """Gaussian blur of c px."""
    return gaussian(x, c)


def defocus_blur(x: Image, c: tuple[float, float], generator: Generator) -> Tensor:
    """Defocus: a disk of radius c[0] px, its rim softened by a Gaussian of c[1] px."""
    radius, rim = c
    reach = 8 if radius <= 8 else int(radius)
    tap = torch.arange(-reach, reach + 1)
    disk = (tap.square() + tap[:, None].square() <= radius**2).float()
    softener = torch.arange(-1, 2) if radius <= 8 else torch.arange(-2, 3)
    soft = torch.exp(-softener.square() / (2 * rim**2))
    soft = (soft / soft.sum())[None, None]
    width = len(softener) // 2
    kernel = F.pad((disk / disk.sum())[None, None], (width,) * 4, mode="reflect")
    kernel = F.conv2d(F.conv2d(kernel, soft[:, :, None]), soft[..., None])[0, 0]
    used = min(reach, int(radius) + width)  # beyond it the kernel is zero
    kernel = kernel[reach - used : reach + used + 1, reach - used : reach + used + 1].to(x)
    rows, columns = (
        inside(torch.arange(-used, side + used, device=x.device), side, "reflect")
        for side in x.shape[2:]
    )
    padded = x[:, :, rows][..., columns]
    channels = x.shape[1]
    return F.conv2d(padded, kernel.expand(channels, 1, *kernel.shape), groups=channels)


def glass_blur(x: Image, c: tuple[float, int, int], generator: Generator) -> Tensor:
    """Frosted glass: a Gaussian blur, pixels shuffled with near ones, and the blur again.

    The Gaussian has c[0] px; in each of c[2] rounds pixels take the colour of one at most c[1] px
    away.
    """
    sigma, reach, rounds = c
    count, _, height, width = x.shape
    level = (gaussian(x, sigma) * 255 + 1e-3).floor().clamp(0, 255) / 255
    for _ in range(rounds):
        shift = torch.randint(
            -reach, reach, (2, count, height, width), generator=generator, device=x.device
        )
        level = shuffled(level, shift[0], shift[1], reach)
    return gaussian(level, sigma)


def shuffled(
    x: Image, down: Int[Tensor, "B H W"], right: Int[Tensor, "B H W"], reach: int
) -> Tensor:
    """Pixels from the last to the first, those less than `reach` from a border apart, become the
    pixel `down`, `right` of them, as that is by then.

    Whoever points to a pixel that had its turn before gets what that one got: so the pointers are
    followed, twice as far each time, to the first pixel that had no turn yet. (The published code
    means to swap the two, but both names are views of one array, so the second keeps its colour.)
    """
    height, width = x.shape[2:]
    row = torch.arange(height, device=x.device)[:, None]
    column = torch.arange(width, device=x.device)
    turn = ((row > reach) & (row <= height - reach)) & (column > reach) & (column <= width - reach)
    to_row = torch.where(turn, row + down, row).clamp(0, height - 1)
    to_column = torch.where(turn, column + right, column).clamp(0, width - 1)
    here, there = row * width + column, to_row * width + to_column
    # a pixel with a turn before this one: further on, and changed; else the pointer ends there
    known = ((there > here) & turn.flatten()[there]).flatten(1)
    end = there.flatten(1)
    onward = torch.where(known, end, -1)
    for _ in range((height * width).bit_length()):
        going = onward >= 0
        if not bool(going.any()):
            break
        via = onward.clamp_min(0)
        end = torch.where(going, end.gather(1, via), end)
        onward = torch.where(going, onward.gather(1, via), onward)
    end = end.view(-1, height, width)
    return pick(x, end // width, end % width)


def motion_blur(x: Image, c: tuple[int, float], generator: Generator) -> Tensor:
    """Motion blur along a line, in a direction of U(-45, 45) degrees.

    The line has 2 c[0] + 1 px, with weights of half a Gaussian of c[1] px.
    """
    return motion(x, *c, uniform(len(x), -45.0, 45.0, generator))


def zoom_blur(x: Image, c: tuple[float, float], generator: Generator) -> Tensor:
    """Zoom blur: the mean of the image and of its middle enlarged 1, 1 + c[1], ... < c[0] times."""
    factors = np.arange(1, *c)
    total = x.clone()
    for factor in factors.tolist():
        rows, columns = (zoom_matrix(side, factor, x, side) for side in x.shape[2:])
        total += both_ways(x, rows, columns)
    return total / (len(factors) + 1)


def elastic_transform(x: Image, c: tuple[float, float, float], generator: Generator) -> Tensor:
    """Elastic transform: a random affine map, then a smooth random displacement.

    The map moves three points by U(-c[2], c[2]); the displacement is U(-1, 1) in every pixel,
    smoothed by a Gaussian of c[1], times c[0]. All as shares of the side, which counts as 244 px
    for the 224 of ImageNet-C, as in the published code.
    """
    count, _, height, width = x.shape
    span = max(height, width) * (244 / 224 if max(height, width) > 64 else 1.0)
    moved = uniform(count, -c[2] * span, c[2] * span, generator, 3, 2)
    field = uniform(count, -1.0, 1.0, generator, 2, height, width)
    smooth = gaussian(field, c[1] * span, border="symmetric", truncate=3.0) * (c[0] * span)
    return displaced(affine(x, moved), smooth)


def affine(x: Image, moved: Float[Tensor, "B 3 2"]) -> Tensor:
    """The affine map that takes three points about the centre to themselves + `moved` (x, y) px."""
    height, width = x.shape[2:]
    middle = torch.tensor([width // 2, height // 2], dtype=torch.float32, device=x.device)
    arm = min(height, width) // 3
    corner = torch.tensor([[1, 1], [1, -1], [-1, -1]], device=x.device) * float(arm) + middle
    one = torch.ones(len(x), 3, 1, device=x.device)
    to = torch.cat([corner + moved, one], dim=2)
    back = torch.linalg.solve_ex(to, corner.expand(len(x), 3, 2)).result  # (x, y, 1) -> source
    column = torch.arange(width, device=x.device).expand(height, width)
    row = torch.arange(height, device=x.device)[:, None].expand(height, width)
    pixel = torch.stack([column, row, torch.ones_like(row)], dim=-1).float()
    source = (pixel.view(1, -1, 3) @ back).view(len(x), height, width, 2)
    return sample(x, source[..., 1], source[..., 0], "reflect")


def displaced(x: Image, field: Float[Tensor, "B 2 H W"]) -> Tensor:
    """x(row + field[1], column + field[0])."""
    row = torch.arange(x.shape[2], device=x.device)[:, None] + field[:, 1]
    column = torch.arange(x.shape[3], device=x.device) + field[:, 0]
    return sample(x, row, column, "symmetric")
