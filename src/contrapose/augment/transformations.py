"""The transformations of SimCLR's study (arXiv 2002.05709, figures 4 and 5), and policies of them.

Rotation, Sobel filtering and Gaussian noise in place on a float batch; crop, cutout, colour and
blur are those of the other files. The paper does not say the size of its cutout, the deviation of
its noise and how it filters; what is taken here stands with each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Generator, Tensor

from contrapose.augment.blur import Blur
from contrapose.augment.colour import RGB, Grayscale, Jitter, gray_of
from contrapose.augment.crop import draw_box
from contrapose.augment.draw import bernoulli, integers, normal, uniform
from contrapose.augment.operations import CODE, ImageOperations
from contrapose.augment.view import Operation, render
from contrapose.errors import UserError

TRANSFORMATIONS = ("crop", "cutout", "colour", "sobel", "noise", "blur", "rotate")
NOISE = 0.1  # standard deviation, of values in [0, 1]
CUTOUT = 0.5  # side of the square, as a share of the image's (16 of 32 px, arXiv 1708.04552)


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Rotation by quarter turns as drawn: `turns[b]` of 90 degrees, counterclockwise; square
    images."""

    turns: Int[Tensor, "B"]

    @staticmethod
    def draw(count: int, generator: Generator) -> "Rotation":
        """0, 90, 180 or 270 degrees, equally likely."""
        return Rotation(turns=integers(count, 4, generator))

    def __getitem__(self, rows: Tensor) -> "Rotation":
        return Rotation(turns=self.turns[rows])

    def __call__(self, image: Float[Tensor, "B C H W"]) -> None:
        """Applied in place. Raises UserError for images that are not square."""
        if image.shape[2] != image.shape[3]:
            raise UserError(f"Rotation: images of {tuple(image.shape[2:])} px; they must be square")
        turned = [image, *(torch.rot90(image, k, (2, 3)) for k in (1, 2, 3))]
        which = self.turns.view(-1, 1, 1, 1)
        out = image.clone()
        for k, made in enumerate(turned[1:], start=1):
            out = torch.where(which == k, made, out)
        image.copy_(out)


@dataclass(frozen=True, kw_only=True)
class Sobel:
    """Sobel filtering as drawn: images with `on` become the length of their gradient.

    |(g_x, g_y)| / 4 of the gray image, the same in each channel, with the kernels of Sobel
    ([1 2 1] across [-1 0 1]), whose largest answer to values in [0, 1] is 4; the border repeats.
    """

    on: Bool[Tensor, "B"]

    @staticmethod
    def draw(count: int, generator: Generator, *, p: float = 1.0) -> "Sobel":
        """With probability p each."""
        return Sobel(on=bernoulli(count, p, generator))

    def __getitem__(self, rows: Tensor) -> "Sobel":
        return Sobel(on=self.on[rows])

    def __call__(self, image: Float[Tensor, "B C H W"]) -> None:
        """Applied in place."""
        gray = gray_of(image[:, :3] if image.shape[1] >= 3 else image[:, :1])
        across = torch.tensor([[-1.0, 0.0, 1.0]]) * torch.tensor([[1.0], [2.0], [1.0]])
        kernel = torch.stack([across, across.T])[:, None].to(gray)
        length = F.conv2d(F.pad(gray, (1, 1, 1, 1), mode="replicate"), kernel).norm(dim=1) / 4
        edges = length[:, None].clamp(max=1).expand_as(image)
        image.copy_(torch.where(self.on.view(-1, 1, 1, 1), edges, image))


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Gaussian noise as drawn: what is added to each value of the images with `on`."""

    on: Bool[Tensor, "B"]
    value: Float[Tensor, "B C H W"]

    @staticmethod
    def draw(
        shape: Sequence[int], generator: Generator, *, std: float = NOISE, p: float = 1.0
    ) -> "Noise":
        """N(0, std^2) for a batch of this shape, with probability p each. Raises UserError for
        std < 0."""
        if not std >= 0:
            raise UserError(f"Noise.draw: asked for std={std}; use at least 0")
        value = normal(shape[0], generator, *shape[1:]) * std
        return Noise(on=bernoulli(shape[0], p, generator), value=value)

    def __getitem__(self, rows: Tensor) -> "Noise":
        return replace(self, on=self.on[rows], value=self.value[rows])

    def __call__(self, image: Float[Tensor, "B C H W"]) -> None:
        """Applied in place, and cut off to [0, 1]."""
        image.add_(self.value * self.on.view(-1, 1, 1, 1)).clamp_(0, 1)


def transformed(
    image: Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"],
    generator: Generator,
    *,
    size: int,
    by: tuple[str, ...] = (),
    strength: float = 1.0,
    area: tuple[float, float] = (0.08, 1.0),
    p: float = 1.0,
    rgb: RGB | None = None,
) -> Float[Tensor, "B C size size"]:
    """Each image through these of TRANSFORMATIONS in turn, always; with none as it is.

    p: with this probability for sobel and noise. crop: area 0.08-1 and a flip with p 0.5. colour:
    jitter with p 0.8 and grayscale with p 0.2, of `strength`. blur: of every image, by a kernel of
    at least 3 px. SimCLR's study gives one branch such a view and leaves the other alone
    (`branches`). Raises UserError for another name.
    """
    for name in by:
        if name not in TRANSFORMATIONS:
            raise UserError(f"transformed: by={name}; use {', '.join(TRANSFORMATIONS)}")
    count, channels, height, width = image.shape
    whole = torch.tensor([0, 0, height, width], device=image.device).expand(count, 4)
    view, box, flip, steps = image, whole, None, list[Operation]()
    for name in by:
        if name == "crop":
            if steps:  # what came before belongs to the picture that is cropped
                view = render(view, box, size, flip=flip, steps=steps)
                steps = []
            box = draw_box(count, view.shape[2], view.shape[3], generator, area=area)
            flip = bernoulli(count, 0.5, generator)
        else:
            shape = (count, channels, size, size)
            steps += _drawn(name, shape, generator, strength, p, rgb)
    return render(view, box, size, flip=flip, steps=steps)


def _drawn(
    name: str,
    shape: tuple[int, int, int, int],
    generator: Generator,
    strength: float,
    p: float,
    rgb: RGB | None,
) -> list[Operation]:
    """The draws of one transformation that is no crop, for views of this shape."""
    count, _, size, _ = shape
    if name == "cutout":
        half = torch.full((count, 1), CUTOUT * size / 2, device=generator.device)
        code = torch.full_like(half, CODE["cutout"]).long()
        place = uniform(count, 0.0, 1.0, generator, 1, 2)
        return [ImageOperations(code=code, argument=half, place=place, fill=0, rgb=rgb)]
    if name == "colour":
        s = 0.8 * strength
        jitter = Jitter.draw(
            count, generator, brightness=s, contrast=s, saturation=s, hue=s / 4, p=0.8, rgb=rgb
        )
        return [jitter, Grayscale.draw(count, generator, p=0.2, rgb=rgb)]
    if name == "sobel":
        return [Sobel.draw(count, generator, p=p)]
    if name == "noise":
        return [Noise.draw(shape, generator, p=p)]
    if name == "blur":
        return [Blur.draw(count, generator, side=max(30, size), p=1.0)]
    return [Rotation.draw(count, generator)]
