"""Local features ("Intriguing Properties"): k-means on the feature maps of an encoder.

Every position of a map before pooling is a sample, brought to unit length; the cluster labels over
an image show which parts a position distinguishes. As a control the raw pixels under each position
are clustered. The paper gives neither the numbers of clusters nor whether images are clustered
separately or together, so both are options here.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor, nn

from contrapose.augment import center
from contrapose.data import ImageSet
from contrapose.encoders import Encoder, modes_kept
from contrapose.errors import UserError
from contrapose.evaluation.kmeans import Clusters, kmeans

Labels = UInt8[Tensor, "N h w"]
CHUNK = 16  # images whose maps are held at a time
CONTROL = "pixels"


@dataclass(frozen=True)
class LocalMaps:
    """Cluster labels of every position: `labels[stage][K]` is [N h w], the largest cluster is 0.

    Stages are named as the encoder's modules; `pixels 14x14` is the control at that resolution.
    """

    labels: Mapping[str, Mapping[int, Labels]]  # on the CPU
    joint: bool  # whether all images share their clusters
    size: int  # px of the images that the encoder saw
    protocol: str


def stages(encoder: Encoder, x: Float[Tensor, "B C H W"]) -> tuple[str, ...]:
    """Modules of the backbone that end a stage: layer1, layer2 ... where they are called so, else
    the last one that gives a map [B C h w] of each resolution. UserError where none does."""
    children = [name for name, _ in encoder.backbone.named_children()]
    numbered = tuple(name for name in children if name.removeprefix("layer").isdigit())
    if numbered:
        return numbered
    seen: list[tuple[str, Tensor]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, out: object) -> None:
            again = bool(seen) and seen[-1][1] is out  # a container that hands on its last part's
            if isinstance(out, Tensor) and out.ndim == 4 and not again:
                seen.append((name, out))

        return hook

    with _hooked(encoder, {name: note(name) for name, _ in encoder.backbone.named_modules()}):
        encoder.represent(x[:1])
    last = {out.shape[2:]: name for name, out in seen if name and out.shape[2:].numel() > 1}
    if not last:
        raise UserError(
            "stages: no module of this encoder gives a map [B C h w]; name the modules to look at"
        )
    return tuple(dict.fromkeys(last.values()))


@torch.no_grad()
def feature_maps(
    encoder: Encoder, x: Float[Tensor, "B C H W"], names: Sequence[str] | None = None
) -> dict[str, Float[Tensor, "B F h w"]]:
    """What the modules called `names`, by default its stages, give for x in evaluation mode.

    Raises UserError for a name that the backbone lacks, or whose output is no map.
    """
    names = stages(encoder, x) if names is None else names
    modules = dict(encoder.backbone.named_modules())
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, out: object) -> None:
            if not isinstance(out, Tensor) or out.ndim != 4:
                raise UserError(f"feature_maps: {name!r} gives no map [B C h w]")
            found[name] = out.float()

        return hook

    for name in names:
        if name not in modules:
            raise UserError(f"feature_maps: the backbone has no module {name!r}")
    with _hooked(encoder, {name: keep(name) for name in names}):
        encoder.represent(x)
    return {name: found[name] for name in names}


@torch.no_grad()
def local_maps(
    encoder: Encoder,
    images: ImageSet,
    *,
    clusters: Sequence[int] = (2, 4, 8, 16),
    size: int | None = None,
    names: Sequence[str] | None = None,
    joint: bool = False,
    control: bool = True,
    restarts: int = 10,
    sample: int = 20_000,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> LocalMaps:
    """k-means labels of every position of every image, at each stage, for each number of clusters.

    joint=False clusters each image by itself; True clusters all positions together, fitted on at
    most `sample` of them or one of each image. A stage has labels for every K up to its number of
    positions. Maps of at most 16 images are in memory at a time. size: px, to which images are
    centre-cropped and resized, by default their own (re-implementers of the figure used 448).
    restarts: the best of so many starts. The control takes each position's pixels as they are.
    """
    if len(images) == 0 or not clusters or min(clusters) < 2 or max(clusters) > 255:
        raise UserError(
            f"local_maps: clusters={tuple(clusters)} on {len(images)} images; use 2 to 255 clusters"
        )
    size = images.size if size is None else size
    encoder.to(device)

    def maps() -> Iterator[dict[str, Tensor]]:
        for index in torch.split(torch.arange(len(images)), CHUNK):
            x = center(images.batch(index).to(device), size)
            yield _samples(encoder, x, names, images.shown if control else 0)

    generator = torch.Generator().manual_seed(seed)
    fitted = _fit_joint(maps(), len(images), clusters, restarts, sample, generator) if joint else {}
    parts: dict[str, dict[int, list[Tensor]]] = {}
    for found in maps():
        for stage, x in found.items():
            rows = x.flatten(2).mT
            possible = _fitting(clusters, rows.shape[1])
            for K in [K for s, K in fitted if s == stage] if joint else possible:
                if joint:
                    label = fitted[stage, K].assign(rows)
                else:
                    label = kmeans(
                        rows, K, spherical=not stage.startswith(CONTROL), restarts=restarts,
                        generator=generator,
                    ).label  # fmt: skip
                label = label.view(len(x), *x.shape[2:]).byte().cpu()
                parts.setdefault(stage, {}).setdefault(K, []).append(label)
    if not any(parts.values()):
        raise UserError(f"local_maps: no map has {min(clusters)} positions; use larger images")
    labels = {s: {K: torch.cat(part) for K, part in by_k.items()} for s, by_k in parts.items()}
    how = f"all {len(images):,} images together" if joint else "each image by itself"
    fit = f", fitted on at most {sample:,} positions" if joint else ""
    return LocalMaps(
        labels,
        joint,
        size,
        f"spherical k-means on positions of unit length, {how}{fit}, best of {restarts} starts, "
        f"images of {size} px, seed {seed}",
    )


# ---- numbers


@dataclass(frozen=True)
class UncertaintyCoefficient:
    """The uncertainty coefficient (Theil's U) of two labellings, in [0, 1]."""

    value: float
    shuffled: float  # the same after shuffling positions: what two unrelated labellings give


def uncertainty_coefficient(
    of: Integer[Tensor, "N h w"], given: Integer[Tensor, "N h w"], *, joint: bool, seed: int = 0
) -> UncertaintyCoefficient:
    """Theil's U, 1 - H(of | given) / H(of): the share of the entropy of `of` that `given` explains.

    Over the positions of each image, then the mean over images; or, with `joint`, over all
    positions at once, for labels that mean the same in every image. It is 1 if every cluster of
    `given` lies within one class of `of`. Images with a single class in `of` are left out;
    UserError if no others are left.
    """
    if of.shape != given.shape:
        raise UserError(
            f"uncertainty_coefficient: labels of shape {tuple(of.shape)} and {tuple(given.shape)}"
        )
    a, b = (x.long().reshape(1 if joint else len(x), -1) for x in (of, given))
    mixed = torch.rand(b.shape, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    total = _entropy(a)
    known = total > 0
    if not bool(known.any()):
        raise UserError(
            "uncertainty_coefficient: the labels to be predicted are one class on every image"
        )

    def share(by: Tensor) -> float:
        left = _entropy(a * (int(by.max()) + 1) + by) - _entropy(by)
        return float((1 - left / total)[known].mean().clamp(0, 1))

    return UncertaintyCoefficient(share(b), share(b.gather(1, mixed)))


def hierarchy(maps: LocalMaps, stage: str) -> dict[tuple[int, int], UncertaintyCoefficient]:
    """{(coarse, fine): uncertainty coefficient of coarse clusters given fine ones}, for successive
    K.

    1 means that the clusters of a larger K split those of the smaller one.
    """
    by_k = maps.labels[stage]
    order = sorted(by_k)
    return {
        (coarse, fine): uncertainty_coefficient(by_k[coarse], by_k[fine], joint=maps.joint)
        for coarse, fine in itertools.pairwise(order)
    }


def truth_map(
    box: Int[Tensor, "N k 4"], side: int, shape: tuple[int, int], what: Int[Tensor, "N k"]
) -> Int[Tensor, "N h w"]:
    """The digit at each position of a map: 0 outside all boxes, else 1 + `what` of the box.

    It is the box that contains the centre of the position, the later one if boxes overlap.
    box: top, left, height, width in px on canvases of `side` (`composed.layout`). what: the class
    of each digit, or its number on the canvas, to distinguish digits of one class.
    """
    h, w = shape
    y = ((torch.arange(h) + 0.5) * side / h)[None, :, None]
    x = ((torch.arange(w) + 0.5) * side / w)[None, None, :]
    label = torch.zeros(len(box), h, w, dtype=torch.int64)
    for k in range(box.shape[1]):
        top, left, height, width = (edge[:, None, None] for edge in box[:, k].unbind(dim=1))
        inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        label = torch.where(inside, 1 + what[:, k, None, None], label)
    return label


def adjusted_mutual_information(
    truth: Integer[Tensor, "N h w"], label: Integer[Tensor, "N h w"], *, joint: bool
) -> float:
    """scikit-learn's: 1 for equal partitions, 0 on average for unrelated ones, whatever K is."""
    from sklearn.metrics import adjusted_mutual_info_score

    rows = 1 if joint else len(truth)
    pairs = zip(truth.reshape(rows, -1), label.reshape(rows, -1), strict=True)
    found = [adjusted_mutual_info_score(a.numpy(), b.numpy()) for a, b in pairs]
    return float(sum(found) / len(found))


def _samples(
    encoder: Encoder, x: Float[Tensor, "B C H W"], names: Sequence[str] | None, shown: int
) -> dict[str, Float[Tensor, "B F h w"]]:
    """Maps of unit length, and for each resolution the pixels of the first `shown` channels."""
    found = {name: F.normalize(m, dim=1) for name, m in feature_maps(encoder, x, names).items()}
    for h, w in dict.fromkeys(tuple(m.shape[2:]) for m in found.values()) if shown else ():
        patch = max(1, x.shape[2] // h)
        even = F.interpolate(x[:, :shown], (h * patch, w * patch), mode="area")
        found[f"{CONTROL} {h}x{w}"] = F.pixel_unshuffle(even, patch)
    return found


def _fitting(clusters: Sequence[int], positions: int) -> list[int]:
    return [K for K in clusters if K <= positions]


def _fit_joint(
    maps: Iterator[dict[str, Tensor]],
    images: int,
    clusters: Sequence[int],
    restarts: int,
    sample: int,
    generator: torch.Generator,
) -> dict[tuple[str, int], Clusters]:
    """Clusters of positions drawn from all images, for each stage and number of clusters."""
    drawn: dict[str, list[Tensor]] = {}
    for found in maps:
        for stage, x in found.items():
            rows = x.flatten(2).mT
            each = min(rows.shape[1], -(-sample // images))
            place = torch.rand(rows.shape[:2], generator=generator).argsort(dim=1)[:, :each]
            place = place.to(x.device)[..., None].expand(-1, -1, rows.shape[2])
            drawn.setdefault(stage, []).append(rows.gather(1, place).flatten(0, 1))
    fitted = {}
    for stage, parts in drawn.items():
        rows = torch.cat(parts)[None]
        for K in _fitting(clusters, rows.shape[1]):
            spherical = not stage.startswith(CONTROL)
            fitted[stage, K] = kmeans(
                rows, K, spherical=spherical, restarts=restarts, generator=generator
            )
    return fitted


def _entropy(label: Int[Tensor, "N P"]) -> Float[Tensor, " N"]:
    """In nats, of each row's labels."""
    rows = []
    for row in label:
        share = torch.unique(row, return_counts=True)[1].double() / len(row)
        rows.append(-(share * share.log()).sum())
    return torch.stack(rows)


@contextmanager
def _hooked(encoder: Encoder, hooks: Mapping[str, Callable[..., None]]) -> Iterator[None]:
    """The hooks on modules of the backbone by name, and the encoder in evaluation mode."""
    modules = dict(encoder.backbone.named_modules())
    handles = [modules[name].register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        with modes_kept(encoder), torch.no_grad():
            encoder.eval()
            yield
    finally:
        for handle in handles:
            handle.remove()
