"""Tables of a report: scores with their intervals, and the fields in which recipes differ."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contrapose import paired
from contrapose.report.run_folder import Json, Run

MISSING = "\N{EN DASH}"
FACTS = ("protocol", "split", "seed", "n", "features")
SHARES = ("accuracy", "recall", "precision", "share", "error rate", "top-1", "top-5", "purity")


@dataclass(frozen=True, kw_only=True)
class Number:
    """A score as text: value, uncertainty, and how it was measured."""

    metric: str
    value: str
    unit: str
    plus_minus: str  # "± 1.7", "+1.2 −2.0", or "" without an interval
    interval: str  # "95 % interval 94.1 to 97.5"
    track: tuple[float, float, float] | None  # low, value, high in percent of a 0..1 axis
    facts: Mapping[str, str]  # protocol, split, seed, n, features


def number(score: Json) -> Number:
    """The text of a score of evaluation.json; a missing field is a dash."""
    metric = str(score.get("metric", "unnamed metric"))
    value, low, high = (_real(score.get(name)) for name in ("value", "low", "high"))
    share = _is_share(metric, value, low, high)
    facts = {name: _fact(score.get(name)) for name in FACTS}
    if score.get("chosen"):
        facts["chosen"] = _fact(score["chosen"])
    if value is None:
        return Number(
            metric=metric,
            value="not finite",
            unit="",
            plus_minus="",
            interval="",
            track=None,
            facts=facts,
        )
    scale = 100 if share else 1
    plus_minus = interval = ""
    track = None
    if low is not None and high is not None:
        digits = 1 if share else _digits(value, high - low)
        up, down = scale * (high - value), scale * (value - low)
        a, b = f"{up:.{digits}f}", f"{down:.{digits}f}"
        even = abs(up - down) <= 0.1 * max(up, down) or a == b
        plus_minus = f"± {scale * (high - low) / 2:.{digits}f}" if even else f"+{a} −{b}"
        confidence = _real(score.get("confidence"))
        which = f"{100 * confidence:g} % interval " if confidence is not None else "interval "
        interval = f"{which}{scale * low:.{digits}f} to {scale * high:.{digits}f}"
        track = (100 * low, 100 * value, 100 * high) if share else None
        text = f"{scale * value:.{digits}f}"
    else:
        text = f"{100 * value:.1f}" if share else short(value)
    return Number(
        metric=metric,
        value=text.replace("-", "−"),
        unit="%" if share else "",
        plus_minus=plus_minus,
        interval=interval.replace("-", "−"),
        track=track,
        facts=facts,
    )


def short(value: float | None) -> str:
    """A number with three significant digits and a typographic minus sign; a dash for None."""
    if value is None:
        return MISSING
    size = abs(value)
    if size >= 1000:
        text = f"{value:,.0f}"
    elif size == 0 or size >= 0.0001:
        text = f"{value:.3g}"
    else:
        text = f"{value:.1e}"
    return text.replace("-", "−")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the comparison: a field or metric of all runs."""

    name: str
    cells: tuple[Any, ...]
    differs: bool
    note: str = ""


def compare_scores(runs: Sequence[Run]) -> list[Row]:
    """The metrics of all runs, one row for each metric, protocol, split and kind of features.

    For two runs that were measured on the same images also their difference, by a paired test.
    """
    found = [{_key(score): score for score in run.scores} for run in runs]
    keys = dict.fromkeys(key for scores in found for key in scores)
    rows = []
    for key in keys:
        metric, protocol, split, features = key
        mine = [scores.get(key) for scores in found]
        rows.append(
            Row(
                name=f"{metric}\n{protocol}, {split}, {features}",
                cells=tuple(None if score is None else number(score) for score in mine),
                differs=False,
                note=_difference(mine),
            )
        )
    return rows


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """Mean and standard deviation of a metric over runs that differ only in their seed."""

    metric: str
    mean: str
    deviation: str
    seeds: int


