"""Batches of frames of video: pairs that are near in time, or of two cameras at one time.

Frames have times in ms (`positives="time"`); those of different clips are further apart than any
two of one clip, so that they are never near.
"""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from contrapose.data import ImageSet
from contrapose.data.video import times_of
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.processes import Rank

if TYPE_CHECKING:
    from contrapose.training.recipe import Recipe


def moments(images: int, batch_size: int, *, near: int = 0) -> "Moments":
    """Half of a batch are frames at times of their own, the other half a partner of each, in order.

    near: in ms. A partner is another frame at most so far away, of the same clip; with 0 it is a
    frame of another camera at the same time. Frames without one are left out. Raises UserError for
    a negative `near` and an odd batch, and when training begins for images without such pairs.
    """
    if near < 0 or batch_size % 2:
        raise UserError(
            f"moments: near={near} ms, batches of {batch_size}; use 0 or more, and an even batch"
        )
    return Moments(images, batch_size, near)


class Moments:
    size: int | None = None

    def __init__(self, images: int, batch_size: int, near: int) -> None:
        self.images, self.batch_size, self.near = images, batch_size, near
        self.time: Int[Tensor, " N"] | None = None

    def possible_sizes(self, recipe: "Recipe") -> list[int]:
        if recipe.positives != "time":
            raise UserError(
                f"moments pairs frames by their times; use --set positives=time, not "
                f"{recipe.positives}"
            )
        return []

    def begin(
        self, epoch: int, encoder: Encoder, images: ImageSet, recipe: "Recipe", me: Rank
    ) -> None:
        if self.time is None:
            self.time = times_of(images)
            self._anchors()  # checked before the first step

    def order(self, epoch: int, seed: int) -> Int[Tensor, "n B"]:
        assert self.time is not None
        draw = Generator().manual_seed(seed * 1_000_003 + epoch)
        half, count = self.batch_size // 2, self.images // self.batch_size
        order, low, high = self._anchors()
        at_once = len(low) // half
        rows: list[Tensor] = []
        while len(rows) < count:
            mixed = torch.randperm(len(low), generator=draw)[: at_once * half]
            rows += list(mixed.view(at_once, half))
        chosen = torch.stack(rows[:count])
        start, end = low[chosen], high[chosen]
        share = torch.rand(2, *chosen.shape, generator=draw, dtype=torch.float64)
        if self.near:
            anchor = self._places[chosen]
            other = start + (share[0] * (end - start - 1)).long()
            other = other + (other >= anchor).long()
        else:  # any camera, and another one
            anchor = start + (share[0] * (end - start)).long()
            other = start + (share[1] * (end - start - 1)).long()
            other = other + (other >= anchor).long()
        return torch.cat([order[anchor], order[other]], dim=1)

    def _anchors(self) -> tuple[Tensor, Tensor, Tensor]:
        """(frames by time; for each anchor, the first place in that order that is near, and the
        one after the last): anchors are frames with a partner, or times of several cameras."""
        assert self.time is not None
        time, order = self.time.sort(stable=True)
        low = torch.searchsorted(time, time - self.near)
        high = torch.searchsorted(time, time + self.near, right=True)
        places = torch.arange(len(time))
        kept = high - low > 1
        if not self.near:
            kept &= places == low  # one for each time
        self._places = places[kept]
        if int(kept.sum()) < self.batch_size // 2:
            what = f"within {self.near} ms of another" if self.near else "of several cameras"
            raise UserError(
                f"batches of {self.batch_size} need {self.batch_size // 2} moments, and there are "
                f"{int(kept.sum())} {what}; use a smaller --batch-size, or --set batches.near=..."
            )
        return order, low[kept], high[kept]

    def state_dict(self) -> dict[str, Any]:
        return {"time": self.time}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.time = state["time"]
