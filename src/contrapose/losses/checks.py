"""Checks of arguments for all losses: errors for invalid rows, warnings with counts for others.

Values are checked only on a CPU, since reading a value from a GPU would wait for it in every step.
"""

import math
import warnings

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from contrapose.errors import UserError
from contrapose.similarity import anchor_mean, unlabelled_apart, whole_numbers, widen
from contrapose.threads import alone

UNIT = 0.02  # how far a length may be from 1: bf16 rounding of a unit vector stays below
LONGEST = 1e15  # of a row: products of longer ones, divided by a temperature, leave float32


class RowsOutOfRange(UserError):
    """Rows of embeddings that hold NaN or infinity, or are too long for products in float32."""


def check_groups(
    name: str, z: Float[Tensor, "N D"], group: Shaped[Tensor, "..."], *, unit: bool = True
) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"]]:
    """Raise UserError unless there is one group per row; warn of rows that are not unit length.

    Returns z in float32 at least: the parts of a gradient are then added before they are rounded.
    Returns groups in int64; every row with a negative group, that is without a label, is alone.
    Raises RowsOutOfRange as `check_lengths` does.
    """
    if z.ndim != 2:
        raise UserError(f"{name}: z has shape {tuple(z.shape)}; give rows of embeddings [N, D]")
    if group.shape != z.shape[:1]:
        raise UserError(
            f"{name}: {len(z)} rows of z but groups of shape {tuple(group.shape)}; give one group "
            "per row (V views of a batch, one after the other: group.repeat(V))"
        )
    group = unlabelled_apart(whole_numbers(name, "groups", group))
    check_lengths(name, z, unit=unit)
    return widen(z), group


def check_towers(
    name: str, query: Float[Tensor, "N D"], key: Float[Tensor, "M D"]
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
    """Raise UserError unless both have one width; warn of rows that are not unit length.

    Returns both in float32 at least.
    """
    if query.ndim != 2 or key.ndim != 2 or query.shape[1] != key.shape[1]:
        raise UserError(
            f"{name}: shapes {tuple(query.shape)} and {tuple(key.shape)}; give rows of embeddings "
            "of the same width"
        )
    check_lengths(name, query)
    check_lengths(name, key)
    return widen(query), widen(key)


@alone
def check_keys(name: str, key: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
    """Keys of a bank or a queue in float32 or float64; they need not be of unit length.

    Raises RowsOutOfRange, on a CPU, for keys that hold NaN, infinity or entries above LONGEST.
    """
    key = widen(key)
    if key.device.type == "cpu" and key.numel():
        low, high = (float(x) for x in key.detach().aminmax())
        if not max(-low, high) <= LONGEST:  # NaN too
            check_lengths(f"{name}, keys", key, unit=False)
    return key


def check_positive(name: str, **values: float | Tensor) -> None:
    """Raise UserError unless every value, a temperature or a scale, is finite and above 0."""
    for what, value in values.items():
        if isinstance(value, Tensor):
            if value.device.type != "cpu":
                continue
            value = float(value.detach())
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{name}: {what}={value}; give a finite value above 0")


@alone
def check_lengths(name: str, z: Float[Tensor, "N D"], *, unit: bool = True) -> None:
    """Raise RowsOutOfRange for rows that are not finite or too long; warn of those not of length 1.

    Nothing is checked on an accelerator. unit=False: any finite length below LONGEST will do.
    """
    if z.device.type != "cpu" or not z.numel():
        return
    length = torch.linalg.vector_norm(widen(z.detach()), dim=1)
    low, high = (float(x) for x in length.aminmax())
    if not high <= LONGEST:  # NaN too
        entries = widen(z.detach()).abs().amax(dim=1)
        broken = int((~entries.isfinite()).sum())
        if broken:
            raise RowsOutOfRange(
                f"{name}: {broken} of {len(z)} rows hold NaN or infinity; look for the step that "
                "made them (a learning rate too high, a division by 0)"
            )
        raise RowsOutOfRange(
            f"{name}: {int((~(length <= LONGEST)).sum())} of {len(z)} rows are too long (entries "
            f"up to {float(entries.max()):.3g}), and not of unit length; use "
            "torch.nn.functional.normalize(z, dim=1)"
        )
    if unit and (low < 1 - UNIT or high > 1 + UNIT):
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
    """Mean of `loss` over the anchors `where` of all processes; others are counted in a warning.

    among: the rows that should be anchors, by default all.
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
