"""k-means on many sets of points at once, on the device they are on.

scikit-learn's takes one set at a time and has no spherical kind; here the positions of each of B
images are clustered side by side.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.errors import UserError


@dataclass(frozen=True)
class Clusters:
    """The clusters of each of B sets of points, the largest first."""

    centre: Float[Tensor, "B K F"]
    label: Int[Tensor, "B P"]
    inertia: Float[Tensor, " B"]  # sum of squared distances to the own centre

    def assign(self, x: Float[Tensor, "M P F"]) -> Int[Tensor, "M P"]:
        """The nearest centre of other points; one set of clusters serves any number of sets."""
        return _scores(x, self.centre.expand(len(x), -1, -1)).argmax(dim=2)


def kmeans(
    x: Float[Tensor, "B P F"],
    clusters: int,
    *,
    spherical: bool = False,
    restarts: int = 10,
    steps: int = 100,
    generator: torch.Generator | None = None,
) -> Clusters:
    """Lloyd's algorithm from k-means++ starts: min over labels and centres of sum |x - c|^2.

    spherical=True, for points of unit length: centres have unit length too, so that the sum of
    cosines is largest. The best of `restarts` for each set; a cluster that runs empty starts again
    at the point that is farthest from its centre. `generator` is a CPU's. Raises UserError for
    fewer points than clusters.
    """
    if not 1 <= clusters <= x.shape[1]:
        raise UserError(f"kmeans: {clusters} clusters of {x.shape[1]} points; use fewer clusters")
    if restarts < 1 or steps < 1:
        raise UserError(f"kmeans: restarts={restarts}, steps={steps}; use at least 1")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    x = x.contiguous()
    best = _lloyd(x, _plus_plus(x, clusters, generator), spherical, steps)
    for _ in range(restarts - 1):
        found = _lloyd(x, _plus_plus(x, clusters, generator), spherical, steps)
        better = found.inertia < best.inertia
        best = Clusters(
            torch.where(better[:, None, None], found.centre, best.centre),
            torch.where(better[:, None], found.label, best.label),
            torch.where(better, found.inertia, best.inertia),
        )
    return _by_size(best)


def _plus_plus(x: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Starts drawn one by one, far from those before: with probability as the squared distance."""
    sets = torch.arange(len(x), device=x.device)
    drawn = torch.rand(clusters, len(x), generator=generator, dtype=torch.float64).to(x.device)
    first = (drawn[0] * x.shape[1]).long()
    chosen = [x[sets, first]]
    distance = (x - chosen[0][:, None]).square().sum(dim=2)
    for u in drawn[1:]:
        total = distance.double().cumsum(dim=1)
        place = torch.searchsorted(total, (u * total[:, -1])[:, None], right=True)
        chosen.append(x[sets, place[:, 0].clamp(max=x.shape[1] - 1)])
        distance = torch.minimum(distance, (x - chosen[-1][:, None]).square().sum(dim=2))
    return torch.stack(chosen, dim=1)


def _lloyd(x: Tensor, centre: Tensor, spherical: bool, steps: int) -> Clusters:
    square = x.square().sum(dim=2)
    number = torch.arange(centre.shape[1], device=x.device)[:, None]
    label = _scores(x, centre).argmax(dim=2)
    for _ in range(steps):
        # [B K P] in memory order: with the axes the other way round the product takes ten times
        # as long for few clusters
        member = (label[:, None] == number).to(x.dtype)
        count = member.sum(dim=2)
        centre = member @ x / count.clamp(min=1)[:, :, None]
        if bool((count == 0).any()):
            far = (x - centre.gather(1, label[..., None].expand_as(x))).square().sum(dim=2)
            rank = ((count == 0).cumsum(dim=1) - 1).clamp(min=0)
            lost = far.topk(centre.shape[1], dim=1).indices.gather(1, rank)
            points = x.gather(1, lost[..., None].expand(-1, -1, x.shape[2]))
            centre = torch.where((count == 0)[..., None], points, centre)
        if spherical:
            centre = F.normalize(centre, dim=2)
        scores = _scores(x, centre)
        before, label = label, scores.argmax(dim=2)
        if torch.equal(label, before):
            break
    distance = square - 2 * scores.gather(2, label[..., None])[..., 0]
    return Clusters(centre, label, distance.sum(dim=1))


def _scores(x: Tensor, centre: Tensor) -> Tensor:
    """x c - |c|^2 / 2: largest for the nearest centre."""
    return x @ centre.mT - centre.square().sum(dim=2)[:, None] / 2


def _by_size(found: Clusters) -> Clusters:
    count = F.one_hot(found.label, found.centre.shape[1]).sum(dim=1)
    order = count.argsort(dim=1, descending=True, stable=True)
    centre = found.centre.gather(1, order[..., None].expand_as(found.centre))
    return Clusters(centre, order.argsort(dim=1).gather(1, found.label), found.inertia)
