"""What every loss refuses, and what it counts and reports.

Values are looked at on a CPU only: reading one from an accelerator would stall it at every step.
"""

import math
import warnings

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrapose.similarity import anchor_mean, widen
from contrapose.threads import alone

UNIT = 0.02  # how far a length may be from 1: bf16 rounding of a unit vector stays below


def check_groups(
    name: str, z: Float[Tensor, "N D"], group: Int[Tensor, "..."], *, unit: bool = True
) -> Float[Tensor, "N D"]:
    """Raise ValueError unless there is one group per row; warn of rows that are not unit length.

    Returns z in float32 at least: the parts of a gradient are then added before they are rounded.
    """
    if z.ndim != 2:
        raise ValueError(f"{name}: z has shape {tuple(z.shape)}; give rows of embeddings [N, D]")
    if group.shape != z.shape[:1]:
        raise ValueError(
            f"{name}: {len(z)} rows of z but groups of shape {tuple(group.shape)}; give one group "
            "per row (V views of a batch, one after the other: group.repeat(V))"
        )
    if group.is_floating_point():
        raise ValueError(f"{name}: groups are whole numbers, these are {group.dtype}")
    if unit:
        check_unit(name, z)
    return widen(z)


def check_towers(
    name: str, query: Float[Tensor, "N D"], key: Float[Tensor, "M D"]
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
    """Raise ValueError unless both have one width; warn of rows that are not unit length.

    Returns both in float32 at least.
    """
    if query.ndim != 2 or key.ndim != 2 or query.shape[1] != key.shape[1]:
        raise ValueError(
            f"{name}: shapes {tuple(query.shape)} and {tuple(key.shape)}; give rows of embeddings "
            "of the same width"
        )
    check_unit(name, query)
    check_unit(name, key)
    return widen(query), widen(key)


def check_positive(name: str, **values: float | Tensor) -> None:
    """Raise ValueError unless every value, a temperature or a scale, is finite and above 0."""
    for what, value in values.items():
        if isinstance(value, Tensor):
            if value.device.type != "cpu":
                continue
            value = float(value.detach())
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: {what}={value}; give a finite value above 0")


@alone
def check_unit(name: str, z: Float[Tensor, "N D"]) -> None:
    if z.device.type != "cpu" or not z.numel():
        return
    length = torch.linalg.vector_norm(widen(z.detach()), dim=1)
    low, high = (float(x) for x in length.aminmax())
    if low < 1 - UNIT or high > 1 + UNIT:
        off = int(((length - 1).abs() > UNIT).sum())
        warnings.warn(
            f"{name}: {off} of {len(z)} rows are not of unit length (lengths {low:.3g} to "
            f"{high:.3g}); use torch.nn.functional.normalize(z, dim=1)",
            stacklevel=5,
        )


def mean_over_anchors(
    name: str,
    loss: Float[Tensor, " N"],
    where: Bool[Tensor, " N"],
    *,
    lacking: str = "a positive",
    among: Bool[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """Global mean of `loss` over the anchors in `where`; the others are counted in a warning.

    `among`: the rows that were meant to be anchors, all if None.
    """
    if among is None:
        if where.device.type == "cpu" and where.all():
            return anchor_mean(loss)
        among = torch.ones_like(where)
    warn_of_rows_left_out(name, where, among, lacking)
    return anchor_mean(loss, where & among)


def warn_of_rows_left_out(
    name: str, where: Bool[Tensor, " N"], among: Bool[Tensor, " N"], lacking: str
) -> None:
    if where.device.type == "cpu" and not (where | ~among).all():
        warnings.warn(
            f"{name}: {int((among & ~where).sum())} of {int(among.sum())} rows are without "
            f"{lacking} and are left out of the mean",
            stacklevel=4,
        )
