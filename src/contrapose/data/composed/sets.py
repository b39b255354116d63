"""Composed sets: images with several features at once, and the labels of every feature.

`composed.features["digit"]` is the class of the digit in each image, `features["image"]` that of
the image behind it, and so on; each can be probed. The content of an image follows from the seed,
the split and its position (random bits: from its pixels), so every process and epoch has the same
image. Settings are those of "Intriguing Properties of Contrastive Losses" (2011.02803) or of its
notebooks; where neither gives one, of a re-implementation, as each function says.
"""

import colorsys
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from contrapose.data.composed import draws
from contrapose.data.composed.canvas import (
    By,
    Canvas,
    Glyphs,
    Layout,
    Tinted,
    WithBits,
    binary,
)
from contrapose.data.composed.parts import Labels, assembled, named_as, with_features
from contrapose.data.images import ImageSet, Pixels
from contrapose.errors import UserError

CORNERS = (0.15, 0.45, 0.75)  # of the side: 33, 100 and 168 of 224 px (the notebook)
PRESENCE = 100  # classes up to which the presence of each is a feature
_CHUNK = 4096  # images hashed at a time


def many_digits(
    glyphs: ImageSet,
    *,
    digits: int = 8,
    placement: Literal["random", "grid"] = "random",
    by: By = "addition",
    canvas: int | None = None,
    images: int | None = None,
    channels: int = 1,
    label: str | None = None,
    seed: int = 0,
) -> ImageSet:
    """1 to 16 digits on a canvas, each drawn independently and uniformly from the glyphs.

    placement: "random" crops glyphs to the box of their ink and puts them anywhere, also over each
        other; "grid" puts them in different cells of the size of a glyph.
    canvas: side in px, by default four glyphs (112 for MNIST, as in the re-implementation).
    images: how many; by default as many as there are glyphs.
    Features: with one digit `digit`, which is also the label; with several `holds 0`, `holds 1` ...
    by the number of the class, for up to 100 classes. Recipes take canvases above 64 px for
    photographs: train with --set views=digits.
    """
    if not 1 <= digits <= 16:
        raise UserError(f"many-digits: digits={digits} on a canvas; use 1 to 16")
    side = 4 * glyphs.size if canvas is None else canvas
    ink, digit, notes = _ink("many-digits", glyphs, side, glyphs.size)
    n = _count("many-digits", glyphs, images)
    which = draws.below(_key("many-digits", glyphs, seed), n, digits, len(glyphs))
    if placement == "grid":
        place = _cells(_key("many-digits, cells", glyphs, seed), n, digits, side, glyphs.size)
    else:
        free = draws.uniform(_key("many-digits, places", glyphs, seed), n, 2 * digits)
        place = free.view(n, digits, 2)
    own: dict[str, tuple[Labels, tuple[str, ...]]] = {}
    if digits == 1 and glyphs.classes:
        own["digit"] = digit[which[:, 0]], glyphs.classes
    elif len(glyphs.classes) <= PRESENCE:
        for c in range(len(glyphs.classes)):
            own[f"holds {c}"] = (digit[which] == c).any(dim=1).long(), ("absent", "present")
    named = named_as(
        many_digits, glyphs.name, digits=digits, placement=placement, by=by, canvas=canvas,
        images=images, channels=channels, seed=seed,
    )  # fmt: skip
    pixels = Canvas(ink, digit, (Glyphs(which, place, glyphs.size),), side, channels, by)
    made = assembled(named, pixels, glyphs, notes=notes)
    return with_features(made, own, label or ("digit" if "digit" in own else None))


