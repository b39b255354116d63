"""Easy features that two views of an image may share, and how well each identifies the image.

A feature is a function of a batch of views [B, C, H, W] in [0, 1] that depends on one property: the
position of the ink, the fineness of detail, the frame. Two numbers say what views share by it: how
often the nearest other view, by this feature alone, is of the same image, and how many bits of
information about the image it has,

    I >= log2 n + mean over i of log2 (k_ii / sum_j k_ij)

with k_ij = exp(-b d_ij^2), or (1 + d_ij^2 / c)^-b for features that some views hide; d_ij is the
distance of view i to the other view of image j. This is InfoNCE's bound among n images with the
best b >= 0 and c; a code of m bits that all views show has m.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.augment.colour import gray_of
from contrapose.data import ImageSet, evenly, exact_duplicates
from contrapose.encoders import unit
from contrapose.errors import UserError
from contrapose.evaluation import scores
from contrapose.evaluation.histograms import intensity_histogram
from contrapose.evaluation.ridge import Ridge
from contrapose.evaluation.scores import Score
from contrapose.similarity import Pairs, topk

Feature = Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B F"]]

BINS = 32
EVEN = 0.04  # standard deviation of pixels, in [0, 1], below which they count as one colour
LOOKED_AT = 1000  # images that a border or a constant channel is looked for in
AXES = 8  # principal axes of a feature that an encoder is asked for
NEARLY = 2 / 255  # mean difference of pixels below which two images are nearly the same
THUMB = 16  # px, side at which such images are looked for

# ---- features ------------------------------------------------------------------------------------


def intensity(view: Float[Tensor, "B C H W"]) -> Float[Tensor, "B bins"]:
    """Square roots of the histogram of grey levels, whose distances are Hellinger's."""
    return intensity_histogram(_gray(view), bins=BINS).sqrt()


