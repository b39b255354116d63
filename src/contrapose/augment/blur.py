"""Gaussian blur, one standard deviation an image: a weight matrix for rows and for columns."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from contrapose.augment.draw import bernoulli, uniform
from contrapose.augment.resample import multiply
from contrapose.errors import UserError

SMALL = 64  # px; up to this side a CPU multiplies by whole matrices


@dataclass(frozen=True, kw_only=True)
class Blur:
    """Gaussian blur as drawn: standard deviation `sigma[b]` px (0: none), kernel 2 radius + 1 px.

    The image is continued by reflection at its borders, so the radius is at most side - 1 px.
    """

    sigma: Float[Tensor, "B"]
    radius: int

    @staticmethod
    def draw(
        count: int,
        generator: Generator,
        *,
        side: int,
        sigma: tuple[float, float] = (0.1, 2.0),
        p: float = 0.5,
    ) -> "Blur":
        """sigma ~ U(sigma) px with probability p; kernel = a tenth of `side` px made odd (SimCLR,
        appendix A). Raises UserError unless 0 < sigma[0] <= sigma[1] and 0 <= p <= 1.
        """
        if not 0 < sigma[0] <= sigma[1]:
            raise UserError(f"Blur.draw: asked for sigma={sigma} px; use 0 < low <= high")
        width = uniform(count, *sigma, generator)
        return Blur(
            sigma=torch.where(bernoulli(count, p, generator), width, 0.0), radius=side // 10 // 2
        )

    def __getitem__(self, rows: Tensor) -> "Blur":
        return Blur(sigma=self.sigma[rows], radius=self.radius)

    def __call__(self, image: Float[Tensor, "B C side side"]) -> None:
        """Applied in place."""
        side = image.shape[-1]
        radius = min(self.radius, side - 1)
        if radius < 1 or not len(image):
            return
        if image.device.type != "cpu":
            weight = reflected(self.sigma, radius, side)
            image.copy_(multiply(image, weight, weight))
            return
        rows = self.sigma.nonzero()[:, 0]
        block = max(d for d in range(1, 25) if side % d == 0)
        if side <= SMALL or block < 8:
            weight = reflected(self.sigma[rows], radius, side)
            image[rows] = multiply(image.index_select(0, rows), weight, weight)
        else:
            offset = torch.arange(block + 2 * radius) - torch.arange(block)[:, None] - radius
            weight = gaussian(offset, self.sigma[rows], radius)
            for i, row in enumerate(rows.tolist()):
                _blur_by_band(image[row], weight[i], radius)


def gaussian(offset: Tensor, sigma: Float[Tensor, "B"], radius: int) -> Float[Tensor, "B ..."]:
    """exp(-offset^2 / 2 sigma^2) within the radius, over its sum on -radius..radius; sigma = 0 is
    the identity.
    """
    precision = 0.5 / sigma.clamp_min(1e-3).square()
    tap = torch.arange(-radius, radius + 1, device=sigma.device)
    total = torch.exp(-precision[:, None] * tap.square()).sum(dim=1)
    shape = (-1, *[1] * offset.dim())
    bell = torch.exp(-precision.view(shape) * offset.square()) / total.view(shape)
    return bell.masked_fill_(offset.abs() > radius, 0.0)


def reflected(sigma: Float[Tensor, "B"], radius: int, side: int) -> Float[Tensor, "B side side"]:
    """w_ij, the weight of pixel j in blurred pixel i: of j and of its mirror images -j and
    2 (side - 1) - j (the border pixel is not repeated).
    """
    j = torch.arange(side, device=sigma.device)
    i = j[:, None]
    near = gaussian(i + j, sigma, radius) * (j > 0)
    far = gaussian(2 * (side - 1) - i - j, sigma, radius) * (j < side - 1)
    return gaussian(i - j, sigma, radius) + near + far


def _blur_by_band(
    image: Float[Tensor, "C side side"], weight: Float[Tensor, "block K"], radius: int
) -> None:
    """The blur of one image in place, by a product with the nonzero band of the weight matrix.

    `weight` maps K = block + 2 radius input pixels to `block` output pixels; the inputs of all
    blocks are one strided view of the padded image.
    """
    channels, side, _ = image.shape
    block, window = weight.shape
    blocks, wide = side // block, side + 2 * radius
    weights = weight.expand(blocks, block, window)
    padded = F.pad(image, (radius,) * 4, mode="reflect")
    short = torch.empty(channels, side, wide)
    for c in range(channels):
        windows = padded[c].as_strided((blocks, window, wide), (block * wide, wide, 1))
        torch.bmm(weights, windows, out=short[c].view(blocks, block, wide))
    windows = short.as_strided((blocks, channels * side, window), (block, wide, 1))
    target = image.view(channels * side, blocks, block).transpose(0, 1)
    torch.bmm(windows, weights.mT, out=target)
