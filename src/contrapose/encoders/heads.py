"""Projection heads: functions (width of h) -> module, from h [B F] to the embedding z [B D]."""

import itertools
from typing import Literal

from torch import nn


def none(width: int) -> nn.Module:
    """z is h itself."""
    return nn.Identity()


def linear(width: int, *, dim: int = 128, batch_norm: bool = True) -> nn.Module:
    """One dense layer: bias-free with BN (SimCLR's code), or with a bias and no BN (MoCo v1)."""
    return mlp(width, dim=dim, layers=1, batch_norm=batch_norm)


def mlp(
    width: int,
    *,
    dim: int = 128,
    layers: int = 2,
    hidden: int | None = None,
    batch_norm: bool | Literal["hidden"] = True,
) -> nn.Module:
    """z = W2 relu(W1 h), or deeper: `layers` counts the dense layers.

    batch_norm=True puts BN after every dense layer, the last one without offset (SimCLR's code);
    "hidden" leaves the last layer plain; False is the paper's formula. A dense layer without BN
    has a bias. `hidden` is the width of the hidden layers, by default that of h.
    """
    if layers < 1 or dim < 1:
        raise ValueError(f"mlp: layers={layers}, dim={dim}; both must be at least 1")
    if batch_norm not in (True, False, "hidden"):
        raise ValueError(f"mlp: batch_norm={batch_norm!r}; use True, False or 'hidden'")
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
    return nn.Sequential(*modules)


HEADS = (none, linear, mlp)
