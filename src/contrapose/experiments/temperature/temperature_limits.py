"""S1 equations 6 and 7: the limits of the contrastive loss at extreme temperatures.

    contrapose reproduce temperature_limits --scale cpu --jobs 2

Expect at scale cpu an accuracy of the limit of temperature 0 of 0.17 with the memory bank
(untrained 0.34) and of 0.51 in the batch, after about 12 min on 2 cores.

For temperature 0 the limit is a triplet loss without margin, for an infinite temperature the simple
loss. Both are tested numerically on drawn embeddings, and trained with, with the memory bank and
with negatives of the batch.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from contrapose.encoders import unit
from contrapose.experiments import evidence
from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.evidence import all_of
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.temperature import protocol as wang_liu
from contrapose.experiments.temperature.protocol import (
    BANK,
    COLD,
    CONTRASTIVE,
    IN_BATCH,
    SCALES,
    SIMPLE,
    UNTRAINED,
    job,
)
from contrapose.losses import cold_limit, hot_limit, nt_xent

TRAINED = 0.3  # temperature of the ordinary loss beside the limits: S1's best on CIFAR-10
NEARLY_COLD = 0.01
PROTOCOLS = (BANK, IN_BATCH)
SCALED = 0.07  # the cold limit is a loss over t: this t, the lowest of S1, sets its scale
COLD_GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
HOT_GRID = (1.0, 3.0, 10.0, 30.0, 100.0)
IMAGES, WIDTH = 256, 32
MARGIN = 0.02  # of accuracy: what is called clearly better or worse


def numerically(folder: Path, *, seed: int) -> dict[str, Any]:
    """The distance of NT-Xent from its limits, in float64, and the rate at which it should fall."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(IMAGES, WIDTH, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, IMAGES, WIDTH, generator=generator, dtype=torch.float64)
    z, group = unit((image + noise).flatten(0, 1)), torch.arange(IMAGES).repeat(2)
    rows = 2 * IMAGES
    candidates = (z @ z.T)[~torch.eye(rows, dtype=torch.bool)].view(rows, rows - 1)
    variance = float(candidates.var(dim=1, correction=0).mean())

    def left(limit: Any, t: float) -> float:
        return float(nt_xent(z, group, temperature=t) - limit(z, group, temperature=t))

    return {
        "cold_left": [t * left(cold_limit, t) for t in COLD_GRID],
        "cold_bound": [t * math.log(rows - 1) for t in COLD_GRID],
        "hot_left": [left(hot_limit, t) for t in HOT_GRID],
        "hot_expected": [variance / (2 * t**2) for t in HOT_GRID],
    }


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    (data,) = SCALES[scale].data[:1]
    found = []
    for seed in seeds:
        call = partial(numerically, seed=seed)
        facts: dict[str, Any] = {"data": "drawn", "protocol": None, "loss": None, "tau": None}
        found.append(Job(name=f"numerically-seed{seed}", call=call, facts=facts, seed=seed))
        make = partial(job, scale=scale, seed=seed, data=data)
        for protocol in PROTOCOLS:
            found += [
                make(protocol=protocol, loss=COLD, tau=SCALED),
                make(protocol=protocol, loss=CONTRASTIVE, tau=TRAINED),
                make(protocol=protocol, loss=SIMPLE),
            ]
        found.append(make(protocol=IN_BATCH, loss=CONTRASTIVE, tau=NEARLY_COLD))
        found.append(make(protocol=IN_BATCH, loss=UNTRAINED, trained_for=0))
    return found


def becomes_triplet(results: Results) -> Verdict:
    """Whether t L is above its limit by 0 to t log(candidates), the bounds of a log-sum-exp."""
    left, bound = (
        results.curve("cold_left", data="drawn"),
        results.curve("cold_bound", data="drawn"),
    )
    if not left:
        return Verdict.not_tested("no result")
    inside = all(-1e-9 <= a <= b for a, b in zip(left, bound, strict=True))
    words = ", ".join(f"{a:.1e} at {t:g}" for t, a in zip(COLD_GRID, left, strict=True))
    return Verdict(inside and left == sorted(left), f"t L less the limit: {words}")


def becomes_linear(results: Results) -> Verdict:
    """Whether the rest falls as Var(s) / (2 t^2), to within a tenth from t = 10 on."""
    left = results.curve("hot_left", data="drawn")
    if not left:
        return Verdict.not_tested("no result")
    share = [a / b for a, b in zip(left, results.curve("hot_expected", data="drawn"), strict=True)]
    words = ", ".join(f"{s:.3f} at {t:g}" for t, s in zip(HOT_GRID, share, strict=True))
    far = [s for t, s in zip(HOT_GRID, share, strict=True) if t >= 10]
    evidence_ = f"what is left over Var(s) / (2 t^2): {words}"
    return Verdict(all(abs(s - 1) < 0.1 for s in far), evidence_)


