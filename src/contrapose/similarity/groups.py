"""Sums over groups of rows: everything linear in the similarity, in O(N D).

sum_j over a group of query_i . key_j  =  query_i . (sum_j over the group of key_j).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.similarity.sharded import everyone, row_ids


def group_sum(x: Float[Tensor, "N D"], group: Int[Tensor, " N"]) -> Float[Tensor, "G D"]:
    """Sum of the rows of each group present, in ascending order of the group's number."""
    every = everyone(x)
    names, number = everyone(group).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return every.new_zeros(len(names), every.shape[1]).index_add(0, number, every)


def positive_mean(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    every: Float[Tensor, "M D"] | None = None,
) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"]]:
    """Mean of the *other* rows of each row's group, and how many they are (mean 0 where none).

    `every`: `everyone(z)`, where the caller has gathered it already. Sums are float32 at least.
    """
    wide = torch.promote_types(z.dtype, torch.float32)
    every = (everyone(z) if every is None else every).to(wide)
    number, mine = _numbers(group)
    total = torch.zeros_like(every).index_add(0, number, every).index_select(0, mine)
    count = _sizes(number, mine) - 1
    return (total - z) / count.clamp(min=1)[:, None], count


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
    order = every.argsort()
    ordered = every[order]
    first = torch.zeros_like(ordered)
    first[1:] = ordered[1:] != ordered[:-1]
    number = torch.empty_like(first).index_copy(0, order, first.cumsum(0))
    return number, number if every is group else number[row_ids(len(group), group.device)[0]]
