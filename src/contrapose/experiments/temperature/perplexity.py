"""Beyond S1: an effective number of negatives in place of a temperature.

    contrapose reproduce perplexity --scale cpu --jobs 2

Expect at scale cpu that on other batches and data temperature 0.1 is within 0.001 of the best
accuracy in the mean, and perplexity 10 within 0.009, after about 20 min on 2 cores.

Does a perplexity that suits one batch size and data set suit others better than a temperature does?
And is a temperature for every anchor better than the best single one? Nothing here was published;
a negative answer, measured, is an answer.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from contrapose.experiments import evidence
from contrapose.experiments.charts import Chart, chart, finished, line, on_the_plane
from contrapose.experiments.evidence import spread
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.temperature import protocol as wang_liu
from contrapose.experiments.temperature.protocol import CONTRASTIVE, IN_BATCH, SCALES
from contrapose.experiments.trained import trained
from contrapose.losses import nt_xent
from contrapose.losses.temperature import Per
from contrapose.training import optim
from contrapose.training.recipe import Recipe

TEMPERATURE, PERPLEXITY, PER_ANCHOR = "temperature", "perplexity", "per-anchor"
FAMILIES = (TEMPERATURE, PERPLEXITY, PER_ANCHOR)
TEMPERATURES: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
PERPLEXITIES: tuple[float, ...] = (4.0, 10.0, 25.0, 50.0)
CELLS = {  # the first is where a value is chosen
    "smoke": (("digits", 64), ("digits", 32)),
    "cpu": (("cifar10", 128), ("cifar10", 32), ("cifar10", 256), ("tiny-imagenet-50", 128)),
    "paper": (
        ("cifar10", 256), ("cifar10", 64), ("cifar10", 1024), ("cifar100", 256), ("svhn", 256),
    ),
}  # fmt: skip
EPOCHS = {"smoke": 4.0, "cpu": 20.0, "paper": 200.0}
WARMUP = 0.05  # of the run, since large batches scale the rate
BETTER = 0.005  # of accuracy or similarity: what counts as a difference between families


def recipe(
    size: int, channels: int, *, data: str, batch: int, family: str, value: float, scale: str
) -> Recipe:
    """The in-batch recipe of S1's experiments, its rate proportional to the batch."""
    found = wang_liu.recipe(
        size, channels, data=data, protocol=IN_BATCH, loss=CONTRASTIVE, tau=0.2, scale=scale
    )
    lr = found.lr * 256 / found.batch_size  # so that the batch of that recipe keeps its rate
    per: Per = "anchor" if family == PER_ANCHOR else "batch"
    loss = (
        partial(nt_xent, temperature=value)
        if family == TEMPERATURE
        else partial(nt_xent, perplexity=value, per=per)
    )
    return dataclasses.replace(
        found, loss=loss, batch_size=batch, lr=lr, scaling=optim.linear_scaling,
        epochs=EPOCHS[scale], warmup=WARMUP * EPOCHS[scale],
    )  # fmt: skip


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    reference, at = CELLS[scale][0], SCALES[scale]
    found = []
    for data, batch in CELLS[scale]:
        for family in FAMILIES:
            values = TEMPERATURES if family == TEMPERATURE else PERPLEXITIES
            values = values[1:4:2] if scale == "smoke" else values
            if family == PER_ANCHOR and (data, batch) != reference:
                continue
            for value in values:
                if family != TEMPERATURE and value >= 2 * batch - 2:
                    continue  # more than there are negatives
                for seed in seeds:
                    call = partial(
                        trained, images=data, subset=at.images, seed=seed, epochs=EPOCHS[scale],
                        recipe=partial(
                            recipe, data=data, batch=batch, family=family, value=value, scale=scale
                        ),
                        measures=wang_liu.standard(scale, data),
                    )  # fmt: skip
                    facts = {"data": data, "batch": batch, "family": family, "value": value}
                    name = f"{data}-batch{batch}-{family}{value:g}-seed{seed}"
                    found.append(Job(name=name, call=call, facts=facts, seed=seed))
    return found


# ---- claims --------------------------------------------------------------------------------------


def _cells(results: Results) -> list[tuple[str, int]]:
    """(data set, batch) of every cell; first the one in which values are chosen."""
    every = [*results.rows, *results.missing]
    reference = [(r["data"], r["batch"]) for r in every if r["family"] == PER_ANCHOR]
    cells = dict.fromkeys([*reference, *((r["data"], r["batch"]) for r in every)])
    return list(cells)


