"""Calibration of a classifier: expected calibration error, bootstrap interval, temperature scaling.

All are of the top class, in float64: its probability p = max_k softmax(z / T)_k is the confidence,
and the prediction is right or not.
"""

import functools
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.errors import UserError

BINS = 15  # equally wide; the paper of the supervised contrastive loss does not say how many
RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A reliability diagram and its summary.

    ECE = sum_m n_m / n |accuracy_m - confidence_m| over `bins` equally wide bins of [0, 1], each
    closed at its lower end and the last at both. `low`, `high`: percentiles of the bootstrap over
    images; the ECE of few images is biased upwards, and so is each of its resamples, so the lower
    bound can lie above the value.
    """

    ece: float
    low: float
    high: float
    accuracy: float
    confidence: float  # mean
    n: int
    bins: int
    temperature: float
    count: tuple[int, ...]  # images of each bin
    bin_accuracy: tuple[float | None, ...]  # None: no image
    bin_confidence: tuple[float | None, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def calibration(
    logits: Float[Tensor, "N K"],
    label: Int[Tensor, " N"],
    *,
    temperature: float = 1.0,
    bins: int = BINS,
    seed: int = 0,
    resamples: int = RESAMPLES,
    coverage: float = 0.95,
) -> Calibration:
    """Expected calibration error (Naeini et al. 2015; Guo et al., arXiv 1706.04599) of logits.

    Images without a label (-1) are left out. Raises UserError where none is left, for bins < 1,
    for logits that are not finite and for a temperature that is not above 0.
    """
    if bins < 1 or not 0 < temperature < float("inf"):
        raise UserError(
            f"calibration: asked for bins={bins}, temperature={temperature}; use at least one bin "
            "and a temperature above 0"
        )
    logits, label = _labelled("calibration", logits, label)
    confidence, right = confidences(logits, label, temperature)
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    total = [np.bincount(bin_of, weights=x, minlength=bins) for x in (right, confidence)]
    mean = [
        tuple(s / c if c else None for s, c in zip(x.tolist(), count.tolist(), strict=True))
        for x in total
    ]
    off = right - confidence
    low, high = _bootstrap(bin_of, off, bins, seed, resamples, coverage)
    return Calibration(
        ece=_ece(bin_of, off, bins),
        low=low,
        high=high,
        accuracy=float(right.mean()),
        confidence=float(confidence.mean()),
        n=len(right),
        bins=bins,
        temperature=temperature,
        count=tuple(count.tolist()),
        bin_accuracy=mean[0],
        bin_confidence=mean[1],
    )


def confidences(
    logits: Float[Tensor, "N K"], label: Int[Tensor, " N"], temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """The confidence of each prediction, and 1 where it is right: the top class is the label."""
    p = (logits.double().cpu() / temperature).softmax(dim=1)
    best = p.max(dim=1)
    return best.values.numpy(), (best.indices == label.cpu()).double().numpy()


def fitted_temperature(logits: Float[Tensor, "N K"], label: Int[Tensor, " N"]) -> float:
    """The T > 0 that minimises the mean of -log softmax(z / T)_y: temperature scaling (Guo et al.).

    Fit it on images that neither trained the classifier nor measure it. With beta = 1 / T the mean
    is convex and its slope is mean(E_p[z] - z_y), whose root is found by bisection of log beta.
    Held to 0.01-100: without a mistake T would be 0, worse than guessing infinite.
    Raises UserError where no image has a label, and for logits that are not finite.
    """
    logits, label = _labelled("fitted_temperature", logits, label)
    z = logits.double().cpu()
    above = z - z.gather(1, label.cpu()[:, None])  # the label's own logit

    def slope(log_beta: float) -> float:
        p = (z * float(np.exp(log_beta))).softmax(dim=1)
        return float((p * above).sum(dim=1).mean())

    low, high = -np.log(100.0), np.log(100.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def _labelled(
    who: str, logits: Float[Tensor, "N K"], label: Int[Tensor, " N"]
) -> tuple[Tensor, Tensor]:
    known = label >= 0
    logits, label = logits[known.to(logits.device)], label[known]
    if not len(label):
        raise UserError(f"{who}: none of the images has a label")
    if int(label.max()) >= logits.shape[1]:
        raise UserError(
            f"{who}: class {int(label.max())} of labels, but logits of {logits.shape[1]} classes"
        )
    if not bool(logits.isfinite().all()):
        raise UserError(f"{who}: the logits of some images are not finite")
    return logits, label


def _ece(bin_of: np.ndarray, off: np.ndarray, bins: int) -> float:
    return float(np.abs(np.bincount(bin_of, weights=off, minlength=bins)).sum() / len(off))


def _bootstrap(
    bin_of: np.ndarray, off: np.ndarray, bins: int, seed: int, resamples: int, coverage: float
) -> tuple[float, float]:
    """Percentiles of the ECE over resamples of the images, the same ones for every n and seed."""
    by_bin = np.zeros((len(off), bins), dtype=np.float32)
    by_bin[np.arange(len(off)), bin_of] = off
    times = _times_drawn(len(off), seed, resamples)
    drawn = np.concatenate(
        [np.abs(some.astype(np.float32) @ by_bin).sum(axis=1) for some in np.array_split(times, 10)]
    )
    low, high = np.quantile(drawn / len(off), [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


@functools.lru_cache(maxsize=1)
def _times_drawn(n: int, seed: int, resamples: int) -> np.ndarray:
    """The number of times that each of n images is in each of the bootstrap resamples."""
    random = np.random.default_rng(seed)
    return np.stack(
        [
            np.bincount(random.integers(n, size=n), minlength=n).astype(np.uint8)
            for _ in range(resamples)
        ]
    )