def digits_on_images(
    images: ImageSet,
    glyphs: ImageSet,
    *,
    unique: int | None = None,
    glyph: int | None = None,
    placement: Literal["apart", "grid"] = "apart",
    contrast: float = 1.0,
    by: By = "maximum",
    label: str | None = None,
    seed: int = 0,
) -> ImageSet:
    """Copies of one digit pasted over each image: a set with two competing features.

    unique: K, so that the digit is one of the first K glyphs and carries log2 K bits; by default
        all glyphs.
    glyph: width of the digit in px, by default an eighth of the side (28 of 224 px).
    placement: "apart" has nine copies with their corners at 0.15, 0.45 and 0.75 of the side; "grid"
        has as many as fit, side by side from the top left (four of 8 px on 16 px).
    contrast: in (0, 1], a factor of every pixel of the image, which makes it darker and fainter
        beside the digit, whose brightness stays.
    by: "maximum" takes the larger value of image and digit, "addition" their clipped sum.
    The default size, "apart" and "maximum" are the notebook's.
    Features: `image` (or those that the images have), `digit`, and with `unique` also `glyph`, the
    number of the glyph.
    """
    name = "digits-on-images"
    if not 0 < contrast <= 1:
        raise UserError(f"{name}: contrast={contrast:g}; use a number above 0, up to 1")
    count = len(glyphs) if unique is None else unique
    if not 1 <= count <= len(glyphs):
        raise UserError(
            f"{name}: unique={unique} glyphs, but {glyphs.name} ({glyphs.split}) has "
            f"{len(glyphs):,}; use 1 to {len(glyphs)}"
        )
    size = max(1, round(images.size / 8)) if glyph is None else glyph
    corner = _corners(images.size, size, placement, f"the {images.size} px of {images.name}")
    _refuse_bits(name, images)
    ink, digit, notes = _ink(name, glyphs, images.size, size, count)
    which = draws.below(_key(name, images, seed), len(images), 1, count)
    place = torch.cartesian_prod(corner, corner).expand(len(images), -1, 2)
    own = {"digit": (digit[which[:, 0]], glyphs.classes)} if glyphs.classes else {}
    if unique is not None:
        own["glyph"] = which[:, 0], tuple(map(str, range(count)))
    groups = (Glyphs(which, place, size),)
    pixels = Canvas(ink, digit, groups, images.size, images.channels, by, images.pixels, contrast)
    named = named_as(
        digits_on_images, images.name, glyphs.name, unique=unique, glyph=glyph, by=by, seed=seed,
        placement=placement, contrast=contrast, later=("placement", "contrast"),
    )  # fmt: skip
    return with_features(assembled(named, pixels, images, glyphs, notes=notes), own, label)


def two_digits(
    glyphs: ImageSet,
    *,
    fixed: int = 20,
    varied: int = 40,
    by: By = "addition",
    canvas: int = 112,
    images: int | None = None,
    channels: int = 1,
    label: str | None = None,
    seed: int = 0,
) -> ImageSet:
    """Two digits, `fixed` and `varied` px wide, at random places of a canvas.

    Each is resized, then cropped to the box of its ink (the re-implementation has 20 px beside 20,
    30 ... 80 px, on 112 px). Features: the classes of the two, `fixed` (also the label) and
    `varied`.
    """
    if min(fixed, varied) < 1:
        raise UserError(f"two-digits: fixed={fixed}, varied={varied}; use at least 1 px")
    ink, digit, notes = _ink("two-digits", glyphs, canvas, max(fixed, varied))
    n = _count("two-digits", glyphs, images)
    which = draws.below(_key("two-digits", glyphs, seed), n, 2, len(glyphs))
    place = draws.uniform(_key("two-digits, places", glyphs, seed), n, 4).view(n, 2, 2)
    groups = tuple(
        Glyphs(which[:, k : k + 1], place[:, k : k + 1], size)
        for k, size in enumerate((fixed, varied))
    )
    named = named_as(
        two_digits, glyphs.name, fixed=fixed, varied=varied, by=by, canvas=canvas, images=images,
        channels=channels, seed=seed,
    )  # fmt: skip
    pixels = Canvas(ink, digit, groups, canvas, channels, by)
    made = assembled(named, pixels, glyphs, notes=notes)
    if not glyphs.classes:
        return made
    own = {name: (digit[which[:, k]], glyphs.classes) for k, name in enumerate(("fixed", "varied"))}
    return with_features(made, own, label or "fixed")


def random_bits(
    images: ImageSet, *, bits: int = 8, label: str | None = None, seed: int = 0
) -> ImageSet:
    """Images with `bits` more channels, each constantly 0 or 1, hashed from the image's pixels.

    Augmentations do not change these channels, so that all views of an image share its bits; test
    images have them too. Equal images have equal bits, and the first bits are the same for any
    `bits`. Every image is read once to compute them. Features: those of the images, and `bit 0` ...
    """
    if not 0 <= bits <= 32:
        raise UserError(f"random-bits: bits={bits} is out of range; use 0 to 32")
    _refuse_bits("random-bits", images)
    key = draws.key_of("random-bits", seed)
    everything = torch.split(torch.arange(len(images)), _CHUNK)
    value = torch.cat([draws.hashed(key, images.batch(index)) for index in everything])
    value = value & (2**bits - 1)
    own = {f"bit {j}": (one, ("0", "1")) for j, one in enumerate(binary(value, bits).unbind(dim=1))}
    named = named_as(random_bits, images.name, bits=bits, seed=seed)
    made = assembled(named, WithBits(images.pixels, value, bits), images)
    return with_features(replace(made, constant=bits), own, label)


