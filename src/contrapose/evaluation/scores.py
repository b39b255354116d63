"""Scores: numbers with their interval, n, protocol, split and seed."""

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrapose import paired
from contrapose.errors import UserError

Features = Literal["h", "z", "untrained h", "pixels", "none"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """A measured number with a confidence interval from `low` to `high`."""

    metric: str
    value: float
    low: float
    high: float
    confidence: float = 0.95
    n: int  # test examples
    protocol: str  # a sentence: how it was measured
    split: str
    seed: int
    features: Features
    chosen: str = ""  # what the protocol chose for these features
    images: str = ""  # fingerprint of the test images; scores of the same ones compare in pairs
    groups: int | None = None  # of test images that belong together, where there are any
    group: str = field(default="", repr=False)  # that of each image (`paired.numbers_as_text`)
    # the value on each of the same draws of the test images, where it is no mean over images
    draws: tuple[float, ...] = field(default=(), repr=False)
    right: str = field(default="", repr=False)  # which images were named right (`paired.packed`)

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.value:.4f} ({self.low:.4f}-{self.high:.4f}, n = {self.n}, "
            f"{self.split}, {self.features}, seed {self.seed}; {self.protocol})"
        )


def accuracy(
    scores: Float[Tensor, "N C"],
    label: Int[Tensor, " N"],
    *,
    metric: str,
    protocol: str,
    split: str,
    seed: int,
    features: Features,
    top: int = 1,
    confidence: float = 0.95,
    chosen: str = "",
    images: str = "",
    group: Int[Tensor, " N"] | None = None,
) -> Score:
    """Share of examples whose label is among the `top` highest class scores; Wilson interval.

    group: the group of each example, such as its clip; the interval is then that of
    `effective_number` independent examples. Examples without a label (-1) are left out. A label
    beyond the C classes counts as wrong.
    """
    scores, label, known = _labelled("accuracy", scores, label)
    best = scores.topk(min(top, scores.shape[1]), dim=1).indices
    right = (best == label[:, None]).any(dim=1)
    correct = int(right.sum())
    groups, told = None, ""
    number: float = len(label)
    if group is not None:
        group = group[known.cpu()]
        groups, told = len(torch.unique(group)), paired.numbers_as_text(group.numpy())
        number = effective_number(right.cpu(), group)
    low, high = wilson(correct / len(label) * number, number, confidence)
    return Score(
        metric=metric,
        value=correct / len(label),
        low=low,
        high=high,
        confidence=confidence,
        n=len(label),
        protocol=protocol,
        split=split,
        seed=seed,
        features=features,
        chosen=chosen,
        images=images,
        groups=groups,
        group=told if images else "",
        right=paired.packed(right.cpu().numpy()) if images else "",
    )


def mean_per_class_accuracy(
    scores: Float[Tensor, "N C"],
    label: Int[Tensor, " N"],
    *,
    metric: str,
    protocol: str,
    split: str,
    seed: int,
    features: Features,
    confidence: float = 0.95,
) -> Score:
    """Mean over classes of the accuracy within a class (SimCLR's Aircraft, Pets, Caltech, Flowers).

    The interval is normal with variance sum_c p_c (1 - p_c) / n_c over C^2, p_c = (k_c + 1) /
    (n_c + 2). Classes without a test example are left out.
    """
    scores, label, _ = _labelled("mean_per_class_accuracy", scores, label)
    n = torch.bincount(label).double()
    right = torch.bincount(label[scores.argmax(dim=1) == label], minlength=len(n)).double()
    right, n = right[n > 0], n[n > 0]
    value = float((right / n).mean())
    p = (right + 1) / (n + 2)
    spread = _z(confidence) * float((p * (1 - p) / n).sum().sqrt()) / len(n)
    return Score(
        metric=metric,
        value=value,
        low=max(0.0, value - spread),
        high=min(1.0, value + spread),
        confidence=confidence,
        n=len(label),
        protocol=protocol,
        split=split,
        seed=seed,
        features=features,
    )


def confusion(
    predicted: Int[Tensor, " N"], label: Int[Tensor, " N"], classes: int
) -> Int[Tensor, "C C"]:
    """Counts by true class (row) and predicted class (column), without examples labelled -1."""
    known = label >= 0
    predicted, label = predicted[known], label[known]
    for name, x in (("predicted", predicted), ("label", label)):
        if len(x) and not 0 <= int(x.min()) <= int(x.max()) < classes:
            raise UserError(
                f"confusion: {name} runs from {int(x.min())} to {int(x.max())}, classes={classes}"
            )
    return torch.bincount(label * classes + predicted, minlength=classes**2).view(classes, classes)


def effective_number(right: Bool[Tensor, " N"], group: Int[Tensor, " N"]) -> float:
    """The number of independent examples with the same standard error of the accuracy p as these.

    n p (1 - p) / V, at most n, with the variance between groups V = sum_g (r_g - n_g p)^2 / n * G /
    (G - 1). If p is 0 or 1, for which V is 0: n^2 / sum_g n_g^2.
    """
    n, (_, of) = len(right), torch.unique(group, return_inverse=True)
    size = torch.bincount(of).double()
    p = float(right.double().mean())
    if len(size) < 2:
        return 1.0
    if p in (0.0, 1.0):
        return float(n * n / size.square().sum())
    net = torch.bincount(of, weights=right.double()) - p * size
    between = float(net.square().sum()) / n * len(size) / (len(size) - 1)
    return min(float(n), max(1.0, n * p * (1 - p) / max(between, 1e-12)))


def wilson(correct: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion, which is valid at 0 and at 1 too."""
    if not 0 <= correct <= n or n < 1 or not 0 < confidence < 1:
        raise UserError(
            f"wilson: correct={correct} of n={n} at confidence={confidence}; needs "
            "0 <= correct <= n, n >= 1, 0 < confidence < 1"
        )
    z, p = _z(confidence), correct / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    spread = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # at 0 and n rounding may leave the true share just outside
    return max(0.0, min(p, middle - spread)), min(1.0, max(p, middle + spread))


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _labelled(name: str, scores: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if len(scores) != len(label):
        raise UserError(f"{name}: {len(scores)} rows of scores, {len(label)} labels")
    label = label.to(scores.device)
    known = label >= 0
    if not known.any():
        raise UserError(f"{name}: none of the {len(label)} examples has a label")
    return scores[known], label[known], known