def colour(view: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
    """Square roots of the histograms of R - G and of B - (R + G) / 2, both 0 without colour."""
    share = (_opponent(view) + 1) / 2
    return intensity_histogram(share, bins=2 * BINS + 1, per_channel=True).sqrt()


def moments(view: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 2"]:
    """Mean and standard deviation of the grey levels: `intensity` in two numbers."""
    grey = _gray(view).flatten(1)
    return torch.stack([grey.mean(dim=1), grey.std(dim=1, correction=0)], dim=1)


def tints(view: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 4"]:
    """Means and standard deviations of R - G and of B - (R + G) / 2."""
    flat = _opponent(view).flatten(2)
    return torch.cat([flat.mean(dim=2), flat.std(dim=2, correction=0)], dim=1)


def position(view: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 5"]:
    """Centre and spread of what differs from the edge, as shares of the side, and its mass."""
    grey = _gray(view)[:, 0]
    edge = torch.cat([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], dim=1)
    weight = (grey - edge.median(dim=1).values[:, None, None]).abs()
    total = weight.sum(dim=(1, 2)).clamp(min=1e-6)
    found = []
    for dim in (1, 2):
        along = weight.sum(dim=3 - dim) / total[:, None]
        place = (torch.arange(along.shape[1], device=view.device) + 0.5) / along.shape[1]
        centre = along @ place
        found += [centre, ((place - centre[:, None]).square() * along).sum(dim=1).sqrt()]
    return torch.stack([*found, total / grey[0].numel()], dim=1)


def detail(view: Float[Tensor, "B C H W"]) -> Float[Tensor, "B reaches"]:
    """Ratios, as logarithms, of mean differences over 1, 2, 4 and 8 px: sharpness and noise.

    They do not depend on the contrast.
    """
    grey = _gray(view)[:, 0]
    reach = [s for s in (1, 2, 4, 8) if s < min(grey.shape[1:])]
    size = [
        (grey[:, s:] - grey[:, :-s]).abs().mean(dim=(1, 2))
        + (grey[:, :, s:] - grey[:, :, :-s]).abs().mean(dim=(1, 2))
        for s in reach
    ]
    logs = torch.stack(size, dim=1).clamp(min=1e-4).log()
    return logs[:, :-1] - logs[:, 1:]


def edges(view: Float[Tensor, "B C H W"], *, width: float) -> Float[Tensor, "B F"]:
    """The brightest and the darkest of those of the four edges that have one colour, per channel.

    width: of an edge, as a share of the side. An edge of several colours is ignored.
    """
    strips = _strips(view, max(1, round(width * view.shape[2])))
    mean = torch.stack([s.mean(dim=(2, 3)) for s in strips], dim=1)
    even = torch.stack([s.std(dim=(2, 3), correction=0).amax(dim=1) <= EVEN for s in strips], dim=1)
    some = even.any(dim=1, keepdim=True)
    low = mean.masked_fill(~even[..., None], math.inf).amin(dim=1).masked_fill(~some, 0.5)
    high = mean.masked_fill(~even[..., None], -math.inf).amax(dim=1).masked_fill(~some, 0.5)
    return torch.cat([low, high], dim=1)


def levels(view: Float[Tensor, "B C H W"], *, channels: tuple[int, ...]) -> Float[Tensor, "B F"]:
    """Mean of each of these channels."""
    return view[:, list(channels)].mean(dim=(2, 3))


# ---- what only the whole set tells ---------------------------------------------------------------


def border_width(images: ImageSet) -> int:
    """Width in px of a frame around most images, of one colour that differs between images; or 0.

    Its colour may differ between sides no more than within a side.
    """
    x = _some(images)[:, : images.shown]
    ring: list[Tensor] = []
    for k in range(x.shape[2] // 4):
        inner = x[:, :, k : x.shape[2] - k, k : x.shape[3] - k]
        strips = _strips(inner, 1)
        pixels = torch.cat([s.flatten(2) for s in strips], dim=2)
        same = pixels.std(dim=2, correction=0).amax(dim=1) <= EVEN
        colour = pixels.mean(dim=2)
        if ring:
            same &= (colour - ring[0]).abs().amax(dim=1) <= 2 * EVEN
        if float(same.double().mean()) < 0.5:
            break
        ring.append(colour)
    framed = bool(ring) and float(ring[0].std(dim=0).max()) > 2 * EVEN
    # where the frame's colour repeats that of the ground, nothing says where it ends
    return len(ring) if framed else 0


def constant_channels(images: ImageSet) -> tuple[int, ...]:
    """Channels that are constant within (nearly) every image, but not the same in all images.

    They include those that the set declares. The only channel of a grey image is a picture.
    """
    x = _some(images)
    flat = x.flatten(2)
    found = []
    for c in range(images.channels):
        even = (flat[:, c].amax(dim=1) - flat[:, c].amin(dim=1)) <= 1.5 / 255
        several = flat[:, c].mean(dim=1).std() > 1e-3
        if images.channels > 1 and float(even.double().mean()) >= 0.95 and bool(several):
            found.append(c)
    whole = len(found) == images.channels  # flat patches of colour: a picture all the same
    return () if whole else tuple(found)


def duplicates(images: ImageSet) -> tuple[tuple[tuple[int, ...], ...], Int[Tensor, "K 2"]]:
    """(groups of images that are exactly equal, pairs that are nearly equal).

    Nearly equal: the mean difference of pixels at 16 px is below NEARLY, and images are not
    uniform.
    """
    groups = exact_duplicates(images)
    known = {i for group in groups for i in group}
    small = torch.cat(
        [
            F.adaptive_avg_pool2d(
                images.batch(index)[:, : images.shown].float() / 255, min(THUMB, images.size)
            )
            for index in torch.split(torch.arange(len(images)), 1024)
        ]
    ).flatten(1)
    small = small.cpu()
    centred = small - small.mean(dim=1, keepdim=True)
    rows = torch.nonzero(centred.norm(dim=1) > 1e-3 * small.shape[1] ** 0.5).flatten()
    if len(rows) < 2:
        return groups, torch.zeros(0, 2, dtype=torch.int64)
    pairs = Pairs(row_id=rows, col_id=rows)
    _, nearest = topk(unit(centred[rows]), unit(centred[rows]), 1, pairs=pairs)
    other = rows[nearest[:, 0]]
    close = (small[rows] - small[other]).abs().mean(dim=1) < NEARLY
    both = torch.stack([rows, other], dim=1)[close].sort(dim=1).values
    both = torch.unique(both, dim=0)
    fresh = [not ({int(a), int(b)} <= known) for a, b in both]
    return groups, both[torch.tensor(fresh, dtype=torch.bool)]


# ---- how much a feature shares -------------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    """How well a feature alone identifies the image of a view, among n images."""

    found: Score  # share of images whose other view is the nearest
    bits: Score  # about the image; at most log2 n
    nearest: Int[Tensor, "N k"]  # images by distance of their other view


def shared(
    a: Float[Tensor, "N F"],
    b: Float[Tensor, "N F"],
    *,
    what: str,
    split: str,
    seed: int = 0,
    shown: int = 5,
) -> Shared:
    """How well a feature identifies images: retrieval and bits, from two views of n images.

    a, b: the feature of the two views, in the same order. Every dimension is divided by its spread
    within pairs of views. Of equal distances one is drawn. Raises UserError for fewer than two
    images.
    """
    n = len(a)
    if n < 2:
        raise UserError(f"shared: {n} images; retrieval needs two or more")
    a, b = a.double(), b.double()
    within = ((a - b).square().mean(dim=0) / 2).sqrt()
    total = torch.cat([a, b]).std(dim=0, correction=0)
    scale = torch.where(total > 1e-6, torch.maximum(within, 1e-3 * total).clamp(min=1e-9), math.inf)
    exactly = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(a / scale, b / scale, compute_mode=exactly).square()
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    nearest = drawn[distance[:, drawn].sort(dim=1, stable=True).indices[:, :shown]]
    right = int((nearest[:, 0] == torch.arange(n)).sum())
    low, high = scores.wilson(right, n)
    loss = _sharpest(distance.float()).double()
    gain = (math.log(n) - loss) / math.log(2)
    error = 1.96 * float(gain.std()) / math.sqrt(n)
    value = max(0.0, float(gain.mean()))  # 0 is reached with b = 0, but for rounding
    protocol = (
        f"views of {n:,} images compared by {what} alone, in units of its spread within images"
    )
    return Shared(
        found=Score(
            metric=f"other view found by {what}, accuracy", value=right / n, low=low, high=high,
            n=n, protocol=f"nearest among one other view of each image; {protocol}", split=split,
            seed=seed, features="pixels",
        ),
        bits=Score(
            metric=f"bits about the image in {what}", value=value, low=max(0.0, value - error),
            high=min(math.log2(n), value + error), n=n,
            protocol=f"InfoNCE's bound, at most {math.log2(n):.2f}; {protocol}", split=split,
            seed=seed, features="pixels",
        ),
        nearest=nearest,
    )  # fmt: skip


def _sharpest(square: Float[Tensor, "N N"]) -> Float[Tensor, " N"]:
    """-log(k_ii / sum_j k_ij) with the b and c of the least mean, b on a grid made finer twice."""
    typical = float(square.mean())
    kernels = [square / max(typical, 1e-12)]
    kernels += [(square / (c * typical)).log1p() for c in (1e-4, 1e-2, 1.0) if typical > 0]

    def losses(kernel: Tensor, b: float) -> Tensor:
        logits = -b * kernel
        return logits.logsumexp(dim=1) - logits.diagonal()

    best, found = math.inf, losses(kernels[0], 0.0)
    for kernel in kernels:
        at, grid = 0.0, [0.0, *(4.0**k for k in range(-3, 8))]
        for step in (2.0, 2**0.5):
            tried = {b: losses(kernel, b) for b in grid}
            at = min(tried, key=lambda b: float(tried[b].mean()))
            if float(tried[at].mean()) < best:
                best, found = float(tried[at].mean()), tried[at]
            grid = [at / step, at * step]
    return found


def readable(
    h: Float[Tensor, "N D"],
    feature: Float[Tensor, "N F"],
    *,
    what: str,
    split: str,
    features: scores.Features = "h",
    seed: int = 0,
) -> Score:
    """R^2 of a ridge regression of the feature on h, fitted on one half of the rows, on the other.

    The feature is rotated to its principal axes, of which the first AXES count, by their variance.
    The ridge is chosen by generalised cross-validation (GCV). The result is at least 0. The
    interval is of a bootstrap over the second half. NaN if the feature does not vary.
    """
    n = len(h)
    if n < 8:
        raise UserError(f"readable: {n} rows; a regression needs at least 8")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    fit, test = order[: n // 2], order[n // 2 :]
    x, y = h.double(), feature.double()
    y = y - y[fit].mean(dim=0)
    axes = torch.linalg.svd(y[fit], full_matrices=False)[2][:AXES]
    y = y @ axes.T
    protocol = (
        f"ridge regression on {len(fit):,} rows, its strength by GCV; R^2 on {len(test):,} others "
        f"over the first {len(axes)} principal axes of the feature"
    )
    if float(y[fit].square().mean()) < 1e-12:
        low = high = value = math.nan
    else:
        mean, std = x[fit].mean(dim=0), x[fit].std(dim=0)
        silent = std <= 1e-4 * std.max()  # on these rows: nothing was learnt about others
        x = ((x - mean) / torch.where(silent, math.inf, std)).clamp(-10, 10)
        ridge = Ridge(x[fit], y[fit])
        strength = min((len(fit) * 10.0**k for k in range(-6, 3)), key=ridge.cross_validated)
        error = (y[test] - x[test] @ ridge.weight(strength)).square().sum(dim=1)
        spread = (y[test] - y[test].mean(dim=0)).square().sum(dim=1)
        value = max(0.0, 1 - float(error.sum() / spread.sum()))
        drawn = torch.randint(
            len(test), (500, len(test)), generator=torch.Generator().manual_seed(seed)
        )
        again = (1 - error[drawn].sum(dim=1) / spread[drawn].sum(dim=1)).clamp(min=0)
        low, high = again.quantile(0.025).item(), again.quantile(0.975).item()
    return Score(
        metric=f"{what} read from {features}, R^2", value=value, low=low, high=high, n=len(test),
        protocol=protocol, split=split, seed=seed, features=features,
    )  # fmt: skip


def _gray(view: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    return gray_of(view[:, :3] if view.shape[1] >= 3 else view[:, :1])


def _opponent(view: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 2 H W"]:
    red, green, blue = view[:, :3].unbind(dim=1)
    return torch.stack([red - green, blue - (red + green) / 2], dim=1)


def _strips(view: Float[Tensor, "B C H W"], width: int) -> tuple[Tensor, ...]:
    """The outermost px of the four sides."""
    return (
        view[:, :, :width],
        view[:, :, -width:],
        view[:, :, :, :width],
        view[:, :, :, -width:],
    )


def _some(images: ImageSet) -> Float[Tensor, "N C S S"]:
    return images.batch(evenly(len(images), LOOKED_AT)).cpu().float() / 255
