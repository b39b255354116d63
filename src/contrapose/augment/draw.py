"""Random numbers of augmentations: first a draw with one row per image, then its application.

Draws are made on the generator's device, from uniform numbers by the inverse of a distribution
function, so the state of the generator alone determines a view.
"""

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from contrapose.errors import UserError


def uniform(
    count: int, low: float, high: float, generator: Generator, *more: int
) -> Float[Tensor, "..."]:
    """U(low, high), one row per image: [count, *more] in float32."""
    drawn = torch.rand(count, *more, generator=generator, device=generator.device)
    return low + (high - low) * drawn


def bernoulli(count: int, p: float, generator: Generator) -> Bool[Tensor, "B"]:
    """True with probability p for each image. Raises UserError unless 0 <= p <= 1."""
    if not 0 <= p <= 1:
        raise UserError(f"bernoulli: asked for probability p={p}; use 0 <= p <= 1")
    return torch.rand(count, generator=generator, device=generator.device) < p
