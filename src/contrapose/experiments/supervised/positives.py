"""S2 table 5: more positives of an anchor help, and then level off.

    contrapose reproduce positives --scale cpu

Expect at scale cpu, in about 4 min a seed on 2 cores, the paper's shape at temperature 0.5: 0.416
with one positive, 0.460 with three, 0.470 with five and 0.473 with all (3 seeds). At the paper's
0.1 all positives are worse than one, 0.407 and 0.439.
"""

import math
from collections.abc import Sequence
from functools import partial

from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.evidence import all_of
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Published, Results, Verdict
from contrapose.experiments.noise import decided, difference
from contrapose.experiments.supervised.protocol import MEASURES, SCALES, SUPCON, TAU, above, job

KEPT = (1, 3, 5, 7, 9, None)  # positives of an anchor at most; None: no cap
PUBLISHED = (0.693, 0.766, 0.780, 0.784, 0.783, 0.785)


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    found = []
    for seed in seeds:
        make = partial(job, scale=scale, seed=seed, method=SUPCON)
        for tau in sorted({TAU, SCALES[scale].tau(SUPCON)}):
            for k in KEPT:
                facts = {"positives": k, "tau": tau}
                name = f"positives-{k or 'all'}-tau{tau:g}"
                found.append(make(name=name, facts=facts, max_positives=k, temperature=tau))
    return found


def help_(results: Results) -> Verdict:
    """At the paper's temperature, and at that which suits the network of the scale."""
    if not results.rows:
        return Verdict.not_tested("no result yet")
    return all_of(
        *(
            above(results, {"positives": None, "tau": tau}, {"positives": 1, "tau": tau})
            for tau in results.column("tau")
        )
    )


def level_off(results: Results) -> Verdict:
    """The step from 1 to 3 positives against that from 5 to all."""
    verdicts = []
    for tau in results.column("tau") if results.rows else ():
        means = [results.mean("accuracy", positives=k, tau=tau) for k in (1, 3, 5, None)]
        if any(m != m for m in means):
            return Verdict.not_tested("not every number of positives has a result")
        first, last = means[1] - means[0], means[3] - means[2]
        words = f"tau {tau:g}: 1 to 3: {first:+.3f}; 5 to all: {last:+.3f}"
        verdicts.append(Verdict(first > last, f"{words}; {len(results.column('seed'))} seeds"))
    return all_of(*verdicts) if verdicts else Verdict.not_tested("no result yet")


def wants_temperature(results: Results) -> Verdict:
    """What the higher temperature adds with all positives, against what it adds with one; the
    error is that of both steps, as if of other images."""
    taus = results.column("tau") if results.rows else ()
    if len(taus) < 2:
        return Verdict.not_tested("one temperature")
    low, high = {"tau": taus[0]}, {"tau": taus[-1]}
    steps = []
    for k in (None, 1):
        here, there = (results.by_seed("accuracy", positives=k, **at) for at in (high, low))
        steps.append(difference(here, there, min(row["n_test"] for row in results.rows)))
    if any(gap != gap for gap, _ in steps):
        return Verdict.not_tested("not every temperature has a result")
    (every, first), (one, second) = steps
    error = math.hypot(first, second)
    words = f"tau {taus[0]:g} to {taus[-1]:g}: {every:+.3f} with all, {one:+.3f} with one"
    return decided(every - one, error, f"{words}; {every - one:+.3f} ({error:.3f})")


def curve(results: Results) -> Chart:
    counted = [k for k in KEPT if k is not None]
    traces = []
    for tau in results.column("tau") if results.rows else ():
        y = [results.mean("accuracy", positives=k, tau=tau) for k in counted]
        traces += [line(f"tau {tau:g}", counted, y)] if all(v == v for v in y) else []
    return chart(traces, "positives of an anchor", "accuracy")


EXPERIMENT = Experiment(
    name="positives",
    title="The number of positives",
    source="S2 table 5 (Khosla et al., NeurIPS 2020)",
    jobs=jobs,
    measures=MEASURES,
    published=tuple(
        Published(
            "accuracy", {"positives": k, "tau": TAU}, v, "S2 table 5, ImageNet, ResNet-50 [P]"
        )
        for k, v in zip(KEPT, PUBLISHED, strict=True)
    ),
    claims=(
        Claim("All positives of a class are better than one.", "S2 table 5 [P]", help_),
        Claim("The gain levels off: 1 to 3 gives more than 5 to all.", "S2 table 5 [P]", level_off),
        Claim(
            "With many positives a higher temperature is better than with one.",
            "this project's",
            wants_temperature,
        ),
    ),
    figures=(Figure("Accuracy by positives", curve, "Steep at first, then level."),),
    costs={"smoke": "25 s on 2 cores", "cpu": "about 4 min a seed on 2 cores"},
    notes=(
        "Surplus positives leave numerator and denominator, as in the paper; which are kept is "
        "this library's choice (`supcon(max_positives=)`).",
    ),
)
