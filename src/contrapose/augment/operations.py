"""The operations of AutoAugment and RandAugment, each image its own, on images of 8 bits.

Each equals Pillow's on a uint8 image, hence torchvision's on a PIL image, bit for bit, on any
device: what could differ in the last bit is computed in whole numbers or in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from contrapose.augment.colour import RGB, check_colour, check_rgb
from contrapose.machine import as_float64

GEOMETRY = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = (
    "identity", *GEOMETRY, "cutout", "auto_contrast", "equalize", "invert", "posterize",
    "solarize", "solarize_add", "color", "contrast", "brightness", "sharpness",
)  # fmt: skip
KINDS = (("identity",), GEOMETRY, *((name,) for name in OPERATIONS[6:]))  # made in one go
KIND_OF = [next(kind for kind in KINDS if name in kind) for name in OPERATIONS]
CODE = {name: code for code, name in enumerate(OPERATIONS)}
FIXED = 65536  # a source position is a whole number of these parts of a pixel, as Pillow's is


@dataclass(frozen=True, kw_only=True)
class ImageOperations:
    """What each image goes through: K operations in turn, as numbers of `OPERATIONS`.

    `argument[b, k]`: rotate, degrees counterclockwise; shear, px of shift per px; translate, px
    that content moves; color, contrast, brightness and sharpness, the factor (1 = as is);
    posterize, bits that are kept (less than 1 counts as 1: in the published code a shift by 8 bits
    is held to 7, and Pillow refuses 0); solarize, the least value that is inverted; solarize_add,
    what is added to values below 128; cutout, half the side in px. The others have none.
    `place[b, k]`: centre of a cutout, (row, column) as shares of the image. `fill`: value of 0-255
    that pixels from outside take, and those that are hidden. `rgb`: channels that change colour.
    """

    code: Int[Tensor, "B K"]
    argument: Float[Tensor, "B K"]
    place: Float[Tensor, "B K 2"]
    fill: int = 128
    rgb: RGB | None = None

    def __getitem__(self, rows: Tensor) -> "ImageOperations":
        return replace(
            self, code=self.code[rows], argument=self.argument[rows], place=self.place[rows]
        )

    def __call__(self, image: Float[Tensor, "B C H W"]) -> None:
        """Applied in place; values are rounded to 255ths first and stay such. Raises UserError
        unless C is 1 or 3, or `rgb` names three channels.
        """
        if self.rgb is None:
            check_colour(image, "ImageOperations")
        else:
            check_rgb(image, self.rgb, "ImageOperations")
        if not len(image):
            return
        matrix = inverse_matrix(self.code, self.argument, *image.shape[2:])
        if image.device.type != "cpu":
            level = whole(image.mul_(255).round_())
            for k in range(self.code.shape[1]):
                level = self._everywhere(level, matrix, k)
            image.copy_(level).div_(255)
        else:
            image.copy_(self._by_operation(whole(image.mul_(255).round_()), matrix)).div_(255)

    def _by_operation(
        self, level: UInt8[Tensor, "B C H W"], matrix: Int[Tensor, "B K 2 3"]
    ) -> UInt8[Tensor, "B C H W"]:
        """Images are sorted by their k-th operation, so that those that share one are a slice."""
        order = torch.arange(len(level))
        for k in range(self.code.shape[1]):
            by = self.code[order, k].argsort()
            order, level = order[by], level.index_select(0, by)
            counted = torch.bincount(self.code[:, k], minlength=len(OPERATIONS))
            ends, made, start = counted.cumsum(0).tolist(), [], 0
            for names in KINDS:
                rows = slice(start, start := ends[CODE[names[-1]]])
                if rows.stop > rows.start:
                    made.append(self._made(names, level[rows], order[rows], matrix, k))
            level = torch.cat(made)
        return level.index_select(0, order.argsort())

    def _everywhere(
        self, level: UInt8[Tensor, "B C H W"], matrix: Int[Tensor, "B K 2 3"], k: int
    ) -> UInt8[Tensor, "B C H W"]:
        """Every operation is made of every image, and kept where it was drawn: on an accelerator
        to ask which image has which would be a wait.
        """
        code = self.code[:, k]
        for names in KINDS[1:]:
            drawn = (code >= CODE[names[0]]) & (code <= CODE[names[-1]])
            made = self._made(names, level, slice(None), matrix, k)
            level = torch.where(drawn[:, None, None, None], made, level)
        return level

    def _made(
        self,
        names: tuple[str, ...],
        level: UInt8[Tensor, "b C H W"],
        rows: Tensor | slice,
        matrix: Int[Tensor, "B K 2 3"],
        k: int,
    ) -> UInt8[Tensor, "b C H W"]:
        """The k-th operation, one of these, of the images whose places in the batch are `rows`."""
        if names == ("identity",):
            return level
        if names == GEOMETRY:
            return moved(level, matrix[rows, k], self.fill)
        argument = self.argument[rows, k]
        if names == ("cutout",):
            return hidden(level, argument, self.place[rows, k], self.fill)
        change = COLOURS[names[0]]
        if self.rgb is None:
            return change(level, argument[:, None, None, None])
        out = level.clone()
        out[:, list(self.rgb)] = change(level[:, list(self.rgb)], argument[:, None, None, None])
        return out


def whole(x: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """uint8 of values in [0, 256), cut off; by way of int16, five times faster on a CPU."""
    return x.to(torch.int16).to(torch.uint8)


def inverse_matrix(
    code: Int[Tensor, "B K"], argument: Float[Tensor, "B K"], height: int, width: int
) -> Int[Tensor, "B K 2 3"]:
    """Where the output pixel (x, y) comes from: x' = (a x + b y + c) / FIXED and y' likewise; the
    pixel itself for an operation that is none of GEOMETRY.

    x' = cos x - sin y, y' = sin x + cos y about the centre (rotate); x' = x + m y, y' = y + m x
    about the corner (shear; the middle of a pixel is at 1/2); x' = x - t, y' = y - t (translate).
    """
    m = as_float64(argument)
    code = code.to(m.device)
    angle = m.deg2rad() * (code == CODE["rotate"])
    cos, sin = angle.cos(), angle.sin()
    across = m * (code == CODE["shear_x"]) - sin
    down = m * (code == CODE["shear_y"]) + sin
    shift, middle_x, middle_y = m.trunc(), width / 2, height / 2
    left = middle_x - cos * middle_x + sin * middle_y - shift * (code == CODE["translate_x"])
    top = middle_y - sin * middle_x - cos * middle_y - shift * (code == CODE["translate_y"])
    rows = [cos, across, left + (cos + across) / 2, down, cos, top + (down + cos) / 2]
    fixed = (torch.stack(rows, dim=-1) * FIXED + 0.5).floor()
    return fixed.long().view(*argument.shape, 2, 3).to(argument.device)


def moved(
    level: UInt8[Tensor, "B C H W"], matrix: Int[Tensor, "B 2 3"], fill: int
) -> UInt8[Tensor, "B C H W"]:
    """The pixel that the matrix points to, or the fill: that of a border one px wide."""
    count, channels, height, width = level.shape
    wide = width + 2
    x = torch.arange(width, device=level.device, dtype=torch.int32)
    y = torch.arange(height, device=level.device, dtype=torch.int32)[:, None]
    a, b, c = (matrix[..., k, None, None].int() for k in range(3))
    across, down = ((a * x + (b * y + c)) >> 16).unbind(1)
    across, down = across.clamp_(-1, width), down.clamp_(-1, height)
    plane = torch.arange(count * channels, device=level.device, dtype=torch.int32)
    start = plane.view(count, channels, 1, 1) * (wide * (height + 2)) + (wide + 1)
    index = down.mul_(wide).add_(across)[:, None] + start
    bordered = F.pad(level, (1, 1, 1, 1), value=fill)
    return bordered.flatten().index_select(0, index.flatten()).view_as(level)


def hidden(
    level: UInt8[Tensor, "B C H W"],
    half: Float[Tensor, "B"],
    place: Float[Tensor, "B 2"],
    fill: int,
) -> UInt8[Tensor, "B C H W"]:
    """The fill from centre - half to centre + half - 1, down and across; a pixel is the centre."""
    inside = []
    for axis, side in enumerate(level.shape[2:]):
        pixel = torch.arange(side, device=level.device)
        centre = (place[:, axis, None] * side).floor().clamp_max(side - 1)
        inside.append((pixel >= centre - half[:, None]) & (pixel < centre + half[:, None]))
    within = inside[0][:, None, :, None].byte() * inside[1][:, None, None].byte()
    return level * (1 - within) + fill * within


def look_up(
    level: UInt8[Tensor, "B C H W"], table: Float[Tensor, "B C 256"] | Int[Tensor, "B C 256"]
) -> UInt8[Tensor, "B C H W"]:
    """table[level], each channel by its own."""
    plane = torch.arange(table.shape[0] * table.shape[1], device=level.device, dtype=torch.int32)
    index = level.int() + plane.view(*table.shape[:2], 1, 1) * 256
    table = table.to(level.device, torch.uint8)
    return table.flatten().index_select(0, index.flatten()).view_as(level)


def blended(
    level: UInt8[Tensor, "B C H W"],
    anchor: Float[Tensor, "B ..."],
    factor: Float[Tensor, "B 1 1 1"],
) -> UInt8[Tensor, "B C H W"]:
    """anchor + factor (level - anchor) within 0-255, cut off: Pillow's blend, in float32."""
    return whole((level.float() - anchor).mul_(factor).add_(anchor).clamp_(0, 255))


