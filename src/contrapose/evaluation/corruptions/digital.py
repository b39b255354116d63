"""Contrast, saturation, pixels and JPEG. `x` in [0, 1], [B C H W]; constants in `table`."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from contrapose.evaluation.corruptions.filters import Image, both_ways

# of the standard's annex K, for quality 50
LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113,
    92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *[99] * 32,
)  # fmt: skip
TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def contrast(x: Image, c: float, generator: Generator) -> Tensor:
    """Contrast: (x - mean) c + mean, the mean that of a channel."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (x - mean) * c + mean


def saturate(x: Image, c: tuple[float, float], generator: Generator) -> Tensor:
    """Saturation: S becomes S' = S c[0] + c[1] in HSV.

    With S = 1 - min / max the colour is V - (V - x) S' / S. Gray pixels count as red, whose hue
    they have.
    """
    value, low = x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True)
    saturation = torch.where(value > 0, (value - low) / value.clamp_min(1e-12), 0.0)
    wanted = (saturation * c[0] + c[1]).clamp(0, 1)
    vivid = value - (value - x) * (wanted / saturation.clamp_min(1e-12))
    red = torch.cat([value, value * (1 - wanted), value * (1 - wanted)], dim=1)
    return torch.where(saturation > 0, vivid, red)


def pixelate(x: Image, c: float, generator: Generator) -> Tensor:
    """Pixels: shrunk c times with a box filter, as 8 bits, and enlarged to squares."""
    height, width = x.shape[2:]
    small = [max(int(side * c), 1) for side in (height, width)]
    rows, columns = (box_matrix(n, k).to(x) for n, k in zip((height, width), small, strict=True))
    level = (x * 255).round()
    level = (level @ columns.mT + 0.5).floor().clamp(0, 255)
    level = (rows @ level + 0.5).floor().clamp(0, 255)
    row, column = (
        ((torch.arange(n, device=x.device) + 0.5) * k / n).long()
        for n, k in zip((height, width), small, strict=True)
    )
    return level[:, :, row][..., column] / 255


def box_matrix(side: int, small: int) -> Float[Tensor, "small side"]:
    """Equal weights for the pixels whose centre is in an output pixel's window: Pillow's BOX."""
    scale = side / small
    centre = (torch.arange(small, dtype=torch.double)[:, None] + 0.5) * scale
    offset = (torch.arange(side, dtype=torch.double) + 0.5 - centre) / scale
    weight = ((offset > -0.5) & (offset <= 0.5)).double()
    return weight / weight.sum(dim=1, keepdim=True)


def jpeg_compression(x: Image, c: int, generator: Generator) -> Tensor:
    """JPEG: what is left of an image that was encoded at quality c.

    8 x 8 cosine transforms, rounded to multiples of the standard's tables, colour at half the
    resolution; nothing is encoded. One channel has no colour.
    """
    height, width = x.shape[2:]
    size = [math.ceil(side / 16) * 16 for side in (height, width)]
    level = (x * 255).round()
    if x.shape[1] == 1:
        return through_blocks(_padded(level, *size) - 128, LUMINANCE, c)[..., :height, :width] / 255
    ycc = torch.einsum("kc,bchw->bkhw", torch.tensor(TO_YCC).to(x), level)
    luma, chroma = ycc[:, :1], ycc[:, 1:]
    luma = through_blocks(_padded((luma + 0.5).floor() - 128, *size), LUMINANCE, c)
    # encoders repeat the last column before they halve it, and the last row of what was halved
    half = _halved(_padded((chroma + 0.5).floor(), height + height % 2, size[1]))
    half = _padded(half, size[0] // 2, size[1] // 2)
    half = through_blocks(half, CHROMINANCE, c) - 128
    half = half[..., : math.ceil(height / 2), : math.ceil(width / 2)]
    full = torch.cat([luma[..., :height, :width], _doubled(half)[..., :height, :width]], dim=1)
    rgb = torch.einsum("kc,bchw->bkhw", torch.tensor(TO_RGB).to(x), full)
    return rgb.round().clamp(0, 255) / 255


def through_blocks(
    level: Float[Tensor, "B C H W"], table: tuple[int, ...], quality: int
) -> Float[Tensor, "B C H W"]:
    """Values about 0 to values of 0-255 by way of their quantised cosine transforms."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    step = ((torch.tensor(table) * scale + 50) // 100).clamp(1, 255).view(8, 8).to(level)
    frequency = torch.arange(8, dtype=torch.double)
    basis = torch.cos((2 * frequency + 1) * frequency[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    basis = basis.to(level)
    blocks = level.unfold(2, 8, 8).unfold(3, 8, 8)
    wave = (8 * both_ways(blocks, basis, basis)).round()  # whole eighths, as encoders hold them
    wave = wave.sign() * ((wave.abs() + 4 * step) / (8 * step)).floor() * step
    made = both_ways(wave, basis.mT, basis.mT)
    made = made.transpose(3, 4).reshape(level.shape)
    return (made + 128.5).floor().clamp(0, 255)


def _padded(level: Tensor, height: int, width: int) -> Tensor:
    """Its last row and column repeated."""
    more = (0, width - level.shape[3], 0, height - level.shape[2])
    return F.pad(level, more, mode="replicate") if any(more) else level


def _halved(level: Tensor) -> Tensor:
    """Means of squares of four, rounded down and up in turns, about 0."""
    total = 4 * F.avg_pool2d(level, 2)
    bias = 1 + torch.arange(total.shape[3], device=level.device) % 2
    return ((total + bias) / 4).floor()


def _doubled(level: Tensor) -> Tensor:
    """Three quarters of the nearest value and a quarter of the next, each way."""
    for axis in (2, 3):
        last = level.shape[axis] - 1
        index = torch.arange(last + 1, device=level.device)
        before = level.index_select(axis, (index - 1).clamp_min(0))
        after = level.index_select(axis, (index + 1).clamp_max(last))
        pair = torch.stack([3 * level + before, 3 * level + after], dim=axis + 1)
        level = pair.flatten(axis, axis + 1)
    low_high = torch.arange(level.shape[3], device=level.device) % 2
    return ((level + 8 - low_high) / 16).floor()
