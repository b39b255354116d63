"""Sums over groups of rows: everything linear in the similarity, in O(N D).

sum_j over a group of query_i . key_j  =  query_i . (sum_j over the group of key_j).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.similarity.sharded import everyone, row_ids
from contrapose.similarity.wide import widen


def group_sum(x: Float[Tensor, "N D"], group: Int[Tensor, " N"]) -> Float[Tensor, "G D"]:
    """Sum of the rows of each group present, in ascending order of the group's number."""
    every = everyone(x)
    names, number = everyone(group).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return every.new_zeros(len(names), every.shape[1]).index_add(0, number, every)


def positive_similarity(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    every: Float[Tensor, "M D"] | None = None,
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
    """Mean similarity of each row to the *other* rows of its group, and how many they are.

    z_i . (sum over the group - z_i) / count; 0 where there is none. Sums are float32 at least.
    `every`: `everyone(z)`, where the caller has gathered it already.
    """
    z, every = widen(z), widen(everyone(z) if every is None else every)
    number, mine = _numbers(group)
    count = _sizes(number, mine) - 1
    return _PositiveSimilarity.apply(z, every, number, mine, count.clamp(min=1)), count


def positive_count(group: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """How many *other* rows each row's group has."""
    number, mine = _numbers(group)
    return _sizes(number, mine) - 1


def _sizes(number: Tensor, mine: Tensor) -> Tensor:
    size = torch.zeros_like(number).index_add_(0, number, torch.ones_like(number))
    return size.index_select(0, mine)


def _numbers(group: Tensor) -> tuple[Tensor, Tensor]:
    """Groups of everyone's rows, and of mine, numbered 0, 1, ... without reading the device."""
    every = everyone(group)
    if every.device.type == "cpu" and len(every):
        low, high = (int(x) for x in every.aminmax())
        if low >= 0 and high < len(every):  # small numbers serve as they are
            return every, group
    order = every.argsort()
    ordered = every[order]
    first = torch.zeros_like(ordered)
    first[1:] = ordered[1:] != ordered[:-1]
    number = torch.empty_like(first).index_copy(0, order, first.cumsum(0))
    return number, number if every is group else number[row_ids(len(group), group.device)[0]]


class _PositiveSimilarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, every, number, mine, count):  # type: ignore[no-untyped-def]
        total = torch.zeros_like(every).index_add_(0, number, every)
        ctx.save_for_backward(z, every, total, number, mine, count)
        return total.index_select(0, mine).sub_(z).mul_(z).sum(dim=1).div_(count)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        z, every, total, number, mine, count = ctx.saved_tensors
        weight = (grad / count)[:, None]
        dz = total.index_select(0, mine).sub_(z, alpha=2).mul_(weight)
        back = torch.zeros_like(every).index_add_(0, mine, weight * z)  # to the rows of the group
        return dz, back.index_select(0, number), None, None, None