def over_seeds(runs: Sequence[Run]) -> list[tuple[str, list[OverSeeds]]]:
    """Mean and standard deviation of each metric over runs whose recipes differ only in the seed.

    One entry (names of the runs, metrics) for each recipe with two or more runs.
    """
    alike: dict[str, list[Run]] = {}
    for run in runs:
        recipe = {name: value for name, value in run.recipe.items() if name != "seed"}
        data = {name: v for name, v in run.data.items() if name not in ("held_out", "notes")}
        alike.setdefault(json.dumps([recipe, data], sort_keys=True), []).append(run)
    return [
        (", ".join(run.name for run in group), _means(group))
        for group in alike.values()
        if len(group) > 1
    ]


def _means(runs: Sequence[Run]) -> list[OverSeeds]:
    values: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for score in run.scores:
            value = _real(score.get("value"))
            if value is not None:
                features = _fact(score.get("features"))
                values.setdefault((str(score.get("metric")), features), []).append(value)
    rows = []
    for (metric, features), of in values.items():
        if len(of) < 2:
            continue
        share = _is_share(metric, *of)
        mean, deviation = statistics.fmean(of), statistics.stdev(of)
        unit = "\N{NARROW NO-BREAK SPACE}%" if share else ""
        texts = [f"{100 * v:.1f}{unit}" if share else short(v) for v in (mean, deviation)]
        what = metric if features in ("none", MISSING) else f"{metric} on {features}"
        rows.append(OverSeeds(metric=what, mean=texts[0], deviation=texts[1], seeds=len(of)))
    return rows


def _difference(scores: Sequence[Json | None]) -> str:
    """The difference of two scores that were measured on the same images, in words."""
    if len(scores) != 2 or scores[0] is None or scores[1] is None:
        return ""
    found = paired.of_scores(scores[0], scores[1])
    if found is None or not (found.only_a or found.only_b):
        return ""
    points, low, high = (100 * x for x in (found.value, found.low, found.high))
    text = f"first less second {points:+.1f} points ({low:+.1f} to {high:+.1f}), p = {found.p:.2g}"
    return text.replace("-", "−")


def _key(score: Json) -> tuple[str, str, str, str]:
    metric = str(score.get("metric"))
    return (metric, *(_fact(score.get(name)) for name in ("protocol", "split", "features")))  # type: ignore[return-value]


def compare_recipes(runs: Sequence[Run]) -> list[Row]:
    """Every field of recipe, data and environment for all runs, by dotted path."""
    columns = [
        flatten(
            {"data": _without_lists(run.data), "recipe": run.recipe, "environment": run.environment}
        )
        for run in runs
    ]
    rows = []
    for path in dict.fromkeys(path for column in columns for path in column):
        cells = tuple(column.get(path, MISSING) for column in columns)
        differs = len(set(cells)) > 1 and path != "environment.started"
        rows.append(Row(name=path, cells=cells, differs=differs))
    return rows


def flatten(value: Any, path: str = "") -> dict[str, str]:
    """The leaves of nested JSON as text, by dotted path."""
    if isinstance(value, dict) and value:
        leaves: dict[str, str] = {}
        for name, item in value.items():
            leaves |= flatten(item, f"{path}.{name}" if path else str(name))
        return leaves
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return flatten({str(i): item for i, item in enumerate(value)}, path)
    return {path: leaf(value)}


def leaf(value: Any) -> str:
    """A JSON value without nesting as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "(" + ", ".join(leaf(item) for item in value) + ")"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if value != {} else "(nothing)"


def _without_lists(data: Json) -> Json:
    """The record of the data with counts in place of long lists (classes, skipped files)."""
    return {name: len(item) if isinstance(item, list) else item for name, item in data.items()}


def _is_share(metric: str, *values: float | None) -> bool:
    named = any(word in metric.lower() for word in SHARES)
    return named and all(0 <= value <= 1 for value in values if value is not None)


def _digits(value: float, width: float) -> int:
    """The number of decimals that gives the interval two significant digits."""
    digits = 2
    while digits < 6 and 0 < width < 10.0 ** (1 - digits):
        digits += 1
    return digits


def _fact(value: Any) -> str:
    if value is None or value == "":
        return MISSING
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return str(value)


def _real(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
