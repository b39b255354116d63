"""Projection heads: functions (width of h) -> module, from h [B F] to the embedding z [B D].

The module's attribute `unit_length` (True if it has none) decides if the encoder divides z by its
length. unit_length=False leaves z as the head returns it: for logits, for priors on the plane, or
for losses of unnormalised products ("no l2 norm", SimCLR's table 5).
"""

import itertools
from typing import Literal

from torch import nn

from contrapose.errors import UserError


def none(width: int, *, unit_length: bool = True) -> nn.Module:
    """No projection: z is h itself."""
    return _said(nn.Identity(), unit_length)


def linear(
    width: int, *, dim: int = 128, batch_norm: bool = True, unit_length: bool = True
) -> nn.Module:
    """One dense layer: with BN and no bias (SimCLR's code), or with a bias and no BN (MoCo v1)."""
    return mlp(width, dim=dim, layers=1, batch_norm=batch_norm, unit_length=unit_length)


def classifier(width: int, *, classes: int) -> nn.Module:
    """One dense layer to the logits of `classes` classes, which are not of unit length.

    Raises UserError for fewer than two classes.
    """
    if classes < 2:
        raise UserError(f"classifier: classes={classes}; a choice needs at least 2")
    return _said(nn.Linear(width, classes), False)


def mlp(
    width: int,
    *,
    dim: int = 128,
    layers: int = 2,
    hidden: int | None = None,
    batch_norm: bool | Literal["hidden"] = True,
    unit_length: bool = True,
) -> nn.Module:
    """z = W2 relu(W1 h), or with more layers.

    dim: D, the width of z. layers: number of dense layers. hidden: width of the hidden layers,
    default that of h. batch_norm: True has BN after every dense layer, the last one without offset
    (SimCLR's code); "hidden" has none after the last layer; False has none (the paper's formula).
    A dense layer without BN has a bias.
    """
    if layers < 1 or dim < 1:
        raise UserError(f"mlp: layers={layers}, dim={dim}; both must be at least 1")
    if batch_norm not in (True, False, "hidden"):
        raise UserError(f"mlp: batch_norm={batch_norm!r}; use True, False or 'hidden'")
    widths = [width, *[hidden or width] * (layers - 1), dim]
    modules: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), start=1):
        last = i == layers
        normed = batch_norm is True or (batch_norm == "hidden" and not last)
        modules.append(nn.Linear(fan_in, fan_out, bias=not normed))
        if normed:
            modules.append(nn.BatchNorm1d(fan_out))
            if last:
                modules[-1].register_parameter("bias", None)
        if not last:
            modules.append(nn.ReLU(inplace=True))
    return _said(nn.Sequential(*modules), unit_length)


HEADS = (none, linear, mlp, classifier)


def _said(head: nn.Module, unit_length: bool) -> nn.Module:
    head.unit_length = unit_length  # type: ignore[assignment]
    return head
