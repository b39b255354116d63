"""Random numbers of augmentations: first a draw with one row per image, then its application.

Draws are made on the generator's device, from uniform numbers by the inverse of a distribution
function, so the state of the generator alone determines a view. A process that has a portion of a
batch (`contrapose.portions`) draws for the whole batch, and keeps the rows of its images.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from contrapose.errors import UserError
from contrapose.portions import drawn_for


def uniform(
    count: int, low: float, high: float, generator: Generator, *more: int
) -> Float[Tensor, "..."]:
    """U(low, high), one row per image: [count, *more] in float32."""
    device = generator.device
    drawn = drawn_for(count, lambda n: torch.rand(n, *more, generator=generator, device=device))
    return low + (high - low) * drawn


def normal(count: int, generator: Generator, *more: int) -> Float[Tensor, "..."]:
    """N(0, 1), one row per image: [count, *more] in float32."""
    device = generator.device
    return drawn_for(count, lambda n: torch.randn(n, *more, generator=generator, device=device))


def integers(count: int, below: int, generator: Generator, *more: int) -> Int[Tensor, "..."]:
    """Whole numbers from 0 to `below` - 1, equally likely, one row per image: [count, *more]."""
    device = generator.device
    return drawn_for(
        count, lambda n: torch.randint(below, (n, *more), generator=generator, device=device)
    )


def bernoulli(count: int, p: float, generator: Generator) -> Bool[Tensor, "B"]:
    """True with probability p for each image. Raises UserError unless 0 <= p <= 1."""
    if not 0 <= p <= 1:
        raise UserError(f"bernoulli: asked for probability p={p}; use 0 <= p <= 1")
    return uniform(count, 0.0, 1.0, generator) < p
