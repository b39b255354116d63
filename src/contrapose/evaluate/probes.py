"""Classifiers on frozen features."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.similarity import topk


def knn(
    query: Float[Tensor, "N D"],
    bank: Float[Tensor, "M D"],
    bank_label: Int[Tensor, " M"],
    *,
    k: int = 200,
    temperature: float = 0.1,
) -> Float[Tensor, "N C"]:
    """Class scores: each of the k nearest votes e^(similarity / temperature) (1805.01978)."""
    similarity, index = topk(query, bank, k)
    votes = query.new_zeros(len(query), int(bank_label.max()) + 1)
    return votes.scatter_add(1, bank_label[index], torch.exp(similarity / temperature))
