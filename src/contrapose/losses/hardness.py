"""Losses that choose or weigh negatives by how hard they are.

Notation and conventions as in `softmax.py`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.losses.checks import check_groups, check_positive, mean_over_anchors
from contrapose.similarity import everyone, negatives, positive_similarity, safe_logsumexp, topk


def hard(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""],
    k: int,
) -> Float[Tensor, ""]:
    """Hard contrastive loss (Wang & Liu 2021, eq. 9): only the k nearest negatives repel.

    mean over i of  log(e^{p_i} + sum_{n in the k nearest of N(i)} e^{s_in/t}) - p_i
    with p_i = mean_{p in P(i)} s_ip/t. With every negative it is NT-Xent.
    """
    check_groups("hard", z, group)
    check_positive("hard", temperature=temperature)
    every = everyone(z)
    similarity, count = positive_similarity(z, group, every)
    pull = similarity / temperature
    nearest, _ = topk(z, every, k, pairs=negatives(group))
    push = safe_logsumexp(nearest / temperature)
    return mean_over_anchors("hard", torch.logaddexp(pull, push) - pull, where=count > 0)
