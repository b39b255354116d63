"""Views of images in which some channels hold a constant (such as random bits) and no picture."""

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from contrapose.errors import UserError


def on_channels(
    pixels: Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"],
    generator: Generator,
    *,
    size: int,
    views: Callable[..., Tensor],
    channels: int,
) -> Float[Tensor, "B C size size"]:
    """`views` of the first `channels` channels; each other channel filled with its corner's value.

    So every view of an image has the same random bits, as if they had been appended after
    augmentation. Raises UserError if there are fewer channels.
    """
    if not 1 <= channels <= pixels.shape[1]:
        raise UserError(
            f"on_channels: views of {channels} channels, but the images have {pixels.shape[1]}"
        )
    seen = views(pixels[:, :channels], generator, size=size)
    rest = pixels[:, channels:, :1, :1].to(seen.dtype)
    if pixels.dtype == torch.uint8:
        rest = rest / 255
    return torch.cat([seen, rest.expand(-1, -1, size, size)], dim=1)
