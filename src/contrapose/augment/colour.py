"""Colour augmentations: jitter in random order, grayscale, solarise; in place on a float batch.

Brightness, contrast and saturation are the same operation, `clamp(lerp(anchor, image, factor))`;
the anchor is black, the mean gray of the image, or the gray of each pixel. The hue is rotated in
HSV exactly. An image with one channel has no hue and no saturation, so these leave it as it is. For
images with other numbers of channels `rgb` names the three that are red, green and blue, counted
from 0: these change, the others stay.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from contrapose.augment.draw import bernoulli, uniform
from contrapose.errors import UserError

RGB = tuple[int, int, int]
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Colour jitter as drawn: for each image the order of the four operations and their strength.

    `order[b]` lists the operations of image b (0 brightness, 1 contrast, 2 saturation, 3 hue).
    `factor[b, op]` is the factor of the first three (1 changes nothing) and the rotation of the
    hue, -0.5 to 0.5 of a full turn. An image whose `on[b]` is False is left unchanged.
    """

    on: Bool[Tensor, "B"]
    order: Int[Tensor, "B 4"]
    factor: Float[Tensor, "B 4"]
    rgb: RGB | None = None

    @staticmethod
    def draw(
        count: int,
        generator: Generator,
        *,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        p: float = 1.0,
        rgb: RGB | None = None,
    ) -> "Jitter":
        """factor ~ U(max(0, 1 - strength), 1 + strength), turn ~ U(-hue, hue), orders equally
        likely, all with probability p (torchvision's ColorJitter).

        Raises UserError for a strength < 0, hue > 0.5 or p outside [0, 1].
        """
        strengths = (brightness, contrast, saturation)
        if min(strengths) < 0 or not 0 <= hue <= 0.5:
            raise UserError(
                f"Jitter.draw: asked for brightness, contrast, saturation = {strengths}, hue={hue};"
                " use strengths >= 0 and 0 <= hue <= 0.5"
            )
        factor = [uniform(count, max(0.0, 1 - s), 1 + s, generator) for s in strengths]
        turn = uniform(count, -hue, hue, generator)
        return Jitter(
            on=bernoulli(count, p, generator),
            order=uniform(count, 0.0, 1.0, generator, 4).argsort(dim=1),
            factor=torch.stack([*factor, turn], dim=1),
            rgb=rgb,
        )

    def __getitem__(self, rows: Tensor) -> "Jitter":
        return replace(self, on=self.on[rows], order=self.order[rows], factor=self.factor[rows])

    def before_hue(self) -> Int[Tensor, "B"]:
        """How many operations come before the hue; -1 for an image that is left alone."""
        return torch.where(self.on, (self.order == HUE).int().argmax(dim=1), -1)

    def __call__(self, image: Float[Tensor, "B C H W"]) -> None:
        """Applied in place. Raises UserError unless C is 1 or 3, or `rgb` names three of them.

        The hue of all images is rotated at once, between at most three operations before it and
        three after it. With the images sorted by `before_hue` each of the seven steps is a slice.
        """
        if self.rgb is not None:
            on_three(replace(self, rgb=None), image, self.rgb, "Jitter")
            return
        check_colour(image, "Jitter")
        before = self.before_hue()
        if image.device.type == "cpu":
            if (before.diff() > 0).any():
                rows = before.argsort(descending=True)
                chosen = image.index_select(0, rows)
                self[rows](chosen)
                torch.index_select(chosen, 0, rows.argsort(), out=image)
                return
            at_least = (before[:, None] >= torch.arange(4)).sum(dim=0).tolist()
            spans = [slice(0, n) for n in at_least[1:]]
            spans += [slice(n, at_least[0]) for n in reversed(at_least[1:])]
            on = slice(0, at_least[0])
        else:  # every step for every image, with factor 1 where it has none: nothing to wait for
            spans, on = [slice(None)] * 6, slice(None)

        operation, factor = self._steps(before)
        for step in (0, 1, 2):
            span = spans[step]
            _away_from_anchor(image[span], operation[span, step], factor[span, step])
        turn = torch.where(self.on, self.factor[:, HUE], 0.0)
        if image.device.type != "cpu" or bool(turn.any()):
            turn_hue(image[on], turn[on])
        for step in (3, 4, 5):
            span = spans[step]
            _away_from_anchor(image[span], operation[span, step], factor[span, step])

    def _steps(self, before: Tensor) -> tuple[Int[Tensor, "B 6"], Float[Tensor, "B 6"]]:
        """Operation and factor of the three steps before the hue and the three after it."""
        step = torch.arange(3, device=before.device).expand(len(before), 3)
        place = torch.cat([step, before[:, None] + 1 + step], dim=1)
        used = torch.cat([step < before[:, None], place[:, 3:] <= 3], dim=1) & self.on[:, None]
        operation = self.order.gather(1, place.clamp(max=3))
        return operation, torch.where(used, self.factor.gather(1, operation), 1.0)


def _away_from_anchor(image: Tensor, operation: Tensor, factor: Tensor) -> None:
    """clamp(factor image + (1 - factor) anchor), in place; factor 1 changes nothing."""
    if not len(image):
        return
    anchor = gray_of(image)
    mean = torch.where(operation == CONTRAST, anchor.mean(dim=(1, 2, 3)), 0.0)
    pixel = (operation == SATURATION).to(image.dtype)
    anchor.mul_(pixel.view(-1, 1, 1, 1)).add_(mean.view(-1, 1, 1, 1))
    torch.lerp(anchor, image, factor.view(-1, 1, 1, 1), out=image).clamp_(0, 1)


