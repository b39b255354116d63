"""S0's random-bits notebook, all 15 cells: bits that the views share crowd the digit out.

    contrapose reproduce random_bits_notebook --scale cpu --seeds 3 --jobs 2

Expect at scale cpu all 15 accuracies within 0.02 of the printed ones, such as 0.33 at 10 bits and
temperature 0.05, after about 33 min a seed on 2 cores.

An image of MNIST gets b constant channels, the binary digits of a hash of the image. Augmentation
does not change them, so they distinguish up to 2^b images without the digit. A linear classifier on
h, trained jointly, shows how much of the digit can be read from the encoder.

All details are the notebook's: TensorFlow's crops, Keras's layers and Adam, the order of TensorFlow
Datasets with the same batches in every epoch, one forward pass for each view. `Details` lists those
that a port can easily miss; `contrapose reproduce random_bits_details` changes them one by one.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from contrapose.experiments.evidence import all_of, near, spread
from contrapose.experiments.form import (
    Claim,
    Experiment,
    Figure,
    Job,
    Published,
    Results,
    Verdict,
)
from contrapose.experiments.suppression.notebook import cell

BITS = (0, 5, 10, 15, 20)
TEMPERATURES = (0.05, 0.1, 0.2)


TABLE = {  # tau -> test accuracy at each of BITS, as the notebook printed it
    0.05: (0.8992, 0.7063, 0.3299, 0.1426, 0.0990),
    0.1: (0.8916, 0.6118, 0.1867, 0.0980, 0.1033),
    0.2: (0.8998, 0.3299, 0.1035, 0.1003, 0.0989),
}


CHANCE = 0.15  # accuracies below are near chance, 0.10 to 0.11
APART = 0.01  # of accuracy: printed differences that one run of each cell can tell


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    small: dict[str, Any] = (
        {"images": "digits", "epochs": 2, "batch_size": 200} if scale == "smoke" else {}
    )
    return [
        Job(
            name=f"bits{bits}-tau{tau}-seed{seed}",
            call=partial(cell, bits=bits, temperature=tau, seed=seed, **small),
            facts={"data": "digits" if scale == "smoke" else "mnist", "bits": bits, "tau": tau},
            seed=seed,
        )
        for seed in seeds
        for tau in ((0.1,) if scale == "smoke" else TEMPERATURES)
        for bits in ((0, 10) if scale == "smoke" else BITS)
    ]


def every_cell_within(results: Results) -> Verdict:
    """Holds if every cell's mean over seeds is within 0.10 of the printed value."""
    if len(away := _distances(results)) < len(PUBLISHED):
        return Verdict.not_tested(f"{len(away)} of {len(PUBLISHED)} cells have a result")
    found = [near(results, "accuracy", p.value, within=0.1, **p.at) for p in PUBLISHED]
    return all_of(*found)


def mean_distance(results: Results) -> Verdict:
    """Holds if the mean over cells of |mean over seeds - printed| is below 0.04."""
    away = _distances(results)
    if len(away) < len(PUBLISHED):
        return Verdict.not_tested(f"{len(away)} of {len(PUBLISHED)} cells have a result")
    (bits, tau), most = max(away.items(), key=lambda item: item[1])
    seeds = len(results.column("seed"))
    words = (
        f"{statistics.fmean(away.values()):.4f} over {len(away)} cells, {seeds} seeds; largest "
        f"{most:.3f} at {bits} bits, tau {tau}"
    )
    return Verdict(statistics.fmean(away.values()) < 0.04, words)


def same_order(results: Results) -> Verdict:
    """Holds if cells of a row or column whose printed values are APART are ordered as printed."""
    if len(_distances(results)) < len(PUBLISHED):
        return Verdict.not_tested("cells without a result")
    ours = {(p.at["bits"], p.at["tau"]): results.mean("accuracy", **p.at) for p in PUBLISHED}
    printed = {(p.at["bits"], p.at["tau"]): p.value for p in PUBLISHED}
    pairs = [
        (one, two) if printed[one] > printed[two] else (two, one)
        for one, two in itertools.combinations(ours, 2)
        if (one[0] == two[0]) != (one[1] == two[1]) and abs(printed[one] - printed[two]) > APART
    ]
    wrong = [f"{low} above {high}" for high, low in pairs if ours[high] <= ours[low]]
    words = (
        f"{len(pairs) - len(wrong)} of {len(pairs)} pairs of cells of one row or one column are "
        f"ordered as printed; pairs printed within {APART:g} of each other, one run each, aside"
    )
    return Verdict(not wrong, "; ".join([words, *wrong]))


