"""Beyond S1: losses that model relations between instances, on one plane, at equal compute.

    contrapose reproduce relations --scale cpu --jobs 2

Expect at scale cpu accuracies of 0.54 at the best single temperature, with hard negatives and with
a perplexity per anchor, and of 0.60 with labels, after about 30 min on 2 cores.

S1 ends by asking for an explicit model of which instances belong together. Known answers: fewer
false negatives in the mean (debiased), harder ones (HCL, hard), neighbours as positives (NNCLR),
temperatures of one's own (perplexity per anchor); with labels as the upper bound (SupCon).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from contrapose import losses
from contrapose.experiments import evidence
from contrapose.experiments.charts import Chart, chart, finished, on_the_plane
from contrapose.experiments.evidence import spread
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.temperature import protocol as wang_liu
from contrapose.experiments.temperature.protocol import ALPHA, CONTRASTIVE, IN_BATCH, SCALES
from contrapose.experiments.trained import trained
from contrapose.keys import support
from contrapose.training.recipe import Recipe

SINGLE = "single temperature"
UPPER = "SupCon (labels)"
SUPPORT = 2048  # embeddings that NNCLR finds neighbours in; 98,304 in its paper [M]
SETTINGS: dict[str, tuple[float, ...]] = {  # method -> temperatures, perplexities for the two
    SINGLE: (0.1, 0.2, 0.5, 1.0),
    "perplexity": (25.0,),
    "perplexity per anchor": (25.0,),
    "hard": (0.3, 1.0),
    "debiased": (0.5,),
    "HCL": (0.5,),
    "NNCLR": (0.2,),
    UPPER: (0.1,),
}
CLASS_SHARE = 0.1  # tau+ of debiased and HCL: ten classes, as in their papers on CIFAR-10
BETA = 1.0  # of HCL
BETTER = 0.005


def loss_of(method: str, value: float, batch: int) -> Any:
    found: dict[str, Callable[[], Any]] = {
        SINGLE: lambda: partial(losses.nt_xent, temperature=value),
        "perplexity": lambda: partial(losses.nt_xent, perplexity=value),
        "perplexity per anchor": lambda: partial(losses.nt_xent, perplexity=value, per="anchor"),
        "hard": lambda: partial(
            losses.hard, temperature=value, k=max(1, round(ALPHA * (2 * batch - 2)))
        ),
        "debiased": lambda: partial(losses.debiased, temperature=value, tau_plus=CLASS_SHARE),
        "HCL": lambda: partial(losses.hcl, temperature=value, tau_plus=CLASS_SHARE, beta=BETA),
        "NNCLR": lambda: partial(losses.nnclr, temperature=value),
        UPPER: lambda: partial(losses.supcon, temperature=value),
    }
    return found[method]()


def recipe(size: int, channels: int, *, data: str, method: str, value: float, scale: str) -> Recipe:
    """The in-batch recipe of S1's experiments with that loss."""
    found = wang_liu.recipe(
        size, channels, data=data, protocol=IN_BATCH, loss=CONTRASTIVE, tau=0.2, scale=scale
    )
    found = dataclasses.replace(found, loss=loss_of(method, value, found.batch_size))
    if method == "NNCLR":
        found = dataclasses.replace(found, keys=partial(support, size=SUPPORT))
    return dataclasses.replace(found, positives="class" if method == UPPER else "image")


# ---- the experiment ------------------------------------------------------------------------------


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    at = SCALES[scale]
    data = at.data[0]
    found = []
    for method, values in SETTINGS.items():
        for value in values:
            for seed in seeds:
                call = partial(
                    trained, images=data, subset=at.images, seed=seed, epochs=at.epochs,
                    recipe=partial(recipe, data=data, method=method, value=value, scale=scale),
                    measures=wang_liu.standard(scale, data),
                )  # fmt: skip
                short = method.partition(" (")[0].replace(" ", "-")
                facts = {"data": data, "method": method, "value": value}
                found.append(
                    Job(
                        name=f"{data}-{short}-{value:g}-seed{seed}",
                        call=call,
                        facts=facts,
                        seed=seed,
                    )
                )
    return found


def above_the_curve(results: Results) -> dict[str, list[float]]:
    """{method: tolerance above single temperatures at equal uniformity}, for runs in their
    range."""
    rows = [row for row in results.rows if row.get("tolerance") is not None]
    curve = sorted((r["minus_uniformity"], r["tolerance"]) for r in rows if r["method"] == SINGLE)
    if len(curve) < 2:
        return {}
    x, y = np.array(curve).T
    gains: dict[str, list[float]] = {}
    for row in rows:
        if row["method"] != SINGLE and x[0] <= row["minus_uniformity"] <= x[-1]:
            gain = row["tolerance"] - float(np.interp(row["minus_uniformity"], x, y))
            gains.setdefault(row["method"], []).append(gain)
    return gains


