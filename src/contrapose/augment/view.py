"""The pixels of a view from its draws: crop and flip, then the steps of the policy in order."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Generator, Tensor

from contrapose.augment.branches import branches
from contrapose.augment.chunks import empty, in_pieces
from contrapose.augment.colour import Jitter
from contrapose.augment.crop import resized_crop
from contrapose.augment.operations import ImageOperations
from contrapose.augment.resample import Filter
from contrapose.errors import UserError


@runtime_checkable
class Operation(Protocol):
    """One augmentation as drawn for a batch.

    `step[rows]` is the draw of these rows; `step(image)` applies it in place to a float batch in
    [0, 1].
    """

    def __getitem__(self, rows: Tensor) -> "Operation": ...

    def __call__(self, image: Tensor) -> None: ...


@dataclass(frozen=True, eq=False)
class Draw:
    """What was drawn for the views of one call of a policy, one row a view.

    box: top, left, height and width of the crop in px of the stored image. flip: True where the
    view is mirrored; None where the policy mirrors nothing. steps: the other augmentations in their
    order; each holds its draw in its own fields (`Jitter.brightness` and so on).
    """

    box: Int[Tensor, "N 4"]
    flip: Bool[Tensor, "N"] | None
    steps: tuple[Operation, ...]


_kept: ContextVar[list[Draw] | None] = ContextVar("_kept", default=None)


@contextmanager
def draws_kept() -> Iterator[list[Draw]]:
    """A list to which every policy that is called within adds its `Draw`, in the order of calls.

        with draws_kept() as draws:
            seen = views(policy, image, generator)     # rows of draws[0]: view by view

    A policy that does not go through `render` adds nothing.
    """
    draws: list[Draw] = []
    token = _kept.set(draws)
    try:
        yield draws
    finally:
        _kept.reset(token)


def render(
    image: Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"],
    box: Int[Tensor, "B 4"],
    size: int,
    *,
    flip: Bool[Tensor, "B"] | None = None,
    steps: Sequence[Operation] = (),
    filter: Filter = "bilinear",
) -> Float[Tensor, "B C size size"]:
    """Crop, resize, flip, then every step in turn, clamped to [0, 1].

    On a CPU the batch is divided into pieces that fit the cache, one thread a piece; the result
    does not depend on the pieces. Where images are sorted by their operation a piece has 32 at
    least: threads wait for Python's lock between short operations.
    """
    if (draws := _kept.get()) is not None:
        draws.append(Draw(box, flip, tuple(steps)))
    if image.device.type != "cpu":
        return _render(image, box, size, flip, steps, filter, None)
    out = empty((len(image), image.shape[1], size, size), np.float32)
    jitters = [step for step in steps if isinstance(step, Jitter)]

    @torch.no_grad()
    def work(piece: slice) -> None:
        rows = torch.arange(len(image))[piece]
        if jitters:  # likes the images with as much to do before the hue side by side
            rows = rows[jitters[0].before_hue()[piece].argsort(descending=True)]
        mirrored = flip[rows] if flip is not None else None
        chosen = [step[rows] for step in steps]
        if not jitters:
            _render(image[piece], box[piece], size, mirrored, chosen, filter, out[piece])
            return
        view = _render(image.index_select(0, rows), box[rows], size, mirrored, chosen, filter, None)
        torch.index_select(view, 0, rows.argsort(), out=out[piece])

    sorted_by_kind = any(isinstance(step, ImageOperations) for step in steps)
    in_pieces(work, len(image), size * size, least=32 if sorted_by_kind else 1)
    return out


def _render(
    image: Tensor,
    box: Tensor,
    size: int,
    flip: Tensor | None,
    steps: Sequence[Operation],
    filter: Filter,
    out: Tensor | None,
) -> Tensor:
    view = resized_crop(image, box, size, flip=flip, filter=filter, out=out)
    for step in steps:
        step(view)
    return view.clamp_(0, 1) if steps else view


Policy = Callable[[Tensor, Generator], Tensor]


def views(
    policy: Policy,
    image: Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"],
    generator: Generator,
    n: int = 2,
) -> Float[Tensor, "V B C size size"]:
    """n independent views of each image, `policy(image, generator)` with its other arguments bound.

    One call of the policy on n copies of the batch; of `branches` one call for each of its two
    policies. Raises UserError when n < 1.
    """
    if n < 1:
        raise UserError(f"views: asked for n={n} views of an image; use at least 1")
    if n > 1 and getattr(policy, "func", None) is branches:
        given = getattr(policy, "keywords", {})
        if lacking := [name for name in ("first", "second") if name not in given]:
            raise UserError(
                f"branches: {lacking[0]} names no policy; --set views.{lacking[0]}=NAME"
            )
        first, second = (partial(given[name], size=given["size"]) for name in ("first", "second"))
        each = [views(first, image, generator, 1), views(second, image, generator, n - 1)]
        return torch.cat(each)
    if image.device.type == "cpu":
        kind = np.uint8 if image.dtype == torch.uint8 else np.float32
        copies = empty((n, *image.shape), kind).copy_(image).flatten(0, 1)
    else:
        copies = image.repeat(n, 1, 1, 1)
    made = policy(copies, generator)
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
