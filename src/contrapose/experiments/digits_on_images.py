"""S0: an easy feature, digits pasted over images, keeps a hard one, the image, from being learned.

    contrapose reproduce digits_on_images --scale cpu --jobs 2

The more unique digits there are, the more they tell images apart, and the less the encoder needs
the images for. Learning from the labels of the images does not suffer.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from contrapose.experiments import evidence
from contrapose.experiments.chen_luo_li import (
    READABLE,
    SIMCLR,
    SUPERVISED,
    UNTRAINED,
    falls_over,
    job,
    more_suppressed,
    rises_over,
    suppression_chart,
    suppression_of,
)
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.temperature_plots import Chart, chart, line

SETS = {  # scale -> images, glyphs, classes, size and width of a digit in px
    "smoke": ("digits", "digits", 10, 32, 8),
    "cpu": ("cifar10", "mnist", 10, 32, 8),
    "paper": ("imagenet", "mnist", 1000, 224, 28),
}
UNIQUE = (1, 4, 16, 64, 256, 1024)
WITH_LABELS = (1, 64, 1024)  # of the control that learns the classes of the images
SLACK = 0.01  # of accuracy: steps against the trend that are forgiven
UNAFFECTED = 0.03  # of accuracy


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    images, glyphs, classes, size, glyph = SETS[scale]
    smoke = scale == "smoke"
    found = []

    def composed(**options: Any) -> str:
        given = {"glyph": glyph} | {k: v for k, v in options.items() if v is not None}
        words = ", ".join(f"{name}={value}" for name, value in given.items())
        return f"digits-on-images({images}, {glyphs}, {words})"

    for seed in seeds:
        make = partial(job, scale=scale, seed=seed, size=size, probed=composed())

        def one(unique: int | None, method: str, label: str = "image", make: Any = make) -> Job:
            source = composed(unique=unique, label=label)
            facts = {
                "data": images,
                "unique": unique,
                "label": label if method == SUPERVISED else None,
            }
            name = f"{method}-{'all' if unique is None else unique}-{label}"
            count = classes if label == "image" else 10
            made: Job = make(images=source, method=method, classes=count, name=name, facts=facts)
            return made

        found += [one(k, SIMCLR) for k in ((1, 64) if smoke else UNIQUE)]
        found += [one(k, SUPERVISED) for k in ((1, 64) if smoke else WITH_LABELS)]
        found += [one(None, SUPERVISED, "digit"), one(None, UNTRAINED)]
    return found


def digits_rise(results: Results) -> Verdict:
    return rises_over(results.where(method=SIMCLR), "digit", "unique", slack=SLACK)


def images_fall(results: Results) -> Verdict:
    return falls_over(results.where(method=SIMCLR), "image", "unique", slack=SLACK)


def labels_do_not_suffer(results: Results) -> Verdict:
    return evidence.flat(
        results, "image", "unique", within=UNAFFECTED, method=SUPERVISED, label="image"
    )


def image_is_suppressed(results: Results) -> Verdict:
    return more_suppressed(results, scores(results, "image"), "unique digits")


def scores(results: Results, feature: str) -> Mapping[Any, Any]:
    """Unique digits -> suppression; the control of the image learned it with few unique digits."""
    taught = results.where(method=SUPERVISED, label=feature)
    control: dict[str, Any] = {"method": SUPERVISED, "label": feature}
    control |= {"unique": min(taught.column("unique"), default=None, key=lambda k: k or 0)}
    return {
        unique: suppression_of(
            results, feature, here={"unique": unique, "method": SIMCLR}, supervised=control,
            untrained={"method": UNTRAINED},
        )
        for unique in results.where(method=SIMCLR).column("unique")
    }  # fmt: skip


def accuracies(results: Results) -> Chart:
    traces = []
    for method, feature, dash in (
        (SIMCLR, "digit", "solid"), (SIMCLR, "image", "solid"), (SUPERVISED, "image", "dot"),
    ):  # fmt: skip
        at = results.where(method=method, label=None if method == SIMCLR else "image")
        if means := at.means(feature, "unique", UNIQUE):
            name, x = f"{feature}, {method}", list(map(str, means))
            traces.append(
                line(name, x, [*means.values()], line={"dash": dash}, legendgroup=feature)
            )
    return chart(traces, "unique digits in training", "linear accuracy")


def suppressed(results: Results) -> Chart:
    found = {name: scores(results, name) for name in ("digit", "image")}
    return suppression_chart(found, "unique digits in training")


EXPERIMENT = Experiment(
    name="digits_on_images",
    title="Easy features suppress hard ones: digits on images",
    source="S0, DigitOnImageNet, figure 4 (Chen, Luo and Li, NeurIPS 2021)",
    jobs=jobs,
    measures=READABLE,
    claims=(
        Claim(
            "With more unique digits, SimCLR's accuracy of the digit rises.", "S0 [S0]", digits_rise
        ),
        Claim(
            "With more unique digits, SimCLR's accuracy of the image falls.", "S0 [S0]", images_fall
        ),
        Claim(
            f"The supervised control is unaffected: within {UNAFFECTED:g} of accuracy.",
            "S0 [S0]; the bound is this project's",
            labels_do_not_suffer,
        ),
        Claim(
            "More of the image is suppressed with the most unique digits than with the fewest.",
            "this project's score of S0's claim",
            image_is_suppressed,
        ),
    ),
    figures=(
        Figure(
            "Accuracy of digit and image by the number of unique digits",
            accuracies,
            "Two features of one encoder. Dotted: learned from the labels of the images.",
        ),
        Figure(
            "Suppression",
            suppressed,
            "0: as much is read as labels of that feature teach; 1: nothing above guessing. Bars: "
            "standard error by the test images.",
        ),
    ),
    costs={
        "smoke": "1 min on 2 cores",
        "cpu": "8 min on 2 cores with --jobs 2",
        "paper": "11 runs of ResNet-50 on ImageNet, 400 epochs, on GPUs (not timed)",
    },
    notes=(
        "Accuracies and the numbers of unique digits were not found; the example notebook has 16 "
        "[C]. Nine copies of one digit, element-wise maximum, places: the notebook's [C].",
        "What the digit's accuracy is measured on was not found. Here probes see images with any "
        "digit, from the training and the test split of MNIST, whatever the encoder was trained "
        "with, so that numbers compare.",
        "Views are SimCLR's, with flips and colour; S0 does not say.",
        "Scale cpu: 5,000 images of CIFAR-10 at 32 px, digits of 8 px, a small network.",
    ),
)
