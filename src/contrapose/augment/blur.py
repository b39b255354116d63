"""Gaussian blur, a width of its own for each image."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from contrapose.augment.draw import chance, uniform
from contrapose.augment.resample import banded, block_of, dense


@dataclass(frozen=True, kw_only=True)
class Blur:
    """Gaussian blur of `sigma[b]` px within a kernel of 2 radius + 1 px; 0 leaves an image alone.

    Borders reflect, so the radius is held to side - 1 px: a kernel never needs a pixel twice.
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
        appendix A). Raises ValueError unless 0 < sigma[0] <= sigma[1].
        """
        if not 0 < sigma[0] <= sigma[1]:
            raise ValueError(f"Blur.draw: asked for sigma={sigma} px; use 0 < low <= high")
        width = uniform(count, *sigma, generator)
        on = chance(count, p, generator)
        return Blur(sigma=torch.where(on, width, 0.0), radius=side // 10 // 2)

    def __getitem__(self, rows: Tensor) -> "Blur":
        return Blur(sigma=self.sigma[rows], radius=self.radius)

    def __call__(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Applied in place on square images."""
        side = image.shape[-1]
        radius = min(self.radius, side - 1)
        if radius < 1 or not len(image):
            return image
        if image.device.type != "cpu":
            weight = reflected_weights(self.sigma, radius, side)
            dense(image.clone(), weight, weight, image)
            return image
        rows = self.sigma.nonzero()[:, 0]
        block = block_of(side, image.device)
        if block == side:
            weight = reflected_weights(self.sigma[rows], radius, side)
            blurred = torch.empty_like(image[rows])
            dense(image[rows], weight, weight, blurred)
            image[rows] = blurred
        else:
            self._banded(image, rows, radius, block)
        return image

    def _banded(self, image: Tensor, rows: Tensor, radius: int, block: int) -> None:
        side = image.shape[-1]
        offset = torch.arange(block + 2 * radius) - torch.arange(block)[:, None] - radius
        weight = gaussian(offset, self.sigma[rows], radius)
        for i, row in enumerate(rows.tolist()):
            frame = F.pad(image[row], (radius,) * 4, mode="reflect")
            window = weight[i].expand(side // block, -1, -1)
            banded(frame, window, block, window, block, image[row])


def gaussian(
    offset: Float[Tensor, "..."], sigma: Float[Tensor, "B"], radius: int
) -> Float[Tensor, "B ..."]:
    """exp(-offset^2 / 2 sigma^2) within the radius, over its sum on -radius..radius; sigma = 0 is
    the identity.
    """
    tap = torch.arange(-radius, radius + 1, device=sigma.device)
    precision = 0.5 / sigma.clamp_min(1e-3).square()
    total = torch.exp(-precision[:, None] * tap.square()).sum(dim=1)
    shape = (-1, *[1] * offset.dim())
    bell = torch.exp(-precision.view(shape) * offset.square()) / total.view(shape)
    return bell.masked_fill_(offset.abs() > radius, 0.0)


def reflected_weights(
    sigma: Float[Tensor, "B"], radius: int, side: int
) -> Float[Tensor, "B side side"]:
    """Row i weighs the pixels of a line for its blurred pixel i: at j, at its mirror images -j and
    2 (side - 1) - j (the border itself is not repeated).
    """
    j = torch.arange(side, device=sigma.device)
    i = j[:, None]
    near = gaussian(i + j, sigma, radius) * (j > 0)
    far = gaussian(2 * (side - 1) - i - j, sigma, radius) * (j < side - 1)
    return gaussian(i - j, sigma, radius) + near + far
