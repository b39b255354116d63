"""Products may be of half precision; running results never are: they would lose a digit a tile."""

import torch
from jaxtyping import Float
from torch import Tensor

WIDE = torch.float32, torch.float64


def widen(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x in float32 at least (the same object where it already is)."""
    return x if x.dtype in WIDE else x.to(torch.float32)
