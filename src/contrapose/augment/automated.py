"""What AutoAugment and RandAugment draw: which operations, how strong, each image for itself.

A level L of 0-10 is an argument by the table that the code of the supervised contrastive paper
uses (TensorFlow's model garden): rotate 3 L degrees; shear 0.03 L; translate L / 10 of a distance;
color, contrast, brightness, sharpness 0.1 + 0.18 L; posterize floor(0.4 L) bits; solarize from
floor(25.6 L) on; solarize_add floor(11 L); cutout L / 10 of a half side. Of rotate, shear and
translate the sign is drawn, either with probability 1/2.

Distances are published in px of images of 224 px; other sides scale them.
"""

import math

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from contrapose.augment.colour import RGB
from contrapose.augment.draw import integers, uniform
from contrapose.augment.operations import CODE, GEOMETRY, OPERATIONS, ImageOperations
from contrapose.errors import UserError

PUBLISHED = 224  # px, the side that distances are published for

# policy v0 (arXiv 1805.09501; TensorFlow's model garden): operation, probability, level; twice
V0 = (
    (("equalize", 0.8, 1), ("shear_y", 0.8, 4)),
    (("color", 0.4, 9), ("equalize", 0.6, 3)),
    (("color", 0.4, 1), ("rotate", 0.6, 8)),
    (("solarize", 0.8, 3), ("equalize", 0.4, 7)),
    (("solarize", 0.4, 2), ("solarize", 0.6, 2)),
    (("color", 0.2, 0), ("equalize", 0.8, 8)),
    (("equalize", 0.4, 8), ("solarize_add", 0.8, 3)),
    (("shear_x", 0.2, 9), ("rotate", 0.6, 8)),
    (("color", 0.6, 1), ("equalize", 1.0, 2)),
    (("invert", 0.4, 9), ("rotate", 0.6, 0)),
    (("equalize", 1.0, 9), ("shear_y", 0.6, 3)),
    (("color", 0.4, 7), ("equalize", 0.6, 0)),
    (("posterize", 0.4, 6), ("auto_contrast", 0.4, 7)),
    (("solarize", 0.6, 8), ("color", 0.6, 9)),
    (("solarize", 0.2, 4), ("rotate", 0.8, 9)),
    (("rotate", 1.0, 7), ("translate_y", 0.8, 9)),
    (("shear_x", 0.0, 0), ("solarize", 0.8, 4)),
    (("shear_y", 0.8, 0), ("color", 0.6, 4)),
    (("color", 1.0, 0), ("rotate", 0.6, 2)),
    (("equalize", 0.8, 4), ("equalize", 0.0, 8)),
    (("equalize", 1.0, 4), ("auto_contrast", 0.6, 2)),
    (("shear_y", 0.4, 7), ("solarize_add", 0.6, 7)),
    (("posterize", 0.8, 2), ("solarize", 0.6, 10)),
    (("solarize", 0.6, 8), ("equalize", 0.6, 1)),
    (("color", 0.8, 6), ("rotate", 0.4, 5)),
)


def draw_autoaugment(
    count: int,
    generator: Generator,
    *,
    side: int,
    translate: float = 250.0,
    rgb: RGB | None = None,
) -> ImageOperations:
    """One of the 25 pairs of operations of policy v0 for each image, equally likely.

    Each operation of the pair is applied with its own probability.
    translate: px that level 10 moves an image of 224 px; other sides in proportion. The paper's
    own is 150 of 331 px; the 250 of TensorFlow's code moves the only translation, level 9, off
    the image, which then is gray.
    """
    level = [[argument_of(name, strength, side, translate=translate) for name, _, strength in pair]
             for pair in V0]  # fmt: skip
    device = generator.device
    pair = integers(count, len(V0), generator)
    often = torch.tensor([[p for _, p, _ in pair] for pair in V0], device=device)
    named = torch.tensor([[CODE[name] for name, _, _ in pair] for pair in V0], device=device)
    applied = uniform(count, 0.0, 1.0, generator, 2) < often[pair]
    code = torch.where(applied, named[pair], CODE["identity"])
    argument = torch.tensor(level, device=device)[pair]
    return _with_signs(code, argument, generator, rgb)


def draw_randaugment(
    count: int,
    generator: Generator,
    *,
    side: int,
    operations: int = 2,
    magnitude: float = 10.0,
    translate: float = 100.0,
    cutout: float = 40.0,
    rgb: RGB | None = None,
) -> ImageOperations:
    """`operations` of the 17 (16 and the identity) for each image, all of level `magnitude`.

    Each is drawn from all 17 with equal probability.
    translate, cutout: px of level 10 (half a side for the square) in an image of 224 px.
    Raises UserError unless operations >= 1 and 0 <= magnitude <= 10.
    """
    if operations < 1 or not 0 <= magnitude <= 10:
        raise UserError(
            f"randaugment: asked for operations={operations} of magnitude={magnitude}; use at least"
            " one operation, and a magnitude from 0 to 10"
        )
    every = [
        argument_of(name, magnitude, side, translate=translate, cutout=cutout)
        for name in OPERATIONS
    ]
    code = integers(count, len(OPERATIONS), generator, operations)
    level = torch.tensor(every, device=generator.device)
    return _with_signs(code, level[code], generator, rgb)


def argument_of(
    name: str, level: float, side: int, *, translate: float, cutout: float = 0.0
) -> float:
    """The argument of an operation at a level of 0-10, for images of `side` px; see above."""
    if name in ("color", "contrast", "brightness", "sharpness"):
        return 0.1 + 0.18 * level
    tenth = {
        "rotate": 30.0,
        "shear_x": 0.3,
        "shear_y": 0.3,
        "translate_x": translate * side / PUBLISHED,
        "translate_y": translate * side / PUBLISHED,
        "posterize": 4.0,
        "solarize": 256.0,
        "solarize_add": 110.0,
        "cutout": cutout * side / PUBLISHED,
    }.get(name, 0.0)
    argument = level / 10 * tenth
    whole = name in ("posterize", "solarize", "solarize_add", "cutout")
    return math.floor(argument) if whole else argument


def _with_signs(
    code: Int[Tensor, "B K"], argument: Tensor, generator: Generator, rgb: RGB | None
) -> ImageOperations:
    signed = torch.tensor([name in GEOMETRY for name in OPERATIONS], device=code.device)[code]
    negative = uniform(len(code), 0.0, 1.0, generator, code.shape[1]) < 0.5
    place = uniform(len(code), 0.0, 1.0, generator, code.shape[1], 2)
    return ImageOperations(
        code=code,
        argument=torch.where(signed & negative, -argument, argument),
        place=place,
        rgb=rgb,
    )
