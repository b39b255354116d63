"""Additions to any augmentation policy that remove an easy feature which the views share.

`contrapose shortcuts` suggests their settings and tries them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Generator, Tensor

from contrapose.augment.blur import Blur
from contrapose.augment.colour import RGB, Grayscale, Jitter
from contrapose.augment.crop import draw_box, resized_crop
from contrapose.augment.policies import Image
from contrapose.errors import UserError


def hardened(
    image: Image,
    generator: Generator,
    *,
    size: int,
    views: Callable[..., Tensor],
    border: int = 0,
    area: float = 1.0,
    intensity: float = 0.0,
    colour: float = 0.0,
    blur: float = 0.0,
    rgb: RGB | None = None,
) -> Float[Tensor, "B C size size"]:
    """The policy `views`, with a cut border and a crop before it, colour changes and blur after it.

    border: px to cut from every side.
    area: the least share of what is left that the first crop keeps.
    intensity: strength s of a jitter of brightness and contrast with factors U(1 - s, 1 + s), on
        every view.
    colour: strength s of a jitter of saturation with factors U(1 - s, 1 + s) and of the hue by
        U(-s, s) / 2 of a full turn; then gray with probability 0.2.
    blur: probability of a Gaussian blur of U(0.5, size / 16) px.
    rgb: the channels that are red, green and blue, if there are others.
    Raises UserError for a border that leaves nothing, and for an area or a blur that is no share.
    """
    height, width = image.shape[2:]
    if not 0 <= 2 * border < min(height, width):
        raise UserError(f"hardened: border={border} px of images of {height} x {width} px")
    if not 0 < area <= 1 or not 0 <= blur <= 1:
        raise UserError(f"hardened: area={area}, blur={blur}; give shares, area above 0")
    n = len(image)
    if border:
        image = image[:, :, border : height - border, border : width - border]
    if area < 1:
        height, width = image.shape[2:]
        box = draw_box(n, height, width, generator, area=(area, 1.0))
        image = resized_crop(image, box, min(height, width))
    view = views(image, generator, size=size)
    if intensity or colour:
        strengths = {"brightness": intensity, "contrast": intensity, "saturation": colour}
        Jitter.draw(n, generator, **strengths, hue=min(0.5, colour / 2), rgb=rgb)(view)
    if colour:
        Grayscale.draw(n, generator, p=0.2, rgb=rgb)(view)
    if blur:
        widest = max(1.0, size / 16)
        drawn = Blur.draw(n, generator, side=size, sigma=(0.5, widest), p=blur)
        replace(drawn, radius=max(1, round(2 * widest)))(view)
    return view.clamp_(0, 1)


def blanked(
    image: Image,
    generator: Generator,
    *,
    size: int,
    views: Callable[..., Tensor],
    channels: Sequence[int],
) -> Float[Tensor, "B C size size"]:
    """The policy `views` with these channels set to 0, counted from 0.

    Raises UserError for a channel that the images do not have.
    """
    if not all(0 <= c < image.shape[1] for c in channels):
        raise UserError(
            f"blanked: channels={tuple(channels)} of images with {image.shape[1]} channels"
        )
    view = views(image, generator, size=size)
    view[:, list(channels)] = 0
    return view
