"""The difference of two accuracies measured on the same images, with a paired test."""

import base64
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from contrapose.errors import UserError

CLEAR = 0.05  # two-sided p below which two accuracies are said to differ


@dataclass(frozen=True)
class Difference:
    """Accuracy of a minus accuracy of b on the same n images."""

    value: float
    low: float
    high: float
    p: float  # two-sided, exact
    only_a: int  # images that a alone names right
    only_b: int
    n: int
    groups: int | None = None  # where images belong together: how many groups there are

    @property
    def sign(self) -> int:
        """1 if a is significantly better, -1 if b is, 0 if the images do not decide."""
        return 0 if self.p >= CLEAR else int(math.copysign(1, self.value))

    def __str__(self) -> str:
        of = f" in {self.groups:,} groups" if self.groups is not None else ""
        return (
            f"{self.only_a:,} and {self.only_b:,} of {self.n:,} images{of} by one alone, "
            f"p = {self.p:.2g}"
        )


def difference(
    a: Bool[np.ndarray, " N"],
    b: Bool[np.ndarray, " N"],
    group: Int[np.ndarray, " N"] | None = None,
    confidence: float = 0.95,
) -> Difference:
    """McNemar's exact test of two classifiers on the same images, and an interval.

    a, b: True for each image that a classifier names correctly.
    group: the group of each image, such as the clip of a frame. A group counts once: p is then of
        a sign test over groups with a net difference, and the variance of d is
        sum_g (d_g - n_g d)^2 / n^2 * G / (G - 1).
    p: of a binomial test over the images that exactly one of the two names correctly. The interval
    is Wald's with half an image added to each of the four counts (Agresti & Min 2005):
    d = (a_only - b_only) / (n + 2), variance (a_only + b_only + 1 - (n + 2) d^2) / (n + 2)^2.
    Raises UserError if the lengths differ, or for no images.
    """
    from scipy.stats import binomtest

    n = len(a)
    if len(b) != n or n == 0 or (group is not None and len(group) != n):
        raise UserError(f"difference: {n} and {len(b)} images; give the same images, one at least")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    value = (only_a - only_b) / n
    if group is None:
        for_a, for_b, groups = only_a, only_b, None
        middle = (only_a - only_b) / (n + 2)
        spread = math.sqrt(only_a + only_b + 1 - (n + 2) * middle**2) / (n + 2)
    else:
        _, of = np.unique(group, return_inverse=True)
        size = np.bincount(of)
        net = np.bincount(of, weights=a.astype(float) - b)
        for_a, for_b, groups = int((net > 0).sum()), int((net < 0).sum()), len(size)
        middle = value
        spread = math.sqrt(float(((net - size * value) ** 2).sum()) * groups / max(1, groups - 1))
        spread /= n
    test = binomtest(for_a, for_a + for_b, 0.5).pvalue if for_a + for_b else 1.0
    low, high = max(-1.0, middle - z * spread), min(1.0, middle + z * spread)
    return Difference(value, low, high, float(test), only_a, only_b, n, groups)