def crowded_out(results: Results) -> Verdict:
    """Holds if the digit is at chance while the bits can be read."""
    where = {"data": "mnist", "bits": 15, "tau": 0.2}
    if not results.where(**where).rows:
        return Verdict.not_tested("no result at 15 bits, tau 0.2")
    digit, bits = (results.values(m, **where) for m in ("accuracy", "bits_readable"))
    words = f"at 15 bits, tau 0.2 the digit {spread(digit)}, each bit {spread(bits)} (chance 0.5)"
    return Verdict(statistics.fmean(digit) < CHANCE and statistics.fmean(bits) > 0.95, words)


def _distances(results: Results) -> dict[tuple[int, float], float]:
    away = {
        (p.at["bits"], p.at["tau"]): abs(results.mean("accuracy", **p.at) - p.value)
        for p in PUBLISHED
    }
    return {where: distance for where, distance in away.items() if math.isfinite(distance)}


def draw(results: Results) -> dict[str, Any]:
    traces = []
    for tau in results.column("tau"):
        name = f"\N{GREEK SMALL LETTER TAU} {tau}"
        at = [b for b in results.column("bits") if results.values("accuracy", bits=b, tau=tau)]
        found = [results.values("accuracy", bits=b, tau=tau) for b in at]
        ours = {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "legendgroup": name,
            "x": at,
            "y": [statistics.fmean(v) for v in found],
            "error_y": {"type": "data", "array": [_deviation(v) for v in found]},
        }
        printed = {
            "type": "scatter",
            "mode": "markers",
            "name": f"{name}, printed",
            "legendgroup": name,
            "marker": {"symbol": "x-thin-open", "size": 12},
            "x": list(BITS),
            "y": list(TABLE.get(tau, ())),
        }
        traces += [ours, printed]
    axes = {
        "xaxis": {"title": {"text": "bits shared by the views"}},
        "yaxis": {"title": {"text": "test accuracy of the digit"}, "range": [0, 1]},
    }
    return {"data": traces, "layout": axes}


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


MEASURES = {
    "accuracy": "test accuracy of the digit by the linear classifier that is trained along",
    "readable": "test accuracy of the digit by logistic regression on h, solved on 10,000 images",
    "bits_readable": "share of the bits of test images that least squares reads from h",
    "loss": "contrastive loss of the last batch, both directions added, nats",
}


PUBLISHED = tuple(
    Published(
        "accuracy",
        {"data": "mnist", "bits": b, "tau": tau},
        value,
        "S0's notebook, printed output (D8g) [C]",
    )
    for tau, row in TABLE.items()
    for b, value in zip(BITS, row, strict=True)
)


EXPERIMENT = Experiment(
    name="random_bits_notebook",
    title="Random bits on MNIST: the notebook's table",
    source='S0, "RandBits MNIST" notebook (Chen, Luo and Li, NeurIPS 2021)',
    jobs=jobs,
    measures=MEASURES,
    published=PUBLISHED,
    claims=(
        Claim(
            "Every cell of the table is within 0.10 of the printed one.",
            "this project's target",
            every_cell_within,
        ),
        Claim(
            "The mean distance from the printed table is below 0.04.",
            "this project's target",
            mean_distance,
        ),
        Claim(
            f"Cells of a row or column printed more than {APART:g} apart are ordered as printed.",
            "S0's notebook (D8g) [C]",
            same_order,
        ),
        Claim(
            "Where the digit is lost, the bits are what the encoder shows.", "S0 [S0]", crowded_out
        ),
    ),
    figures=(
        Figure(
            "Accuracy of the digit by the number of shared bits",
            draw,
            "Crosses: the notebook's printed output, one run each. Bars: standard deviation over "
            "seeds.",
        ),
    ),
    costs={"smoke": "10 s", "cpu": "33 min a seed on 2 cores with --jobs 2"},
    notes=(
        "The notebook's hash is FarmHash of the JPEG of the image; here one of the pixels. Both "
        "are as good as random numbers.",
        "The notebook counts steps from 1 and tests when the count reaches 600, after 599 updates.",
        "`readable` and `bits_readable` are this project's additions.",
    ),
)
