"""MixUp and CutMix: two images of a batch become one, and so do their targets; each image has a
partner, a share and a place of its own, where other libraries draw one share for a batch.

share lambda ~ Beta(alpha, alpha); MixUp (arXiv 1710.09412) adds lambda x_i + (1 - lambda) x_j,
CutMix (arXiv 1905.04899) puts a box of area 1 - lambda of x_j into x_i. Targets are probabilities,
[B K]: of class numbers, `torch.nn.functional.one_hot(label, K).float()`.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from contrapose.augment.draw import bernoulli, uniform
from contrapose.errors import UserError

Mixed = tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]


def mixup(
    image: Float[Tensor, "B C H W"],
    target: Float[Tensor, "B K"],
    generator: Generator,
    *,
    alpha: float = 1.0,
    p: float = 1.0,
) -> Mixed:
    """MixUp: lambda x_i + (1 - lambda) x_j with lambda ~ Beta(alpha, alpha), targets likewise.

    An image is mixed with probability p, else it stays. The paper has alpha = 1 on CIFAR-10 and 0.2
    on ImageNet. The arguments are not changed. Raises UserError unless alpha > 0 and 0 <= p <= 1.
    """
    return MixUp.draw(len(image), generator, alpha=alpha, p=p)(image, target)


def cutmix(
    image: Float[Tensor, "B C H W"],
    target: Float[Tensor, "B K"],
    generator: Generator,
    *,
    alpha: float = 1.0,
    p: float = 1.0,
) -> Mixed:
    """CutMix: a box of x_j pasted into x_i, and targets mixed by the visible area.

    The area of the box is 1 - lambda with lambda ~ Beta(alpha, alpha), before it is cut at the
    border. An image is mixed with probability p. The paper has alpha = 1, with p = 0.5 on CIFAR-10
    and 1 on ImageNet. The arguments are not changed. Raises UserError unless alpha > 0 and 0 <= p
    <= 1.
    """
    return CutMix.draw(len(image), generator, alpha=alpha, p=p)(image, target)


@dataclass(frozen=True, kw_only=True)
class MixUp:
    """`share[b]` of image b and of its target is its own, the rest that of image `partner[b]`."""

    share: Float[Tensor, "B"]
    partner: Int[Tensor, "B"]

    @staticmethod
    def draw(count: int, generator: Generator, *, alpha: float = 1.0, p: float = 1.0) -> "MixUp":
        """share ~ Beta(alpha, alpha) with probability p, else 1; partners are a permutation."""
        return MixUp(share=_shares(count, generator, alpha, p), partner=_partners(count, generator))

    def __call__(self, image: Float[Tensor, "B C H W"], target: Float[Tensor, "B K"]) -> Mixed:
        """New images and targets."""
        share = self.share.to(image.dtype)
        made = torch.lerp(image[self.partner], image, share[:, None, None, None])
        return made, _shared(target, self.partner, share)


@dataclass(frozen=True, kw_only=True)
class CutMix:
    """Within half a height and width of a centre image b shows image `partner[b]`.

    `half[b]`: half the side of the box as a share of the image's; `place[b]`: its centre, (row,
    column) as shares, always a pixel of the image; what lies outside is cut off.
    """

    half: Float[Tensor, "B"]
    place: Float[Tensor, "B 2"]
    partner: Int[Tensor, "B"]

    @staticmethod
    def draw(count: int, generator: Generator, *, alpha: float = 1.0, p: float = 1.0) -> "CutMix":
        """half = sqrt(1 - lambda) / 2, lambda ~ Beta(alpha, alpha) with probability p, else 1."""
        return CutMix(
            half=0.5 * (1 - _shares(count, generator, alpha, p)).sqrt(),
            place=uniform(count, 0.0, 1.0, generator, 2),
            partner=_partners(count, generator),
        )

    def box(self, height: int, width: int) -> Int[Tensor, "B 4"]:
        """(top, left, bottom, right) px, the last two outside the box: torchvision's rounding."""
        side = torch.tensor([height, width], device=self.half.device)
        centre = (self.place * side).floor().minimum(side - 1)
        half = (self.half[:, None] * side).floor()
        low, high = (centre - half).clamp_min(0), (centre + half).minimum(side)
        return torch.cat([low, high], dim=1).long()

    def __call__(self, image: Float[Tensor, "B C H W"], target: Float[Tensor, "B K"]) -> Mixed:
        """New images and targets."""
        height, width = image.shape[2:]
        top, left, bottom, right = (x[:, None] for x in self.box(height, width).unbind(dim=1))
        row, column = (torch.arange(n, device=image.device) for n in (height, width))
        inside = ((row >= top) & (row < bottom))[:, None, :, None]
        inside = inside & ((column >= left) & (column < right))[:, None, None]
        area = ((bottom - top) * (right - left))[:, 0]
        share = (1 - area / (height * width)).to(target.dtype)
        return torch.where(inside, image[self.partner], image), _shared(target, self.partner, share)


def _shares(count: int, generator: Generator, alpha: float, p: float) -> Float[Tensor, "B"]:
    """Beta(alpha, alpha) = a / (a + b) of two gamma variables of that shape, where gamma(alpha) is
    gamma(alpha + 1) u^(1 / alpha): in logarithms, as a small alpha makes both smaller than floats.
    """
    if not 0 < alpha < math.inf:
        raise UserError(f"mixing: asked for alpha={alpha}; use a positive number, such as 1.0")
    shape = torch.full((2, count), alpha + 1, device=generator.device)
    power = (1 - uniform(2, 0.0, 1.0, generator, count)).log() / alpha
    a, b = torch._standard_gamma(shape, generator=generator).log() + power
    return torch.where(bernoulli(count, p, generator), (a - b).sigmoid(), 1.0)


def _partners(count: int, generator: Generator) -> Int[Tensor, "B"]:
    return torch.randperm(count, generator=generator, device=generator.device)


def _shared(
    target: Float[Tensor, "B K"], partner: Int[Tensor, "B"], share: Float[Tensor, "B"]
) -> Float[Tensor, "B K"]:
    return torch.lerp(target[partner], target, share.to(target.dtype)[:, None])
