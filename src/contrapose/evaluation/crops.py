"""What the views of a policy are of: pairs of crops, and what colours tell of a crop's image.

Two random crops of an image are a global and a local view (one lies inside the other), adjacent
views (they share no pixel), or overlap in part: the two tasks that SimCLR's figure 3 names, and
what lies between them. The histogram of a crop identifies its image unless colours are distorted
(figure 6); that is measured for the views as they are and for their crops alone.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Generator, Tensor

from contrapose.augment import branches, center, draws_kept, hardened, on_each_branch, render
from contrapose.augment import views as make_views
from contrapose.data import ImageSet, evenly
from contrapose.errors import UserError
from contrapose.evaluation import scores
from contrapose.evaluation.histograms import (
    CHUNK,
    Identified,
    identify_source,
    intensity_histogram,
)

GLOBAL_LOCAL, ADJACENT, OVERLAPPING = KINDS = ("global-local", "adjacent", "overlapping")
CROPS = 4  # of each image
BINS = 32
SHOWN = 4  # pairs of each kind that are drawn, at most
IMAGES = 2  # whose histograms are drawn
THUMB = 96  # px


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Pairs of crops by kind, and how often histograms find the image of a crop.

    image: the images of the pairs that are drawn, and `boxes` (top, left, height, width) of their
    two crops as shares of the image. histogram: of CROPS crops of each of IMAGES images, as they
    are and undistorted.
    """

    share: dict[str, tuple[float, float, float]]  # of pairs by kind, with a 95 % interval
    pairs: int
    overlap: float  # mean intersection over union
    area: float  # mean share of the image that a crop covers
    seen: Identified  # views as they are
    undistorted: Identified  # the same crops without what comes after
    kind: tuple[str, ...]  # of each pair that is drawn
    image: UInt8[Tensor, "K C S S"]
    boxes: Float[Tensor, "K 2 4"]
    of: UInt8[Tensor, "I C S S"]
    histogram: Float[Tensor, "2 I V bins"]  # as they are, undistorted

    def as_json(self) -> dict[str, Any]:
        """The numbers, without pictures."""
        return {
            "share": {kind: list(values) for kind, values in self.share.items()},
            "pairs": self.pairs, "overlap": self.overlap, "area": self.area,
            "seen": asdict(self.seen.score), "undistorted": asdict(self.undistorted.score),
            "chance": self.seen.chance, "crops": CROPS,
        }  # fmt: skip


