"""Reduced training sizes: what contrast and cross-entropy gain at few labels a class.

    contrapose reproduce few_labels --scale cpu

Expect at scale cpu, in about 4 min a seed on 2 cores, SupCon on all images to be below cross-
entropy on the labelled ones alone at 10 labels a class (0.267 and 0.303, 3 seeds), and above SimCLR
where all are labelled (0.473 and 0.432). By the idea of the method it is the other way at few
labels.

The caption of S2's figure 4 announces this panel, and the paper does not have it. By the idea of
the method, contrast gains most if labels are few and the other images are used without them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.evidence import all_of
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.supervised.protocol import (
    CROSS_ENTROPY,
    MEASURES,
    SCALES,
    SIMCLR,
    SUPCON,
    above,
    job,
)

CLASSES = 10
EACH = {"smoke": (2, 10), "cpu": (10, 50, 500), "paper": (10, 100, 1000)}  # labels a class
ALONE, ALL = "labelled images alone", "all images"


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    found = []
    images = SCALES[scale].images
    batch = int(SCALES[scale].changes["batch_size"])
    for seed in seeds:
        for each in EACH[scale]:
            n = CLASSES * each
            make = partial(job, scale=scale, seed=seed)
            times = 1.0 if images is None else max(1.0, images / n)  # as many steps
            alone: dict[str, Any] = {"subset": n, "epochs": times, "batch_size": min(batch, n)}
            for method in (CROSS_ENTROPY, SUPCON):
                facts = {"labels": each, "images": ALONE}
                found.append(
                    make(name=f"{method}-{each}-alone", facts=facts, method=method, **alone)
                )
            for method in (SIMCLR, SUPCON):
                facts = {"labels": each, "images": ALL}
                found.append(
                    make(name=f"{method}-{each}-all", facts=facts, method=method, labels=n)
                )
    return found


def _at(method: str, each: int, images: str) -> dict[str, Any]:
    return {"method": method, "labels": each, "images": images}


def unlabelled_help(results: Results) -> Verdict:
    if not results.rows:
        return Verdict.not_tested("no result yet")
    each = results.column("labels")[0]
    return above(results, _at(SUPCON, each, ALL), _at(CROSS_ENTROPY, each, ALONE))


def labels_add_to_contrast(results: Results) -> Verdict:
    if not results.rows:
        return Verdict.not_tested("no result yet")
    each = results.column("labels")[-1]
    return above(results, _at(SUPCON, each, ALL), _at(SIMCLR, each, ALL))


def contrast_of_labels_alone(results: Results) -> Verdict:
    if not results.rows:
        return Verdict.not_tested("no result yet")
    return all_of(
        *(
            above(results, _at(SUPCON, each, ALONE), _at(CROSS_ENTROPY, each, ALONE))
            for each in results.column("labels")
        )
    )


def curves(results: Results) -> Chart:
    traces = []
    for method, images in (
        (CROSS_ENTROPY, ALONE), (SUPCON, ALONE), (SIMCLR, ALL), (SUPCON, ALL),
    ):  # fmt: skip
        means = results.where(method=method, images=images).means("accuracy", "labels")
        traces += [line(f"{method}, {images}", [*means], [*means.values()])] if means else []
    return chart(traces, "labels a class", "accuracy", xaxis={"type": "log"})


EXPERIMENT = Experiment(
    name="few_labels",
    title="Few labels a class",
    source="S2 figure 4, the panel that its caption names and the paper lacks",
    jobs=jobs,
    measures=MEASURES,
    claims=(
        Claim(
            "With the fewest labels, SupCon on all images is above cross-entropy on the labelled.",
            "asked by readers of S2; this project's",
            unlabelled_help,
        ),
        Claim(
            "With the most labels, SupCon on all images is above SimCLR on all.",
            "S2 table 2 [P]",
            labels_add_to_contrast,
        ),
        Claim(
            "On labelled images alone, SupCon is above cross-entropy at every number of labels.",
            "S2 table 2 [P] at the full number; elsewhere this project's",
            contrast_of_labels_alone,
        ),
    ),
    figures=(Figure("Accuracy by labels a class", curves, "Where the lines meet."),),
    costs={"smoke": "40 s on 2 cores", "cpu": "about 4 min a seed on 2 cores"},
    notes=(
        "Methods on labelled images alone take as many steps as those on all; a probe knows the "
        "labels that training knew.",
        "An image without a label is a positive of its own views only.",
    ),
)
