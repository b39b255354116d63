"""The portion of a batch that one of several processes has, and random numbers for it.

Random numbers for the images of a batch are drawn for the whole batch on every process, and each
process keeps those of its own images. So an image has the same views on any number of processes.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Portion:
    """The images that this process has of a batch of `whole` images; place: where they stand in
    the batch, ascending. A process has one of them at least.
    """

    place: Int[Tensor, " b"]
    whole: int

    def rows(self, count: int) -> Int[Tensor, " count"]:
        """The numbers of this process's rows among all V x `whole`, for `count` = V b rows.

        Rows are ordered view by view. Raises RuntimeError for a count that is no multiple of b.
        """
        views, rest = divmod(count, len(self.place))
        if rest:
            raise RuntimeError(
                f"{count} rows of {len(self.place)} images: among several processes every image "
                "must have as many rows as the others"
            )
        view = torch.arange(views, device=self.place.device)
        return (view[:, None] * self.whole + self.place).flatten()


@contextmanager
def portion_of_batch(portion: Portion | None) -> Iterator[None]:
    """A context in which random numbers are drawn for this portion of a batch; None: for a whole
    one."""
    token = _portion.set(portion)
    try:
        yield
    finally:
        _portion.reset(token)


def seed_of_step(seed: int, step: int) -> int:
    """The seed of all that is drawn in a step: another one in every step of a run.

    Of a generator's seed a CPU uses the lower 32 bits, in which steps of one run differ too.
    """
    mixed = hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=7).digest()
    return int.from_bytes(mixed, "little") + step


def portion_in_force() -> Portion | None:
    """The portion of the batch that this process has; None if it has the whole."""
    return _portion.get()


def drawn_for(count: int, draw: Callable[[int], Tensor]) -> Tensor:
    """draw(count); of a portion, its rows of the draw for the whole batch: [count ...]."""
    if (portion := _portion.get()) is None:
        return draw(count)
    rows = portion.rows(count)
    whole = draw(portion.whole * (count // len(portion.place)))
    return whole[rows.to(whole.device)]


_portion: ContextVar[Portion | None] = ContextVar("portion", default=None)
