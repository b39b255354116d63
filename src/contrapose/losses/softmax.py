"""Losses that are differences of log-sum-exps, with positives found in the batch.

Every loss takes unit-length embeddings `z` and a `group`: rows of one group are positives of
each other. The group is the image for self-supervised learning and the class for supervised.
Every loss is a mean over the anchors that have a positive, over all processes inside `across`.

Notation: s_ij = z_i . z_j, t the temperature, P(i) the other rows of i's group, A(i) all other
rows, N(i) the rows of other groups. All raise UserError for groups of another length and for a
temperature that is not finite and above 0, and warn of rows that are left out or not unit length.

Where a loss takes a `perplexity`, that stands in place of the temperature: t is then, in every
batch, the one at which an anchor has that many effective negatives; per="batch" in the mean over
anchors, per="anchor" each with a t of its own. They are more as long as positives are farther than
the negatives that repel most, so that nothing collapses. No gradient flows through t. See
`temperature.py`.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrapose.errors import UserError
from contrapose.losses.capped import capped_supcon
from contrapose.losses.checks import check_groups, check_positive, mean_over_anchors
from contrapose.losses.temperature import Per, temperature_in_force, tempered_logsumexps
from contrapose.losses.terms import softplus, supcon_terms
from contrapose.similarity import (
    Pairs,
    gather_rows,
    logsumexp,
    negatives,
    others,
    positive_count,
    positive_similarity,
    positives,
    positives_of,
    safe_logsumexp,
    softplus_sum,
    unlabelled_apart,
    whole_numbers,
)


def nt_xent(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""] | None = None,
    perplexity: float | None = None,
    per: Per = "batch",
) -> Float[Tensor, ""]:
    """NT-Xent (SimCLR, arXiv 2002.05709, eq. 1): `supcon` whose classes are images.

    mean over i of  log sum_{a in A(i)} e^{s_ia/t}  -  s_ip/t    with p the other view of i
    Two views of B images whose embeddings are all equal give log(2 B - 1).
    """
    return _supcon("nt_xent", z, group, temperature, perplexity, per)


def supcon(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""] | None = None,
    perplexity: float | None = None,
    per: Per = "batch",
    anchor: Bool[Tensor, " N"] | None = None,
    mean_over: Literal["anchors", "rows"] = "anchors",
    max_positives: int | None = None,
    image: Int[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """SupCon, sum outside the log (arXiv 2004.11362, eq. 2).

    mean over i of  log sum_{a in A(i)} e^{s_ia/t}  -  mean_{p in P(i)} s_ip/t
    `anchor` keeps only some rows in the mean, all rows stay candidates: the first view of each
    image, or the samples of the current task (Co2L's asymmetric loss, arXiv 2106.14413, eq. 3).
    mean_over="rows" divides their sum by all rows in its place, as Co2L's released code does: with
    few rows of the current task the loss then weighs less beside the distillation.
    `max_positives` keeps at most so many positives of an anchor (table 5), its other views first;
    the others leave P(i) and A(i). `image` says which rows are views of one image; `capped.py`
    says which other positives are kept, without chance: this project's choice. With 1 and two
    views only the other view is. Training gives `image` itself. Raises UserError for max_positives
    below 1 or without `image`.
    """
    if mean_over not in ("anchors", "rows"):
        raise UserError(f"supcon: mean_over={mean_over!r}; use 'anchors' or 'rows'")
    among = anchor if mean_over == "rows" else None
    if max_positives is None:
        loss = _supcon("supcon", z, group, temperature, perplexity, per, anchor)
        return (
            loss
            if among is None
            else loss
            * _share(
                among
                & (positive_count(unlabelled_apart(whole_numbers("supcon", "groups", group))) > 0)
            )
        )
    if max_positives < 1 or image is None or image.shape != group.shape:
        raise UserError(
            f"supcon: max_positives={max_positives} with image="
            f"{None if image is None else tuple(image.shape)} for {len(z)} rows; give at least 1, "
            "and the image of each row, so that views of one are known"
        )
    z, group = check_groups("supcon", z, group)
    image = whole_numbers("supcon", "images", image)
    t = _temperature("supcon", z, gather_rows(z), group, temperature, perplexity, per)
    loss, count = capped_supcon(z, group, image, t, max_positives)
    mean = mean_over_anchors("supcon", loss, count > 0, among=anchor)
    return mean if among is None else mean * _share(among & (count > 0))


def supcon_in(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""] | None = None,
    perplexity: float | None = None,
    per: Per = "batch",
) -> Float[Tensor, ""]:
    """SupCon, sum inside the log (arXiv 2004.11362, eq. 3); never above `supcon`.

    mean over i of  log sum_{a in A(i)} e^{s_ia/t}  -  log mean_{p in P(i)} e^{s_ip/t}
    """
    z, group = check_groups("supcon_in", z, group)
    every = gather_rows(z)
    t = _temperature("supcon_in", z, every, group, temperature, perplexity, per)
    push, pull = tempered_logsumexps(z, every, t, (negatives(group), positives(group)))
    count = positive_count(group)
    gap = torch.where(count > 0, push - pull, 0.0)
    loss = softplus(gap) + count.clamp(min=1).to(z.dtype).log()
    return mean_over_anchors("supcon_in", loss, where=count > 0)


def dcl(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""] | None = None,
    perplexity: float | None = None,
    per: Per = "batch",
) -> Float[Tensor, ""]:
    """DCL (arXiv 2110.06848, eq. 6): NT-Xent without the positives in the denominator.

    mean over i of  log sum_{n in N(i)} e^{s_in/t}  -  mean_{p in P(i)} s_ip/t
    """
    z, group = check_groups("dcl", z, group)
    every = gather_rows(z)
    t = _temperature("dcl", z, every, group, temperature, perplexity, per)
    similarity, count = positive_similarity(z, group, every)
    pull = similarity / t
    (push,) = tempered_logsumexps(z, every, t, (negatives(group),))
    where = (count > 0) & (push > -math.inf)
    return mean_over_anchors("dcl", push - pull, where, lacking="a positive and a negative")


def dclw(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""],
    sigma: float,
    fixed_weight: bool = False,
) -> Float[Tensor, ""]:
    """DCLW (arXiv 2110.06848, eq. 7): DCL with positives weighted down where they are close.

    mean over i of  log sum_{n in N(i)} e^{s_in/t}  -  w_i p_i/t,    p_i = mean_{p in P(i)} s_ip,
    w_i = 2 - e^{p_i/sigma} / mean_i e^{p_i/sigma}    (the paper: sigma = 0.5)
    A weight is negative where one pair dominates the mean: such a positive repels. The gradient
    flows through w_i too, as the equation says; fixed_weight=True stops it there, as lightly does.
    """
    z, group = _check("dclw", z, group, temperature)
    check_positive("dclw", sigma=sigma)
    every = gather_rows(z)
    similarity, count = positive_similarity(z, group, every)
    push = logsumexp(z, every, scale=1 / temperature, pairs=negatives(group))
    where = (count > 0) & (push > -math.inf)
    height = torch.where(where, similarity / sigma, -math.inf)
    heights = gather_rows(height)
    log_mean = safe_logsumexp(heights[None])[0] - (heights > -math.inf).sum().to(z.dtype).log()
    log_mean = torch.where(where, log_mean, similarity / sigma)  # rows left out weigh 1
    weight = 2 - (similarity / sigma - log_mean).exp()
    weight = weight.detach() if fixed_weight else weight
    loss = torch.where(where, push - weight * similarity / temperature, 0.0)
    return mean_over_anchors("dclw", loss, where, lacking="a positive and a negative")


def supcon_one_positive(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, temperature: float | Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """SupCon whose denominators hold one positive each, with all negatives.

    mean over i of mean_{p in P(i)} of  -log e^{s_ip/t} / (e^{s_ip/t} + sum_{n in N(i)} e^{s_in/t})
    The option ONE_POSITIVE of SupCon's released code.
    """
    loss, count = _one_positive("supcon_one_positive", z, group, temperature)
    return mean_over_anchors("supcon_one_positive", loss / count.clamp(min=1), where=count > 0)


def nt_xent_pairs(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, temperature: float | Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """NT-Xent over labelled pairs, as metric-learning libraries define it: a mean over pairs.

    mean over pairs (i, p) of  -log e^{s_ip/t} / (e^{s_ip/t} + sum_{n in N(i)} e^{s_in/t})
    Large groups weigh more than in `supcon_one_positive`, whose mean is over anchors.
    """
    loss, count = _one_positive("nt_xent_pairs", z, group, temperature)
    counts = gather_rows(count)
    pairs_per_anchor = counts.sum().to(loss.dtype) / (counts > 0).sum().clamp(min=1)
    return mean_over_anchors("nt_xent_pairs", loss, count > 0) / pairs_per_anchor.clamp(min=1)


def align_uniform(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, t: float = 2.0, weight: float = 1.0
) -> Float[Tensor, ""]:
    """Alignment and uniformity (arXiv 2005.10242, eq. 8 and 9, alpha = 2).

    mean over i of mean_{p in P(i)} |z_i - z_p|^2
      +  weight * log mean_{i, n in N(i)} e^{-t |z_i - z_n|^2}
    On the sphere |x - y|^2 = 2 - 2 x.y. Pairs of the second term are of different groups: drawn
    independently, as in the paper. The authors' code takes them within each of two views and the
    mean of two logarithms, which is the same but for the draw. t = 2 and weight = 1 are the
    paper's. `align_uniform_joined` counts the views of one image among them. Rows of a single
    group have no such pair: the loss is alignment alone.
    """
    z, group = check_groups("align_uniform", z, group)
    check_positive("align_uniform", t=t)
    return _align_uniform("align_uniform", z, group, t, weight, negatives(group))


def align_uniform_joined(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, t: float = 2.0, weight: float = 1.0
) -> Float[Tensor, ""]:
    """`align_uniform` whose uniformity is over all pairs of different rows of the batch.

    mean over i of mean_{p in P(i)} |z_i - z_p|^2
      +  weight * log mean_{i != j} e^{-t |z_i - z_j|^2}
    Views of one image then repel each other a little: a share 1 / (2 B - 1) of the pairs of two
    views of B images, whose exponential is near 1. At B = 16 that is most of the sum.
    """
    z, group = check_groups("align_uniform_joined", z, group)
    check_positive("align_uniform_joined", t=t)
    rule = others(len(z), z.device)
    return _align_uniform("align_uniform_joined", z, group, t, weight, rule)


def _align_uniform(
    name: str, z: Tensor, group: Tensor, t: float, weight: float, pairs: Pairs
) -> Float[Tensor, ""]:
    every = gather_rows(z)
    similarity, count = positive_similarity(z, group, every)
    align = mean_over_anchors(name, 2 - 2 * similarity, where=count > 0)
    rest = len(every) - 1 - (count if pairs.relation == "different" else torch.zeros_like(count))
    rows = gather_rows(logsumexp(z, every, scale=2 * t, pairs=pairs))
    number = gather_rows(rest).sum()
    if z.device.type == "cpu" and not int(number):
        return align
    log_mean = safe_logsumexp(rows[None])[0] - number.to(z.dtype).log() - 2 * t
    return align + weight * torch.where(number > 0, log_mean, 0.0)


def _supcon(
    name: str,
    z: Tensor,
    group: Tensor,
    temperature: float | Tensor | None,
    perplexity: float | None,
    per: Per,
    anchor: Tensor | None = None,
) -> Float[Tensor, ""]:
    z, group = check_groups(name, z, group)
    every = gather_rows(z)
    t = _temperature(name, z, every, group, temperature, perplexity, per)
    loss, count = supcon_terms(z, every, t, *positives_of(z, group, every), group)
    return mean_over_anchors(name, loss, count > 0, among=anchor)


def _share(where: Bool[Tensor, " N"]) -> Float[Tensor, ""]:
    """Rows in `where` over all rows, of all processes."""
    every = gather_rows(where)
    return every.sum() / max(1, len(every))


def _one_positive(
    name: str, z: Tensor, group: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Sum over P(i) of log(1 + sum_n e^{(s_in - s_ip)/t}), and |P(i)|."""
    z, group = _check(name, z, group, temperature)
    every = gather_rows(z)
    push = logsumexp(z, every, scale=1 / temperature, pairs=negatives(group))
    pairs = positives(group)
    loss = softplus_sum(z, every, scale=-1 / temperature, bias=push, pairs=pairs)
    return loss, positive_count(group)


def _temperature(
    name: str,
    z: Tensor,
    every: Tensor,
    group: Tensor,
    temperature: float | Tensor | None,
    perplexity: float | None,
    per: Per,
) -> float | Tensor:
    return temperature_in_force(
        name,
        z,
        every,
        temperature=temperature,
        perplexity=perplexity,
        per=per,
        negatives=lambda: negatives(group),
        positives=lambda: _positives(z.detach(), group, every.detach()),
    )


def _positives(z: Tensor, group: Tensor, every: Tensor) -> tuple[Tensor, Tensor]:
    similarity, count = positive_similarity(z, group, every)
    return similarity, count > 0


def _check(
    name: str, z: Tensor, group: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    check_positive(name, temperature=temperature)
    return check_groups(name, z, group)
