"""The keys that the rows of one training step are compared with, and the call of the loss.

Each class here holds keys and passes them to a loss by the names of the loss's arguments: `z,
group`; or `query, key, match`, if each row has one key as its positive; or `z, group, key,
key_group`. `fits` tells whether a loss has these arguments. `negatives(z)` returns (key, pairs,
match): the keys, which of them are negatives of a row, and the one key of a row that never is.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from contrapose.partials import given
from contrapose.similarity import EVERY, Pairs, gather_rows, negatives

Loss = Callable[..., Tensor]
Negatives = tuple[Float[Tensor, "M D"], Pairs, Int[Tensor, " N"] | None]


@dataclass(frozen=True, eq=False)
class InBatch:
    """Compare with the other rows of the batch: loss(z, group), or loss(z, group, image).

    group, image: the class (or image) and the image of each row.
    """

    group: Int[Tensor, " N"]
    image: Int[Tensor, " N"]

    takes: ClassVar[tuple[str, ...]] = ("z", "group")
    also: ClassVar[tuple[str, ...]] = ("image",)

    def parts(self) -> "list[tuple[Int[Tensor, ' n'] | slice, InBatch]]":
        """(rows, contrast) of each set of rows that are compared with each other: here one set."""
        return [(slice(None), self)]

    def of_all(self, gather: Callable[[Tensor], Tensor]) -> "InBatch":
        """The contrast of the rows of all processes; gather: from the rows of this one."""
        return replace(self, **{f.name: gather(getattr(self, f.name)) for f in fields(self)})

    def loss(self, loss: Loss, z: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
        more = {"image": self.image} if "image" in inspect.signature(loss).parameters else {}
        return loss(z=z, group=self.group, **more)

    def negatives(self, z: Float[Tensor, "N D"]) -> Negatives:
        return z, negatives(self.group), None


@dataclass(frozen=True, eq=False)
class WithinParts(InBatch):
    """Compare with the other rows of the same part of the batch: mean over parts of the loss.

    part: the number of the part of each row.
    """

    part: Int[Tensor, " N"]

    def parts(self) -> "list[tuple[Int[Tensor, ' n'] | slice, InBatch]]":
        names = gather_rows(self.part).unique()  # type: ignore[no-untyped-call]
        order = self.part.argsort(stable=True)
        size = (self.part == names[:, None]).sum(dim=1)  # of this process; it may have none
        rows = torch.split(order, size.tolist())
        return [(own, InBatch(self.group[own], self.image[own])) for own in rows]

    def loss(self, loss: Loss, z: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
        each = [part.loss(loss, z[rows]) for rows, part in self.parts()]
        return torch.stack(each).mean()

    def negatives(self, z: Float[Tensor, "N D"]) -> Negatives:
        return z, Pairs("same", self.part, self.part, self.group, self.group), None


@dataclass(frozen=True, eq=False)
class OverTime(InBatch):
    """Compare with the other rows of the batch by the time of their frames: loss(z, time).

    group: rows of one time, which measures count as positives. time: in ms.
    """

    time: Int[Tensor, " N"]

    takes: ClassVar[tuple[str, ...]] = ("z", "time")
    also: ClassVar[tuple[str, ...]] = ()

    def loss(self, loss: Loss, z: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
        return loss(z=z, time=self.time)


@dataclass(frozen=True, eq=False)
class Halves(InBatch):
    """Compare each row of the first half with all of the second, where its own is at the same
    place: loss(query, key)."""

    takes: ClassVar[tuple[str, ...]] = ("query", "key")
    also: ClassVar[tuple[str, ...]] = ()

    def loss(self, loss: Loss, z: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
        query, key = z.chunk(2)
        return loss(query=query, key=key)


@dataclass(frozen=True, eq=False)
class SharedLabels(InBatch):
    """Compare with the other rows of the batch, several labels a row: loss(z, group, labels).

    labels: [N, K], 1 where row i has label k, 0 where it has not, -1 where this is unknown.
    """

    labels: Int8[Tensor, "N K"]

    takes: ClassVar[tuple[str, ...]] = ("z", "group", "labels")

    def loss(self, loss: Loss, z: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
        return loss(z=z, group=self.group, labels=self.labels)


@dataclass(frozen=True, eq=False)
class Matched:
    """Compare with keys, of which `key[match[i]]` is row i's positive: loss(query, key, match)."""

    key: Float[Tensor, "M D"]
    match: Int[Tensor, " N"]
    pairs: Pairs = EVERY

    takes: ClassVar[tuple[str, ...]] = ("query", "key", "match")
    also: ClassVar[tuple[str, ...]] = ("pairs",)

    def loss(self, loss: Loss, z: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
        rule: dict[str, Any] = {} if self.pairs is EVERY else {"pairs": self.pairs}
        return loss(query=z, key=self.key, match=self.match, **rule)

    def negatives(self, z: Float[Tensor, "N D"]) -> Negatives:
        return self.key, self.pairs, self.match


@dataclass(frozen=True, eq=False)
class Grouped:
    """Compare with the batch and older keys, by group: loss(z, group, key, key_group)."""

    group: Int[Tensor, " N"]
    key: Float[Tensor, "M D"]
    key_group: Int[Tensor, " M"]

    takes: ClassVar[tuple[str, ...]] = ("z", "group", "key", "key_group")
    also: ClassVar[tuple[str, ...]] = ()

    def loss(self, loss: Loss, z: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
        return loss(z=z, group=self.group, key=self.key, key_group=self.key_group)

    def negatives(self, z: Float[Tensor, "N D"]) -> Negatives:
        every = torch.cat([self.group, self.key_group])
        return torch.cat([z, self.key]), Pairs("different", self.group, every), None


@dataclass(frozen=True, eq=False)
class Nearest:
    """Two views compared through nearest neighbours among older keys, the mean of both directions:
    loss(z, prediction, support)."""

    group: Int[Tensor, " N"]  # the image of each row
    key: Float[Tensor, "M D"]  # the support

    takes: ClassVar[tuple[str, ...]] = ("z", "prediction", "support")
    also: ClassVar[tuple[str, ...]] = ()

    def parts(self) -> "list[tuple[Int[Tensor, ' n'] | slice, Nearest]]":
        """The rows are one part, as in `InBatch`."""
        return [(slice(None), self)]

    def loss(self, loss: Loss, z: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
        one, other = z.chunk(2)
        return (
            loss(z=one, prediction=other, support=self.key)
            + loss(z=other, prediction=one, support=self.key)
        ) / 2

    def negatives(self, z: Float[Tensor, "N D"]) -> Negatives:
        return z, negatives(self.group), None


Contrast = InBatch | Matched | Grouped | Nearest


def fits(loss: Loss, contrast: Contrast | type[Contrast]) -> bool:
    """True if the loss has an argument for everything the contrast passes, and needs nothing else.

    So a loss is never called without its positives (`group` or `match`), and one that needs frame
    times or texts is never called with something else in their place.
    """
    wants = set(given(loss))
    offered = {*contrast.takes, *contrast.also}
    return {*contrast.takes} <= inspect.signature(loss).parameters.keys() and wants <= offered
