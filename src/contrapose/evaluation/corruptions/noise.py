"""Noise: each value of each channel by itself. `x` in [0, 1], [B C H W]; see `table` for units."""

import torch
from torch import Generator, Tensor

from contrapose.evaluation.corruptions.filters import Image


def gaussian_noise(x: Image, c: float, generator: Generator) -> Tensor:
    """Gaussian noise: x + N(0, c^2)."""
    return x + c * _normal(x, generator)


def shot_noise(x: Image, c: float, generator: Generator) -> Tensor:
    """Photon noise: Poisson(c x) / c, c photons in a white pixel."""
    return torch.poisson(x * c, generator=generator) / c


def impulse_noise(x: Image, c: float, generator: Generator) -> Tensor:
    """Salt and pepper: a share c of all values is replaced, by 1 or 0 as likely."""
    hit, salt = (_uniform(x, generator) for _ in range(2))
    return torch.where(hit < c, (salt < 0.5).to(x.dtype), x)


def speckle_noise(x: Image, c: float, generator: Generator) -> Tensor:
    """Multiplicative noise: x + x N(0, c^2)."""
    return x + x * c * _normal(x, generator)


def _normal(x: Tensor, generator: Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def _uniform(x: Tensor, generator: Generator) -> Tensor:
    return torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
