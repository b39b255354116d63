"""What S1 claims of temperature, as tests of the sweep's results: one protocol at a time."""

import math
from collections.abc import Callable
from functools import partial

from contrapose.experiments import evidence
from contrapose.experiments.evidence import all_of
from contrapose.experiments.form import Results, Verdict
from contrapose.experiments.measures import CRITERION
from contrapose.experiments.temperature.protocol import CONTRASTIVE, HARD, HARD_SIMPLE, SIMPLE

TABLE = (0.07, 0.3, 0.7, 1.0)  # the columns of table 1
SWEEP = (0.07, 0.2, 0.3, 0.7, 1.0)  # all that S1 names
COLDER = (
    0.03,
)  # this project's, of the ordinary loss: small runs are best at colder ones than S1's


def each(results: Results, protocol: str, test: Callable[[Results], Verdict]) -> Verdict:
    """The test for every data set of the protocol, at the temperatures of S1."""
    named = Results(
        rows=[row for row in results.rows if row["tau"] not in COLDER],
        missing=[row for row in results.missing if row["tau"] not in COLDER],
        measures=results.measures,
    )
    return _each(named, protocol, test)


def _each(results: Results, protocol: str, test: Callable[[Results], Verdict]) -> Verdict:
    verdicts = []
    for data in results.column("data"):
        found = test(results.where(data=data, protocol=protocol))
        verdicts.append(Verdict(found.holds, f"{data}: {found.evidence}"))
    return all_of(*verdicts) if len(verdicts) > 1 else verdicts[0]


def uniformity_falls(results: Results, protocol: str) -> Verdict:
    return each(
        results, protocol, lambda r: evidence.falls(r, "minus_uniformity", "tau", loss=CONTRASTIVE)
    )


def tolerance_rises(results: Results, protocol: str) -> Verdict:
    return each(
        results, protocol, lambda r: evidence.rises(r, "tolerance", "tau", loss=CONTRASTIVE)
    )


def hard_is_flat(results: Results, protocol: str) -> Verdict:
    """Whether the range of the hard loss over TABLE is at most a third of the ordinary loss's."""

    def test(r: Results) -> Verdict:
        hard = [r.mean("minus_uniformity", loss=HARD, tau=t) for t in TABLE]
        plain = [r.mean("minus_uniformity", loss=CONTRASTIVE, tau=t) for t in TABLE]
        if any(map(math.isnan, (*hard, *plain))):
            return Verdict.not_tested("not all temperatures have a result")
        one, other = max(hard) - min(hard), max(plain) - min(plain)
        words = f"range over temperatures {one:.2f}, of the ordinary loss {other:.2f}"
        return Verdict(one <= other / 3, f"{words} ({_seeds(r)})")

    return each(results, protocol, test)


def hard_is_more_uniform(results: Results, protocol: str) -> Verdict:
    def test(r: Results) -> Verdict:
        return all_of(
            *(
                evidence.higher(
                    r, "minus_uniformity", {"loss": HARD, "tau": t}, {"loss": CONTRASTIVE, "tau": t}
                )
                for t in TABLE
            )
        )

    return each(results, protocol, test)


def best_inside(results: Results, protocol: str) -> Verdict:
    """Whether accuracy is best inside the sweep, which includes lower temperatures than S1's."""
    test = partial(evidence.peaks_inside, measure="accuracy", along="tau", loss=CONTRASTIVE)
    return _each(results, protocol, test)


def hard_likes_warmth(results: Results, protocol: str) -> Verdict:
    """Whether at temperature 1 the hard loss is better than the ordinary one."""
    here, there = {"loss": HARD, "tau": 1.0}, {"loss": CONTRASTIVE, "tau": 1.0}
    return each(results, protocol, lambda r: evidence.higher(r, "accuracy", here, there))


CLEARLY = 0.02  # of accuracy; S1's gap on CIFAR-10 is 0.084


