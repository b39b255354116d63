"""Tests of claims: functions from results to a verdict with its evidence.

Every verdict gives mean and standard deviation over seeds, and a statistical test if there are
enough seeds; with one seed it says so. If seeds disagree the claim is undecided, unless the test
decides it. If a setting has no result yet, nothing is decided.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from contrapose.experiments.form import Results, Verdict, worded

LEVEL = 0.05  # p below which a test decides where the seeds disagree


def spread(values: Sequence[float]) -> str:
    """`0.531 ± 0.004 (3 seeds)`: mean and standard deviation."""
    if not values:
        return "none"
    if len(values) == 1:
        return f"{_short(values[0])} (one seed)"
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    return f"{_short(mean)} \N{PLUS-MINUS SIGN} {deviation:.2g} ({len(values)} seeds)"


def higher(
    results: Results,
    measure: str,
    here: Mapping[str, Any],
    there: Mapping[str, Any],
    *,
    by: float = 0.0,
) -> Verdict:
    """Whether the measure is higher `here` than `there` by more than `by`, paired by seed.

    It holds if it is so for every seed, and does not if for none; otherwise a paired t test
    decides.
    """
    one, two = results.by_seed(measure, **here), results.by_seed(measure, **there)
    if (absent := _absent(results, here, there)) is not None:
        return absent
    seeds = sorted(one.keys() & two.keys())
    if not seeds:
        return Verdict.not_tested(f"no seed has {measure} at {worded(here)} and {worded(there)}")
    first, second = [one[s] for s in seeds], [two[s] for s in seeds]
    difference = [a - b for a, b in zip(first, second, strict=True)]
    above = sum(d > by for d in difference)
    same = {name: here[name] for name in here if name in there and here[name] == there[name]}
    at, instead = (worded({k: v for k, v in f.items() if k not in same}) for f in (here, there))
    words = f"{measure}{f' at {worded(same)}' if same else ''}: "
    words += f"{_plain(first)} with {at}, {_plain(second)} with {instead}; "
    more = f" by more than {by:g}" if by else ""
    p = _paired(difference, by)
    if len(seeds) == 1:
        words += f"{'' if above else 'not '}higher{more}; one seed, no test"
    else:
        words += f"higher{more} in {above} of {_seeds(len(seeds))}, difference {_plain(difference)}"
    if p is not None:
        words += f", paired t test p = {p:.2g} (two-sided)"
    if above in (0, len(seeds)):
        return Verdict(above > 0, words)
    if p is not None and p < LEVEL:
        return Verdict(statistics.fmean(difference) > by, words)
    return Verdict(None, f"undecided: {words}")


def lower(
    results: Results,
    measure: str,
    here: Mapping[str, Any],
    there: Mapping[str, Any],
    *,
    by: float = 0.0,
) -> Verdict:
    """Whether the measure is lower `here` than `there` by more than `by`; see `higher`."""
    return higher(results, measure, there, here, by=by)


def rises(
    results: Results, measure: str, along: str, *, slack: float = 0.0, **facts: Any
) -> Verdict:
    """Whether the mean over seeds rises with every step of the fact `along`.

    Steps down of at most `slack` are allowed. The evidence has Kendall's tau of the means and, from
    two seeds and three settings on, Page's trend test with the seeds as blocks.
    """
    return _ordered(results, measure, along, facts, slack, sign=1)


def falls(
    results: Results, measure: str, along: str, *, slack: float = 0.0, **facts: Any
) -> Verdict:
    """Whether the mean over seeds falls with every step of the fact `along`; see `rises`."""
    return _ordered(results, measure, along, facts, slack, sign=-1)


def peaks_inside(results: Results, measure: str, along: str, **facts: Any) -> Verdict:
    """Whether the mean over seeds is highest strictly inside the sweep of the fact `along`."""
    sweep = _sweep(results, measure, along, facts)
    if isinstance(sweep, Verdict):
        return sweep
    at, means = list(sweep), [statistics.fmean(v.values()) for v in sweep.values()]
    top = int(np.argmax(means))
    seeds = _common(sweep)
    tops = [int(np.argmax([sweep[a][s] for a in at])) for s in seeds]
    inside = sum(0 < t < len(at) - 1 for t in tops)
    words = (
        f"{_listing(measure, along, sweep)}; highest at {along}={at[top]}; strictly inside in "
        f"{inside} of {_seeds(len(seeds))}{_note(seeds)}"
    )
    if inside in (0, len(seeds)):
        return Verdict(inside > 0, words)
    return Verdict(None, f"undecided: {words}")


def flat(results: Results, measure: str, along: str, *, within: float, **facts: Any) -> Verdict:
    """Whether the means over seeds stay within a range of `within` along the fact."""
    sweep = _sweep(results, measure, along, facts)
    if isinstance(sweep, Verdict):
        return sweep
    means = [statistics.fmean(v.values()) for v in sweep.values()]
    size = max(means) - min(means)
    words = f"{_listing(measure, along, sweep)}; range {_short(size)}, allowed {within:g}"
    return Verdict(size <= within, words + _note(_common(sweep)))


def near(results: Results, measure: str, value: float, *, within: float, **facts: Any) -> Verdict:
    """Whether the mean over seeds is within `within` of the value."""
    if (absent := _absent(results, facts)) is not None:
        return absent
    found = results.values(measure, **facts)
    if not found:
        return Verdict.not_tested(f"{measure} at {worded(facts)} was not measured")
    distance = abs(statistics.fmean(found) - value)
    words = f"{measure} {spread(found)} at {worded(facts)}, {_short(distance)} from {value:g}"
    return Verdict(distance <= within, f"{words}, allowed {within:g}")


def all_of(*verdicts: Verdict) -> Verdict:
    """Whether all verdicts hold: false if one does not, undecided otherwise; evidence in lines."""
    words = "\n".join(f"[{_word(v)}] {v.evidence}" for v in verdicts)
    if any(v.holds is False for v in verdicts):
        return Verdict(False, words)
    return Verdict(True if all(v.holds for v in verdicts) else None, words)


def _ordered(
    results: Results, measure: str, along: str, facts: Mapping[str, Any], slack: float, sign: int
) -> Verdict:
    sweep = _sweep(results, measure, along, facts)
    if isinstance(sweep, Verdict):
        return sweep
    from scipy import stats  # a second to import

    at, means = list(sweep), [statistics.fmean(v.values()) for v in sweep.values()]
    wrong = []
    for k in range(1, len(at)):
        most = max(range(k), key=lambda i: sign * means[i])  # slack is given once, not at each step
        step = sign * (means[k] - means[most])
        if step < -slack or (not slack and step == 0):
            wrong.append(f"{at[most]} to {at[k]}")
    words = _listing(measure, along, sweep)
    if wrong:
        words += f"; not from {', '.join(wrong)}"
    words += f"; Kendall's tau {stats.kendalltau(range(len(at)), means).statistic:.2f}"
    seeds = _common(sweep)
    if len(seeds) > 1 and len(at) > 2:
        table = [[sign * sweep[a][s] for a in at] for s in seeds]
        words += f"; Page's trend test p = {stats.page_trend_test(table).pvalue:.2g}"
    elif len(seeds) > 1:
        p = _paired([sweep[at[1]][s] - sweep[at[0]][s] for s in seeds], 0.0)
        words += "" if p is None else f"; paired t test p = {p:.2g} (two-sided)"
    return Verdict(not wrong, words + _note(seeds))


def _sweep(
    results: Results, measure: str, along: str, facts: Mapping[str, Any]
) -> dict[Any, dict[int, float]] | Verdict:
    """{setting: {seed: value}} in order; a verdict if settings are missing."""
    chosen = results.where(**facts)
    settings = [value for value in chosen.column(along) if value is not None]
    found = {value: chosen.by_seed(measure, **{along: value}) for value in settings}
    lacking = [str(value) for value, by_seed in found.items() if not by_seed]
    if len(settings) < 2:
        return Verdict.not_tested(f"{len(settings)} settings of {along} at {worded(facts)}")
    if lacking:
        return Verdict.not_tested(
            f"{measure} at {worded(facts)} has no result for {along}={', '.join(lacking)}"
        )
    return found


def _absent(results: Results, *places: Mapping[str, Any]) -> Verdict | None:
    for facts in places:
        if not results.where(**facts).rows:
            return Verdict.not_tested(f"no result at {worded(facts)}")
    return None


def _listing(measure: str, along: str, sweep: Mapping[Any, Mapping[int, float]]) -> str:
    cells = [f"{at}: {_plain(list(v.values()))}" for at, v in sweep.items()]
    counts = sorted({len(v) for v in sweep.values()})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else _seeds(counts[0])
    return f"{measure} by {along}, {seeds}: {', '.join(cells)}"


def _plain(values: Sequence[float]) -> str:
    """As `spread`, without the number of seeds."""
    return spread(values).partition(" (")[0]


def _common(sweep: Mapping[Any, Mapping[int, float]]) -> list[int]:
    return sorted(set.intersection(*(set(v) for v in sweep.values())))


def _paired(difference: Sequence[float], against: float) -> float | None:
    """p of the paired t test; None if there are too few differences or they do not vary."""
    if len(difference) < 2 or len(set(difference)) == 1:
        return None
    from scipy import stats

    return float(stats.ttest_1samp(difference, against).pvalue)


def _note(seeds: Sequence[int]) -> str:
    return "; one seed, no test" if len(seeds) == 1 else ""


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def _word(verdict: Verdict) -> str:
    return {True: "holds", False: "does not", None: "open"}[verdict.holds]


def _short(value: float) -> str:
    """A number with three decimals, or three significant digits if it is small or large."""
    plain = value == 0 or 0.01 <= abs(value) < 1000
    return f"{value:.3f}" if plain and math.isfinite(value) else f"{value:.3g}"
