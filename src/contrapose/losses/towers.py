"""Losses of queries against keys that come from elsewhere: another tower, a queue, a bank.

Notation: s_ij = query_i . key_j, t the temperature. All raise ValueError for shapes that do not
fit and for a temperature or scale that is not finite and above 0, and warn of rows that are not
unit length. Every loss is a mean over the queries, of all processes inside `across`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.losses.checks import check_positive, check_towers
from contrapose.similarity import (
    EVERY,
    Pairs,
    anchor_mean,
    everyone,
    logsumexp,
    logsumexp_both,
    others,
    paired,
    softplus_sum,
    topk,
    widen,
)


def info_nce(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    match: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""],
    pairs: Pairs = EVERY,
) -> Float[Tensor, ""]:
    """InfoNCE (arXiv 1807.03748): `key[match[i]]` is query i's positive, every other a negative.

    mean over i of  log sum_j e^{s_ij/t}  -  s_i,match(i)/t
    Keys are a memory bank, class prototypes, or another encoder's batch; inside `across` they are
    taken as given: the same on every process, or `everyone(key)`.
    `pairs` tells which keys count, the match among them. For a queue that may hold older entries of
    a query's image: `Pairs(row_id=image, col_id=images)`, the match itself with an id of -1.
    """
    query, key = check_towers("info_nce", query, key)
    check_positive("info_nce", temperature=temperature)
    if match.shape != query.shape[:1]:
        raise ValueError(
            f"info_nce: {len(query)} queries but matches of shape {tuple(match.shape)}; "
            "give the index of one key per query"
        )
    if (
        match.device.type == "cpu"
        and match.numel()
        and not 0 <= match.min() <= match.max() < len(key)
    ):
        raise ValueError(
            f"info_nce: matches from {int(match.min())} to {int(match.max())} "
            f"among {len(key)} keys; use 0 to {len(key) - 1}"
        )
    pull = paired(query, key[match]) / temperature
    return anchor_mean(logsumexp(query, key, scale=1 / temperature, pairs=pairs) - pull)


def clip(
    image: Float[Tensor, "N D"], text: Float[Tensor, "N D"], *, scale: float | Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """CLIP: row i of one tower matches row i of the other (arXiv 2103.00020, fig. 3).

    mean over i of  (log sum_j e^{scale s_ij} + log sum_j e^{scale s_ji}) / 2  -  scale s_ii
    `scale` multiplies similarities and may be learned.
    """
    image, text = check_towers("clip", image, text)
    check_positive("clip", scale=scale)
    if len(image) != len(text):
        raise ValueError(f"clip: {len(image)} images but {len(text)} texts; give pairs of rows")
    match = scale * paired(image, text)
    every_image, every_text = everyone(image), everyone(text)
    if every_text is text:  # one matrix serves both directions
        to_text, to_image = logsumexp_both(image, text, scale=scale)
    else:
        to_text = logsumexp(image, every_text, scale=scale)
        to_image = logsumexp(text, every_image, scale=scale)
    return anchor_mean((to_text + to_image) / 2 - match)


def siglip(
    image: Float[Tensor, "N D"],
    text: Float[Tensor, "N D"],
    *,
    scale: float | Float[Tensor, ""],
    bias: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """SigLIP (arXiv 2303.15343, eq. 1): every pair is classified on its own, match or not.

    mean over i of  sum_j log(1 + e^{-y_ij (scale s_ij + bias)})    with y_ij = 1 if i = j, else -1
    `scale` and `bias` may be learned (the paper starts at 10 and -10).
    """
    image, text = check_towers("siglip", image, text)
    check_positive("siglip", scale=scale)
    if len(image) != len(text):
        raise ValueError(f"siglip: {len(image)} images but {len(text)} texts; give pairs of rows")
    match = scale * paired(image, text) + bias
    offset = torch.as_tensor(bias, dtype=match.dtype, device=match.device).expand(len(image))
    # log(1 + e^-x) = log(1 + e^x) - x turns the matches into ordinary terms
    return anchor_mean(softplus_sum(image, everyone(text), scale=scale, bias=offset) - match)


def nnclr(
    z: Float[Tensor, "N D"],
    prediction: Float[Tensor, "N D"],
    support: Float[Tensor, "M D"],
    *,
    temperature: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """NNCLR (arXiv 2104.14548, eq. 3): an anchor is replaced by its nearest neighbour in a queue.

    mean over i of  log sum_k e^{q_i.p_k/t} - q_i.p_i/t
    q_i: the row of `support` nearest to z_i, without gradient. `prediction` is the other view's.
    One direction: average it with that of the views exchanged.
    """
    z, support = check_towers("nnclr", z.detach(), support.detach())
    prediction, _ = check_towers("nnclr", prediction, support[:0])
    check_positive("nnclr", temperature=temperature)
    if len(z) != len(prediction):
        raise ValueError(f"nnclr: {len(z)} rows but {len(prediction)} predictions; give pairs")
    nearest = support[topk(z, support, 1)[1][:, 0]]
    pull = paired(nearest, prediction) / temperature
    return anchor_mean(logsumexp(nearest, everyone(prediction), scale=1 / temperature) - pull)


def n_pairs(query: Float[Tensor, "N D"], key: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """N-pairs (Sohn 2016, eq. 7): row i of `key` is another image of the class of query i.

    mean over i of  log(1 + sum_{j != i} e^{f_i.f_j+ - f_i.f_i+})    each row of another class
    Vectors of any length: the paper bounds them by an L2 penalty, which is left to the caller.
    """
    if query.shape != key.shape:
        raise ValueError(f"n_pairs: shapes {tuple(query.shape)} and {tuple(key.shape)}; give pairs")
    query, key = widen(query), widen(key)
    return anchor_mean(logsumexp(query, everyone(key)) - paired(query, key))


def relation_distillation(
    z: Float[Tensor, "N D"],
    past: Float[Tensor, "N D"],
    *,
    temperature: float | Float[Tensor, ""],
    past_temperature: float,
) -> Float[Tensor, ""]:
    """Instance-wise relation distillation (Co2L, arXiv 2106.14413, eq. 5 and 6).

    mean over i of  -sum_{j != i} softmax_j(past_i.past_j / past_t) log softmax_j(s_ij / t)
    `past`: the same rows embedded by the model frozen after the previous task; no gradient. The
    paper: t = 0.2, past_t (`past_temperature`) = 0.01. Memory O(N^2).
    """
    z, past = check_towers("relation_distillation", z, past.detach())
    check_positive(
        "relation_distillation", temperature=temperature, past_temperature=past_temperature
    )
    if len(z) != len(past):
        raise ValueError(f"relation_distillation: {len(z)} rows but {len(past)} past rows")
    mask = others(len(z), z.device).mask()
    assert mask is not None
    every, every_past = everyone(z), everyone(past)
    with torch.autocast(z.device.type, enabled=False):
        target = torch.where(mask, past @ every_past.T / past_temperature, -1e30).softmax(dim=1)
        log_p = torch.where(mask, z @ every.T / temperature, -1e30).log_softmax(dim=1)
    return anchor_mean(-torch.where(mask, target * log_p, 0.0).sum(dim=1))
