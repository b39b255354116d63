"""The terms of softmax losses, written so that float32 does not take large numbers from each other.

Where the positive of an anchor is known,

    log(e^{s_p/t} + sum_n e^{s_n/t}) - s_p/t  =  log(1 + sum_n e^{(s_n - s_p)/t})

and the right side has the precision of s_n - s_p however small it is: the left one takes numbers of
size 1/t from each other, and its gradient 1 from a weight that is all but 1.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.losses.temperature import tempered_logsumexps
from contrapose.similarity import others


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
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
    """log sum_{a in A(i)} e^{s_ia/t} - p_i/t of each row, p_i the mean similarity of P(i); |P(i)|.

    `similarity` is p_i and `count` is |P(i)|. `only`: the only positive of each row (itself if it
    has none), if all have one at most; the loss then has the precision of s_n - s_p. It is never
    below log |P(i)|, its minimum.
    """
    pull, rules = similarity / t, (others(len(z), z.device),)
    if only is not None:
        (push,) = tempered_logsumexps(z, every, t, rules, only)
        return softplus(push - pull), count
    (push,) = tempered_logsumexps(z, every, t, rules)
    loss = torch.where(count > 0, push - pull, 0.0)
    least = count.clamp(min=1).to(loss.dtype).log()
    return loss + (least - loss.detach()).clamp(min=0), count
