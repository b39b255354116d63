"""What the rows of one step are compared with: each kind calls a loss with what it has, by name.

A loss names what it wants in its arguments: `z, group`, or `query, key, match` where each row has
one key as its positive, or `z, group, key, key_group`. `fits` says whether a loss does.
`negatives(z)` says the same as (key, pairs, match): keys, which of them count as negatives, and the
one key of each row that never does.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from contrapose.partials import given
from contrapose.similarity import EVERY, Pairs, negatives

Loss = Callable[..., Tensor]
Negatives = tuple[Float[Tensor, "M D"], Pairs, Int[Tensor, " N"] | None]


@dataclass(frozen=True, eq=False)
class InBatch:
    """The other rows of the batch: loss(z, group), and the image of each row where it asks."""

    group: Int[Tensor, " N"]
    image: Int[Tensor, " N"]

    takes: ClassVar[tuple[str, ...]] = ("z", "group")
    also: ClassVar[tuple[str, ...]] = ("image",)

    def parts(self) -> "list[tuple[Int[Tensor, ' n'] | slice, InBatch]]":
        """Rows that are compared among themselves, and how: the batch is one part."""
        return [(slice(None), self)]

    def loss(self, loss: Loss, z: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
        more = {"image": self.image} if "image" in inspect.signature(loss).parameters else {}
        return loss(z=z, group=self.group, **more)

    def negatives(self, z: Float[Tensor, "N D"]) -> Negatives:
        return z, negatives(self.group), None


@dataclass(frozen=True, eq=False)
class WithinParts(InBatch):
    """The other rows of the same part of the batch: the mean over parts of loss(z, group)."""

    part: Int[Tensor, " N"]

    def parts(self) -> "list[tuple[Int[Tensor, ' n'] | slice, InBatch]]":
        _, size = self.part.unique(return_counts=True)  # type: ignore[no-untyped-call]
        rows = torch.split(self.part.argsort(stable=True), size.tolist())
        return [(own, InBatch(self.group[own], self.image[own])) for own in rows]

    def loss(self, loss: Loss, z: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
        each = [part.loss(loss, z[rows]) for rows, part in self.parts()]
        return torch.stack(each).mean()

    def negatives(self, z: Float[Tensor, "N D"]) -> Negatives:
        return z, Pairs("same", self.part, self.part, self.group, self.group), None


@dataclass(frozen=True, eq=False)
class SharedLabels(InBatch):
    """The other rows of the batch, with the labels of each: loss(z, group, labels)."""

    labels: Int8[Tensor, "N K"]

    takes: ClassVar[tuple[str, ...]] = ("z", "group", "labels")

    def loss(self, loss: Loss, z: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
        return loss(z=z, group=self.group, labels=self.labels)


@dataclass(frozen=True, eq=False)
class Matched:
    """Keys of which row i's positive is `key[match[i]]`: loss(query, key, match, pairs=...)."""

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
    """The batch and older keys, positives where groups agree: loss(z, group, key, key_group)."""

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


Contrast = InBatch | Matched | Grouped


def fits(loss: Loss, contrast: Contrast | type[Contrast]) -> bool:
    """Whether the loss names in its arguments what this contrast gives: all of it, nothing else.

    Without `group` or `match` it would be computed without its positives; where it wants a `time`
    or a `text`, something else would be given in their place.
    """
    wants = set(given(loss))
    offered = {*contrast.takes, *contrast.also}
    return {*contrast.takes} <= inspect.signature(loss).parameters.keys() and wants <= offered
