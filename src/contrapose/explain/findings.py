"""`Finding`, a sentence of the verdict, and functions to look up scores."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict, its level (good to bad), and the numbers it is based on."""

    state: str
    level: Literal["good", "warn", "bad", "info"]
    sentence: str
    evidence: str


def as_json(findings: Sequence[Finding]) -> list[dict[str, str]]:
    return [asdict(finding) for finding in findings]


def score_of(scores: Sequence[dict[str, Any]], metric: str, features: str) -> dict[str, Any] | None:
    """The first score of these features whose metric begins with `metric`."""
    for score in scores:
        if str(score["metric"]).startswith(metric) and score["features"] == features:
            return score
    return None


def number_text(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"
