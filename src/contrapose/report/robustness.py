"""Reading robustness.json: accuracy and calibration of a run's classifier under corruption."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrapose.errors import UserError
from contrapose.files import conform, read_object

Json = dict[str, Any]

_CALIBRATION: Json = {
    "ece": float, "low": float, "high": float, "accuracy": float, "n": int, "bins": int,
    "count": [int], "bin_accuracy": [(float, None)], "bin_confidence": [(float, None)],
}  # fmt: skip
_MEASURED = {
    "corruption": str, "family?": str, "severity": int,
    "before": _CALIBRATION, "after": (_CALIBRATION, None),
}  # fmt: skip
RECORD: Json = {
    "source": str, "seed": int, "temperature": float | None, "notes": [str],
    "mce": float | None, "ce?": {str: float}, "measured": [_MEASURED], "split?": str,
}  # fmt: skip


@dataclass(frozen=True)
class Robustness:
    """A record of the classifier on clean images and under each corruption and severity."""

    record: Json

    @property
    def clean(self) -> Json:
        """The measurements of the images as they are."""
        return next(m for m in self.record["measured"] if not m["corruption"])

    @property
    def corrupted(self) -> list[Json]:
        """The measurements of corrupted images."""
        return [m for m in self.record["measured"] if m["corruption"]]

    @property
    def corruptions(self) -> list[str]:
        return [*dict.fromkeys(m["corruption"] for m in self.corrupted)]

    @property
    def severities(self) -> list[int]:
        return sorted({m["severity"] for m in self.corrupted})

    @property
    def families(self) -> list[str]:
        """Noise, blur, weather and digital; none in the record of an older version."""
        return [*dict.fromkeys(m["family"] for m in self.corrupted if m.get("family"))]

    @property
    def of(self) -> str:
        """What the images are, as the contact sheet names them."""
        return f"{self.record['source']}, seed {self.record['seed']}"

    def where(self, **facts: Any) -> list[Json]:
        """The measurements of corrupted images with these facts, such as severity=5."""
        return [m for m in self.corrupted if all(m.get(n) == v for n, v in facts.items())]


def mean(measured: Sequence[Json], measure: str, kind: str = "before") -> float | None:
    """The mean of a measure before or after temperature scaling; None without a value."""
    values = [m[kind][measure] for m in measured if m[kind] is not None]
    return statistics.fmean(values) if values else None


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The images of one interval of confidence."""

    count: int
    confidence: float  # mean
    accuracy: float


def pooled(measured: Sequence[Json], kind: str = "before") -> list[Bin]:
    """The bins of a reliability diagram over all images of these measurements; empty bins are left
    out."""
    found = []
    of = [m[kind] for m in measured if m[kind] is not None]
    for k in range(max((len(c["count"]) for c in of), default=0)):
        rows = [
            (c["count"][k], c["bin_confidence"][k], c["bin_accuracy"][k]) for c in of
            if k < len(c["count"]) and c["count"][k]
        ]  # fmt: skip
        n = sum(count for count, _, _ in rows)
        if n:
            totals = (sum(count * row[i] for count, *row in rows) for i in (0, 1))
            confidence, accuracy = (total / n for total in totals)
            found.append(Bin(count=n, confidence=confidence, accuracy=accuracy))
    return found


def ece_of(bins: Sequence[Bin]) -> float:
    """sum_m n_m / n |accuracy_m - confidence_m|."""
    n = sum(b.count for b in bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / n


def read_robustness(file: Path) -> Robustness:
    """The record in a file; UserError where it is damaged."""
    remedy = "measure again with `contrapose robustness`"
    found = conform(read_object(file, remedy=remedy), RECORD, file.name, remedy)
    if not any(not m["corruption"] for m in found["measured"]):
        raise UserError(f"{file.name} lacks the clean images; {remedy}")
    for one in (m[kind] for m in found["measured"] for kind in ("before", "after")):
        if one is None:
            continue
        lists = (one["count"], one["bin_confidence"], one["bin_accuracy"])
        if len({len(values) for values in lists}) != 1 or any(
            n and None in row for n, *row in zip(*lists, strict=True)
        ):
            raise UserError(f"{file.name}: bins disagree; {remedy}")
    return Robustness(found)
