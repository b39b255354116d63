"""Losses of queries against keys that come from elsewhere: another tower, a queue, a bank.

Notation: s_ij = query_i . key_j, t the temperature. All raise ValueError for shapes that do not
fit and for a temperature or scale that is not finite and above 0, and warn of rows that are not
unit length. Every loss is a mean over the queries, of all processes inside `across`.
"""

from jaxtyping import Float, Int
from torch import Tensor

from contrapose.losses.checks import check_positive, check_towers
from contrapose.similarity import anchor_mean, everyone, logsumexp, paired


def info_nce(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    match: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """InfoNCE (arXiv 1807.03748): `key[match[i]]` is query i's positive, every other a negative.

    mean over i of  log sum_j e^{s_ij/t}  -  s_i,match(i)/t
    Keys are a memory bank, class prototypes, or another encoder's batch; inside `across` they are
    taken as given: the same on every process, or `everyone(key)`.
    """
    check_towers("info_nce", query, key)
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
    return anchor_mean(logsumexp(query, key, scale=1 / temperature) - pull)


def clip(
    image: Float[Tensor, "N D"], text: Float[Tensor, "N D"], *, scale: float | Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """CLIP: row i of one tower matches row i of the other (arXiv 2103.00020, fig. 3).

    mean over i of  (log sum_j e^{scale s_ij} + log sum_j e^{scale s_ji}) / 2  -  scale s_ii
    `scale` multiplies similarities and may be learned.
    """
    check_towers("clip", image, text)
    check_positive("clip", scale=scale)
    if len(image) != len(text):
        raise ValueError(f"clip: {len(image)} images but {len(text)} texts; give pairs of rows")
    match = scale * paired(image, text)
    to_text = logsumexp(image, everyone(text), scale=scale) - match
    to_image = logsumexp(text, everyone(image), scale=scale) - match
    return anchor_mean(to_text + to_image) / 2