def gray_of(image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    """0.2989 R + 0.587 G + 0.114 B (ITU-R 601, torchvision's digits); a copy for one channel."""
    if image.shape[1] == 1:
        return image.clone()
    red, green, blue = torch.split(image, 1, dim=1)
    gray: Tensor = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return gray


def turn_hue(image: Float[Tensor, "B C H W"], turn: Float[Tensor, "B"]) -> None:
    """h <- h + turn (1 is a full turn) at fixed value and saturation of HSV, in place.

    With V = max, m = min, hue h in turns: channel c = m + (V - m) clamp(6 |h - h_c| - 1, 0, 1),
    where |.| is the distance on the circle and h_c the hue opposite to pure c.
    """
    if image.shape[1] == 1 or not len(image):
        return
    red, green, blue = image.unbind(dim=1)
    high, lower = torch.maximum(green, blue), torch.minimum(green, blue)
    blue_leads = _as_float(green, blue)
    red_trails = _as_float(red, high)
    middle, high = torch.minimum(red, high), torch.maximum(red, high)
    low = torch.minimum(middle, lower)
    chroma = high.sub_(low)

    # hue = |sector + (middle - lower) / 6 chroma| with the two comparisons choosing the sector
    sector = torch.addcmul(blue_leads.neg(), red_trails, blue_leads.mul_(2).sub_(1 / 3))
    hue = middle.sub_(lower).div_(torch.mul(chroma, 6, out=lower).clamp_min_(1e-20))
    hue.add_(sector).abs_().add_(turn.view(-1, 1, 1))

    for channel, opposite in enumerate((1 / 2, 5 / 6, 1 / 6)):  # cyan, magenta, yellow
        torch.sub(hue, opposite, out=image[:, channel])
    image.sub_(image.round()).abs_().mul_(6).sub_(1).clamp_(0, 1)
    torch.addcmul(low[:, None], chroma[:, None], image, out=image)


def _as_float(a: Tensor, b: Tensor) -> Tensor:
    """1 where a < b, else 0."""
    return torch.lt(a, b, out=torch.empty_like(b, memory_format=torch.contiguous_format))


@dataclass(frozen=True, kw_only=True)
class Grayscale:
    """Grayscale as drawn: red, green and blue of the images with `on` become their gray."""

    on: Bool[Tensor, "B"]
    rgb: RGB | None = None

    @staticmethod
    def draw(count: int, generator: Generator, *, p: float, rgb: RGB | None = None) -> "Grayscale":
        """With probability p each."""
        return Grayscale(on=bernoulli(count, p, generator), rgb=rgb)

    def __getitem__(self, rows: Tensor) -> "Grayscale":
        return replace(self, on=self.on[rows])

    def __call__(self, image: Float[Tensor, "B C H W"]) -> None:
        """Applied in place. Raises UserError unless C is 1 or 3, or `rgb` names three of them."""
        if self.rgb is not None:
            on_three(replace(self, rgb=None), image, self.rgb, "Grayscale")
            return
        check_colour(image, "Grayscale")
        colour = torch.where(self.on, 0.0, 1.0).view(-1, 1, 1, 1)
        torch.lerp(gray_of(image), image, colour, out=image)


@dataclass(frozen=True, kw_only=True)
class Solarise:
    """Solarisation as drawn: values x >= threshold of the images with `on` become 1 - x."""

    on: Bool[Tensor, "B"]
    threshold: float = 0.5

    @staticmethod
    def draw(count: int, generator: Generator, *, p: float, threshold: float = 0.5) -> "Solarise":
        """With probability p each (BYOL's second view: p = 0.2, threshold 128 / 255)."""
        return Solarise(on=bernoulli(count, p, generator), threshold=threshold)

    def __getitem__(self, rows: Tensor) -> "Solarise":
        return Solarise(on=self.on[rows], threshold=self.threshold)

    def __call__(self, image: Float[Tensor, "B C H W"]) -> None:
        """Applied in place."""
        inverted = self.on.view(-1, 1, 1, 1) & (image >= self.threshold)
        image.copy_(torch.where(inverted, 1 - image, image))


def on_three(step: Callable[[Tensor], None], image: Tensor, rgb: RGB, what: str) -> None:
    """Apply `step` to the three channels `rgb` as red, green and blue; the others stay."""
    check_rgb(image, rgb, what)
    part = image[:, list(rgb)]
    step(part)
    image[:, list(rgb)] = part


def check_rgb(image: Tensor, rgb: RGB, what: str) -> None:
    """Raises UserError unless these are three different channels of the images."""
    if len(set(rgb)) != 3 or not all(0 <= c < image.shape[1] for c in rgb):
        raise UserError(
            f"{what}: rgb={rgb} of images with {image.shape[1]} channels; name three different ones"
            f" from 0 to {image.shape[1] - 1}"
        )


def check_colour(image: Tensor, what: str) -> None:
    """Raises UserError unless the images have one or three channels: others name their colours."""
    if image.shape[1] not in (1, 3):
        raise UserError(
            f"{what}: asked to change the colour of {image.shape[1]} channels; name those that are"
            " red, green and blue, counted from 0 (--rgb 3,2,1, rgb=(3, 2, 1)), or take views"
            " without colour (--set views=crop_flip)"
        )