def coloured(
    images: ImageSet,
    *,
    colours: int = 8,
    saturation: float = 0.5,
    label: str | None = None,
    seed: int = 0,
) -> ImageSet:
    """Each image in one of `colours` colours, whose hues are evenly spaced: an easy feature.

    A colour histogram distinguishes these images. Crops share the colour of their image; jitter of
    the hue removes it. Every pixel is multiplied by the colour. Features: those of the images, and
    `colour`.
    """
    if not 2 <= colours <= 256:
        raise UserError(f"coloured: colours={colours}; use 2 to 256")
    if not 0 < saturation <= 1:
        raise UserError(f"coloured: saturation={saturation}; use a number above 0, up to 1")
    _refuse_bits("coloured", images)
    if images.shown not in (1, 3):
        raise UserError(
            f"coloured: {images.name} has {images.shown} channels; colour is of one or three"
        )
    which = draws.below(_key("coloured", images, seed), len(images), 1, colours)[:, 0]
    own = {"colour": (which, tuple(f"hue {360 * k / colours:.0f}" for k in range(colours)))}
    named = named_as(coloured, images.name, colours=colours, saturation=saturation, seed=seed)
    shade = _palette(colours, saturation)[which]
    return with_features(assembled(named, Tinted(images.pixels, shade), images), own, label)


def layout(images: ImageSet, index: Int[Tensor, " B"]) -> Layout:
    """The boxes of the digits in these images, and which they are; UserError for other sets."""
    pixels: Pixels | None = images.pixels
    while pixels is not None and not isinstance(pixels, Canvas):
        pixels = getattr(pixels, "base", None)
    if pixels is None:
        raise UserError(f"layout: {images.name} has no digits whose places are known")
    return pixels.layout(index)


def _key(name: str, images: ImageSet, seed: int) -> int:
    return draws.key_of(name, images.split, seed)


def _corners(side: int, size: int, placement: str, where: str) -> Int[Tensor, " k"]:
    """Top (or left) edges in px of the copies of a digit; UserError if the last does not fit."""
    apart = [int(share * side) for share in CORNERS]
    room, note = side, ""
    if placement == "apart":
        room, note = side - apart[-1], f", whose last corner is at {apart[-1]} px"
    if not 1 <= size <= room:
        raise UserError(
            f"digits-on-images: glyph={size} px does not fit on {where}{note}; use 1 to {room}"
        )
    return torch.tensor(apart if placement == "apart" else range(0, side - size + 1, size))


def _cells(key: int, n: int, digits: int, side: int, size: int) -> Int[Tensor, "N k 2"]:
    """Corners of different cells of the grid."""
    across = side // size
    if digits > across**2:
        raise UserError(
            f"many-digits: digits={digits} in a grid, but {side} px have {across**2} cells of "
            f"{size} px; use fewer digits, a larger canvas or placement=random"
        )
    cell = draws.distinct(key, n, digits, across**2)
    return torch.stack([cell // across, cell % across], dim=2) * size


def _ink(
    name: str, glyphs: ImageSet, side: int, size: int, count: int | None = None
) -> tuple[UInt8[Tensor, "G H W"], Labels, dict[str, int]]:
    """(bright ink on black, class of each glyph, notes) of the first `count` glyphs."""
    if glyphs.channels != 1:
        raise UserError(
            f"{name}: glyphs are grey, and {glyphs.name} has {glyphs.channels} channels; open it "
            "with channels=1"
        )
    if size > side:
        raise UserError(
            f"{name}: a glyph of {size} px does not fit on a canvas of {side} px; use a larger one"
        )
    index = torch.arange(len(glyphs) if count is None else count)
    ink, notes = glyphs.batch(index)[:, 0].cpu(), {}
    if ink.float().mean() > 127.5:  # dark strokes on light paper, as Omniglot has them
        ink, notes = 255 - ink, {"glyphs inverted, dark ink on light paper": len(ink)}
    label = torch.full((len(ink),), -1) if glyphs.label is None else glyphs.label[index]
    return ink, label, notes


def _count(name: str, glyphs: ImageSet, images: int | None) -> int:
    if images is not None and images < 1:
        raise UserError(f"{name}: images={images}; use at least 1")
    return len(glyphs) if images is None else images


def _refuse_bits(name: str, images: ImageSet) -> None:
    if images.constant:
        raise UserError(
            f"{name}: {images.name} already has random bits; write random-bits(...) outermost, once"
        )


def _palette(colours: int, saturation: float) -> UInt8[Tensor, "K 3"]:
    shades = [colorsys.hsv_to_rgb(k / colours, saturation, 1.0) for k in range(colours)]
    return torch.tensor(shades).mul(255).round().byte()
