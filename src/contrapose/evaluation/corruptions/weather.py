"""Snow, frost, fog, brightness. `x` in [0, 1], [B C H W]; constants in `table`."""

import functools

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from contrapose.augment import uniform
from contrapose.evaluation.corruptions.filters import (
    Image,
    both_ways,
    gray,
    motion,
    plasma,
    power_of_two,
    zoom_matrix,
)

# of the six frost photographs that are commonly used (two alike), by red, green and blue: means and
# standard deviations of their values of 0-255
FROST_MEAN = ((78, 149, 166), (201, 205, 214), (201, 205, 214), (138, 153, 165), (112, 123, 135),
              (71, 95, 105))  # fmt: skip
FROST_STD = ((27, 16, 15), (21, 22, 23), (21, 22, 23), (28, 28, 30), (44, 43, 42), (35, 43, 47))


def snow(x: Image, c: tuple[float, float, float, float, int, float, float], g: Generator) -> Tensor:
    """Snow: flakes driven over a whitened image.

    N(c[0], c[1]) enlarged c[2] times, those above c[3], blurred along U(-135, -45) degrees (radius
    c[4], sigma c[5]) and seen twice, over an image whitened by 1 - c[6].
    """
    count, _, height, width = x.shape
    layer = torch.randn(count, 1, height, width, generator=g, device=x.device) * c[1] + c[0]
    return snowed(x, c, layer, uniform(count, -135.0, -45.0, g))


def snowed(
    x: Image,
    c: tuple[float, float, float, float, int, float, float],
    layer: Float[Tensor, "B 1 H W"],
    angle: Float[Tensor, "B"],
) -> Tensor:
    """Snow of these random numbers."""
    height, width = x.shape[2:]
    flake = both_ways(layer, *(zoom_matrix(side, c[2], x) for side in (height, width)))
    flake = torch.where(flake < c[3], 0.0, flake).clamp(0, 1)
    flake = motion(flake, c[4], c[5], angle)[:, :, :height, :width]
    flake = (flake * 255).round() / 255
    white = torch.maximum(x, gray(x) * 1.5 + 0.5)
    return c[6] * x + (1 - c[6]) * white + flake + flake.flip(2, 3)


def frost(x: Image, c: tuple[float, float], generator: Generator) -> Tensor:
    """Frost: c[0] x + c[1] frost, a random piece of one of six pictures synthesised here.

    The photographs of the published sets are not free to copy. The pictures have those photographs'
    colours in mean and spread, not their crystals: compare frost with published numbers no further.
    """
    count, channels, height, width = x.shape
    size = max(2 * power_of_two(max(height, width)), 256)
    pictures = frost_pictures(size).to(x.device)
    which = torch.randint(len(pictures), (count,), generator=generator, device=x.device)
    place = uniform(count, 0.0, 1.0, generator, 2)
    top, left = (place * torch.tensor([size - height, size - width], device=x.device)).long().T
    row = top[:, None, None] + torch.arange(height, device=x.device)[:, None]
    column = left[:, None, None] + torch.arange(width, device=x.device)
    piece = pictures[which[:, None, None], :, row, column].permute(0, 3, 1, 2)
    return c[0] * x + c[1] * (piece if channels == 3 else gray(piece))


@functools.lru_cache(maxsize=4)
def frost_pictures(size: int) -> Float[Tensor, "6 3 size size"]:
    """Six pictures in [0, 1]: needles in six directions over clouds, always the same ones."""
    generator = torch.Generator().manual_seed(20190310)
    count = len(FROST_MEAN)
    clouds = plasma(size, 1.8, lambda h, w: 2 * torch.rand(count, h, w, generator=generator) - 1)
    ridges = 1 - (2 * clouds[:, None] - 1).abs()
    needles = torch.zeros(count, 1, size, size)
    for direction in range(6):
        seeds = (torch.rand(count, 1, size, size, generator=generator) > 0.985).float()
        angle = 60.0 * direction + 40 * torch.rand(count, generator=generator)
        needles += motion(seeds, max(size // 24, 2), size / 30, angle)
    texture = ridges + 0.8 * needles / needles.std(dim=(2, 3), keepdim=True)
    texture = texture - texture.mean(dim=(2, 3), keepdim=True)
    texture = texture / texture.std(dim=(2, 3), keepdim=True)
    mean, std = (torch.tensor(t)[:, :, None, None] / 255 for t in (FROST_MEAN, FROST_STD))
    return (mean + std * texture).clamp_(0, 1)


def fog(x: Image, c: tuple[float, float], generator: Generator) -> Tensor:
    """Fog: (x + c[0] cloud) m / (m + c[0]), m the greatest value of the image.

    The cloud is a plasma fractal whose roughness is divided by c[1] at each step.
    """
    count, _, height, width = x.shape
    side = max(power_of_two(max(height, width)), 2)
    cloud = plasma(side, c[1], lambda h, w: uniform(count, -1.0, 1.0, generator, h, w))
    most = x.amax(dim=(1, 2, 3), keepdim=True)
    return (x + c[0] * cloud[:, None, :height, :width]) * most / (most + c[0])


def brightness(x: Image, c: float, generator: Generator) -> Tensor:
    """Brightness: c is added to the value V = max(R, G, B) of HSV.

    The colour becomes that times (V + c) / V; of one channel x + c.
    """
    if x.shape[1] == 1:
        return x + c
    value = x.amax(dim=1, keepdim=True)
    brighter = (value + c).clamp_max(1)
    return torch.where(value > 0, x * (brighter / value.clamp_min(1e-12)), brighter)
