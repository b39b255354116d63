"""Standard errors of differences of accuracies, and verdicts that are decided beyond them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from contrapose.experiments.form import Results, Verdict, worded


def noise(results: Results, value: float) -> float:
    """Twice the standard error of the difference of two accuracies near `value`.

    It is of the test images alone, counted once for every seed.
    """
    n = min(row["n_test"] for row in results.rows) * len(results.column("seed"))
    return 2 * math.sqrt(2 * value * (1 - value) / n)


def standard_error(share: float, n: float) -> float:
    """sqrt(p (1 - p) / n), the standard error of a share of n images."""
    return math.sqrt(share * (1 - share) / n)


def difference(
    here: Mapping[int, float], there: Mapping[int, float], n: float
) -> tuple[float, float]:
    """(mean difference of two accuracies {seed: value}, its standard error); NaN without a common
    seed.

    error^2 = (p q + p' q') / n + var(differences) / seeds. The n test images are the same for every
    seed, so that more seeds do not reduce the first term. That both accuracies are of the same
    images is not used, so the error is rather too large than too small.
    """
    seeds = sorted(here.keys() & there.keys())
    if not seeds:
        return math.nan, math.nan
    gaps = [here[s] - there[s] for s in seeds]
    means = [statistics.fmean(side[s] for s in seeds) for side in (here, there)]
    by_images = sum(p * (1 - p) / n for p in means)
    by_seeds = statistics.variance(gaps) / len(gaps) if len(gaps) > 1 else 0.0
    return statistics.fmean(gaps), math.sqrt(by_images + by_seeds)


def decided(gap: float, error: float, words: str) -> Verdict:
    """A verdict that holds if gap >= 2 error, does not if gap <= -2 error, and is undecided
    otherwise; `words` are its evidence."""
    if not abs(gap) >= 2 * error:
        return Verdict(None, f"undecided, within the noise: {words}")
    return Verdict(gap > 0, words)


def above(
    results: Results,
    here: Mapping[str, Any],
    there: Mapping[str, Any],
    *,
    by: float = 0.0,
    measure: str = "accuracy",
    counted: str = "n_test",
) -> Verdict:
    """Whether an accuracy is higher here than there by more than `by`, beyond the noise of test
    images and seeds. counted: the measure that says how many images it is of."""
    for facts in (here, there):
        if not results.where(**facts).rows:
            return Verdict.not_tested(f"no result at {worded(facts)}")
    one, two = (results.by_seed(measure, **facts) for facts in (here, there))
    if not (one.keys() & two.keys()):
        return Verdict.not_tested(f"no seed has {measure} at both")
    n = results.mean(counted, **here)
    gap, error = difference(one, two, n)
    means = [statistics.fmean(side.values()) for side in (one, two)]
    words = (
        f"{_short(here)} {means[0]:.3f}, {_short(there)} {means[1]:.3f}: {gap:+.3f} ({error:.3f}), "
        f"{len(one)} seed{'s' * (len(one) != 1)}, n = {n:,.0f}"
    )
    return decided(gap - by, error, words)


def best(results: Results, *, by: str, over: Sequence[str], **at: Any) -> dict[str, Any] | None:
    """The facts of the setting with the highest mean of `by` over seeds, among the results at
    these facts that differ in the facts `over`; None without a result."""
    settings = {tuple(row[name] for name in over) for row in results.where(**at).rows}
    found = [at | dict(zip(over, values, strict=True)) for values in sorted(settings)]
    return max(found, key=lambda facts: results.mean(by, **facts), default=None)


def _short(facts: Mapping[str, Any]) -> str:
    return ", ".join(str(v) if isinstance(v, str) else f"{n} {v}" for n, v in facts.items())
