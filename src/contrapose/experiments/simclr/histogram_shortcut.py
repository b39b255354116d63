"""S3 figure 6: crops of one image share their histogram, unless their colours are distorted.

    contrapose reproduce histogram_shortcut --scale cpu --seeds 3

Expect at scale cpu 0.63 of the images of CIFAR-10 found without distortion and 0.04 with strength
1, 0.63 and 0.04 on tiny-imagenet-50, by chance 0.001; 30 s a seed on 2 cores. Nothing is trained: a
histogram of intensities alone looks for the image that a crop is of.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from contrapose import augment
from contrapose.augment import views as make_views
from contrapose.data import Request, evenly
from contrapose.evaluation.histograms import identify_source, intensity_histogram
from contrapose.experiments.charts import Chart, line
from contrapose.experiments.evidence import all_of
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.noise import above, decided, standard_error

SETS = {
    "smoke": {"digits": 8},
    "cpu": {"cifar10": 32, "tiny-imagenet-50": 64},
    "paper": {"imagenet": 224},
}
COUNT = {"smoke": 100, "cpu": 1000, "paper": 1000}  # images that views are of
STRENGTHS = (0.0, 0.125, 0.25, 0.5, 1.0)
CROPS = 4  # of each image, as in S3
DRAWN, BINS = 2, 64  # images in the figure; its bins


def identified(
    folder: Path, *, data: str, size: int, strength: float, count: int, seed: int
) -> dict[str, Any]:
    """How often the histogram of a crop finds its image, and the histograms of a few crops."""
    images = Request(data, size=size).open("train")
    views = partial(augment.simclr, strength=strength, blur=False)
    if not strength:
        views = partial(augment.crop_flip)
    found = identify_source(images, views, size=size, crops=CROPS, count=count, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    few = images.batch(evenly(len(images), DRAWN))
    shown = make_views(partial(views, size=size), few, generator, n=CROPS)
    bars = intensity_histogram(shown.flatten(0, 1), bins=BINS).view(CROPS, DRAWN, BINS)
    return {
        "accuracy": found.score.value, "low": found.score.low, "high": found.score.high,
        "chance": found.chance, "n_test": found.score.n,
        "histograms": bars.transpose(0, 1).flatten().tolist(),
    }  # fmt: skip


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    return [
        Job(
            name=f"{data}-strength{strength:g}-seed{seed}",
            call=partial(
                identified, data=data, size=size, strength=strength, count=COUNT[scale], seed=seed
            ),
            facts={"data": data, "strength": strength},
            seed=seed,
        )
        for seed in seeds
        for data, size in SETS[scale].items()
        for strength in STRENGTHS
    ]


def colour_identifies(results: Results) -> Verdict:
    """At least ten times chance without distortion."""
    return _against_ten_times_chance(results, 0.0, more=True)


def distortion_hides_it(results: Results) -> Verdict:
    return all_of(
        *(
            above(results, {"data": d, "strength": 0.0}, {"data": d, "strength": 1.0})
            for d in results.column("data")
        )
    )


def near_chance(results: Results) -> Verdict:
    """At most ten times chance at strength 1: what is left of brightness after distortion."""
    return _against_ten_times_chance(results, 1.0, more=False)


def _against_ten_times_chance(results: Results, strength: float, *, more: bool) -> Verdict:
    verdicts = []
    for data in results.column("data"):
        facts = {"data": data, "strength": strength}
        found, chance = (results.mean(m, **facts) for m in ("accuracy", "chance"))
        if math.isnan(found):
            return Verdict.not_tested(f"no result for {data}")
        gap = found - 10 * chance if more else 10 * chance - found
        error = standard_error(max(found, 10 * chance), results.mean("n_test", **facts))
        verdicts.append(decided(gap, error, f"{data}: {found:.3f} found, chance {chance:.4f}"))
    return all_of(*verdicts)


def found_by_strength(results: Results) -> Chart:
    traces = []
    for data in results.column("data"):
        means = results.where(data=data).means("accuracy", "strength")
        traces += [line(str(data), [*means], [*means.values()])] if means else []
    axes = {
        "xaxis": {"title": {"text": "strength of colour distortion"}},
        "yaxis": {"title": {"text": "images found"}, "type": "log"},
    }
    return {"data": traces, "layout": axes} if traces else None


def histograms(strength: float) -> Any:
    def draw(results: Results) -> Chart:
        data = results.column("data")[0]
        seed = results.column("seed")[0]
        flat = results.by_seed("histograms", data=data, strength=strength).get(seed)
        if not flat:
            return None
        bars = torch.tensor(flat).view(DRAWN, CROPS, BINS)
        place = [(k + 0.5) / BINS for k in range(BINS)]
        colours = ("var(--r0)", "var(--r1)")
        traces = [
            line(
                f"image {i + 1}, four crops", place, bars[i, c].tolist(), mode="lines",
                legendgroup=str(i), showlegend=c == 0, line={"color": colours[i], "width": 1.5},
            )
            for i in range(DRAWN) for c in range(CROPS)
        ]  # fmt: skip
        axes = {
            "xaxis": {"title": {"text": "intensity, all channels together"}, "range": [0, 1]},
            "yaxis": {"title": {"text": "share of values"}, "rangemode": "tozero"},
        }
        return {"data": traces, "layout": axes}

    return draw


EXPERIMENT = Experiment(
    name="histogram_shortcut",
    title="The histogram as a shortcut",
    source="S3 figure 6 (Chen et al., ICML 2020)",
    jobs=jobs,
    measures={
        "accuracy": "share of crops whose image is found by their histogram",
        "low": "lower end of its 95 % interval",
        "high": "upper end of its 95 % interval",
        "chance": "one of as many images",
        "n_test": "images",
        "histograms": f"of {CROPS} crops of each of {DRAWN} images, {BINS} bins",
    },
    claims=(
        Claim("Without distortion a crop's histogram finds its image ten times as often as chance.",
              "S3 section 3.1 [P]; the number is this project's", colour_identifies),
        Claim("With distortion of strength 1 it finds it less often.", "S3 section 3.1 [P]",
              distortion_hides_it),
        Claim("With distortion of strength 1 it finds it less than ten times as often as chance.",
              "S3 section 3.1 [P]; the number is this project's", near_chance),
    ),
    figures=(
        Figure("Crops without distortion", histograms(0.0),
               "S3 figure 6a: crops of one image have one shape."),
        Figure("Crops with distortion of strength 1", histograms(1.0),
               "S3 figure 6b: no more; the axes are the same."),
        Figure("Images found by the histogram of a crop", found_by_strength,
               "Falls with the strength; chance is one of all images."),
    ),
    costs={"smoke": "6 s", "cpu": "30 s on 2 cores", "paper": "a few minutes on ImageNet's files"},
    notes=(
        "S3 draws the figure and gives no number; the nearest histogram by the Hellinger distance "
        f"among {CROPS - 1} other crops of every image is this project's.",
    ),
)  # fmt: skip
