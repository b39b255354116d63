"""Alignment of two videos in time: each frame is matched with the most similar one of the other.

For frames at times t_i of duration T and t'_j of duration T' the match of i is
m(i) = argmax_j s_ij, and

    alignment error = mean over the frames of both videos of | t_i / T - t'_m(i) / T' |

(time-contrastive networks, arXiv 1704.06888): 0 if two recordings of one action, each from its
start to its end, are in step, 1/3 if matches are drawn at random. A match is right within a
tolerance in ms, where the other's time is scaled to the same duration.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.encoders import unit
from contrapose.errors import UserError
from contrapose.evaluation import scores


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How well two videos are matched in time. match: for each frame of the first, one of the
    second; back: the reverse. similarity: cosine of each frame with each."""

    error: float  # mean share of the duration
    random: float  # what matches drawn at random would have
    within: float  # share of frames, of both, whose match is right within the tolerance
    low: float
    high: float  # of `within`, Wilson's 95 % interval, which takes frames as independent
    random_within: float
    tolerance: float  # ms
    n: int  # frames of both
    match: Int[Tensor, " N"]
    back: Int[Tensor, " M"]
    similarity: Float[Tensor, "N M"]


def align(
    a: Float[Tensor, "N D"],
    time: Int[Tensor, " N"],
    b: Float[Tensor, "M D"],
    other: Int[Tensor, " M"],
    *,
    tolerance: float = 200.0,
) -> Alignment:
    """Match the frames of two videos by the cosine of their embeddings a and b.

    time, other: of each frame, in ms; each video begins at its first frame. Raises UserError for a
    video of fewer than two times, and for a tolerance that is not positive.
    """
    if not tolerance > 0:
        raise UserError(f"align: tolerance={tolerance} ms; use a positive number")
    share = []
    lengths = []
    for t in (time, other):
        start = t.double() - float(t.min()) if len(t) else t.double()
        length = float(start.max()) if len(t) else 0.0
        if not length > 0:
            raise UserError(f"align: a video of {len(t)} frames at one time; it needs two times")
        share.append(start / length)
        lengths.append(length)
    similarity = unit(a).double() @ unit(b).double().T
    match, back = similarity.argmax(dim=1), similarity.argmax(dim=0)
    gaps = torch.cat([(share[0] - share[1][match]).abs(), (share[1] - share[0][back]).abs()])
    apart = (share[0][:, None] - share[1][None, :]).abs()
    allowed = torch.cat(
        [
            torch.full_like(share[k], (tolerance + 1e-9) / lengths[k])  # in its own time
            for k in (0, 1)
        ]
    )
    right = gaps <= allowed
    n = len(gaps)
    low, high = scores.wilson(int(right.sum()), n)
    by_chance = torch.cat(
        [
            (apart <= (tolerance + 1e-9) / lengths[0]).double().mean(dim=1),
            (apart <= (tolerance + 1e-9) / lengths[1]).double().mean(dim=0),
        ]
    )
    return Alignment(
        error=float(gaps.mean()), random=float(apart.mean()), within=float(right.double().mean()),
        low=low, high=high, random_within=float(by_chance.mean()), tolerance=tolerance, n=n,
        match=match, back=back, similarity=similarity.float(),
    )  # fmt: skip
