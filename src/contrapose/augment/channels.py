"""Channels that are no picture: what is constant over an image stays so, whatever the views do."""

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
    """`views` of the first `channels` channels; of the others the corner's value all over.

    So are random bits appended after augmentation: every view of an image has the same. Raises
    ValueError where there are fewer channels.
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
