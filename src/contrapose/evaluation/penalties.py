"""The distribution of repulsion over negatives in softmax losses: the gradient analysis of S1.

With s_ij = x_i . x_j of unit rows and N(i) the rows of other groups,

    r_ij = e^{s_ij/t} / sum_{n in N(i)} e^{s_in/t}                                       (S1, eq. 5)

is the derivative of the loss by the similarity of negative j over minus that of the positive, for
anchor i. It is a Boltzmann distribution over j with temperature t: for t -> 0 all mass is on the
nearest negative, for large t it is uniform. S1 is "Understanding the Behaviour of Contrastive Loss"
(Wang & Liu, CVPR 2021).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.errors import UserError
from contrapose.evaluation.geometry import _unit
from contrapose.losses.temperature import Similarities
from contrapose.similarity import negatives

SHARE = 0.9  # of the repulsion that the effective interval holds: this project's choice


@dataclass(frozen=True)
class Penalties:
    """The distribution of the repulsion at one temperature; means are over anchors."""

    temperature: float
    entropy: float  # mean of H(r_i), nats
    slope: float  # mean of dH(r_i)/dt = Var_{r_i}(s_i) / t^3
    perplexity: float  # mean of e^{H(r_i)}: effective number of negatives
    interval: tuple[
        float, float
    ]  # similarities that hold SHARE of the repulsion, up to the largest
    edges: Float[Tensor, " B1"]  # of the bins of similarity, one more than bins
    ratio: Float[Tensor, " B"]  # mean r_ij of the pairs in a bin; NaN where it has none
    mass: Float[Tensor, " B"]  # share of all repulsion in a bin; sums to 1


def ratio(
    similarity: Float[Tensor, "... n"], *, temperature: float | Float[Tensor, ""]
) -> Float[Tensor, "... n"]:
    """r_ij of negatives with these similarities (S1, eq. 5): a softmax over the last axis."""
    return (similarity / temperature).softmax(dim=-1)


def penalties(
    x: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    temperatures: Sequence[float],
    bins: int = 200,
) -> list[Penalties]:
    """The distribution of the repulsion over rows of other groups, at each temperature.

    Memory O(N + bins).

    For a matrix of embeddings whose rows are all different images: group = torch.arange(N).
    Raises UserError for rows of one group alone and for a temperature that is not above 0.
    """
    x = _unit("penalties", x, rows=2)
    if len(group) != len(x) or bool((group == group[0]).all()):
        raise UserError(
            f"penalties: {len(x)} rows, {len(group)} group numbers, {len(torch.unique(group))} "
            "different; needs rows of two groups at least"
        )
    for t in temperatures:
        if not 0 < t < math.inf:
            raise UserError(f"penalties: temperature={t}; give a finite value above 0")
    with torch.no_grad():
        tiles = Similarities(x, x, negatives(group))
        count = torch.zeros(bins, dtype=torch.float64, device=x.device)
        for I, below in tiles.below():
            s = below + tiles.top[I, None]
            count += torch.histc(s[s >= -2].clamp(-1, 1), bins, min=-1, max=1)
        return [_at(tiles, float(t), count) for t in temperatures]


def _at(tiles: Similarities, t: float, count: Float[Tensor, " B"]) -> Penalties:
    at, bins = tiles.moments(1 / t), len(count)
    anchors = tiles.count > 0
    total = torch.zeros_like(count)
    for I, below in tiles.below():
        r = (below / t - at.log_sum.where(anchors, 0.0)[I, None]).exp()
        s = (below + tiles.top[I, None]).clamp(-1, 1)
        which = ((s + 1) * (bins / 2)).long().clamp(max=bins - 1)
        total += torch.bincount(which.flatten(), r.flatten().double(), minlength=bins)
    mass = total / total.sum()
    edges = torch.linspace(-1, 1, bins + 1, dtype=torch.float64)
    return Penalties(
        temperature=t,
        entropy=float(at.entropy[anchors].double().mean()),
        slope=float(at.variance[anchors].double().mean()) / t**3,
        perplexity=float(at.effective_negatives()),
        interval=(_holding(mass.cpu(), edges, SHARE), float(tiles.top[anchors].max())),
        edges=edges,
        ratio=torch.where(count > 0, total / count, math.nan).cpu(),
        mass=mass.cpu(),
    )


def _holding(mass: Float[Tensor, " B"], edges: Float[Tensor, " B1"], share: float) -> float:
    """The similarity above which `share` of the mass lies, even within a bin."""
    above = torch.cat([mass.flip(0).cumsum(0).flip(0), mass.new_zeros(1)])  # at each edge
    i = int((above >= share).nonzero().max()) if bool((above >= share).any()) else 0
    within = (float(above[i]) - share) / max(float(mass[i]), 1e-300)
    return float(edges[i] + min(1.0, max(0.0, within)) * (edges[i + 1] - edges[i]))
