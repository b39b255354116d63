"""Products may be of half precision; running results never are: they would lose a digit a tile."""

import torch
from jaxtyping import Float
from torch import Tensor


def widen(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x in float32 at least (the same object where it already is)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
