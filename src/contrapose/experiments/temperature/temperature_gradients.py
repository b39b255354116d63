"""S1 figure 3 and equations 4 and 5: how a temperature shares the repulsion among negatives.

    contrapose reproduce temperature_gradients --scale cpu

Expect at scale cpu that the entropy of the penalties on drawn similarities is 3.7 nats at
temperature 0.03 and 6.8 at 1, after about 3 min on 2 cores.

Measured on similarities drawn from U[-1, 1], as in the paper's figure, and on those of an encoder
before and after training. `contrapose diagnose` shows the same for your own run or embeddings.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrapose.evaluation.penalties import Penalties, penalties, ratio
from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.evidence import all_of
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.measures import linear_probe
from contrapose.experiments.trained import Trained, trained

TEMPERATURES = (0.03, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
SHOWN = (0.07, 0.2, 0.3, 1.0)  # curves of figure 3; S1's own are not named
DRAWN = 1000  # similarities of an anchor; S1's number was not found
ANCHORS = 200
BINS = 40
SOURCES = {
    "drawn": "drawn from U[-1, 1]",
    "untrained": "encoder before training",
    "trained": "encoder after training",
}


def of_drawn(folder: Path, *, seed: int) -> dict[str, Any]:
    """Anchors whose negatives have similarities drawn from U[-1, 1], in float64."""
    generator = torch.Generator().manual_seed(seed)
    s = 2 * torch.rand(ANCHORS, DRAWN, generator=generator, dtype=torch.float64) - 1
    positive = 2 * torch.rand(ANCHORS, generator=generator, dtype=torch.float64) - 1
    found = [_of_similarities(s, t) for t in TEMPERATURES]
    unbalanced = [_imbalance(s, positive, t) for t in TEMPERATURES]
    curves = {f"ratio_{p.temperature:g}": p.ratio.tolist() for p in found if p.temperature in SHOWN}
    checks = {"imbalance": max(unbalanced), "slope_error": _slope_error(s)}
    return _as_measures(found) | curves | checks


def of_embeddings(of: Trained) -> dict[str, Any]:
    """The same for z of two views of test images; negatives are the rows of other images."""
    z, group = of.views_of_test
    return _as_measures(penalties(z, group, temperatures=TEMPERATURES, bins=BINS))


def _of_similarities(s: Tensor, t: float) -> Penalties:
    """`penalties` of anchors, from similarities instead of embeddings."""
    r = ratio(s, temperature=t)
    mean = (r * s).sum(dim=1, keepdim=True)
    h = torch.special.entr(r).sum(dim=1)
    which = ((s + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
    count = torch.bincount(which.flatten(), minlength=BINS)
    total = torch.bincount(which.flatten(), r.flatten(), minlength=BINS)
    order = s.flatten().sort(descending=True)
    held = r.flatten()[order.indices].cumsum(0) / len(s)
    return Penalties(
        temperature=t,
        entropy=float(h.mean()),
        slope=float((r * (s - mean).square()).sum(dim=1).mean()) / t**3,
        perplexity=float(h.exp().mean()),
        interval=(float(order.values[int((held < 0.9).sum())]), float(s.max())),
        edges=torch.linspace(-1, 1, BINS + 1),
        ratio=torch.where(count > 0, total / count, math.nan),
        mass=total / total.sum(),
    )


def _as_measures(found: list[Penalties]) -> dict[str, Any]:
    """Lists over TEMPERATURES of each quantity."""
    return {
        "entropy": [p.entropy for p in found],
        "slope": [p.slope for p in found],
        "perplexity": [p.perplexity for p in found],
        "interval": [p.interval[0] for p in found],
    }


def _imbalance(s: Tensor, positive: Tensor, t: float) -> float:
    """|sum of the negatives' gradients / the positive's + 1| of the loss, by autograd."""
    s, positive = s.clone().requires_grad_(), positive.clone().requires_grad_()
    loss = torch.cat([positive[:, None], s], dim=1).div(t).logsumexp(dim=1) - positive / t
    by_s, by_positive = torch.autograd.grad(loss.sum(), (s, positive))
    return float((by_s.sum(dim=1) / by_positive + 1).abs().max())


def _slope_error(s: Tensor) -> float:
    """Largest relative distance of Var_r(s)/t^3 from a central difference of the entropy."""
    errors = []
    for t in TEMPERATURES:
        step = 1e-4 * t
        low, at, high = (_of_similarities(s, u) for u in (t - step, t, t + step))
        difference = (high.entropy - low.entropy) / (2 * step)
        errors.append(abs(at.slope / difference - 1))
    return max(errors)


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    setting: dict[str, Any] = {"images": "digits", "epochs": 10, "encoder": "small_conv"}
    setting["changes"] = ("backbone.width=32", "batch_size=128")
    if scale == "cpu":
        setting |= {"images": "cifar10", "subset": 5000, "test_subset": 2000, "epochs": 20}
        setting["changes"] = ("backbone.width=64", "batch_size=128", "optimizer=adamw", "lr=0.002")
        setting["changes"] += ("scaling=no_scaling",)
    found = []
    for seed in seeds:
        call = partial(of_drawn, seed=seed)
        found.append(Job(name=f"drawn-seed{seed}", call=call, facts={"source": "drawn"}, seed=seed))
        for source, epochs in (("untrained", 0), ("trained", setting["epochs"])):
            call = partial(
                trained, **setting | {"epochs": epochs}, temperature=0.2, seed=seed,
                measures=(of_embeddings, linear_probe),
            )  # fmt: skip
            name = f"{setting['images']}-{source}-seed{seed}"
            found.append(Job(name=name, call=call, facts={"source": source}, seed=seed))
    return found


def balanced(results: Results) -> Verdict:
    return _below(results, "imbalance", 1e-10, "|sum of negative gradients / positive + 1|")


def derivative(results: Results) -> Verdict:
    return _below(results, "slope_error", 1e-5, "relative error of Var_r(s)/t^3")


def _below(results: Results, measure: str, bound: float, words: str) -> Verdict:
    found = results.values(measure, source="drawn")
    if not found:
        return Verdict.not_tested("no result on drawn similarities")
    at = f"{ANCHORS} anchors, {DRAWN} negatives, {len(TEMPERATURES)} temperatures"
    evidence = f"largest {words}: {max(found):.1e} ({at}, {_seeds(len(found))})"
    return Verdict(max(found) < bound, evidence)


def concentrates(results: Results) -> Verdict:
    return _monotone(results, "entropy", "entropy of r, nats")


def narrows(results: Results) -> Verdict:
    return _monotone(results, "interval", "similarity above which 90 % of the penalty lies", -1)


def _monotone(results: Results, measure: str, words: str, sign: int = 1) -> Verdict:
    """Whether a measure is monotone along TEMPERATURES for every seed and source."""
    verdicts = []
    for source, name in SOURCES.items():
        curves = list(results.by_seed(measure, source=source).values())
        if not curves:
            verdicts.append(Verdict.not_tested(f"no result for {name}"))
            continue
        steps = [sign * (b - a) for c in curves for a, b in itertools.pairwise(c)]
        first, last = (sum(c[i] for c in curves) / len(curves) for i in (0, -1))
        evidence = (
            f"{name}: {words} {first:.2f} at {TEMPERATURES[0]}, {last:.2f} at {TEMPERATURES[-1]}; "
            f"in order in {sum(s > 0 for s in steps)} of {len(steps)} steps ({_seeds(len(curves))})"
        )
        verdicts.append(Verdict(min(steps) > 0, evidence))
    return all_of(*verdicts)


def _seeds(n: int) -> str:
    return f"{n} seed{'s' * (n != 1)}"


def draw_ratio(results: Results) -> Chart:
    """Figure 3: r against s."""
    edges = torch.linspace(-1, 1, BINS + 1)
    middle = ((edges[:-1] + edges[1:]) / 2).tolist()
    curves = {t: results.curve(f"ratio_{t:g}", source="drawn") for t in SHOWN}
    traces = [line(f"{t:g}", middle, y, mode="lines") for t, y in curves.items() if y]
    return chart(traces, "similarity s", "mean r(s)")


def against_temperature(measure: str, title: str, **axis: Any) -> Callable[[Results], Chart]:
    def draw(results: Results) -> Chart:
        curves = {name: results.curve(measure, source=source) for source, name in SOURCES.items()}
        traces = [line(name, TEMPERATURES, y) for name, y in curves.items() if y]
        return chart(traces, "temperature", title, xaxis={"type": "log"}, yaxis=axis)

    return draw


EXPERIMENT = Experiment(
    name="temperature_gradients",
    title="A temperature decides which negatives are penalised",
    source="S1 figure 3, equations 4 and 5 (Wang & Liu, CVPR 2021)",
    jobs=jobs,
    measures={
        "entropy": "mean over anchors of H(r_i), nats, by temperature",
        "slope": "mean of dH/dt = Var_r(s)/t^3, nats per unit of temperature",
        "perplexity": "mean of exp H(r_i): effective number of negatives",
        "interval": "similarity above which 90 % of the penalty lies",
        **{f"ratio_{t:g}": f"mean r in {BINS} bins of similarity, t = {t:g}" for t in SHOWN},
        "imbalance": "largest |sum of the negatives' gradients / the positive's + 1|",
        "slope_error": "largest relative error of Var_r(s)/t^3 against a central difference",
        "linear_probe": "test accuracy of logistic regression on h",
    },
    claims=(
        Claim(
            "The gradient of the positive answers those of all negatives together.",
            "S1 eq. 4 [S1]",
            balanced,
        ),
        Claim(
            "The entropy of the penalties falls strictly with the temperature.",
            "S1 section 3.2 [S1]",
            concentrates,
        ),
        Claim("The entropy's slope is Var_r(s) / t^3.", "derived from S1 eq. 5 [D]", derivative),
        Claim(
            "A lower temperature narrows the penalised interval towards the nearest negatives.",
            "S1 figure 3 [S1]",
            narrows,
        ),
    ),
    figures=(
        Figure(
            "Penalty against similarity, by temperature (figure 3)",
            draw_ratio,
            "Drawn similarities. At a low temperature nearly all of the penalty falls on the most "
            "similar negatives; at a high one it is nearly equal.",
        ),
        Figure(
            "Entropy of the penalties",
            against_temperature("entropy", "H(r), nats"),
            "Rises with the temperature towards the log of the number of negatives.",
        ),
        Figure(
            "Slope of the entropy",
            against_temperature("slope", "dH/dt", type="log", exponentformat="e"),
            "Where it is steep, a small change of temperature changes who is penalised.",
        ),
        Figure(
            "Effective interval",
            against_temperature("interval", "similarity above which 90 % of the penalty lies"),
            "The higher the line, the narrower the interval of similarities that is penalised.",
        ),
    ),
    costs={"smoke": "15 s", "cpu": "3 min on 2 cores"},
    notes=(
        f"S1 draws similarities from U[-1, 1]; how many and at which temperatures was not found. "
        f"Chosen: {ANCHORS} anchors with {DRAWN} negatives each.",
        "S1 speaks of the effective interval of penalties in words; the share of 90 % that defines "
        "it here is this project's choice.",
        "The encoder is this project's (a small network, SimCLR views, temperature 0.2): the "
        "figure asks how the same similarities would be penalised at other temperatures.",
    ),
)