def simple_is_worse(results: Results, protocol: str) -> Verdict:
    def test(r: Results) -> Verdict:
        best = _best(r)
        if best is None:
            return Verdict.not_tested("no result of the ordinary loss")
        here = {"loss": CONTRASTIVE, "tau": best}
        return evidence.higher(r, "accuracy", here, {"loss": SIMPLE}, by=CLEARLY)

    return each(results, protocol, test)


def hard_simple_recovers(results: Results, protocol: str) -> Verdict:
    """Whether it recovers over half of the gap of the simple loss to the best ordinary one."""

    def test(r: Results) -> Verdict:
        best = _best(r)
        simple, hard = (r.mean("accuracy", loss=name) for name in (SIMPLE, HARD_SIMPLE))
        if best is None or math.isnan(simple) or math.isnan(hard):
            return Verdict.not_tested("not all of them have a result")
        top = r.mean("accuracy", loss=CONTRASTIVE, tau=best)
        words = (
            f"accuracy of simple {simple:.3f}, hard-simple {hard:.3f}, contrastive {top:.3f} at "
            f"its best temperature {best:g} ({_seeds(r)})"
        )
        if top - simple < CLEARLY:
            return Verdict(None, f"undecided: no gap to speak of; {words}")
        share = (hard - simple) / (top - simple)
        return Verdict(share > 0.5, f"{share:.0%} of the gap; {words}")

    return each(results, protocol, test)


def cold_separates(results: Results, protocol: str) -> Verdict:
    """Figure 8: whether positive minus nearest negative falls, and the positive rises, with tau."""

    def test(r: Results) -> Verdict:
        curves = {t: r.curve("local_separation", loss=CONTRASTIVE, tau=t) for t in SWEEP}
        if not all(curves.values()):
            return Verdict.not_tested("not all temperatures have a result")
        gaps = [curves[t][0] - curves[t][1] for t in SWEEP]
        positives = [curves[t][0] for t in SWEEP]
        words = ", ".join(
            f"{t:g}: {p:.3f} less {p - g:.3f}"
            for t, p, g in zip(SWEEP, positives, gaps, strict=True)
        )
        holds = gaps == sorted(gaps, reverse=True) and positives == sorted(positives)
        return Verdict(holds, f"positive less nearest negative by tau, {words} ({_seeds(r)})")

    return each(results, protocol, test)


WITHOUT_LABELS = (
    "instance_retrieval",
    "effective_rank_h",
    "effective_rank_z",
    "lidar",
    "minus_uniformity",
)
FOLLOWS = 0.7  # rank correlation from which a signal is said to follow the accuracy


def a_signal_follows(results: Results, protocol: str) -> Verdict:
    """Spearman's correlation of each signal with accuracy, over temperatures of the ordinary loss.

    The claim is about CRITERION, by which `contrapose tune-temperature` decides.
    """

    def test(r: Results) -> Verdict:
        rows = [row for row in r.where(loss=CONTRASTIVE).rows if row.get("accuracy") is not None]
        if len(rows) < 4:
            return Verdict.not_tested(f"{len(rows)} runs have a result")
        from scipy import stats

        right = [row["accuracy"] for row in rows]
        found = {
            name: float(stats.spearmanr([row[name] for row in rows], right).statistic)
            for name in WITHOUT_LABELS
            if all(row.get(name) is not None for row in rows)
        }
        listed = ", ".join(f"{name} {rho:.2f}" for name, rho in found.items())
        words = f"Spearman's correlation with accuracy over {len(rows)} runs: {listed}"
        if math.isnan(rho := found.get(CRITERION, math.nan)):
            return Verdict.not_tested(words)
        return Verdict(rho >= FOLLOWS, words)

    return _each(results, protocol, test)


def _best(results: Results) -> float | None:
    """The temperature at which the ordinary loss has the best mean accuracy."""
    means = {t: results.mean("accuracy", loss=CONTRASTIVE, tau=t) for t in SWEEP}
    known = {t: value for t, value in means.items() if not math.isnan(value)}
    return max(known, key=lambda t: known[t]) if known else None


def _seeds(results: Results) -> str:
    n = len(results.column("seed"))
    return "1 seed" if n == 1 else f"{n} seeds"
