"""One corruption of a batch: its constants, the images it is defined for, 8 bits at the end."""

from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from contrapose.errors import UserError
from contrapose.evaluation.corruptions.table import CORRUPTIONS, SMALL, Corruption
from contrapose.partials import unknown

Constants = Literal["small", "large"]


def corrupted(
    image: Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"],
    name: str,
    severity: int,
    generator: Generator,
    *,
    constants: Constants | None = None,
) -> Float[Tensor, "B C H W"]:
    """The images under one of `CORRUPTIONS` at severity 1-5, each with a draw of its own.

    In [0, 1] and whole 255ths, cut off, as the published sets store them. The generator lives on
    the images' device. constants: those of CIFAR-10-C (small) or ImageNet-C (large); by default
    small up to 64 px. Raises UserError for an unknown corruption or severity (naming the nearest),
    and for a corruption that means nothing for images of so many channels.
    """
    found = known_corruption(name)
    known_severity(severity)
    check_channels(name, found, image.shape[1])
    x = image.float().div(255) if image.dtype == torch.uint8 else image
    small = max(x.shape[2:]) <= SMALL if constants is None else constants == "small"
    if not len(x):
        return x.clone()
    made = found.change(x, (found.small if small else found.large)[severity - 1], generator)
    # 1e-3: a whole number that arithmetic left a hair below itself is that number
    return made.clamp_(0, 1).mul_(255).add_(1e-3).floor_().div_(255)


def known_corruption(name: str) -> Corruption:
    """The corruption of that name. Raises UserError that names the nearest."""
    if name not in CORRUPTIONS:
        raise UserError(f"there is no corruption {unknown(name, CORRUPTIONS)}")
    return CORRUPTIONS[name]


def known_severity(severity: int) -> int:
    """A severity from 1 to 5. Raises UserError that names the nearest."""
    if severity not in (1, 2, 3, 4, 5):
        nearest = min(max(severity, 1), 5)
        raise UserError(
            f"there is no severity {severity}; did you mean {nearest}? Severities are 1 (weakest) "
            "to 5"
        )
    return severity


def check_channels(name: str, found: Corruption, channels: int) -> None:
    """Raises UserError where the corruption has no meaning for images of so many channels."""
    if found.channels is not None and channels not in found.channels:
        needed = " or ".join(map(str, found.channels))
        fit = [n for n, c in CORRUPTIONS.items() if c.channels is None or channels in c.channels]
        raise UserError(
            f"{name} is defined for images of {needed} channels, these have {channels}; leave it "
            f"out, or choose among {', '.join(fit)}"
        )
