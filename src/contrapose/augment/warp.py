"""SimAugment's warp: four points inside an image are moved, and all else follows smoothly.

The thin-plate spline through the moved points: f(x) = sum_i w_i phi(|x - c_i|) + A x + b with
phi(r) = r^2 log r, f(c_i) = d_i, sum_i w_i = 0 and sum_i w_i c_i = 0, where the c_i are where the
points went and d_i by how much. The pixel x then shows the image at x - f(x), bilinearly, and the
nearest pixel of the border where that is outside.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from contrapose.augment.draw import bernoulli, normal, uniform
from contrapose.errors import UserError
from contrapose.machine import as_float64

FURTHEST = 23 / 224  # of the side: 23 px of 224 in the published code


@dataclass(frozen=True, kw_only=True)
class Warp:
    """Points at 1/3 and 2/3 of the side move by `shift[b]`, (down, right) as shares of the side,
    in the order (1/3, 1/3), (1/3, 2/3), (2/3, 1/3), (2/3, 2/3); an image with `on` False stays.
    """

    on: Bool[Tensor, "B"]
    shift: Float[Tensor, "B 4 2"]

    @staticmethod
    def draw(
        count: int, generator: Generator, *, p: float = 0.5, furthest: float = FURTHEST
    ) -> "Warp":
        """shift = length * N(0, 1) in each coordinate, one length ~ U(0, furthest) for all four
        points of an image, with probability p. Raises UserError unless 0 <= p <= 1 and
        furthest >= 0.
        """
        if furthest < 0:
            raise UserError(f"Warp.draw: asked for furthest={furthest} of the side; use 0 or more")
        length = uniform(count, 0.0, furthest, generator)
        drawn = normal(count, generator, 4, 2)
        return Warp(on=bernoulli(count, p, generator), shift=drawn * length[:, None, None])

    def __getitem__(self, rows: Tensor) -> "Warp":
        return Warp(on=self.on[rows], shift=self.shift[rows])

    def __call__(self, image: Float[Tensor, "B C H W"]) -> None:
        """Applied in place."""
        if image.device.type != "cpu":
            shift = torch.where(self.on[:, None, None], self.shift, 0.0)
            image.copy_(warped(image, shift))
            return
        rows = self.on.nonzero()[:, 0]
        if len(rows):
            image[rows] = warped(image.index_select(0, rows), self.shift[rows])


def warped(
    image: Float[Tensor, "B C H W"], shift: Float[Tensor, "B 4 2"]
) -> Float[Tensor, "B C H W"]:
    """The image under the spline's flow; in float64 as far as the four points are concerned."""
    height, width = image.shape[2:]
    exact = as_float64(shift)
    side = torch.tensor([height, width], dtype=exact.dtype, device=exact.device)
    third = torch.tensor([1 / 3, 2 / 3], dtype=exact.dtype, device=exact.device)
    start = torch.cartesian_prod(third, third) * side
    move = exact * side
    middle, unit = (
        side / 2,
        (height + width) / 2,
    )  # coordinates near 1: the system is well conditioned
    centre = (start + move - middle) / unit
    weight, linear = (found.float().to(image.device) for found in spline(centre, move))

    y = torch.arange(height, device=image.device)[:, None] - height / 2
    x = torch.arange(width, device=image.device) - width / 2
    y, x, centre = y / unit, x / unit, centre.float().to(image.device)
    flow = linear[:, None, None, 2] + y[..., None] * linear[:, None, None, 0]
    flow = flow + x[:, None] * linear[:, None, None, 1]
    for i in range(4):
        squared = (y - centre[:, i, 0, None, None]).square()
        squared = squared + (x - centre[:, i, 1, None, None]).square()
        flow += phi(squared)[..., None] * weight[:, None, None, i]
    pixel = torch.arange(max(height, width), device=image.device)
    row = pixel[:height, None] - flow[..., 0]
    column = pixel[:width] - flow[..., 1]
    grid = torch.stack(
        [2 * column / max(width - 1, 1) - 1, 2 * row / max(height - 1, 1) - 1], dim=-1
    )
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def spline(
    centre: Float[Tensor, "B N 2"], value: Float[Tensor, "B N 2"]
) -> tuple[Float[Tensor, "B N 2"], Float[Tensor, "B 3 2"]]:
    """w_i, and A above b, of the thin-plate spline through `value` at `centre`."""
    count, n, _ = centre.shape
    between = phi((centre[:, :, None] - centre[:, None]).square().sum(dim=3))
    affine = torch.cat([centre, torch.ones_like(centre[..., :1])], dim=2)
    system = torch.zeros(count, n + 3, n + 3, dtype=centre.dtype, device=centre.device)
    system[:, :n, :n] = between
    system[:, :n, n:] = affine
    system[:, n:, :n] = affine.mT
    known = F.pad(value, (0, 0, 0, 3))
    found = torch.linalg.solve_ex(system, known).result
    return found[:, :n], found[:, n:]


def phi(squared: Tensor) -> Tensor:
    """r^2 log r of squared distances r^2."""
    return 0.5 * torch.xlogy(squared, squared)
