"""Drops of water or mud on the lens. Water needs what OpenCV calls Canny, distanceTransform and
equalizeHist; here they are batched, in the same arithmetic.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from contrapose.evaluation.corruptions.filters import Image, gaussian, gray, inside

FURTHEST = 20  # px; distances from an edge count up to this
CHAMFER = ((1.0, ((0, 1), (1, 0))), (1.4, ((1, 1), (1, -1))),
           (2.1969, ((1, 2), (2, 1), (1, -2), (2, -1))))  # fmt: skip

Constants = tuple[float, float, float, float, float, int]


def spatter(x: Image, c: Constants, generator: Generator) -> Tensor:
    """Spatter: drops of water, or from severity 4 on of mud, on the lens.

    They are where N(c[0], c[1]) smoothed by c[2] px is above c[3]. Water (c[5] = 0) is lighter at
    its rim and times c[4]; mud (c[5] = 1) has a mask smoothed by c[4] px.
    """
    shape = (len(x), 1, *x.shape[2:])
    layer = torch.randn(shape, generator=generator, device=x.device) * c[1] + c[0]
    return spattered(x, c, layer)


def spattered(x: Image, c: Constants, layer: Float[Tensor, "B 1 H W"]) -> Tensor:
    """Water or mud of these random numbers."""
    liquid = gaussian(layer, c[2])
    if c[5]:
        mask = gaussian((liquid > c[3]).to(x.dtype), c[4])
        mask = torch.where(mask < 0.8, 0.0, mask)
        return x * (1 - mask) + mask * _coloured((63, 42, 20), x)
    level = (torch.where(liquid < c[3], 0.0, liquid) * 255).floor() % 256
    rim = (blur(distance(edges(level, 50, 150)).clamp_max(FURTHEST)) + 1e-4).floor()
    rim = correlated(equalised(rim), ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))).clamp(0, 255)
    rim = level * blur(rim).round()
    amount = rim / rim.amax(dim=(2, 3), keepdim=True).clamp_min(1e-12) * c[4]
    return x + (amount * _coloured((175, 238, 238), x)).clamp(0, 1)


def _coloured(rgb: tuple[int, int, int], x: Image) -> Tensor:
    """One colour of 0-255 as the images have it: itself, or its gray."""
    colour = torch.tensor(rgb, device=x.device, dtype=x.dtype).view(1, 3, 1, 1) / 255
    return colour if x.shape[1] == 3 else gray(colour)


def edges(level: Float[Tensor, "B 1 H W"], low: float, high: float) -> Bool[Tensor, "B 1 H W"]:
    """Canny's: gradients by Sobel, |dx| + |dy|, thinned to their crest, those above `low` that are
    connected to one above `high`.
    """
    around = F.pad(level, (1, 1, 1, 1), mode="replicate")
    smooth = torch.tensor([1.0, 2.0, 1.0], device=level.device)
    step = torch.tensor([-1.0, 0.0, 1.0], device=level.device)
    dx = F.conv2d(around, (smooth[:, None] * step)[None, None])
    dy = F.conv2d(around, (step[:, None] * smooth)[None, None])
    steep = dx.abs() + dy.abs()
    m = F.pad(steep, (1, 1, 1, 1))

    def beside(down: int, right: int) -> Tensor:
        height, width = steep.shape[2:]
        return m[:, :, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    slope = dx.abs() * 13573 / 2**15  # tan 22.5 degrees as OpenCV has it
    flat, upright = dy.abs() < slope, dy.abs() > slope + 2 * dx.abs()
    rising = (dx * dy) >= 0
    across = (steep > beside(0, -1)) & (steep >= beside(0, 1))
    down = (steep > beside(-1, 0)) & (steep >= beside(1, 0))
    falling = (steep > beside(-1, -1)) & (steep > beside(1, 1))
    climbing = (steep > beside(-1, 1)) & (steep > beside(1, -1))
    slanted = torch.where(rising, falling, climbing)
    crest = torch.where(flat, across, torch.where(upright, down, slanted)) & (steep > low)
    found = crest & (steep > high)
    while True:
        grown = (F.max_pool2d(found.float(), 3, 1, 1) > 0) & crest
        if bool((grown == found).all()):
            return found
        found = grown


def distance(edge: Bool[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 H W"]:
    """Length in px of the shortest way to an edge, of steps of 1, 1.4 and 2.1969 px (to the side,
    askew, as a knight); at most a little above FURTHEST.
    """
    far = float(4 * FURTHEST)
    height, width = edge.shape[2:]
    found = torch.where(edge, 0.0, far)
    for _ in range(FURTHEST):
        m = F.pad(found, (2, 2, 2, 2), value=far)
        for length, ways in CHAMFER:
            for down, right in ways:
                for sign in (1, -1):
                    top, left = 2 + sign * down, 2 + sign * right
                    step = m[:, :, top : top + height, left : left + width] + length
                    found = torch.minimum(found, step)
    return found


def blur(level: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 H W"]:
    """The mean of 3 x 3 px."""
    return correlated(level, ((1, 1, 1),) * 3) / 9


def correlated(
    level: Float[Tensor, "B 1 H W"], kernel: tuple[tuple[int, ...], ...]
) -> Float[Tensor, "B 1 H W"]:
    """3 x 3 px, reflected at the border."""
    row, column = (
        inside(torch.arange(-1, side + 1, device=level.device), side, "reflect")
        for side in level.shape[2:]
    )
    weight = torch.tensor(kernel, dtype=level.dtype, device=level.device)
    return F.conv2d(level[:, :, row][..., column], weight[None, None])


def equalised(level: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 H W"]:
    """OpenCV's equalizeHist: the share of lower values, those as low as the lowest left out."""
    flat = level.flatten(1).long()
    histogram = torch.zeros(len(flat), 256, device=level.device)
    histogram.scatter_add_(1, flat, torch.ones_like(flat, dtype=histogram.dtype))
    least = flat.amin(dim=1, keepdim=True)
    fewest = histogram.gather(1, least)
    rest = flat.shape[1] - fewest
    table = ((histogram.cumsum(dim=1) - fewest) * (255 / rest.clamp_min(1))).round().clamp(0, 255)
    table = torch.where(rest > 0, table, least.to(table.dtype))
    return table.gather(1, flat).view_as(level)
