"""S3 figure 5: no single augmentation teaches much; crop with colour does.

    contrapose reproduce augmentation_pairs --scale cpu --seeds 3 --jobs 2

Expect the rows and columns with the crop to stand out at scale cpu, after about 9 min a seed on 2
cores: 0.390 for the crop alone, 0.402 with colour, at most 0.386 without (untrained 0.287). That
colour adds much to the crop, as published, is not seen in images of 16 px.

One branch gets the transformations, the other the image as it is. The diagonal of the grid has one
transformation, the rest one after another: first that of the row, then that of the column.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from contrapose import augment
from contrapose.augment import TRANSFORMATIONS
from contrapose.experiments.charts import Chart
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.noise import above, decided, difference
from contrapose.experiments.simclr.protocol import MEASURES, UNTRAINED, job
from contrapose.experiments.trained import Trained

STUDIED = {"smoke": ("crop", "colour", "noise"), "cpu": TRANSFORMATIONS, "paper": TRANSFORMATIONS}
BEST = ("crop", "colour")


def contrasted(of: Trained) -> dict[str, float]:
    """How often the nearest of other rows of a batch is the other view, at the end of training."""
    rows = [] if of.run is None else of.run.metrics()
    found = [row["contrastive_accuracy"] for row in rows if "contrastive_accuracy" in row]
    return {"contrastive_accuracy": statistics.fmean(found[-3:])} if found else {}


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    found = []
    for seed in seeds:
        make = partial(job, scale=scale, seed=seed, measures=(contrasted,))
        for first in STUDIED[scale]:
            for second in STUDIED[scale]:
                by = (first,) if first == second else (first, second)
                views = partial(
                    augment.branches,
                    first=partial(augment.transformed, by=by),
                    second=partial(augment.transformed),
                )
                facts = {"first": first, "second": second}
                found.append(make(name="-".join(by), facts=facts, views=views))
        none: dict[str, Any] = {"first": None, "second": None}
        found.append(make(name=UNTRAINED, facts=none, method=UNTRAINED))
    return found


def _cell(results: Results, first: Any, second: Any) -> float:
    return results.mean("accuracy", first=first, second=second)


def _names(results: Results) -> list[str]:
    return [name for name in TRANSFORMATIONS if name in results.column("first")]


def _complete(results: Results) -> Verdict | None:
    names = _names(results)
    if any(_cell(results, a, b) != _cell(results, a, b) for a in names for b in names):
        return Verdict.not_tested("not every pair has a result")
    return None


def singles_do_not_suffice(results: Results) -> Verdict:
    """The best single transformation against the best pair, both by test accuracy."""
    if (missing := _complete(results)) is not None:
        return missing
    names = _names(results)
    single = max(names, key=lambda a: _cell(results, a, a))
    first, second = max(
        ((a, b) for a in names for b in names if a != b), key=lambda ab: _cell(results, *ab)
    )
    return above(results, {"first": first, "second": second}, {"first": single, "second": single})


def crop_with_colour_is_best(results: Results) -> Verdict:
    """Crop and colour, the better order of both, against the best of all other cells."""
    if (missing := _complete(results)) is not None:
        return missing
    names = _names(results)
    own = max((BEST, BEST[::-1]), key=lambda ab: _cell(results, *ab))
    others = [(a, b) for a in names for b in names if {a, b} != set(BEST)]
    rival = max(others, key=lambda ab: _cell(results, *ab))
    here, there = ({"first": a, "second": b} for a, b in (own, rival))
    return above(results, here, there)


def solved_yet_poor(results: Results) -> Verdict:
    """Whether a single transformation solves the contrastive task better than crop with colour,
    and teaches less: by the share of batch rows whose other view is found."""
    if (missing := _complete(results)) is not None:
        return missing
    singles = [a for a in _names(results) if a != "crop"]
    at = dict(zip(("first", "second"), BEST, strict=True))
    best = results.mean("contrastive_accuracy", **at)
    words, verdicts = [], []
    for name in singles:
        one = {"first": name, "second": name}
        solved = results.mean("contrastive_accuracy", **one)
        ours, theirs = (results.by_seed("accuracy", **facts) for facts in (at, one))
        gap, error = difference(ours, theirs, results.mean("n_test", **at))
        verdicts.append(decided(gap, error, ""))
        words.append(f"{name} {solved:.3f} found, accuracy {-gap:+.3f} ({error:.3f})")
        if solved <= best:
            verdicts.append(Verdict(False, ""))
    listed = f"crop with colour {best:.3f} found; " + "; ".join(words)
    if any(v.holds is None for v in verdicts):
        return Verdict(None, f"undecided, within the noise: {listed}")
    return Verdict(all(v.holds for v in verdicts), listed)


def heat_map(results: Results) -> Chart:
    """The grid in the order of the paper, with the mean of each row on its right."""
    names = _names(results)
    rows = []
    for a in names:
        row = [_cell(results, a, b) for b in names]
        known = [v for v in row if v == v]
        if not known:
            return None
        rows.append([*[v if v == v else None for v in row], statistics.fmean(known)])
    text = [["" if v is None else f"{100 * v:.1f}" for v in row] for row in rows]
    trace = {
        "type": "heatmap", "x": [*names, "mean"], "y": names, "z": rows, "text": text,
        "texttemplate": "%{text}", "hoverongaps": False,
    }  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "second, of one branch"}},
        "yaxis": {"title": {"text": "first"}, "autorange": "reversed"},
    }
    return {"data": [trace], "layout": layout}


EXPERIMENT = Experiment(
    name="augmentation_pairs",
    title="Pairs of augmentations",
    source="S3 figure 5 (Chen et al., ICML 2020)",
    jobs=jobs,
    measures=MEASURES
    | {"contrastive_accuracy": "share of rows of a batch whose other view is the nearest, at last"},
    claims=(
        Claim("The best pair teaches more than any single transformation.", "S3 section 3.1 [P]",
              singles_do_not_suffice),
        Claim("Crop with colour is the best pair.", "S3 figure 5 [P]", crop_with_colour_is_best),
        Claim(
            "A single transformation other than the crop makes the contrastive task easier than "
            "crop with colour, and the representation poorer.",
            "S3 section 3.1 [P]",
            solved_yet_poor,
        ),
    ),
    figures=(
        Figure(
            "Accuracy of a linear probe, %, by the transformations of one branch",
            heat_map,
            "Rows with the crop should stand out, and in them the colour.",
        ),
    ),
    costs={
        "smoke": "15 s on 2 cores",
        "cpu": "about 9 min a seed on 2 cores with --jobs 2",
        "paper": "50 runs of ResNet-50 on ImageNet, 100 epochs, on accelerators (not timed)",
    },
    notes=(
        "In the paper a random crop first brings photographs of all sizes to one, in both "
        "branches; images of these sets have one size, so the other branch is the image as it is.",
        "What the paper does not say: cutout hides a square of half the side, noise has a standard "
        "deviation of 0.1, Sobel filtering gives the length of the gradient of the gray image, "
        "blur has a kernel of 3 px at 16 px.",
        "The values of figure 5 are in a picture only, and were not found.",
    ),
)  # fmt: skip
