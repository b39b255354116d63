"""From what was drawn to pixels: crop and flip, then the steps of a policy in their order."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Generator, Tensor

from contrapose.augment.chunks import in_chunks
from contrapose.augment.colour import Jitter
from contrapose.augment.crop import resized_crop
from contrapose.augment.resample import Filter


class Step(Protocol):
    """One augmentation as drawn for a batch: choose rows of the draw; apply to a float batch."""

    def __getitem__(self, rows: Tensor) -> "Step": ...

    def __call__(self, image: Tensor) -> Tensor: ...


def render(
    image: Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"],
    box: Int[Tensor, "B 4"],
    size: int,
    *,
    flip: Bool[Tensor, "B"] | None = None,
    steps: Sequence[Step] = (),
    filter: Filter = "bilinear",
) -> Float[Tensor, "B C size size"]:
    """Crop, resize, flip, then every step in turn, clamped to [0, 1].

    On a CPU in pieces that fit the cache, spread over torch's threads, images with the same place
    of the hue together; the result does not depend on the pieces.
    """
    if image.device.type != "cpu":
        return _render(image, box, size, flip, steps, filter)
    out = torch.empty(len(image), image.shape[1], size, size)

    def work(rows: Tensor) -> None:
        mirrored = flip[rows] if flip is not None else None
        chosen = [step[rows] for step in steps]
        out[rows] = _render(image[rows], box[rows], size, mirrored, chosen, filter)

    in_chunks(work, _alike_together(len(image), steps), max(size * size, 1))
    return out


def _render(
    image: Tensor,
    box: Tensor,
    size: int,
    flip: Tensor | None,
    steps: Sequence[Step],
    filter: Filter,
) -> Tensor:
    view = resized_crop(image, box, size, flip=flip, filter=filter)
    for step in steps:
        view = step(view)
    return view.clamp_(0, 1)


def _alike_together(count: int, steps: Sequence[Step]) -> Tensor:
    """Rows sorted so that the jitter finds its operations side by side."""
    for step in steps:
        if isinstance(step, Jitter):
            return step.before_hue().argsort(descending=True, stable=True)
    return torch.arange(count)


Policy = Callable[[Tensor, Generator], Tensor]


def views(
    policy: Policy,
    image: Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"],
    generator: Generator,
    n: int = 2,
) -> Float[Tensor, "V B C size size"]:
    """n independent views of each image, `policy(image, generator)` with its other arguments bound.

    One call of the policy on n copies of the batch. Raises ValueError when n < 1.
    """
    if n < 1:
        raise ValueError(f"views: asked for n={n} views of an image; use at least 1")
    made = policy(image.repeat(n, 1, 1, 1), generator)
    return made.view(n, len(image), *made.shape[1:])


def center(
    image: Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"],
    size: int,
    *,
    proportion: float = 0.875,
    filter: Filter = "bilinear",
) -> Float[Tensor, "B C size size"]:
    """The evaluation transform: a centred square resized to size x size px, floats in [0, 1].

    The square spans `proportion` of the shorter side (256 -> 224, SimCLR B.5) but never less than
    `size` px, so an image that already has this size is left as it is.
    """
    count, _, height, width = image.shape
    short = min(height, width)
    side = min(short, max(round(proportion * short), size))
    box = torch.tensor([(height - side) // 2, (width - side) // 2, side, side])
    return render(image, box.to(image.device).expand(count, 4), size, filter=filter)
