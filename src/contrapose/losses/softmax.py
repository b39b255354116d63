"""Losses that are differences of log-sum-exps.

Every loss takes unit-length embeddings `z` and a `group`: rows of one group are positives of
each other. The group is the image for self-supervised learning and the class for supervised.
Every loss is a mean over the anchors that have a positive.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrapose.similarity import everyone, logsumexp, negatives, others, positive_mean, positives, topk


def nt_xent(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, temperature: float
) -> Float[Tensor, ""]:
    """NT-Xent (SimCLR, arXiv 2002.05709, eq. 1): `supcon` whose classes are images."""
    return supcon(z, group, temperature=temperature)


def supcon(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, temperature: float
) -> Float[Tensor, ""]:
    """SupCon, sum outside the log (arXiv 2004.11362, eq. 2).

    mean over i of  log sum_{a != i} e^{z_i.z_a/t}  -  mean_{p in P(i)} z_i.z_p/t
    """
    mean, count = positive_mean(z, group)
    pull = (z * mean).sum(dim=1) / temperature
    push = logsumexp(z, everyone(z), scale=1 / temperature, pairs=others(len(z)))
    return _mean(push - pull, where=count > 0)


def supcon_in(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, temperature: float
) -> Float[Tensor, ""]:
    """SupCon, sum inside the log (arXiv 2004.11362, eq. 3)."""
    _, count = positive_mean(z, group)
    pull = logsumexp(z, everyone(z), scale=1 / temperature, pairs=positives(group)) - count.log()
    push = logsumexp(z, everyone(z), scale=1 / temperature, pairs=others(len(z)))
    return _mean(push - pull, where=count > 0)


def dcl(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, temperature: float
) -> Float[Tensor, ""]:
    """DCL (arXiv 2110.06848): NT-Xent without the positive in the denominator."""
    mean, count = positive_mean(z, group)
    pull = (z * mean).sum(dim=1) / temperature
    push = logsumexp(z, everyone(z), scale=1 / temperature, pairs=negatives(group))
    return _mean(push - pull, where=count > 0)


def hard(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, temperature: float, k: int
) -> Float[Tensor, ""]:
    """Hard contrastive loss: only the k nearest negatives repel (Wang & Liu 2021, eq. 9)."""
    mean, count = positive_mean(z, group)
    pull = (z * mean).sum(dim=1) / temperature
    nearest, _ = topk(z, everyone(z), k, pairs=negatives(group))
    push = (nearest / temperature).logsumexp(dim=1)
    return _mean(torch.logaddexp(pull, push) - pull, where=count > 0)


def info_nce(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    match: Int[Tensor, " N"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """InfoNCE: `key[match[i]]` is the positive of query i, every other key a negative.

    Keys are a memory bank, class prototypes, or another encoder's batch.
    """
    pull = (query * key[match]).sum(dim=1) / temperature
    return (logsumexp(query, key, scale=1 / temperature) - pull).mean()


def clip(
    image: Float[Tensor, "N D"], text: Float[Tensor, "N D"], *, scale: float | Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """CLIP: row i of one tower matches row i of the other (arXiv 2103.00020, fig. 3)."""
    match = scale * (image * text).sum(dim=1)
    to_text = logsumexp(image, everyone(text), scale=scale) - match
    to_image = logsumexp(text, everyone(image), scale=scale) - match
    return (to_text + to_image).mean() / 2


def _mean(loss: Float[Tensor, " N"], where: Bool[Tensor, " N"]) -> Float[Tensor, ""]:
    return loss[where].mean()
