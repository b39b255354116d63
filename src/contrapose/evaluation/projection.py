"""A deterministic map of embeddings in the plane: principal components, then t-SNE."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.encoders import unit
from contrapose.errors import UserError


@dataclass(frozen=True)
class Map:
    """The positions of the chosen rows, their indices, and the method as a sentence."""

    xy: Float[Tensor, "M 2"]
    index: Int[Tensor, " M"]
    method: str


def project(
    x: Float[Tensor, "N D"], *, max_points: int = 1500, perplexity: float = 30, seed: int = 0
) -> Map:
    """t-SNE (scikit-learn) of at most 50 principal components of the rows at unit length.

    Of more than `max_points` rows a random part is drawn with `seed`. Distances between far
    clusters mean little in such a map. On one thread, so that it is deterministic: some 5 s for
    1,500 points. Raises UserError for rows that are not finite.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if not x.isfinite().all() or len(x) == 0:
        raise UserError(f"project: {len(x)} rows, of which some are not finite or none is there")
    draw = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    index = draw[:max_points].sort().values
    chosen = unit(x.detach().cpu()[index]).double()
    rows = f"{len(index):,} of {len(x):,} rows" if len(index) < len(x) else f"{len(x):,} rows"
    spread = (chosen - chosen.mean(dim=0)).norm()
    if len(index) < 5 or spread < 1e-6 * len(index) ** 0.5:
        xy = torch.zeros(len(index), 2)
        return Map(xy, index, f"none: {rows} are too few, or all in one place")
    perplexity = min(perplexity, (len(index) - 1) / 3)
    with threadpool_limits(limits=1):
        kept = min(50, *chosen.shape)
        components = PCA(kept, svd_solver="full").fit_transform(chosen.numpy())
        if components.shape[1] < 2:
            components = torch.nn.functional.pad(torch.from_numpy(components), (0, 1)).numpy()
        tsne = TSNE(2, perplexity=perplexity, init="pca", max_iter=500, random_state=seed)
        xy = torch.from_numpy(tsne.fit_transform(components)).float()
    return Map(xy, index, f"t-SNE, {rows}, perplexity {perplexity:g}, seed {seed}")
