"""S0: with a tuned learning rate the batch size matters little.

    contrapose reproduce batch_size --scale cpu --jobs 2

Expect at scale cpu accuracies of 0.42, 0.44 and 0.42 with batches of 32, 128 and 512, each at its
best rate, after about 9 min on 2 cores.

SimCLR is trained with LARS at batches a factor of four apart, each at rates a factor of two apart.
So rates scaled by the square root of the batch, and linearly, are among them.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.noise import noise
from contrapose.experiments.suppression.protocol import READABLE, UNTRAINED, job

MIDDLE = {"smoke": 64, "cpu": 128, "paper": 256}  # the middle of three batches
RATE = 0.2  # times the root of the batch: S0 on CIFAR-10 [C, issue 166]
BASES = (0.5, 1.0, 2.0, 4.0, 8.0)  # rates of the middle batch, times RATE root(batch)
RULES: Mapping[str, float] = {"square root": 0.5, "linear": 1.0}  # exponents of the batch
SMALL = 0.03  # of accuracy: what is called a small impact


def grid(middle: int) -> dict[int, tuple[float, ...]]:
    """{batch: rates in units of the middle one}: each of BASES scaled to the batch by each rule."""
    return {
        int(middle * times): tuple(
            sorted({b * times**p for b in BASES for p in (0, *RULES.values())})
        )
        for times in (0.25, 1, 4)
    }


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    data, size = {"smoke": ("digits", None), "cpu": ("cifar10", 16)}.get(scale, ("cifar10", None))
    middle = MIDDLE[scale]
    unit = RATE * math.sqrt(middle)
    found = []
    for seed in seeds:
        make = partial(job, scale=scale, seed=seed, images=data, size=size)
        for batch, multiples in grid(middle).items():
            for multiple in (1.0, 2.0) if scale == "smoke" else multiples:
                facts: dict[str, Any] = {"data": data, "batch": batch, "multiple": multiple}
                name = f"batch{batch}-rate{multiple:g}"
                found.append(make(name=name, facts=facts, batch_size=batch, rate=unit * multiple))
        facts = {"data": data, "batch": None, "multiple": None}
        found.append(make(name=UNTRAINED, facts=facts, method=UNTRAINED))
    return found


def impact_is_small(results: Results) -> Verdict:
    """Whether the best accuracies over rates of all batches are within SMALL."""
    table = _table(results)
    if table is None:
        return Verdict.not_tested("not every batch and rate has a result")
    best = {batch: max(row, key=lambda r: row[r]) for batch, row in table.items()}
    top = [table[batch][rate] for batch, rate in best.items()]
    edge = [b for b, r in best.items() if r in (min(table[b]), max(table[b]))]
    listed = ", ".join(f"{b}: {table[b][r]:.3f} at {r:g}" for b, r in best.items())
    words = f"best accuracy by batch, at rates in units of the middle one: {listed}; "
    words += f"range {max(top) - min(top):.3f}, allowed {SMALL:g}; {_seeds(results)}"
    words += f"; the best rate is at the edge of the grid for {', '.join(map(str, edge))}" * bool(
        edge
    )
    if edge and max(top) - min(top) <= SMALL:
        return Verdict(None, f"undecided: {words}")
    return Verdict(max(top) - min(top) <= SMALL, words)


def tuning_matters(results: Results) -> Verdict:
    """Whether the range over batches is larger with any common rate than with tuned rates."""
    table = _table(results)
    if table is None:
        return Verdict.not_tested("not every batch and rate has a result")
    shared = sorted(set.intersection(*(set(row) for row in table.values())))
    tuned = _range([max(row.values()) for row in table.values()])
    same = {rate: _range([row[rate] for row in table.values()]) for rate in shared}
    listed = ", ".join(f"{size:.3f} at {rate:g}" for rate, size in same.items())
    words = f"range over batches {tuned:.3f} with the rate tuned, {listed}; {_seeds(results)}"
    if abs(min(same.values()) - tuned) < noise(results, table[min(table)][shared[0]]):
        return Verdict(None, f"undecided, within the noise of the test images: {words}")
    return Verdict(all(size > tuned for size in same.values()), words)


def root_carries_rates(results: Results) -> Verdict:
    """Compare the rules by the mean accuracy over batches, each at its best base rate."""
    table = _table(results)
    if table is None:
        return Verdict.not_tested("not every batch and rate has a result")
    middle = sorted(table)[1]
    found = {}
    for rule, power in RULES.items():
        means = [
            statistics.fmean(
                row[_nearest(row, base * (batch / middle) ** power)] for batch, row in table.items()
            )
            for base in BASES
        ]
        found[rule] = max(means)
    listed = ", ".join(f"{rule} {mean:.3f}" for rule, mean in found.items())
    words = f"mean accuracy over batches, each rule at its best base: {listed}; {_seeds(results)}"
    gap = found["square root"] - found["linear"]
    if abs(gap) < noise(results, found["linear"]) / math.sqrt(len(table)):
        return Verdict(None, f"undecided, within the noise of the test images: {words}")
    return Verdict(gap > 0, words)


def _table(results: Results) -> dict[int, dict[float, float]] | None:
    """{batch: {rate: mean accuracy}}; None if one is missing."""
    batches = [batch for batch in results.column("batch") if batch is not None]
    table = {}
    for batch in batches:
        row = results.where(batch=batch)
        table[batch] = {r: row.mean("image", multiple=r) for r in row.column("multiple")}
    every = [value for row in table.values() for value in row.values()]
    return None if not every or any(map(math.isnan, every)) else table


def _nearest(row: Mapping[float, float], multiple: float) -> float:
    return min(row, key=lambda rate: abs(math.log(rate / multiple)))


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _seeds(results: Results) -> str:
    n = len(results.column("seed"))
    return "one seed, no test" if n == 1 else f"means of {n} seeds"


def curves(results: Results) -> Chart:
    traces = []
    for batch in results.column("batch"):
        if batch is None:
            continue
        row = results.where(batch=batch)
        means = row.means("image", "multiple")
        traces += [line(f"batch {batch}", [*means], [*means.values()])] if means else []
    log = {"type": "log", "dtick": math.log10(2), "tickformat": ".3~g"}
    return chart(
        traces, "learning rate, 1 = the paper's at the middle batch", "linear accuracy", xaxis=log
    )


EXPERIMENT = Experiment(
    name="batch_size",
    title="Batch size: with a tuned rate its impact is small",
    source="S0, batch size, its table 2 (Chen, Luo and Li, NeurIPS 2021)",
    jobs=jobs,
    measures={k: v for k, v in READABLE.items() if k != "digit"},
    claims=(
        Claim(
            f"With the rate tuned for each batch, accuracy differs by at most {SMALL:g}.",
            "S0 [S0]: the impact is small; the bound is this project's",
            impact_is_small,
        ),
        Claim(
            "With one rate for all batches accuracy differs more than with tuned ones.",
            "S0 [S0]",
            tuning_matters,
        ),
        Claim(
            "A rate is carried to other batches better by the square root of the batch than "
            "linearly.",
            "SimCLR table B.1 [P], which S0 follows [C]: better at few epochs",
            root_carries_rates,
        ),
    ),
    figures=(
        Figure(
            "Accuracy by learning rate and batch",
            curves,
            "How high each curve reaches is what tuning leaves of the batch size. By the square "
            "root peaks move by one mark from batch to batch, linearly by two.",
        ),
    ),
    costs={
        "smoke": "30 s on 2 cores",
        "cpu": "9 min on 2 cores with --jobs 2",
        "paper": "19 runs of ResNet-50 on CIFAR-10, 400 epochs, on a GPU (not timed)",
    },
    notes=(
        "Batches, epochs and accuracies of S0's table were not found. Batches here are a factor of "
        "four apart around 128 (scale cpu) or 256, so that both rules stay on a grid of rates.",
        "LARS, tau 0.2, rate 0.2 root(batch), heads of two layers with 64 outputs: an author's "
        "reply [C].",
        "All batches see as many images; a large one takes fewer steps.",
    ),
)
