"""Sums over groups of rows: what is linear in the similarity needs no matrix, only O(N D) work.

sum_j over a group of query_i . key_j  =  query_i . (sum_j over the group of key_j).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from contrapose.errors import UserError
from contrapose.similarity.pairs import two_views
from contrapose.similarity.sharded import gather_rows, rank_and_world, row_ids
from contrapose.similarity.wide import widen
from contrapose.threads import serial_if_small


def group_sum(x: Float[Tensor, "N D"], group: Int[Tensor, " N"]) -> Float[Tensor, "G D"]:
    """Sum of the rows of each group present, in ascending order of the group's number."""
    every = gather_rows(x)
    names, number = gather_rows(group).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return every.new_zeros(len(names), every.shape[1]).index_add(0, number, every)


def positive_similarity(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    every: Float[Tensor, "M D"] | None = None,
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
    """Mean similarity of each row to the *other* rows of its group, and how many they are.

    It is z_i . (sum over the group - z_i) / count, and 0 for a row that is alone. Sums are float32
    or float64. every: `gather_rows(z)`, if the caller has it already.
    """
    mean, count, _ = positives_of(z, group, every)
    return mean, count


def positives_of(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    every: Float[Tensor, "M D"] | None = None,
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " N"] | None]:
    """What `positive_similarity` gives, and the index of each row's only positive among everyone's.

    A row that is alone has its own index. The index is None if a group has three rows or more, and
    on an accelerator, where looking at the numbers would stall it.
    """
    z, every = widen(z), widen(gather_rows(z) if every is None else every)
    members = _members(group)
    mean = _PositiveSimilarity.apply(z, None if every is z else every, members)
    return mean, members.count(), members.only()


def few_positives(group: Int[Tensor, " N"]) -> Int[Tensor, "N P"] | None:
    """The other rows of each row's group among everyone's; the row itself in the places left over.

    None if a row has more than FEW, and on an accelerator.
    """
    return _members(group).few()


def similarity_at(
    query: Float[Tensor, "N D"], key: Float[Tensor, "M D"], index: Int[Tensor, "N P"]
) -> Float[Tensor, "N P"]:
    """query_i . key_j for the keys j that each row of `index` names, in O(N D) memory."""
    return _SimilarityAt.apply(query, key, index)  # type: ignore[no-any-return]


def positive_count(group: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Number of *other* rows in the group of each row."""
    return _members(group).count()


def whole_numbers(name: str, what: str, x: Shaped[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Group numbers, labels or indices of any integer type, or bool, as int64.

    Raises UserError for floating-point and complex numbers, and for those that int64 cannot hold.
    """
    if x.is_floating_point() or x.is_complex():
        raise UserError(f"{name}: {what} are whole numbers, these are {x.dtype}; use {what}.long()")
    if x.dtype == torch.uint64 and x.device.type == "cpu" and bool((x.long() < 0).any()):
        raise UserError(f"{name}: {what} of type {x.dtype} above 2**63 - 1; number them from 0")
    return x.long()


def unlabelled_apart(group: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Group numbers in which each row without a label (a negative number) has a group of its own.

    Row i of process r among W gets the number -1 - (i W + r), which no other row has. If no number
    is negative, `group` itself is returned.
    """
    if group.device.type == "cpu" and not (group < 0).any():
        return group
    rank, world = rank_and_world()
    own = -1 - rank - world * torch.arange(len(group), device=group.device)
    return torch.where(group < 0, own, group)


FEW = 8  # positives of a row that are looked at one by one
AT_ONCE = 2**20  # numbers of their rows that are gathered at once


@dataclass(frozen=True, eq=False)
class _Numbered:
    """Groups of the rows of all processes and of this one, as numbers below len(every)."""

    every: Int[Tensor, " M"]
    mine: Int[Tensor, " N"]

    def count(self) -> Int[Tensor, " N"]:
        """How many other rows the group of each of my rows has."""
        size = torch.zeros_like(self.every).index_add_(0, self.every, torch.ones_like(self.every))
        return size.index_select(0, self.mine).sub_(1)

    def others(self, x: Float[Tensor, "M D"], mine: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """For each of my rows the sum of x over its group in all processes, less my own."""
        total = torch.zeros_like(x).index_add_(0, self.every, x)
        return total.index_select(0, self.mine).sub_(mine)

    def divisor(self, dtype: torch.dtype) -> Float[Tensor, " N"]:
        """What a sum over the other rows is divided by to be their mean."""
        return self.count().to(dtype).clamp_(min=1)

    def only(self) -> Int[Tensor, " N"] | None:
        """The one other row of each row's group, or the row itself: see `positives_of`."""
        if self.every.device.type != "cpu":
            return None
        order = self.every.argsort(stable=True)
        first = self.every[order]
        same = first[1:] == first[:-1]
        if bool((same[1:] & same[:-1]).any()):
            return None
        other = order.clone()
        other[:-1] = torch.where(same, order[1:], other[:-1])
        other[1:] = torch.where(same, order[:-1], other[1:])
        found = torch.empty_like(order).index_copy_(0, order, other)
        return found if self.mine is self.every else found[row_ids(len(self.mine))[0]]

    def few(self) -> Int[Tensor, "N P"] | None:
        """The other rows of each row's group, the row itself in places left over; None if many."""
        if self.every.device.type != "cpu" or not len(self.every):
            return None
        size = torch.zeros_like(self.every).index_add_(0, self.every, torch.ones_like(self.every))
        most = int(size.max()) - 1
        if most > FEW:
            return None
        order = self.every.argsort(stable=True)  # groups one after the other, in order of numbers
        start = size.cumsum(0) - size
        place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)))
        row = torch.arange(len(order)) if self.mine is self.every else row_ids(len(self.mine))[0]
        number = self.every[row]
        turn = torch.arange(1, most + 1)
        ahead = (place[row] - start[number])[:, None] + turn
        found = order[start[number][:, None] + ahead % size[number][:, None]]
        return torch.where(turn < size[number][:, None], found, row[:, None])

    def over_all(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "M D"]:
        """For each row of all processes the sum of my x over its group."""
        total = x.new_zeros(len(self.every), x.shape[1]).index_add_(0, self.mine, x)
        return total.index_select(0, self.every)