def by_exchange(
    a: Float[np.ndarray, " N"],
    b: Float[np.ndarray, " N"],
    *,
    draws: int = 100_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """The permutation test of SimCLR's transfer (arXiv 2002.05709, appendix B.8.3).

    a_i, b_i: what example i adds to the scores sum_i a_i and sum_i b_i of two models, such as 1 / n
    where it is named right. If the models were alike, the two predictions of each example could be
    exchanged, which turns the sign of d_i = a_i - b_i; p is the share of `draws` exchanges, with
    the one that happened, whose |sum_i +-d_i| is at least |sum_i d_i|. Signs of equal |d_i| are
    drawn together, as a binomial count. For accuracy that is McNemar's test, up to the draws.
    The interval is normal with variance n Var(d). Raises UserError for other lengths or none.
    """
    n = len(a)
    if len(b) != n or n == 0:
        raise UserError(f"by_exchange: {n} and {len(b)} examples; give the same ones")
    d = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    value = float(d.sum())
    size, count = np.unique(np.round(np.abs(d[d != 0]), 15), return_counts=True)
    random, total = np.random.default_rng(seed), np.zeros(draws)
    for weight, m in zip(size, count, strict=True):
        total += weight * (2 * random.binomial(m, 0.5, draws) - m)
    reached = np.abs(total) >= abs(value) - 1e-9 * max(abs(value), 1.0)
    p = (int(reached.sum()) + 1) / (draws + 1)
    spread = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(n * float(d.var()))
    return Difference(
        value, value - spread, value + spread, p, int((d > 0).sum()), int((d < 0).sum()), n
    )


def of_scores(a: dict[str, Any], b: dict[str, Any]) -> Difference | None:
    """The difference of two scores of evaluation.json; None if they lack the result of each image,
    or are of different images."""
    bits = [score.get("right") for score in (a, b)]
    same = a.get("images") == b.get("images") and a.get("n") == b.get("n") and a.get("images")
    if not same or not all(isinstance(text, str) and text for text in bits):
        return None
    try:
        right = [unpacked(str(text), int(a["n"])) for text in bits]
        group = a.get("group")
        return difference(right[0], right[1], numbers_in(group) if group else None)
    except (ValueError, TypeError, zlib.error):
        return None


def of_transfer(a: dict[str, Any], b: dict[str, Any], method: str) -> Difference | None:
    """The permutation test of two runs on one set of transfer.json; None if they were not measured
    by this method on the same images.

    The set's own metric is exchanged; for 11-point mAP the share of labels that are told right,
    since average precision is no sum over examples.
    """
    rows = [row for e in (a, b) for row in e["rows"] if row["method"] == method]
    if a["images"] != b["images"] or len(rows) != 2:
        return None
    label = numbers_in(a["label"])
    if a["metric"] == "mean per class":
        _, of, count = np.unique(label, return_inverse=True, return_counts=True)
        weight = 1 / (len(count) * count[of])
    else:
        weight = np.full(len(label), 1 / (len(label) * a["labels"]))
    return by_exchange(*(weight * numbers_in(row["right"]) for row in rows))


def of_draws(a: dict[str, Any], b: dict[str, Any]) -> float | None:
    """p of the difference of two scores that were measured on the same draws of the same images;
    None if they were not.

    Twice the share of the draws in which the difference has the other sign or none, with one added
    to both counts: (min(#{d <= 0}, #{d >= 0}) + 1) * 2 / (draws + 1).
    """
    x, y = (np.asarray(score.get("draws") or (), dtype=float) for score in (a, b))
    if len(x) != len(y) or not len(x) or not a.get("images") or a["images"] != b.get("images"):
        return None
    fewest = min(int((x - y <= 0).sum()), int((x - y >= 0).sum()))
    return min(1.0, 2 * (fewest + 1) / (len(x) + 1))


def packed(right: Sequence[bool] | Bool[np.ndarray, " N"]) -> str:
    """One bit for each image, in order, as hexadecimal digits."""
    return np.packbits(np.asarray(right, dtype=bool)).tobytes().hex()


def unpacked(text: str, n: int) -> Bool[np.ndarray, " N"]:
    """The first n bits of what `packed` wrote; UserError if there are fewer."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    if len(bits) < n:
        raise UserError(f"{len(bits)} bits for {n} images")
    return bits[:n].astype(bool)


def numbers_as_text(number: Int[np.ndarray, " N"]) -> str:
    """Integers, such as group numbers, compressed to text."""
    return base64.b64encode(zlib.compress(np.asarray(number, "<i4").tobytes(), 9)).decode("ascii")


def numbers_in(text: str) -> Int[np.ndarray, " N"]:
    """The integers that `numbers_as_text` wrote."""
    found = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i4")
    return found.astype(np.int64)
