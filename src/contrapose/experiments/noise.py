"""Standard errors of differences of accuracies, and verdicts that are decided beyond them."""

import math
import statistics
from collections.abc import Mapping

from contrapose.experiments.form import Results, Verdict


def noise(results: Results, value: float) -> float:
    """Twice the standard error of the difference of two accuracies near `value`.

    It is of the test images alone, counted once for every seed.
    """
    n = min(row["n_test"] for row in results.rows) * len(results.column("seed"))
    return 2 * math.sqrt(2 * value * (1 - value) / n)


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
