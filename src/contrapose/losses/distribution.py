"""Generalised contrastive losses: alignment + weight x distance to a prior distribution.

"Intriguing Properties of Contrastive Losses" (arXiv 2011.02803) has two scalings, named apart here:
the paper's (alignment is the negative cosine) in `gcl_coupled` and `gcl_decoupled`; its notebook's
(alignment is half the mean of squared differences over all N D entries, that is D times smaller)
in `gcl_notebook` and `gcl_swd_*`. A weight belongs to its scaling.

The sliced Wasserstein distances sort all rows of all processes, in O(N D) memory on each; their
`generator` must be in the same state on every process.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.losses.checks import check_groups, check_positive, mean_over_anchors
from contrapose.losses.terms import supcon_terms
from contrapose.similarity import (
    gather_rows,
    logsumexp,
    others,
    positive_similarity,
    positives_of,
)


def gcl_coupled(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], *, temperature: float | Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """NT-Xent times its temperature, as alignment and distribution (the paper, eq. 2).

    mean over i of  -mean_{p in P(i)} s_ip  +  t log sum_{a != i} e^{s_ia/t}
    """
    check_positive("gcl_coupled", temperature=temperature)
    z, group = check_groups("gcl_coupled", z, group)
    every = gather_rows(z)
    loss, count = supcon_terms(z, every, temperature, *positives_of(z, group, every), group)
    return mean_over_anchors("gcl_coupled", temperature * loss, where=count > 0)


def gcl_decoupled(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""],
    weight: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Decoupled NT-Xent: the weight of the distribution is free of the temperature (table 1).

    mean over i of  -mean_{p in P(i)} s_ip  +  weight log sum_{a != i} e^{s_ia/t}
    """
    check_positive("gcl_decoupled", temperature=temperature)
    z, group = check_groups("gcl_decoupled", z, group)
    every = gather_rows(z)
    similarity, count = positive_similarity(z, group, every)
    push = logsumexp(z, every, scale=1 / temperature, pairs=others(len(z), z.device))
    loss = torch.where(count > 0, weight * push - similarity, 0.0)
    return mean_over_anchors("gcl_decoupled", loss, where=count > 0)


def gcl_notebook(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    temperature: float | Float[Tensor, ""],
    weight: float,
) -> Float[Tensor, ""]:
    """Log-sum-exp distribution as the notebook computes it: self-pairs included, less log D.

    mean over i of  mean_{p in P(i)} |z_i - z_p|^2 / (2 D)
      +  weight (mean over i of log sum_j e^{s_ij/t}  -  log D)
    """
    check_positive("gcl_notebook", temperature=temperature)
    z, group = check_groups("gcl_notebook", z, group)
    every = gather_rows(z)
    push = logsumexp(z, every, scale=1 / temperature) - math.log(z.shape[1])
    align, where = _alignment(z, group, every)
    return mean_over_anchors("gcl_notebook", align + weight * push, where)


def gcl_swd_hypersphere(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    weight: float,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Alignment + weight x sliced Wasserstein distance to the uniform hypersphere (unit rows).

    The prior: rows of a normal sample, normalised.
    The distance: the mean squared difference of sorted projections on D random orthogonal
    directions.
    """
    z, group = check_groups("gcl_swd_hypersphere", z, group)
    every = gather_rows(z)
    prior = torch.nn.functional.normalize(_normal(every.shape, z, generator), dim=1)
    return _swd("gcl_swd_hypersphere", z, group, every, prior, weight, generator)


def gcl_swd_normal(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    weight: float,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Alignment + weight x sliced Wasserstein distance to N(0, 1)^D. z is not normalised."""
    z, group = check_groups("gcl_swd_normal", z, group, unit=False)
    every = gather_rows(z)
    prior = _normal(every.shape, z, generator)
    return _swd("gcl_swd_normal", z, group, every, prior, weight, generator)


def gcl_swd_hypercube(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    *,
    weight: float,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Alignment + weight x sliced Wasserstein distance to U(-1, 1)^D. z is not normalised."""
    z, group = check_groups("gcl_swd_hypercube", z, group, unit=False)
    every = gather_rows(z)
    uniform = torch.rand(every.shape, generator=generator, device=_device(z, generator))
    prior = 2 * uniform.to(z) - 1
    return _swd("gcl_swd_hypercube", z, group, every, prior, weight, generator)


def _sliced_wasserstein(
    x: Float[Tensor, "N D"], prior: Float[Tensor, "N D"], generator: torch.Generator | None
) -> Float[Tensor, ""]:
    """Mean squared difference of sorted projections of two samples on D orthogonal directions.

    mean over d, n of (sort(x W)_nd - sort(prior W)_nd)^2    with W a random rotation, no gradient.
    """
    gaussian = _normal((x.shape[1], x.shape[1]), x, generator)
    with torch.autocast(x.device.type, enabled=False):
        w, _ = torch.linalg.qr(gaussian)
        gap: Tensor = (x @ w).sort(dim=0).values - (prior @ w).sort(dim=0).values
        return gap.square().mean()


def _swd(
    name: str,
    z: Tensor,
    group: Tensor,
    every: Tensor,
    prior: Tensor,
    weight: float,
    generator: torch.Generator | None,
) -> Tensor:
    align, where = _alignment(z, group, every)
    distance = _sliced_wasserstein(every, prior, generator) if len(every) else 0.0
    return mean_over_anchors(name, align, where) + weight * distance


def _alignment(z: Tensor, group: Tensor, every: Tensor) -> tuple[Tensor, Tensor]:
    """mean_{p in P(i)} |z_i - z_p|^2 / (2 D), up to terms that cancel in the mean over anchors."""
    similarity, count = positive_similarity(z, group, every)
    # sum over i of mean_p |z_p|^2 = sum over i of |z_i|^2: each row is |P| times a positive
    return ((z * z).sum(dim=1) - similarity) / z.shape[1], count > 0


def _normal(shape: tuple[int, ...], z: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, device=_device(z, generator)).to(z)


def _device(z: Tensor, generator: torch.Generator | None) -> torch.device:
    return z.device if generator is None else generator.device
