"""The histogram shortcut (SimCLR, figure 6): crops of one image share their pixel intensities.

Without colour distortion the intensities of a crop identify the image it is from, so that an
encoder need not learn anything else; with distortion of strength 1 they hardly do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from contrapose.augment import views as make_views
from contrapose.data import ImageSet, evenly
from contrapose.errors import UserError
from contrapose.evaluation import scores
from contrapose.evaluation.scores import Score
from contrapose.similarity import topk

CHUNK = 64  # images viewed at a time


@dataclass(frozen=True)
class Identified:
    """How often the image of a view is found by its histogram, and how often by chance."""

    score: Score
    chance: float

    def __str__(self) -> str:
        return f"{self.score}; chance {self.chance:.4f}"


def intensity_histogram(
    view: Float[Tensor, "B C H W"], *, bins: int = 64, per_channel: bool = False
) -> Float[Tensor, "B bins"]:
    """Shares of the intensities in `bins` equal parts of [0, 1], all channels together as in the
    figure, or channel after channel ([B C*bins], each summing to 1 / C)."""
    if bins < 2:
        raise UserError(f"intensity_histogram: bins={bins}; use at least 2")
    flat = view.flatten(2) if per_channel else view.flatten(1)[:, None]
    place = (flat * bins).long().clamp(0, bins - 1)
    count = torch.zeros(*flat.shape[:2], bins, device=view.device)
    count.scatter_add_(2, place, torch.ones_like(flat, dtype=count.dtype))
    return count.flatten(1) / (flat.shape[1] * flat.shape[2])


@torch.no_grad()
def identify_source(
    images: ImageSet,
    views: Callable[..., Tensor],
    *,
    size: int | None = None,
    crops: int = 4,
    count: int = 1000,
    bins: int = 64,
    per_channel: bool = False,
    seed: int = 0,
) -> Identified:
    """How often the nearest histogram (Hellinger distance) among other views is of the same image.

    `crops` views of each of up to `count` images are drawn by `views(image, generator, size=)`. The
    first view of each image is the query, the others are the candidates, so chance is 1 / images.
    Views have `size` px, by default the side of the images.
    """
    if crops < 2 or len(images) < 2:
        raise UserError(
            f"identify_source: crops={crops} of {len(images)} images; use at least 2 of each"
        )
    index = evenly(len(images), count)
    policy = partial(views, size=images.size if size is None else size)
    generator = torch.Generator(images.device).manual_seed(seed)
    parts = []
    for some in torch.split(index, CHUNK):
        seen = make_views(policy, images.batch(some)[:, : images.shown], generator, n=crops)
        shares = intensity_histogram(seen.flatten(0, 1), bins=bins, per_channel=per_channel)
        parts.append(shares.sqrt().view(crops, len(some), -1))
    root = torch.cat(parts, dim=1)  # of unit length: their products are Bhattacharyya's
    n = len(index)
    _, nearest = topk(root[0], root[1:].flatten(0, 1), 1)
    found = int((nearest[:, 0].cpu() % n == torch.arange(n)).sum())
    low, high = scores.wilson(found, n)
    kind = "each channel's" if per_channel else "all channels'"
    score = Score(
        metric="source image from an intensity histogram, accuracy",
        value=found / n,
        low=low,
        high=high,
        n=n,
        protocol=(
            f"nearest of {crops - 1} other views of each of {n:,} images by the Hellinger distance "
            f"of {kind} histogram in {bins} bins"
        ),
        split=images.split,
        seed=seed,
        features="pixels",
    )
    return Identified(score, 1 / n)