def some_leave_the_curve(results: Results) -> Verdict:
    """Whether a method without labels has more tolerance than single temperatures, by BETTER."""
    if results.missing:
        return Verdict.not_tested(f"{len(results.missing)} runs are missing")
    gains = above_the_curve(results)
    gains.pop(UPPER, None)
    if not gains:
        return Verdict(None, "undecided: no method lies between the single temperatures")
    words = "; ".join(f"{m} {spread(g).replace('seed', 'run')}" for m, g in gains.items())
    best = max(float(np.mean(g)) for g in gains.values())
    return Verdict(best > BETTER, f"tolerance above the curve at equal uniformity: {words}")


def some_are_more_accurate(results: Results) -> Verdict:
    """Compare the most accurate method without labels with the best single temperature."""
    if results.missing:
        return Verdict.not_tested(f"{len(results.missing)} runs are missing")
    means = {
        (method, value): results.mean("accuracy", method=method, value=value)
        for method, values in SETTINGS.items()
        for value in values
        if method != UPPER
    }
    single = max((k for k in means if k[0] == SINGLE), key=lambda k: means[k])
    other = max((k for k in means if k[0] != SINGLE), key=lambda k: means[k])
    here, there = ({"method": m, "value": v} for m, v in (other, single))
    found = evidence.higher(results, "accuracy", here, there, by=BETTER)
    every = ", ".join(f"{m} {v:g}: {a:.3f}" for (m, v), a in means.items())
    return Verdict(found.holds, f"{found.evidence}; all: {every}")


def labels_are_above(results: Results) -> Verdict:
    """Whether SupCon has more tolerance than any method without labels."""
    if results.missing:
        return Verdict.not_tested(f"{len(results.missing)} runs are missing")
    value = SETTINGS[UPPER][0]
    means = {
        (method, v): results.mean("tolerance", method=method, value=v)
        for method, values in SETTINGS.items()
        for v in values
        if method != UPPER
        and results.mean("minus_uniformity", method=method, value=v) > _upper(results)
    }
    if not means:
        return Verdict(None, "undecided: nothing is at least as uniform as SupCon")
    method, v = max(means, key=lambda k: means[k])
    return evidence.higher(
        results, "tolerance", {"method": UPPER, "value": value}, {"method": method, "value": v}
    )


def _upper(results: Results) -> float:
    return results.mean("minus_uniformity", method=UPPER, value=SETTINGS[UPPER][0])


def plane(results: Results) -> Chart:
    traces = []
    for method in SETTINGS:
        rows = finished(results, "value", method=method)
        look = {} if method == SINGLE else {"mode": "markers+text"}
        traces += [on_the_plane(method, rows, "value", **look)] if rows else []
    return chart(traces, "-uniformity of z", "tolerance of z")


def accuracies(results: Results) -> Chart:
    pairs = [(m, v) for m, values in SETTINGS.items() for v in values]
    means = {f"{m} {v:g}": results.mean("accuracy", method=m, value=v) for m, v in pairs}
    means = {name: y for name, y in means.items() if not math.isnan(y)}
    bars = [{"type": "bar", "x": [*means], "y": [*means.values()]}] if means else []
    return chart(bars, None, "linear accuracy")


EXPERIMENT = Experiment(
    name="relations",
    title="Relations between instances: a way out of uniformity against tolerance?",
    source="beyond S1, whose conclusion asks for it; losses of 2007.00224, 2010.04592, 2104.14548",
    jobs=jobs,
    measures=wang_liu.MEASURES,
    claims=(
        Claim(
            "Some loss without labels has more tolerance than any single temperature gives at its "
            "uniformity.",
            "this project",
            some_leave_the_curve,
        ),
        Claim(
            "Some loss without labels is more accurate than the best single temperature.",
            "this project",
            some_are_more_accurate,
        ),
        Claim(
            "With labels (SupCon) tolerance is higher than that of anything as uniform.",
            "this project: the upper bound",
            labels_are_above,
        ),
    ),
    figures=(
        Figure(
            "The plane of uniformity and tolerance",
            plane,
            "The line is what a single temperature can do. Above it is a way out of the dilemma.",
        ),
        Figure("Accuracy", accuracies, "Equal encoder, images, views, steps and optimiser."),
    ),
    costs={
        "smoke": "1 min on 2 cores",
        "cpu": "30 min on 2 cores",
        "paper": "200 epochs a run, on a GPU (not timed)",
    },
    notes=(
        "Equal compute: encoder, images, two views, steps and optimiser are the same; NNCLR adds "
        "the search among 2,048 embeddings and is without its prediction head.",
        "Settings were chosen once, not tuned: tau+ = 0.1 (ten classes), beta = 1, temperatures of "
        "the papers or near them. A method could be better at another setting.",
    ),
)