def kinds_of(
    one: Int[Tensor, "N 4"], two: Int[Tensor, "N 4"]
) -> tuple[Bool[Tensor, "N"], Bool[Tensor, "N"], Float[Tensor, "N"]]:
    """(one box lies inside the other, they share no pixel, intersection over union) of boxes
    (top, left, height, width) in px."""
    low = torch.maximum(one[:, :2], two[:, :2])
    high = torch.minimum(one[:, :2] + one[:, 2:], two[:, :2] + two[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    areas = one[:, 2:].prod(dim=1), two[:, 2:].prod(dim=1)
    inside = shared == torch.minimum(*areas)
    return inside, shared == 0, shared / (areas[0] + areas[1] - shared)


def undistorted(
    image: Tensor, generator: Generator, *, size: int, views: Callable[..., Tensor]
) -> Tensor:
    """The crops and flips that the policy draws, without what it does after them.

    Raises UserError for a policy that does not tell one crop of each view (`draws_kept`).
    """
    if changed := _changed_before(views):
        raise UserError(f"the policy changes images before it crops them: {changed}")
    with draws_kept() as draws:
        views(image, generator, size=size)
    if len(draws) != 1 or len(draws[0].box) != len(image):
        raise UserError(
            f"the policy draws its views in {len(draws)} passes, so that they are no crops of the "
            "image"
        )
    return render(image, draws[0].box, size, flip=draws[0].flip)


def _changed_before(views: Callable[..., Any]) -> str:
    """What `hardened` does to images before the policy in it draws its crop, if anything."""
    given = getattr(views, "keywords", {})
    if getattr(views, "func", None) is hardened:
        cut = {
            n: given[n]
            for n, least in (("border", 0), ("area", 1.0))
            if given.get(n, least) != least
        }
        if cut:
            return ", ".join(f"{n}={value:g}" for n, value in cut.items())
    return _changed_before(given["views"]) if "views" in given else ""


@torch.no_grad()
def crops_of(
    images: ImageSet,
    views: Callable[..., Tensor],
    *,
    size: int,
    count: int = 1000,
    seed: int = 0,
) -> Crops:
    """What the crops of this policy are, on up to `count` images.

    Raises UserError for fewer than two images, and for a policy whose views are no crops.
    """
    alone = on_each_branch(views, lambda policy: partial(undistorted, views=policy))
    how: dict[str, Any] = {"size": size, "crops": CROPS, "count": count, "bins": BINS, "seed": seed}
    with draws_kept() as draws:
        found = identify_source(images, alone, **how)
    box = _view_by_view([draw.box for draw in draws], len(evenly(len(images), count)))
    seen = identify_source(images, views, **how)
    one, two = box[::2].flatten(0, 1), box[1::2].flatten(0, 1)
    if getattr(views, "func", None) is branches:  # the later views are all of its second policy
        one, two = box[0], box[1]
    inside, apart, overlap = kinds_of(one, two)
    counts = dict(zip(KINDS, (inside, apart & ~inside, ~inside & ~apart), strict=True))
    chosen, kind = [], []
    for name, rows in counts.items():
        some = torch.nonzero(rows).flatten()
        some = some[evenly(len(some), SHOWN)] if len(some) else some
        chosen.append(some)
        kind += [name] * len(some)
    pair = torch.cat(chosen)
    index = evenly(len(images), count)
    side = torch.tensor([images.size, images.size] * 2)
    boxes = torch.stack([one[pair], two[pair]], dim=1) / side
    thumb = min(images.size, THUMB)
    of = _unlike(images, index)
    policies = (partial(views, size=size), partial(alone, size=size))
    return Crops(
        share={
            name: (float(rows.double().mean()), *scores.wilson(int(rows.sum()), len(rows)))
            for name, rows in counts.items()
        },
        pairs=len(one),
        overlap=float(overlap.mean()),
        area=float(box[..., 2:].prod(dim=2).double().mean()) / images.size**2,
        seen=seen,
        undistorted=found,
        kind=tuple(kind),
        image=_picture(images, index[pair % len(index)], thumb),
        boxes=boxes,
        of=_picture(images, of, thumb),
        histogram=torch.stack([_histograms(images, of, policy, seed) for policy in policies]),
    )


def _view_by_view(boxes: list[Tensor], images: int) -> Int[Tensor, "V B 4"]:
    """The boxes of all views: for each chunk of images one call, or for `branches` two."""
    chunk: list[Tensor] = []
    found, place = [], 0
    size = min(CHUNK, images)
    for box in boxes:
        chunk.append(box.cpu())
        count = min(size, images - place)
        if sum(map(len, chunk)) == CROPS * count:
            found.append(torch.cat(chunk).view(CROPS, count, 4))
            chunk, place = [], place + count
    return torch.cat(found, dim=1)


def _unlike(images: ImageSet, index: Int[Tensor, " n"]) -> Int[Tensor, " I"]:
    """The IMAGES images among the first fifty of these whose histograms differ most."""
    some = index[:50]
    picture = images.picture(images.batch(some)).float() / 255
    root = intensity_histogram(picture, bins=BINS).sqrt()
    apart = root @ root.T
    first = int(apart.min(dim=1).values.argmin())
    return some[torch.tensor([first, int(apart[first].argmin())])[:IMAGES]].cpu()


def _picture(images: ImageSet, index: Tensor, side: int) -> UInt8[Tensor, "K C S S"]:
    if not len(index):
        return torch.zeros(0, images.shown, side, side, dtype=torch.uint8)
    picture = images.picture(images.batch(index)).cpu()
    return center(picture, side, proportion=1.0).mul(255).round().byte()


def _histograms(
    images: ImageSet, index: Tensor, policy: Callable[..., Tensor], seed: int
) -> Float[Tensor, "I V bins"]:
    generator = torch.Generator(images.device).manual_seed(seed)
    batch = images.batch(index)[:, : images.shown]
    view = make_views(policy, batch, generator, n=CROPS)
    bars = intensity_histogram(view.flatten(0, 1), bins=BINS).cpu()
    return bars.view(CROPS, len(index), BINS).transpose(0, 1)
