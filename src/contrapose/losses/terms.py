"""The terms of softmax losses, written so that float32 does not take large numbers from each other.

Where the positive of an anchor is known,

    log(e^{s_p/t} + sum_n e^{s_n/t}) - s_p/t  =  log(1 + sum_n e^{(s_n - s_p)/t})

and the right side has the precision of s_n - s_p however small it is: the left one takes numbers of
size 1/t from each other, and its gradient 1 from a weight that is all but 1. With a few positives,
of mean similarity m, it is log(sum_p e^{(s_p - m)/t} + sum_n e^{(s_n - m)/t}).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.losses.temperature import tempered_logsumexps
from contrapose.similarity import (
    few_positives,
    gather_rows,
    negatives,
    others,
    safe_logsumexp,
    similarity_at,
    widen,
)

CLOSE = 0.2  # of a mean loss above its minimum: there rounding is seen in its gradient


def softplus(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log(1 + e^x) for any x, also -inf."""
    return F.softplus(x, threshold=40.0)  # beyond it e^-x is below the last digit of x


def supcon_terms(
    z: Float[Tensor, "N D"],
    every: Float[Tensor, "M D"],
    t: float | Float[Tensor, "..."],
    similarity: Float[Tensor, " N"],
    count: Int[Tensor, " N"],
    only: Int[Tensor, " N"] | None,
    group: Int[Tensor, " N"] | None = None,
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
    """log sum_{a in A(i)} e^{s_ia/t} - p_i/t of each row, p_i the mean similarity of P(i); |P(i)|.

    `similarity` is p_i and `count` is |P(i)|. `only`: the only positive of each row (itself if it
    has none), if all have one at most; the loss then has the precision of s_n - s_p. So it has, on
    a CPU, within CLOSE of its minimum, log |P(i)|, if `group` says what P(i) are and they are few.
    It is never below its minimum.
    """
    pull, rules = similarity / t, (others(len(z), z.device),)
    if only is not None:
        (push,) = tempered_logsumexps(z, every, t, rules, only)
        return softplus(push - pull), count
    (push,) = tempered_logsumexps(z, every, t, rules)
    loss = torch.where(count > 0, push - pull, 0.0)
    least = count.clamp(min=1).to(loss.dtype).log()
    if group is not None and _is_close(loss - least) and (few := few_positives(group)) is not None:
        (push,) = tempered_logsumexps(z, every, t, (negatives(group),))
        loss = _of_few(similarity_at(widen(z), widen(every), few), push, t, count)
    return loss + (least - loss.detach()).clamp(min=0), count


def _is_close(excess: Float[Tensor, " N"]) -> bool:
    """True if the mean of all processes is small; False on an accelerator, without a look."""
    if excess.device.type != "cpu":
        return False
    every = gather_rows(excess.detach())
    return bool(len(every)) and float(every.mean()) < CLOSE


def _of_few(
    similarity: Float[Tensor, "N P"],
    push: Float[Tensor, " N"],
    t: float | Float[Tensor, "..."],
    count: Int[Tensor, " N"],
) -> Float[Tensor, " N"]:
    """log(sum_p e^{(s_p - m)/t} + e^{push - m/t}) over the first `count` of each row; 0 if none."""
    there = torch.arange(similarity.shape[1], device=count.device) < count[:, None]
    x = similarity / (t[:, None] if isinstance(t, Tensor) and t.ndim else t)
    mean = torch.where(there, x, 0.0).sum(dim=1) / count.clamp(min=1)
    away = torch.where(there, x - mean[:, None], -math.inf)
    # a row without positives has none to draw to: any finite numbers keep its gradient 0
    pull = torch.where(count > 0, safe_logsumexp(away), 0.0)
    return torch.where(count > 0, pull + softplus(push - mean - pull), 0.0)
