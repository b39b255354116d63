"""Losses that choose or weight negatives by their hardness, and the two limits of temperature.

Notation and conventions as in `softmax.py`, with p_i = mean_{p in P(i)} s_ip. S1 is "Understanding
the Behaviour of Contrastive Loss" (Wang & Liu, CVPR 2021).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.errors import UserError
from contrapose.losses.checks import check_groups, check_positive, mean_over_anchors
from contrapose.losses.terms import softplus
from contrapose.similarity import (
    gather_rows,
    logsumexp,
    negatives,
    positive_similarity,
    safe_logsumexp,
    topk,
)

BOTH = "a positive and a negative"


def hard(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""],
    k: int,
) -> Float[Tensor, ""]:
    """Hard contrastive loss (S1, eq. 9): only the k nearest negatives repel.

    mean over i of  log(e^{p_i/t} + sum_{n in the k nearest of N(i)} e^{s_in/t}) - p_i/t
    With every negative it is NT-Xent.
    """
    z, group = _check("hard", z, group, temperature=temperature)
    every = gather_rows(z)
    similarity, count = positive_similarity(z, group, every)
    nearest = _nearest(z, every, k, group)
    return mean_over_anchors("hard", against(similarity, nearest, temperature), where=count > 0)


def hard_quantile(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""],
    alpha: float,
) -> Float[Tensor, ""]:
    """Hard contrastive loss (S1, eq. 8 and 9): only the upper alpha of the negatives repel.

    `hard` with k = alpha |N(i)|, rounded, at least 1, for each anchor. alpha = 1: NT-Xent.
    Raises UserError unless 0 < alpha <= 1.
    """
    z, group = _check("hard_quantile", z, group, temperature=temperature)
    if not 0 < alpha <= 1:
        raise UserError(f"hard_quantile: alpha={alpha}; give a share of negatives, 0 < alpha <= 1")
    every = gather_rows(z)
    similarity, count = positive_similarity(z, group, every)
    k = (alpha * (len(every) - 1 - count)).round().clamp(min=1)
    most = min(len(every), int(k.max())) if len(k) else 1
    nearest = _nearest(z, every, most, group)
    kept = torch.arange(most, device=z.device) < k[:, None]
    loss = against(similarity, torch.where(kept, nearest, -math.inf), temperature)
    return mean_over_anchors("hard_quantile", loss, where=count > 0)


def hcl(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""],
    beta: float,
    tau_plus: float,
) -> Float[Tensor, ""]:
    """Hard negatives by re-weighting (HCL, arXiv 2010.04592, eq. 4), debiased.

    mean over i of  -log e^{p_i/t} / (e^{p_i/t} + G_i)    with n = |N(i)| and
    G_i = max( (n sum_n e^{(1+beta) s_in/t} / sum_n e^{beta s_in/t} - tau_plus n e^{p_i/t})
               / (1 - tau_plus),  n e^{-1/t} )
    beta >= 0 concentrates on near negatives; tau_plus is the share of negatives of the same class.
    """
    if not (math.isfinite(beta) and beta >= 0):
        raise UserError(f"hcl: beta={beta}; give a finite value of at least 0")
    return _debiased("hcl", z, group, temperature, beta, tau_plus)


def debiased(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""],
    tau_plus: float,
) -> Float[Tensor, ""]:
    """Debiased contrastive loss (arXiv 2007.00224, eq. 7 and 8): `hcl` with beta = 0.

    With tau_plus = 0 it is NT-Xent.
    """
    return _debiased("debiased", z, group, temperature, 0.0, tau_plus)


def ifm(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""],
    epsilon: float,
) -> Float[Tensor, ""]:
    """Implicit feature modification (Robinson et al. 2021, arXiv 2106.11230).

    (L_0 + L_eps) / 2  with  L_e = mean over i of
    -log e^{(p_i - e)/t} / (e^{(p_i - e)/t} + sum_{n in N(i)} e^{(s_in + e)/t})
    L_eps moves positives away and negatives near by epsilon along what tells them apart most
    easily. epsilon = 0: NT-Xent. Raises UserError for a negative epsilon.
    """
    z, group = _check("ifm", z, group, temperature=temperature)
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise UserError(f"ifm: epsilon={epsilon}; give a finite value of at least 0")
    every = gather_rows(z)
    similarity, count = positive_similarity(z, group, every)
    push = logsumexp(z, every, scale=1 / temperature, pairs=negatives(group))
    where = (count > 0) & (push > -math.inf)
    gap = torch.where(where, push - similarity / temperature, 0.0)
    losses = [softplus(g) for g in (gap, gap + 2 * epsilon / temperature)]
    return mean_over_anchors("ifm", (losses[0] + losses[1]) / 2, where, lacking=BOTH)


def simple(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, weight: float
) -> Float[Tensor, ""]:
    """Simple contrastive loss (S1, eq. 3), in O(N D).

    mean over i of  -p_i + weight sum_{n in N(i)} s_in    (eq. 7: weight = 1 / |N(i)|)
    """
    z, group = _check("simple", z, group)
    every = gather_rows(z)
    similarity, count = positive_similarity(z, group, every)
    push = _negative_sum(z, every, similarity * count)
    return mean_over_anchors("simple", weight * push - similarity, where=count > 0)


def hard_simple(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, weight: float, k: int
) -> Float[Tensor, ""]:
    """Simple contrastive loss on the k nearest negatives (S1, section 4.3).

    mean over i of  -p_i + weight sum_{n in the k nearest of N(i)} s_in
    """
    z, group = _check("hard_simple", z, group)
    every = gather_rows(z)
    similarity, count = positive_similarity(z, group, every)
    nearest = _nearest(z, every, k, group)
    push = torch.where(nearest > -math.inf, nearest, 0.0).sum(dim=1)
    return mean_over_anchors("hard_simple", weight * push - similarity, where=count > 0)


def cold_limit(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """NT-Xent as its temperature goes to 0 (S1, eq. 6): a triplet loss on the nearest negative.

    mean over i of  max(max_{n in N(i)} s_in - p_i, 0) / t
    """
    z, group = _check("cold_limit", z, group, temperature=temperature)
    every = gather_rows(z)
    similarity, count = positive_similarity(z, group, every)
    nearest = _nearest(z, every, 1, group)
    loss = (nearest[:, 0] - similarity).relu() / temperature
    return mean_over_anchors("cold_limit", loss, where=count > 0)


def hot_limit(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """NT-Xent as its temperature grows (S1, eq. 7): linear in the similarities.

    mean over i of  (sum_{n in N(i)} s_in - n p_i) / ((n + 1) t) + log(n + 1)    with n = |N(i)|
    """
    z, group = _check("hot_limit", z, group, temperature=temperature)
    every = gather_rows(z)
    similarity, count = positive_similarity(z, group, every)
    n = (len(every) - 1 - count).to(z.dtype)
    push = _negative_sum(z, every, similarity * count)
    loss = (push - n * similarity) / ((n + 1) * temperature) + (n + 1).log()
    return mean_over_anchors("hot_limit", loss, where=count > 0)


def against(
    similarity: Float[Tensor, " N"],
    nearest: Float[Tensor, "N k"],
    temperature: float | Float[Tensor, ""],
) -> Float[Tensor, " N"]:
    """log(e^{p/t} + sum over chosen negatives e^{s/t}) - p/t; a negative of -inf is left out."""
    none = nearest == -math.inf  # left out before the division: -inf / t has no derivative in t
    gaps = (torch.where(none, 0.0, nearest) - similarity[:, None]) / temperature
    gap = safe_logsumexp(torch.where(none, -math.inf, gaps))
    return softplus(gap)


def _debiased(
    name: str, z: Tensor, group: Tensor, temperature: float | Tensor, beta: float, tau_plus: float
) -> Tensor:
    z, group = _check(name, z, group, temperature=temperature)
    if not 0 <= tau_plus < 1:
        raise UserError(f"{name}: tau_plus={tau_plus}; give a share, 0 <= tau_plus < 1")
    every, pairs = gather_rows(z), negatives(group)
    similarity, count = positive_similarity(z, group, every)
    pull = similarity / temperature
    n = len(every) - 1 - count
    where = (count > 0) & (n > 0)
    log_n = n.clamp(min=1).to(pull.dtype).log()
    push = logsumexp(z, every, scale=(1 + beta) / temperature, pairs=pairs)
    if beta > 0:
        push = push - logsumexp(z, every, scale=beta / temperature, pairs=pairs) + log_n
    # log of (e^push - tau_plus n e^pull) / (1 - tau_plus), no less than log n - 1/t
    log_tau = math.log(tau_plus) if tau_plus > 0 else -math.inf
    excess = log_tau + log_n + pull - push
    inside = where & (excess < 0)
    corrected = push + torch.log1p(-torch.where(inside, excess, -1.0).exp()) - math.log1p(-tau_plus)
    floor = log_n - 1 / temperature
    gap = torch.where(inside & (corrected > floor), corrected, floor) - pull
    loss = torch.where(where, softplus(gap), 0.0)
    return mean_over_anchors(name, loss, where, lacking=BOTH)


def _nearest(z: Tensor, every: Tensor, k: int, group: Tensor) -> Float[Tensor, "N k"]:
    """Similarities of each row's k nearest negatives, -inf in the places left over."""
    if not len(every):  # no process has a row
        return z.new_zeros(0, k)
    return topk(z, every, k, pairs=negatives(group))[0]


def _negative_sum(z: Tensor, every: Tensor, positive_sum: Tensor) -> Tensor:
    """sum over N(i) of s_in: everything less the positives less the row itself."""
    return (z * (every.sum(dim=0) - z)).sum(dim=1) - positive_sum


def _check(
    name: str, z: Tensor, group: Tensor, **positive: float | Tensor
) -> tuple[Tensor, Tensor]:
    check_positive(name, **positive)
    return check_groups(name, z, group)
