"""Which images each step of a stage takes, and reading them ahead of the step."""

import math
import time

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from contrapose.data import ImageSet, Prefetch
from contrapose.encoders import Encoder
from contrapose.processes import Rank
from contrapose.training.batches import Batches, drawn
from contrapose.training.parallel import Alone
from contrapose.training.recipe import Recipe


class Feed:
    """The batches of one stage of training, which lasts from step `begin` to step `end`.

    epochs_before: epochs of the stages before, after which those of this one are counted on.
    waiting_share: the share of the time, when last measured, in which steps waited for images.
    """

    def __init__(
        self,
        recipe: Recipe,
        images: ImageSet,
        sharing: Alone,
        *,
        me: Rank,
        begin: int,
        end: int,
        epochs_before: float,
    ) -> None:
        self.recipe, self.images, self.sharing, self.me = recipe, images, sharing, me
        self.begin, self.end, self.epochs_before = begin, end, math.ceil(epochs_before)
        self.per_epoch = len(images) // recipe.batch_size  # the rest waits for the next epoch
        self.batches: Batches = (recipe.batches or drawn)(len(images), recipe.batch_size)
        self.prefetch = Prefetch(images, -(-recipe.batch_size // me.world))
        self.order, self.epoch_of_order = torch.empty(0, 0, dtype=torch.long), -1
        self.order_ahead, self.epoch_ahead = self.order, -1
        self.waiting_share, self.measured = 0.0, (time.monotonic(), 0.0)

    def index(self, at: int, encoder: Encoder) -> Int[Tensor, " B"]:
        """Which images step `at` takes, on all ranks; a new epoch begins with its first step."""
        epoch, within = self._place(at)
        if epoch != self.epoch_of_order:
            self.batches.begin(epoch, encoder, self.images, self.recipe, self.me)
            self.order = self.batches.order(epoch, self.recipe.seed)
            self.epoch_of_order = epoch
        return self.order[within]

    def take(self, at: int, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b C S S"]:
        """The images of step `at` on this rank, those at `index`; the next ones begin to be read.

        An error in reading them is raised here.
        """
        return self.prefetch.take(index, self._following(at))

    def close(self) -> None:
        self.prefetch.close()

    def measure_waiting(self) -> float:
        """`waiting_share` since the last call, or since `start_clock`."""
        (since, waited), now = self.measured, time.monotonic()
        self.measured = now, self.prefetch.waited
        self.waiting_share = (self.prefetch.waited - waited) / max(now - since, 1e-9)
        return self.waiting_share

    def start_clock(self) -> None:
        """Measure the waiting share from now on."""
        self.measured = time.monotonic(), self.prefetch.waited

    def _place(self, at: int) -> tuple[int, int]:
        """(epoch, step within it) of a step."""
        epoch, within = divmod(at - self.begin, self.per_epoch)
        return self.epochs_before + epoch, within

    def _following(self, at: int) -> list[Int[Tensor, " b"]]:
        """Which images the steps after `at` take, as far as they are read ahead.

        Those of the next epoch are a guess: `batches.begin` may still change its order.
        """
        found = []
        for later in range(at + 1, min(at + 1 + self.prefetch.ahead, self.end)):
            epoch, within = self._place(later)
            if epoch not in (self.epoch_of_order, self.epoch_ahead):
                self.order_ahead = self.batches.order(epoch, self.recipe.seed)
                self.epoch_ahead = epoch
            order = self.order if epoch == self.epoch_of_order else self.order_ahead
            if within < len(order):
                found.append(order[within][self.sharing.place(order.shape[1])])
        return found
