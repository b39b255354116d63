"""Sums over groups of rows: everything linear in the similarity, in O(N D).

sum_j over a group of query_i . key_j  =  query_i . (sum_j over the group of key_j).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.similarity.sharded import current


def group_sum(x: Float[Tensor, "N D"], group: Int[Tensor, " N"]) -> Float[Tensor, "G D"]:
    if shards := current():
        x, group = shards.gather(x), shards.gather_ids(group)
    total = x.new_zeros(int(group.max()) + 1, x.shape[1])
    return total.index_add(0, group, x)


def group_count(group: Int[Tensor, " N"]) -> Int[Tensor, " G"]:
    if shards := current():
        group = shards.gather_ids(group)
    return torch.bincount(group)


def positive_mean(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"]
) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"]]:
    """Mean of the *other* rows of each row's group, and how many they are."""
    count = group_count(group)[group] - 1
    total = group_sum(z, group)[group] - z
    return total / count.clamp(min=1)[:, None], count
