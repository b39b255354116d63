"""Feature suppression: how much of the features of an image cannot be read from an encoder.

"Intriguing Properties of Contrastive Losses" (2011.02803) shows that easy features which views
share suppress the learning of hard ones, and defines no measure of it. This file has two, by this
project: one for features with labels, one for all other features together.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.data import ImageSet
from contrapose.data.composed import features_of
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.evaluation import probes
from contrapose.evaluation.features import probes_of_features
from contrapose.evaluation.ridge import Ridge

RIDGE = tuple(10.0**k for k in range(3, -7, -1))  # times the number of rows
SIDE = 8  # px, to which pictures are averaged before they are reconstructed


def lost(value: float, reference: float, floor: float = 0.0) -> float:
    """(reference - value) / (reference - floor): the share of the readable part that is lost.

    0 if as much is read as from the reference, 1 if nothing above the floor. It is not clipped:
    below 0 more is read than from the reference, above 1 less than the floor. NaN if the reference
    does not exceed the floor.
    """
    return (reference - value) / (reference - floor) if reference > floor else math.nan


@dataclass(frozen=True, kw_only=True)
class Suppression:
    """Test accuracies of one feature: linear probes on three encoders, and guessing."""

    accuracy: float
    supervised: float  # of an encoder that labels of this feature taught
    untrained: float  # of the same network before training
    chance: float  # always naming the most common class
    n: int  # test images

    @property
    def score(self) -> float:
        """(supervised - accuracy) / (supervised - chance): 0 nothing suppressed, 1 all of it."""
        return lost(self.accuracy, self.supervised, self.chance)

    @property
    def erased(self) -> float:
        """(untrained - accuracy) / (untrained - chance): above 0, training removed what random
        weights let one read; below, it added to it."""
        return lost(self.accuracy, self.untrained, self.chance)

    @property
    def error(self) -> float:
        """Standard error of the score by the n test images alone, the two accuracies a and s taken
        as independent: sqrt(var a + ((a - c) / (s - c))^2 var s) / (s - c), var p = p (1 - p) / n.
        """
        room = self.supervised - self.chance
        if room <= 0:
            return math.nan
        a, s = (p * (1 - p) / self.n for p in (self.accuracy, self.supervised))
        return math.sqrt(a + ((self.accuracy - self.chance) / room) ** 2 * s) / room


def suppression(
    encoder: Encoder,
    train: ImageSet,
    test: ImageSet,
    *,
    supervised: Mapping[str, Encoder],
    untrained: Encoder,
    size: int | None = None,
    l2: float | Sequence[float] = probes.DECADES,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, Suppression]:
    """{feature: its suppression} for each feature that has a supervised control.

    supervised: feature -> an encoder trained on that feature's labels, on the same images and views
    for as long. Probes are fitted on `train` and judged on `test`. Raises UserError for a feature
    that the images do not have.
    """

    def read(of: Encoder, names: Sequence[str]) -> dict[str, float]:
        found = probes_of_features(
            of, train, test, size=size, features=names, l2=l2, device=device, seed=seed
        )
        return {name: score.value for name, score in found.items()}

    names = list(supervised)
    own, before = read(encoder, names), read(untrained, names)
    label, tested = features_of(train), features_of(test)
    return {
        name: Suppression(
            accuracy=own[name],
            supervised=read(control, [name])[name],
            untrained=before[name],
            chance=majority_accuracy(label[name], tested[name]),
            n=int((tested[name] >= 0).sum()),
        )
        for name, control in supervised.items()
    }


def majority_accuracy(label: Int[Tensor, " N"], test_label: Int[Tensor, " M"]) -> float:
    """Test accuracy of always naming the most common class of training; rows of -1 left out."""
    return float((test_label[test_label >= 0] == label[label >= 0].mode().values).double().mean())


# ---- features that nobody has labelled -----------------------------------------------------------


def explained(
    x: Float[Tensor, "N D"],
    target: Float[Tensor, "N T"],
    x_test: Float[Tensor, "M D"],
    target_test: Float[Tensor, "M T"],
    *,
    l2: Sequence[float] = RIDGE,
    held_out: float = 0.2,
    seed: int = 0,
) -> float:
    """R^2 on the test rows of the targets that ridge regression predicts from x.

    R^2 = 1 - sum |t - W x - b|^2 / sum |t - mean of training|^2, over rows and columns
    W minimises  sum_i |t_i - W x_i - b|^2 + l2 N |W|^2,  x brought to mean 0 and variance 1

    l2: the one with the best R^2 on a held-out share of the training rows, then all rows. It can be
    below 0: worse than the mean. As a reconstruction of the picture, or of what an untrained
    network makes of it, R^2 says how much of it can still be read, labelled or not; compare it with
    the untrained encoder's own by `lost`. Raises UserError for fewer than 10 rows.
    """
    if len(x) != len(target) or len(x) < 10:
        raise UserError(f"explained: {len(x)} rows to learn from, {len(target)} targets; give 10")
    x, target, x_test, target_test = (t.double() for t in (x, target, x_test, target_test))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    held, kept = order.tensor_split([max(1, round(held_out * len(x)))])
    tried = _explained(x[kept], target[kept], x[held], target[held], l2)
    best = max(zip(tried, l2, strict=True))[1] if len(l2) > 1 else l2[0]
    return _explained(x, target, x_test, target_test, [best])[0]


def _explained(
    x: Tensor, target: Tensor, x_test: Tensor, target_test: Tensor, l2: Sequence[float]
) -> list[float]:
    """R^2 for each l2."""
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    std = torch.where(std > 1e-12, std, 1.0)
    middle = target.mean(dim=0)
    fit, seen = Ridge((x - mean) / std, target - middle), (x_test - mean) / std
    wanted = target_test - middle
    total = wanted.square().sum()
    left = [(wanted - seen @ fit.weight(value * len(x))).square().sum() for value in l2]
    return [float(1 - rest / total) for rest in left]


def pictures(images: ImageSet, *, side: int = SIDE) -> Float[Tensor, "N T"]:
    """The pictures averaged to `side` x `side` px, in [0, 1]: targets for `explained`.

    Channels that are no picture, such as random bits, are left out.
    """
    parts = []
    for index in torch.split(torch.arange(len(images)), 1024):
        x = images.batch(index)[:, : images.shown].float() / 255
        parts.append(F.adaptive_avg_pool2d(x, min(side, images.size)).flatten(1).cpu())
    return torch.cat(parts)


def standardised(x: Float[Tensor, "N D"], like: Float[Tensor, "M D"]) -> Float[Tensor, "N D"]:
    """x with the mean and variance of the rows of `like` taken out, so that every column counts as
    much; a column that is constant there is 0."""
    std = like.std(dim=0, correction=0)
    return torch.where(std > 1e-6, (x - like.mean(dim=0)) / torch.where(std > 1e-6, std, 1.0), 0.0)
