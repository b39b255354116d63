"""Losses of queries against keys that come from elsewhere: another tower, a queue, a bank.

Notation: s_ij = query_i . key_j, t the temperature. S1 is "Understanding the Behaviour of
Contrastive Loss" (Wang & Liu, CVPR 2021). All raise UserError for shapes that do not
fit and for a temperature or scale that is not finite and above 0, and warn of rows that are not
unit length. Every loss is a mean over the queries, of all processes inside `across`.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrapose.errors import UserError
from contrapose.losses.checks import (
    check_groups,
    check_keys,
    check_lengths,
    check_positive,
    check_towers,
    mean_over_anchors,
)
from contrapose.losses.hardness import against
from contrapose.losses.temperature import Per, temperature_in_force, tempered_logsumexps
from contrapose.losses.terms import softplus
from contrapose.similarity import (
    EVERY,
    Pairs,
    anchor_mean,
    gather_rows,
    logsumexp,
    logsumexp_both,
    negatives,
    others,
    paired,
    positive_similarity,
    row_ids,
    softplus_sum,
    topk,
    whole_numbers,
    widen,
)

BLOCK = 4096  # keys of one block of a mask
NOBODYS = torch.iinfo(torch.int64).min  # the group of keys without a label: no row has it


def info_nce(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    match: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""] | None = None,
    perplexity: float | None = None,
    per: Per = "batch",
    pairs: Pairs = EVERY,
) -> Float[Tensor, ""]:
    """InfoNCE (arXiv 1807.03748): `key[match[i]]` is query i's positive, every other a negative.

    mean over i of  log(e^{s_im/t} + sum_{j in K(i)} e^{s_ij/t})  -  s_im/t    with m = match(i)
    K(i): the keys besides the match that `pairs` counts, all of them by default.
    Keys are a memory bank, class prototypes, or another encoder's batch; inside `across` they are
    taken as given: the same on every process, or `gather_rows(key)`. Those without a gradient are
    taken as they are: a bank (Wu et al. 2018) starts with vectors that are not of unit length.
    `Pairs(row_id=image, col_id=images)` keeps a queue's older entries of a query's image out of K.
    `perplexity` in place of a temperature: as in `softmax.py`, over K(i).
    """
    query, key, match = _check_keys("info_nce", query, key, match)
    t = temperature_in_force(
        "info_nce", query, key, temperature=temperature, perplexity=perplexity, per=per,
        negatives=lambda: pairs, match=match,
        positives=lambda: (paired(query, key[match]).detach(), torch.ones_like(match).bool()),
    )  # fmt: skip
    pull = paired(query, key[match]) / t
    (push,) = tempered_logsumexps(query, key, t, (pairs,), match)
    return anchor_mean(softplus(push - pull))


def hard_info_nce(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    match: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""],
    k: int,
    pairs: Pairs = EVERY,
) -> Float[Tensor, ""]:
    """Hard contrastive loss (S1, eq. 9) against keys: only the k nearest negatives repel.

    mean over i of  log(e^{s_im/t} + sum_{j in the k nearest of K(i)} e^{s_ij/t})  -  s_im/t
    m and K(i) as in `info_nce`, which it is where k counts every key but the match. S1 keeps 4,095
    of a bank of all images. Raises UserError unless 1 <= k < M.
    """
    query, key, match = _check_keys("hard_info_nce", query, key, match)
    check_positive("hard_info_nce", temperature=temperature)
    similarity = paired(query, key[match])
    nearest = _nearest("hard_info_nce", query, key, match, k, pairs)
    return anchor_mean(against(similarity, nearest, temperature))


def simple_info_nce(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    match: Int[Tensor, " N"],
    *,
    weight: float,
    pairs: Pairs = EVERY,
) -> Float[Tensor, ""]:
    """Simple contrastive loss (S1, eq. 3) against keys; O(N D + M D) where every key counts.

    mean over i of  -s_im + weight sum_{j in K(i)} s_ij    (eq. 7: weight = 1 / |K(i)|)
    m and K(i) as in `info_nce`. S1 gives no number for the weight.
    """
    query, key, match = _check_keys("simple_info_nce", query, key, match)
    similarity = paired(query, key[match])
    own = torch.where(_counted(pairs, match), similarity, 0.0)
    return anchor_mean(weight * (_similarity_sum(query, key, pairs) - own) - similarity)


def hard_simple_info_nce(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    match: Int[Tensor, " N"],
    *,
    weight: float,
    k: int,
    pairs: Pairs = EVERY,
) -> Float[Tensor, ""]:
    """Simple contrastive loss on the k nearest negatives (S1, section 4.3) among keys.

    mean over i of  -s_im + weight sum_{j in the k nearest of K(i)} s_ij
    m and K(i) as in `info_nce`. Raises UserError unless 1 <= k < M.
    """
    query, key, match = _check_keys("hard_simple_info_nce", query, key, match)
    similarity = paired(query, key[match])
    nearest = _nearest("hard_simple_info_nce", query, key, match, k, pairs)
    push = torch.where(nearest > -math.inf, nearest, 0.0).sum(dim=1)
    return anchor_mean(weight * push - similarity)


def supcon_memory(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    key: Float[Tensor, "M D"],
    key_group: Int[Tensor, " M"],
    *,
    temperature: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """SupCon (arXiv 2004.11362, eq. 2) of a batch and a cross-batch memory (arXiv 1912.06798).

    mean over i of  log(sum_{a in A(i)} e^{s_ia/t} + sum_j e^{z_i.key_j/t})
                    -  (sum_{p in P(i)} s_ip + sum_{j of i's group} z_i.key_j) / (count t)
    A(i): the other rows of the batch, P(i): those of i's group, count: the positives of both kinds.
    An older entry of an anchor's own image is of its group, so it attracts. Keys are the same on
    every process inside `across`; with none of them (M = 0) it is `supcon`.
    Raises UserError for groups of another length than the rows or the keys.
    """
    check_positive("supcon_memory", temperature=temperature)
    z, group = check_groups("supcon_memory", z, group)
    if key.ndim != 2 or key.shape[1] != z.shape[1] or key_group.shape != key.shape[:1]:
        raise UserError(
            f"supcon_memory: rows of shape {tuple(z.shape)} but keys of shape {tuple(key.shape)} "
            f"with groups of shape {tuple(key_group.shape)}; give keys [M {z.shape[1]}], M groups"
        )
    key_group = whole_numbers("supcon_memory", "groups of keys", key_group)
    key_group = torch.where(key_group < 0, NOBODYS, key_group)
    key, every = check_keys("supcon_memory", key), gather_rows(z)
    in_batch, count = positive_similarity(z, group, every)
    in_memory, more = _group_similarity(z, group, key, key_group)
    both = count + more
    pull = (in_batch * count + in_memory) / both.clamp(min=1) / temperature
    alone = z.device.type == "cpu" and not bool((both > 1).any())  # one positive at most
    rules = others(len(z), z.device), EVERY
    apart = negatives(group), Pairs("different", group, key_group)  # gathered by every process
    of_rows, of_keys = apart if alone else rules
    push = logsumexp(z, every, scale=1 / temperature, pairs=of_rows)
    push = torch.logaddexp(push, logsumexp(z, key, scale=1 / temperature, pairs=of_keys))
    loss = torch.where(both > 0, push - pull, 0.0)
    loss = torch.where(both > 0, softplus(loss), 0.0) if alone else loss
    return mean_over_anchors("supcon_memory", loss, where=both > 0)


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
        raise UserError(f"clip: {len(image)} images but {len(text)} texts; give pairs of rows")
    pull, own = scale * paired(image, text), row_ids(len(image), image.device)[0]
    every_image, every_text = gather_rows(image), gather_rows(text)
    if every_text is text:  # one matrix serves both directions
        to_text, to_image = logsumexp_both(image, text, scale=scale, match=own)
    else:
        to_text = logsumexp(image, every_text, scale=scale, match=own)
        to_image = logsumexp(text, every_image, scale=scale, match=own)
    return anchor_mean(softplus(torch.stack([to_text, to_image]) - pull).mean(dim=0))


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
        raise UserError(f"siglip: {len(image)} images but {len(text)} texts; give pairs of rows")
    match = scale * paired(image, text) + bias
    offset = torch.as_tensor(bias, dtype=match.dtype, device=match.device).expand(len(image))
    # log(1 + e^-x) = log(1 + e^x) - x turns the matches into ordinary terms
    return anchor_mean(softplus_sum(image, gather_rows(text), scale=scale, bias=offset) - match)


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
        raise UserError(f"nnclr: {len(z)} rows but {len(prediction)} predictions; give pairs")
    if not len(support) and len(z):
        raise UserError(f"nnclr: {len(z)} rows but a support of none; push keys into it first")
    nearest = support[topk(z, support, 1)[1][:, 0]] if len(support) else support
    pull = paired(nearest, prediction) / temperature
    every, own = gather_rows(prediction), row_ids(len(z), z.device)[0]
    push = logsumexp(nearest, every, scale=1 / temperature, match=own)
    return anchor_mean(softplus(push - pull))


def n_pairs(query: Float[Tensor, "N D"], key: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """N-pairs (Sohn 2016, eq. 7): row i of `key` is another image of the class of query i.

    mean over i of  log(1 + sum_{j != i} e^{f_i.f_j+ - f_i.f_i+})    each row of another class
    Vectors of any length: the paper bounds them by an L2 penalty, which is left to the caller.
    """
    if query.shape != key.shape:
        raise UserError(f"n_pairs: shapes {tuple(query.shape)} and {tuple(key.shape)}; give pairs")
    for rows in (query, key):
        check_lengths("n_pairs", rows, unit=False)
    query, key = widen(query), widen(key)
    push = logsumexp(query, gather_rows(key), match=row_ids(len(query), query.device)[0])
    return anchor_mean(softplus(push - paired(query, key)))


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
        raise UserError(f"relation_distillation: {len(z)} rows but {len(past)} past rows")
    mask = others(len(z), z.device).mask()
    assert mask is not None
    every, every_past = gather_rows(z), gather_rows(past)
    with torch.autocast(z.device.type, enabled=False):
        target = torch.where(mask, past @ every_past.T / past_temperature, -1e30).softmax(dim=1)
        log_p = torch.where(mask, z @ every.T / temperature, -1e30).log_softmax(dim=1)
    return anchor_mean(-torch.where(mask, target * log_p, 0.0).sum(dim=1))


def _check_keys(
    name: str, query: Tensor, key: Tensor, match: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in float32 at least, matches in int64; UserError unless every match is a key."""
    if key.requires_grad:
        query, key = check_towers(name, query, key)
    else:
        query, _ = check_towers(name, query, key[:0])
        key = check_keys(name, key)
    match = whole_numbers(name, "matches", match)
    if match.shape != query.shape[:1]:
        raise UserError(
            f"{name}: {len(query)} queries but matches of shape {tuple(match.shape)}; "
            "give the index of one key per query"
        )
    if (
        match.device.type == "cpu"
        and match.numel()
        and not 0 <= match.min() <= match.max() < len(key)
    ):
        raise UserError(
            f"{name}: matches from {int(match.min())} to {int(match.max())} "
            f"among {len(key)} keys; use 0 to {len(key) - 1}"
        )
    return query, key, match


def _counted(pairs: Pairs, match: Int[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """Whether `pairs` counts the match of each query."""
    counted = torch.ones_like(match, dtype=torch.bool)
    if pairs.row_group is not None and pairs.col_group is not None:
        same = pairs.row_group == pairs.col_group[match]
        counted = same if pairs.relation == "same" else ~same
    if pairs.row_id is not None and pairs.col_id is not None:
        counted = counted & (pairs.row_id != pairs.col_id[match])
    return counted


def _nearest(
    name: str, query: Tensor, key: Tensor, match: Tensor, k: int, pairs: Pairs
) -> Float[Tensor, "N K"]:
    """Similarities of the k nearest keys besides the match; -inf in the places left over."""
    if not len(query) and not len(key):
        return query.new_zeros(0, k + 1)
    if not 1 <= k < len(key):
        raise UserError(f"{name}: k={k} negatives among {len(key)} keys; use 1 to {len(key) - 1}")
    value, index = topk(query, key, k + 1, pairs=pairs)  # one more, since the match may be there
    own = (index == match[:, None]) & (value > -math.inf)
    surplus = torch.where(own.any(dim=1), own.int().argmax(dim=1), k)
    place = torch.arange(k + 1, device=value.device)
    return torch.where(place == surplus[:, None], -math.inf, value)


def _similarity_sum(query: Tensor, key: Tensor, pairs: Pairs) -> Float[Tensor, " N"]:
    """sum_j s_ij over the pairs that count, a block of the mask at a time."""
    if pairs is EVERY:
        return paired(query, key.sum(dim=0).expand_as(query))
    pairs.check(len(query), len(key))
    total = torch.zeros_like(query)
    for start in range(0, len(key), BLOCK):
        cols = slice(start, start + BLOCK)
        mask = pairs.mask(slice(None), cols)
        assert mask is not None
        total = total + mask.to(key.dtype) @ key[cols]
    return paired(query, total)


def _group_similarity(
    z: Tensor, group: Tensor, key: Tensor, key_group: Tensor
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
    """Sum of each row's similarities to the keys of its group, and how many they are.

    O((N + M) log N). A group has the place of its first row among the sorted ones, so that no shape
    depends on values, for which a GPU would be waited for.
    """
    rows = group.sort().values
    mine, first, end = (
        torch.searchsorted(rows, of.contiguous(), right=right)
        for of, right in ((group, False), (key_group, False), (key_group, True))
    )
    theirs = torch.where(end > first, first, len(group))  # the last place: of no row's group
    total = key.new_zeros(len(group) + 1, key.shape[1]).index_add(0, theirs, key)
    size = group.new_zeros(len(group) + 1).index_add_(0, theirs, torch.ones_like(theirs))
    return paired(z, total[mine]), size[mine]
