"""S2 table 5: more positives of an anchor help, and then level off.

    contrapose reproduce positives --scale cpu

Expect the largest step from one positive (SimCLR's) to three, and little after five. At scale cpu
about 9 min a seed on 2 cores; it was not run.
"""

from collections.abc import Sequence
from functools import partial

from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Published, Results, Verdict
from contrapose.experiments.supervised.protocol import MEASURES, SUPCON, above, job

KEPT = (1, 3, 5, 7, 9, None)  # positives of an anchor at most; None: no cap
PUBLISHED = (0.693, 0.766, 0.780, 0.784, 0.783, 0.785)


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    found = []
    for seed in seeds:
        make = partial(job, scale=scale, seed=seed, method=SUPCON)
        for k in KEPT:
            facts = {"positives": k}
            found.append(make(name=f"positives-{k or 'all'}", facts=facts, max_positives=k))
    return found


def help_(results: Results) -> Verdict:
    return above(results, {"positives": None}, {"positives": 1})


def level_off(results: Results) -> Verdict:
    """The step from 1 to 3 positives against that from 5 to all."""
    means = [results.mean("accuracy", positives=k) for k in (1, 3, 5, None)]
    if any(m != m for m in means):
        return Verdict.not_tested("not every number of positives has a result")
    first, last = means[1] - means[0], means[3] - means[2]
    words = f"1 to 3: {first:+.3f}; 5 to all: {last:+.3f}; {len(results.column('seed'))} seeds"
    return Verdict(first > last, words)


def curve(results: Results) -> Chart:
    counted = [k for k in KEPT if k is not None]
    y = [results.mean("accuracy", positives=k) for k in counted]
    traces = [line("at most so many", counted, y)] if all(v == v for v in y) else []
    return chart(traces, "positives of an anchor", "accuracy")


EXPERIMENT = Experiment(
    name="positives",
    title="The number of positives",
    source="S2 table 5 (Khosla et al., NeurIPS 2020)",
    jobs=jobs,
    measures=MEASURES,
    published=tuple(
        Published("accuracy", {"positives": k}, v, "S2 table 5, ImageNet, ResNet-50 [P]")
        for k, v in zip(KEPT, PUBLISHED, strict=True)
    ),
    claims=(
        Claim("All positives of a class are better than one.", "S2 table 5 [P]", help_),
        Claim("The gain levels off: 1 to 3 gives more than 5 to all.", "S2 table 5 [P]", level_off),
    ),
    figures=(Figure("Accuracy by positives", curve, "Steep at first, then level."),),
    costs={"smoke": "25 s on 2 cores", "cpu": "about 9 min a seed on 2 cores"},
    notes=(
        "Surplus positives leave numerator and denominator, as in the paper; which are kept is "
        "this library's choice (`supcon(max_positives=)`).",
    ),
)
