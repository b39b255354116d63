"""Composed pixels, computed on access: glyphs on a canvas or image, constant channels, tints.

Each class is a `Pixels` that holds another `Pixels`, so that a million composed images need only
the memory of their parts. Arithmetic is on integers, resizing in float64, and each product is
rounded once, so that a CPU and a GPU compose the same pixels.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from contrapose.data.images import Pixels

By = Literal["addition", "maximum"]
_PIECE = 1 << 21  # glyph pixels pasted at a time


@dataclass(frozen=True, eq=False)
class Glyphs:
    """Positions of k glyphs of one size on each of N canvases.

    place: the top left corner of each glyph's square in px (integers); or, for glyphs that are
    cropped to the box of their ink, the share in [0, 1) of the range of this box (floats).
    """

    which: Int[Tensor, "N m"]  # row of the glyph tensor; m = k, or 1 = the same glyph k times
    place: Int[Tensor, "N k 2"] | Float[Tensor, "N k 2"]
    size: int  # px, side of the square that a glyph is resized to

    def subset(self, index: Int[Tensor, " B"]) -> "Glyphs":
        return replace(self, which=self.which[index], place=self.place[index])

    def to(self, device: torch.device) -> "Glyphs":
        return replace(self, which=self.which.to(device), place=self.place.to(device))

    def squares(
        self, index: Int[Tensor, " B"], glyphs: UInt8[Tensor, "G H W"], side: int
    ) -> tuple[UInt8[Tensor, "B k s s"], Int[Tensor, "B k 2"], Int[Tensor, "B k 4"]]:
        """(resized glyphs, their top left corners, the boxes they occupy) on canvases of `side`."""
        which, place = self.which[index], self.place[index]
        square = resized(glyphs[which.flatten()], self.size).view(*which.shape, *[self.size] * 2)
        square = square.expand(-1, place.shape[1], -1, -1)
        if place.dtype.is_floating_point:
            ink = ink_box(square)
            corner = (place * (side - ink[..., 2:] + 1)).long() - ink[..., :2]
        else:
            corner, ink = place, torch.tensor([0, 0, self.size, self.size], device=place.device)
            ink = ink.expand(*place.shape[:2], 4)
        box = torch.cat([corner + ink[..., :2], ink[..., 2:]], dim=2)
        return square, corner, box


@dataclass(frozen=True, eq=False)
class Layout:
    """The boxes of the glyphs on B canvases, and which glyphs and digits they are."""

    box: Int[Tensor, "B k 4"]  # top, left, height, width in px
    glyph: Int[Tensor, "B k"]  # row of the glyph set
    digit: Int[Tensor, "B k"]  # class of the glyph; -1 = it has no label


@dataclass(frozen=True, eq=False)
class Canvas:
    """Pixels of glyphs pasted on black or on images.

    by: "addition" is the sum, clipped at 255; "maximum" the largest value of image and glyphs.
    contrast: a factor of every pixel of the image, applied before glyphs are pasted.
    """

    glyphs: UInt8[Tensor, "G H W"]
    digit: Int[Tensor, " G"]  # class of each glyph, on the CPU
    groups: tuple[Glyphs, ...]
    side: int
    channels: int
    by: By
    base: Pixels | None = None
    contrast: float = 1.0

    @property
    def device(self) -> torch.device:
        return self.glyphs.device

    def __len__(self) -> int:
        return len(self.groups[0].which)

    def batch(self, index: Int[Tensor, " B"]) -> UInt8[Tensor, "B C S S"]:
        index = index.to(self.device)
        pieces = self._pieces(index)
        if self.base is None:
            ink = torch.cat([self._ink(piece) for piece in pieces])
            return ink.expand(-1, self.channels, -1, -1).contiguous()
        made = with_contrast(self.base.batch(index).to(self.device), self.contrast)
        for piece, part in zip(pieces, torch.split(made, len(pieces[0])), strict=True):
            ink = self._ink(piece)
            if self.by == "maximum":
                torch.maximum(part, ink, out=part)
            else:
                part += torch.minimum(ink, 255 - part)
        return made

    def subset(self, index: Int[Tensor, " B"]) -> "Canvas":
        chosen = tuple(group.subset(index.to(self.device)) for group in self.groups)
        base = None if self.base is None else self.base.subset(index)
        return replace(self, groups=chosen, base=base)

    def to(self, device: torch.device) -> "Canvas":
        moved = tuple(group.to(device) for group in self.groups)
        base = None if self.base is None else self.base.to(device)
        return replace(self, glyphs=self.glyphs.to(device), groups=moved, base=base)

    def layout(self, index: Int[Tensor, " B"]) -> Layout:
        """The layout of these canvases, group of glyphs by group."""
        index = index.to(self.device)
        found = []
        for group in self.groups:
            pieces = self._pieces(index)
            box = torch.cat([group.squares(p, self.glyphs, self.side)[2] for p in pieces])
            found.append((box, group.which[index].expand(-1, box.shape[1])))
        box, which = (torch.cat(parts, dim=1).cpu() for parts in zip(*found, strict=True))
        return Layout(box, which, self.digit[which])

    def _pieces(self, index: Int[Tensor, " B"]) -> tuple[Int[Tensor, " P"], ...]:
        area = max(sum(g.place.shape[1] * g.size**2 for g in self.groups), self.side**2)
        return torch.split(index, max(1, _PIECE // area))

    def _ink(self, index: Int[Tensor, " B"]) -> UInt8[Tensor, "B 1 S S"]:
        """The glyphs of each canvas on black: their sum, clipped at 255, or their maximum."""
        ink = torch.zeros(len(index), self.side**2, dtype=torch.int32, device=self.device)
        for group in self.groups:
            square, corner, _ = group.squares(index, self.glyphs, self.side)
            along = torch.arange(group.size, device=self.device)
            # outside the canvas lies only what has no ink
            y, x = ((corner[..., None, d] + along).clamp(0, self.side - 1) for d in (0, 1))
            target = (y[..., :, None] * self.side + x[..., None, :]).flatten(1)
            value = square.int().flatten(1)
            if self.by == "maximum":
                ink.scatter_reduce_(1, target, value, "amax")
            else:
                ink.scatter_add_(1, target, value)
        return ink.clamp_(max=255).byte().view(-1, 1, self.side, self.side)


@dataclass(frozen=True, eq=False)
class WithBits:
    """Images followed by `bits` more channels, each with the constant value 0 or 255."""

    base: Pixels
    value: Int[Tensor, " N"]  # its binary digits are the bits, the lowest first
    bits: int

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def side(self) -> int:
        return self.base.side

    @property
    def channels(self) -> int:
        return self.base.channels + self.bits

    def __len__(self) -> int:
        return len(self.base)

    def batch(self, index: Int[Tensor, " B"]) -> UInt8[Tensor, "B C S S"]:
        image = self.base.batch(index)
        one = binary(self.value[index.to(self.value.device)], self.bits).to(image.device)
        flat = (one * 255).byte()[:, :, None, None].expand(-1, -1, *image.shape[2:])
        return torch.cat([image, flat], dim=1)

    def subset(self, index: Int[Tensor, " B"]) -> "WithBits":
        chosen = self.value[index.to(self.value.device)]
        return replace(self, base=self.base.subset(index), value=chosen)

    def to(self, device: torch.device) -> "WithBits":
        return replace(self, base=self.base.to(device), value=self.value.to(device))


@dataclass(frozen=True, eq=False)
class Tinted:
    """Images of one colour each: every channel is multiplied by that of the colour, over 255."""

    base: Pixels
    colour: UInt8[Tensor, "N 3"]

    channels = 3

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def side(self) -> int:
        return self.base.side

    def __len__(self) -> int:
        return len(self.base)

    def batch(self, index: Int[Tensor, " B"]) -> UInt8[Tensor, "B 3 S S"]:
        image = self.base.batch(index).int()
        colour = self.colour[index.to(self.colour.device)].to(image.device)
        return ((image * colour[:, :, None, None].int() + 127) // 255).byte()

    def subset(self, index: Int[Tensor, " B"]) -> "Tinted":
        chosen = self.colour[index.to(self.colour.device)]
        return replace(self, base=self.base.subset(index), colour=chosen)

    def to(self, device: torch.device) -> "Tinted":
        return replace(self, base=self.base.to(device), colour=self.colour.to(device))


def binary(value: Int[Tensor, " B"], bits: int) -> Int[Tensor, "B bits"]:
    """Binary digits of each value, the lowest first."""
    return (value[:, None] >> torch.arange(bits, device=value.device)) & 1


def with_contrast(image: UInt8[Tensor, "*shape"], contrast: float) -> UInt8[Tensor, "*shape"]:
    """contrast * image, rounded to integers; the image itself at 1."""
    return image if contrast == 1 else image.float().mul_(contrast).round_().byte()


def resized(glyph: UInt8[Tensor, "M H W"], side: int) -> UInt8[Tensor, "M S S"]:
    """Glyphs resized to `side` px (bilinear, antialiased); unchanged if they have this side."""
    if glyph.shape[1:] == (side, side):
        return glyph
    wide = glyph[:, None].double()  # float64: rounding hides how a device adds
    made = F.interpolate(wide, (side, side), mode="bilinear", antialias=True)
    return made[:, 0].round().clamp(0, 255).byte()


def ink_box(glyph: UInt8[Tensor, "*batch H W"]) -> Int[Tensor, "*batch 4"]:
    """(top, left, height, width) of the pixels above 0; of the whole square if there are none."""
    spans = []
    for inked in (glyph.amax(dim=-1) > 0, glyph.amax(dim=-2) > 0):
        first = inked.int().argmax(dim=-1)
        last = inked.shape[-1] - 1 - inked.flip(-1).int().argmax(dim=-1)
        spans.append((first, last - first + 1))
    (top, height), (left, width) = spans
    return torch.stack([top, left, height, width], dim=-1)