def _accuracies(results: Results, cell: tuple[str, int], family: str) -> dict[float, float]:
    """{value: mean accuracy} of a family in one cell."""
    here = results.where(data=cell[0], batch=cell[1], family=family)
    means = {v: here.mean("accuracy", value=v) for v in here.column("value")} if here.rows else {}
    return {v: a for v, a in means.items() if not math.isnan(a)}


def _single(results: Results, cell: tuple[str, int]) -> list[dict[float, float]]:
    """The accuracies of single temperatures in one cell, given or by a perplexity."""
    return [_accuracies(results, cell, family) for family in (TEMPERATURE, PERPLEXITY)]


def shortfalls(results: Results, family: str) -> tuple[float, dict[str, float]] | None:
    """(the value chosen in the first cell, its shortfalls to the best of any family in the others).

    If the value exceeds the number of negatives, the largest of the grid is used for it.
    """
    reference, *others = _cells(results)
    chosen = _accuracies(results, reference, family)
    if not chosen:
        return None
    value = max(chosen, key=lambda v: chosen[v])
    lacking = {}
    for cell in others:
        own = _accuracies(results, cell, family)
        best = [
            a for f in (TEMPERATURE, PERPLEXITY) for a in _accuracies(results, cell, f).values()
        ]
        if not own:
            return None
        used = value if value in own else max(v for v in own if v <= value)
        lacking[f"{cell[0]}, batch {cell[1]}"] = max(best) - own[used]
    return value, lacking


def transfers(results: Results) -> Verdict:
    """Whether the mean shortfall of the perplexity is below the temperature's, by BETTER."""
    done = len(results.missing) == 0
    found = {f: shortfalls(results, f) for f in (TEMPERATURE, PERPLEXITY)} if done else {}
    if not all(found.get(f) for f in (TEMPERATURE, PERPLEXITY)):
        return Verdict.not_tested(f"{len(results.missing)} runs are missing")
    words, means = [], {}
    for family, pair in found.items():
        assert pair is not None
        value, lacking = pair
        means[family] = float(np.mean(list(lacking.values())))
        cells = ", ".join(f"{cell}: {d:.3f}" for cell, d in lacking.items())
        words.append(f"{family} {value:g}: mean shortfall {means[family]:.3f} ({cells})")
    gain = means[TEMPERATURE] - means[PERPLEXITY]
    seeds = len(results.column("seed"))
    said = f"{'; '.join(words)}; {seeds} seed{'s' * (seeds > 1)}"
    if abs(gain) < BETTER:
        return Verdict(None, f"undecided: the two differ by less than {BETTER:g}; {said}")
    return Verdict(gain > 0, said)


def spreads_less(results: Results) -> Verdict:
    """Compare the worst loss over cells by one value for all, the best such of each family."""
    if results.missing:
        return Verdict.not_tested(f"{len(results.missing)} runs are missing")
    worst = {}
    for family in (TEMPERATURE, PERPLEXITY):
        tables = [_accuracies(results, cell, family) for cell in _cells(results)]
        tops = [
            max(a for found in _single(results, c) for a in found.values()) for c in _cells(results)
        ]
        common = set.intersection(*(set(t) for t in tables))
        lost = {v: max(top - t[v] for t, top in zip(tables, tops, strict=True)) for v in common}
        best = min(lost, key=lambda v: lost[v])
        worst[family] = (best, lost[best])
    words = "; ".join(f"{f} {v:g}: loses {x:.3f} at worst" for f, (v, x) in worst.items())
    gain = worst[TEMPERATURE][1] - worst[PERPLEXITY][1]
    if abs(gain) < BETTER:
        return Verdict(None, f"undecided: the two differ by less than {BETTER:g}; {words}")
    return Verdict(gain > 0, words)