def gray_level(level: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    """(19595 R + 38470 G + 7471 B + 2^15) / 2^16, cut off: ITU-R 601 as Pillow rounds it. Below
    2^24 throughout, so exact in float32.
    """
    if level.shape[1] == 1:
        return level.float()
    red, green, blue = torch.split(level, 1, dim=1)
    gray = red.float().mul_(19595).add_(green, alpha=38470).add_(blue, alpha=7471)
    return gray.add_(32768).mul_(1 / 65536).floor_()


def smoothed(level: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The mean of a pixel (weight 5) and its eight neighbours (weight 1), rounded; pixels of the
    border, which lack neighbours, stay as they are.
    """
    x = level.float()
    if min(x.shape[2:]) < 3:
        return x
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1]
    total.add_(rows[..., 2:]).add_(x[:, :, 1:-1, 1:-1], alpha=4)
    x[:, :, 1:-1, 1:-1] = total.mul_(1 / 13).round_()  # thirteenths are never halves
    return x


def _auto_contrast(level: Tensor, _: Tensor) -> Tensor:
    """The least value of a channel becomes 0, its greatest 255."""
    low = as_float64(level.flatten(2).amin(dim=2)[..., None])
    high = as_float64(level.flatten(2).amax(dim=2)[..., None])
    value = torch.arange(256, dtype=low.dtype, device=low.device)
    scale = torch.full_like(high, 255) / (high - low).clamp_min(1)  # 255 / x would round twice
    stretched = (value * scale - low * scale).trunc().clamp(0, 255)
    return look_up(level, torch.where(high > low, stretched, value))


def _equalize(level: Tensor, _: Tensor) -> Tensor:
    """The cumulative histogram of a channel, scaled to 0-255."""
    pixel = level.flatten(0, 1).flatten(1)
    if level.device.type == "cpu":
        offset = torch.arange(len(pixel), dtype=torch.int32)[:, None] * 256
        histogram = torch.bincount((pixel.int() + offset).flatten(), minlength=256 * len(pixel))
    else:
        one = torch.ones((), dtype=torch.long, device=level.device)
        histogram = torch.zeros(len(pixel), 256, dtype=torch.long, device=level.device)
        histogram.scatter_add_(1, pixel.long(), one.expand(pixel.shape))
    histogram = histogram.view(*level.shape[:2], 256)
    value = torch.arange(256, device=level.device)
    highest = torch.where(histogram > 0, value, 0).amax(dim=2, keepdim=True)
    step = (pixel.shape[1] - histogram.gather(2, highest)) // 255
    below = histogram.cumsum(dim=2) - histogram
    scaled = ((step // 2 + below) // step.clamp_min(1)).clamp_max(255)
    return look_up(level, torch.where(step > 0, scaled, value))


def _posterize(level: Tensor, bits: Tensor) -> Tensor:
    dropped = 2 ** (8 - bits.int().clamp(1, 8))
    return level & (256 - dropped).to(torch.uint8)


def _solarize(level: Tensor, least: Tensor) -> Tensor:
    value = torch.arange(256, device=level.device)
    table = torch.where(value < least[..., 0], value, 255 - value)
    return look_up(level, table.expand(-1, level.shape[1], -1))


def _solarize_add(level: Tensor, more: Tensor) -> Tensor:
    value = torch.arange(256, device=level.device)
    added = (value + more[..., 0].trunc()).clamp(0, 255)
    table = torch.where(value < 128, added, value)
    return look_up(level, table.expand(-1, level.shape[1], -1))


def _contrast(level: Tensor, factor: Tensor) -> Tensor:
    rows = gray_level(level).sum(dim=3, keepdim=True)  # whole numbers below 2^24: exact in float32
    mean = as_float64(rows).mean(dim=2, keepdim=True).div_(level.shape[3])
    return blended(level, mean.add_(0.5).floor_().float().to(level.device), factor)


# (images, argument [B 1 1 1]) -> images
COLOURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": lambda level, _: 255 - level,
    "posterize": _posterize,
    "solarize": _solarize,
    "color": lambda level, factor: blended(level, gray_level(level), factor),
    "contrast": _contrast,
    "brightness": lambda level, factor: blended(level, torch.zeros_like(factor), factor),
    "sharpness": lambda level, factor: blended(level, smoothed(level), factor),
    "solarize_add": _solarize_add,
}