def cold_learns_nothing(results: Results, *, protocol: str) -> Verdict:
    """Whether it is not clearly above the untrained encoder, and clearly below the ordinary
    loss."""
    cold = {"protocol": protocol, "loss": COLD}
    above = evidence.higher(results, "accuracy", cold, {"loss": UNTRAINED}, by=MARGIN)
    nothing = Verdict(None if above.holds is None else not above.holds, above.evidence)
    return all_of(nothing, evidence.higher(results, "accuracy", _plain(protocol), cold, by=MARGIN))


def above_simple(results: Results, *, protocol: str, measure: str, by: float = 0.0) -> Verdict:
    simple = {"protocol": protocol, "loss": SIMPLE}
    return evidence.higher(results, measure, _plain(protocol), simple, by=by)


def _plain(protocol: str) -> dict[str, Any]:
    return {"protocol": protocol, "loss": CONTRASTIVE, "tau": TRAINED}


def of_protocol(protocol: str) -> tuple[Claim, ...]:
    """The claims of S1 for its bank, and the same claims for the batch."""
    where, also = ("Bank", "") if protocol == BANK else ("In the batch", "; the batch is ours")
    return (
        Claim(
            f"{where}: the triplet loss without margin learns nothing useful.",
            f"S1 section 3.2 [S1]{also}",
            partial(cold_learns_nothing, protocol=protocol),
        ),
        Claim(
            f"{where}: the simple loss is clearly worse than the ordinary one: by more than "
            f"{MARGIN:g}.",
            f"S1 table 1 [S1]{also}",
            partial(above_simple, protocol=protocol, measure="accuracy", by=MARGIN),
        ),
        Claim(
            f"{where}: the simple loss does not make embeddings uniform.",
            f"S1 table 1 [S1]{also}",
            partial(above_simple, protocol=protocol, measure="minus_uniformity"),
        ),
    )


def bars(results: Results) -> Chart:
    settings: list[tuple[str, dict[str, Any]]] = [
        ("triplet without margin (t to 0)", {"loss": COLD}),
        (f"contrastive, t = {NEARLY_COLD:g}", {"loss": CONTRASTIVE, "tau": NEARLY_COLD}),
        (f"contrastive, t = {TRAINED:g}", {"loss": CONTRASTIVE, "tau": TRAINED}),
        ("simple (t to infinity)", {"loss": SIMPLE}),
        ("untrained", {"loss": UNTRAINED}),
    ]
    traces = []
    for protocol in PROTOCOLS:
        y = [results.mean("accuracy", protocol=protocol, **at) for _, at in settings]
        if not all(map(math.isnan, y)):
            x = [name for name, _ in settings]
            traces.append({"type": "bar", "name": protocol, "x": x, "y": y})
    return chart(traces, None, "linear accuracy")


def residuals(results: Results) -> Chart:
    lines = (
        ("t L less the cold limit", COLD_GRID, "cold_left"),
        ("L less the hot limit", HOT_GRID, "hot_left"),
        ("Var(s) / (2 t^2)", HOT_GRID, "hot_expected"),
    )
    found = [(name, x, results.curve(measure, data="drawn")) for name, x, measure in lines]
    log = {"type": "log", "exponentformat": "e"}
    traces = [line(name, x, y) for name, x, y in found if y]
    return chart(traces, "temperature", "what is left", xaxis=log, yaxis=log)


EXPERIMENT = Experiment(
    name="temperature_limits",
    title="At extreme temperatures the contrastive loss teaches little",
    source="S1 equations 6 and 7, section 3.2 (Wang & Liu, CVPR 2021)",
    jobs=jobs,
    measures={
        **wang_liu.MEASURES,
        "cold_left": "t L less the cold limit's, by temperature",
        "cold_bound": "t log(candidates): the most it can be",
        "hot_left": "L less the hot limit, by temperature",
        "hot_expected": "Var(s) / (2 t^2)",
    },
    claims=(
        Claim(
            "Towards temperature 0 the loss is a triplet loss without margin on the nearest "
            "negative.",
            "S1 eq. 6 [S1]",
            becomes_triplet,
        ),
        Claim(
            "Towards an infinite temperature the loss is the simple loss, lambda = 1/(N-1).",
            "S1 eq. 7 [S1], lambda and the rate [D]",
            becomes_linear,
        ),
        *(claim for protocol in PROTOCOLS for claim in of_protocol(protocol)),
    ),
    figures=(
        Figure(
            "Accuracy at the limits",
            bars,
            "The encoder before training is what nothing learned looks like.",
        ),
        Figure(
            "Distance from the limits",
            residuals,
            "Logarithmic. Towards the left the cold limit is reached, to the right the hot one, "
            "at the rate that the variance of the similarities predicts.",
        ),
    ),
    costs={"smoke": "20 s", "cpu": "12 min on 2 cores"},
    notes=(
        "S1 says that the triplet loss without margin cannot learn any useful information; how it "
        "was trained was not found. Here: the optimiser of the other losses; useful "
        f"means a linear classifier more than {MARGIN:g} above one on the encoder before training.",
        "lambda = 1/(number of negatives) is what equation 7 implies; S1 does not print it.",
    ),
)