def anchors_beat_the_plane(results: Results) -> Verdict:
    """Whether single temperatures have less tolerance at the uniformity of a per-anchor run.

    Their curve over temperatures and perplexities is interpolated; runs beyond its ends are left
    out.
    """
    data, batch = _cells(results)[0]
    here = results.where(data=data, batch=batch)
    if here.missing:
        return Verdict.not_tested(f"{len(here.missing)} runs are missing")
    curve = sorted(
        (row["minus_uniformity"], row["tolerance"])
        for row in here.rows
        if row["family"] != PER_ANCHOR
    )
    x, y = np.array(curve).T
    gains = [
        row["tolerance"] - float(np.interp(row["minus_uniformity"], x, y))
        for row in here.rows
        if row["family"] == PER_ANCHOR and x[0] <= row["minus_uniformity"] <= x[-1]
    ]
    if not gains:
        return Verdict(None, "undecided: no anchors' run lies between the single temperatures")
    words = f"tolerance above the curve of single temperatures at equal uniformity: {spread(gains)}"
    words = words.replace("seed", "run") + f", in {sum(g > 0 for g in gains)} of {len(gains)} runs"
    if abs(float(np.mean(gains))) < BETTER:
        return Verdict(None, f"undecided: less than {BETTER:g} apart; {words}")
    return Verdict(float(np.mean(gains)) > 0, words)


def anchors_are_more_accurate(results: Results) -> Verdict:
    """Compare the best per-anchor run with the best single temperature."""
    data, batch = _cells(results)[0]
    here = results.where(data=data, batch=batch)
    if here.missing:
        return Verdict.not_tested(f"{len(here.missing)} runs are missing")
    tops = {f: _accuracies(results, (data, batch), f) for f in FAMILIES}
    best = {f: max(t, key=lambda v, t=t: t[v]) for f, t in tops.items()}  # type: ignore[misc]
    single = max((TEMPERATURE, PERPLEXITY), key=lambda f: tops[f][best[f]])
    return evidence.higher(
        here, "accuracy", {"family": PER_ANCHOR, "value": best[PER_ANCHOR]},
        {"family": single, "value": best[single]}, by=BETTER,
    )  # fmt: skip


# ---- figures -------------------------------------------------------------------------------------


def by_cell(family: str) -> Callable[[Results], Chart]:
    def draw(results: Results) -> Chart:
        traces = []
        for cell in _cells(results):
            table = _accuracies(results, cell, family)
            tops = [max(found.values()) for found in _single(results, cell) if found]
            y = [a - max(tops) for a in table.values()]
            traces += [line(f"{cell[0]}, batch {cell[1]}", [*table], y)] if table else []
        return chart(traces, family, "accuracy less the cell's best", xaxis={"type": "log"})

    return draw


def on_plane(results: Results) -> Chart:
    data, batch = _cells(results)[0]
    found = {f: finished(results, "value", data=data, batch=batch, family=f) for f in FAMILIES}
    traces = [on_the_plane(family, rows, "value") for family, rows in found.items() if rows]
    return chart(traces, "-uniformity of z", "tolerance of z")


EXPERIMENT = Experiment(
    name="perplexity",
    title="An effective number of negatives in place of a temperature",
    source="beyond S1: this project's question, nothing published",
    jobs=jobs,
    measures=wang_liu.MEASURES,
    claims=(
        Claim(
            "A perplexity chosen on one batch size and data set lacks less on others than a "
            "temperature chosen there.",
            "this project",
            transfers,
        ),
        Claim(
            "One perplexity for all batch sizes and data sets loses less, at worst, than one "
            "temperature for all.",
            "this project",
            spreads_less,
        ),
        Claim(
            "A temperature for every anchor gives more tolerance at equal uniformity.",
            "this project",
            anchors_beat_the_plane,
        ),
        Claim(
            "A temperature for every anchor is more accurate than the best single one.",
            "this project",
            anchors_are_more_accurate,
        ),
    ),
    figures=(
        Figure(
            "Temperature: what it lacks in each cell",
            by_cell(TEMPERATURE),
            "Where the lines have their tops one above the other, a value transfers.",
        ),
        Figure(
            "Perplexity: what it lacks in each cell",
            by_cell(PERPLEXITY),
            "Where the lines have their tops one above the other, a value transfers.",
        ),
        Figure(
            "The plane of uniformity and tolerance",
            on_plane,
            "Up and to the right is better on both. Numbers are temperatures and perplexities.",
        ),
    ),
    costs={
        "smoke": "40 s on 2 cores",
        "cpu": "20 min on 2 cores",
        "paper": "200 epochs a run, on a GPU (not timed)",
    },
    notes=(
        "Negatives in the batch (NT-Xent, two views); the rate is proportional to the batch size.",
        "The first cell is where a value is chosen, by accuracy; what it lacks elsewhere is the "
        "distance to the best of any temperature or perplexity tried there. A choice by accuracy "
        "on test images: it compares the two scales, it is no way to choose one.",
    ),
)