@dataclass(frozen=True, eq=False)
class _Views:
    """Groups of rows i, i + B, i + 2 B, ...: the views of B images, one after the other."""

    group: Int[Tensor, " N"]
    views: int

    def count(self) -> Int[Tensor, " N"]:
        return torch.full_like(self.group, self.views - 1)

    def divisor(self, dtype: torch.dtype) -> float:
        return max(1.0, self.views - 1.0)

    def only(self) -> Int[Tensor, " N"] | None:
        n = len(self.group)
        return two_views(n)[0] if self.views == 2 else torch.arange(n) if self.views == 1 else None

    def few(self) -> Int[Tensor, "N P"] | None:
        n = len(self.group)
        if self.views - 1 > FEW:
            return None
        return (torch.arange(n)[:, None] + n // self.views * torch.arange(1, self.views)) % n

    def others(self, x: Float[Tensor, "N D"], mine: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        shape = self.views, -1, x.shape[1]
        return (x.view(shape).sum(dim=0) - mine.view(shape)).view_as(mine)


def _members(group: Tensor) -> _Numbered | _Views:
    """The rows of each group, found without a transfer from the device."""
    every = gather_rows(group)
    if every.device.type == "cpu" and len(every):
        if every is group:
            names = group.tolist()
            views, rest = divmod(len(names), images := len(set(names)))
            if not rest and names == names[:images] * views:
                return _Views(group, views)
        low, high = (int(x) for x in every.aminmax())
        if low >= 0 and high < len(every):  # small numbers serve as they are
            return _Numbered(every, group)
    order = every.argsort()
    ordered = every[order]
    first = torch.zeros_like(ordered)
    first[1:] = ordered[1:] != ordered[:-1]
    number = torch.empty_like(first).index_copy(0, order, first.cumsum(0))
    mine = number if every is group else number[row_ids(len(group), group.device)[0]]
    return _Numbered(number, mine)


class _PositiveSimilarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, every, members):  # type: ignore[no-untyped-def]
        with serial_if_small(z):
            others = members.others(z if every is None else every, z)
            count = members.divisor(z.dtype)
            ctx.save_for_backward(z, others)
            ctx.members, ctx.gathered, ctx.count = members, every is not None, count
            return (others * z).sum(dim=1).div_(count)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        z, others = ctx.saved_tensors
        with serial_if_small(z):
            weight = (grad / ctx.count)[:, None]
            back = weight * z  # to the rows of the group
            if ctx.gathered:
                return (weight * others).sub_(back), ctx.members.over_all(back), None
            return ctx.members.others(back, back).addcmul_(weight, others), None, None


class _SimilarityAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, index):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(query, key, index)
        some = _some_columns(index, query)
        return torch.cat([(query[:, None] * key[at]).sum(dim=2) for at in some], dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        query, key, index = ctx.saved_tensors
        dquery, dkey = torch.zeros_like(query), torch.zeros_like(key)
        some = _some_columns(index, query)
        for at, g in zip(some, _some_columns(grad, query), strict=True):
            dquery.add_((g[:, None] @ key[at])[:, 0])
            dkey.index_add_(0, at.flatten(), (g[:, :, None] * query[:, None]).flatten(0, 1))
        return dquery, dkey, None


def _some_columns(x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """x cut into columns, as many at once as keep a row for each of their entries in AT_ONCE."""
    return torch.split(x, max(1, AT_ONCE // max(1, rows.numel())), dim=1)
