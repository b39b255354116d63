"""S0: digits pasted over images, an easy feature, keep the images, a hard one, from being learned.

    contrapose reproduce digits_on_images --scale cpu --seeds 3

Expect at scale cpu an accuracy of the image of 0.31 at full contrast with any number of digits; at
0.3 of the contrast of 0.24 with one digit and of 0.13, as before training, with 16 and more, after
about 17 min a seed on one core.

The more unique digits there are, the better they distinguish images, and the less the encoder needs
the images. The effect depends on which of the two dominates, so the contrast of the images beside
the digits is varied too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from contrapose import augment
from contrapose.data.composed import layout
from contrapose.experiments.charts import Chart, Trace, chart, line
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results
from contrapose.experiments.suppression import digits_on_images_claims as claims
from contrapose.experiments.suppression.protocol import (
    READABLE,
    SIMCLR,
    SUPERVISED,
    UNTRAINED,
    job,
    probed_features,
    raw_pixels,
    suppression_chart,
)
from contrapose.experiments.trained import ImagesOrName, Measure, Trained, both_splits


@dataclass(frozen=True, kw_only=True)
class Setting:
    images: str
    glyphs: str
    size: int  # px
    glyph: int  # px
    placement: str  # of the copies: see `digits_on_images` of the composed sets
    contrasts: tuple[float, ...]
    unique: tuple[int, ...]  # digits in training
    tested: int | None = None  # test images in place of the scale's
    epochs: float = 1.0  # of the scale's
    views: Callable[..., Any] | None = None  # in place of SimCLR's


# Crops that keep a digit whole, no mirrored digits, the whole of SimCLR's distortion of colour.
GENTLE = partial(augment.simclr, strength=1.0, blur=False, area=(0.5, 1.0), flip=0.0)

SETTINGS = {
    "smoke": Setting(
        images="digits", glyphs="digits", size=16, glyph=8, placement="grid",
        contrasts=(1.0, 0.3), unique=(1, 64),
    ),
    "cpu": Setting(
        images="cifar10", glyphs="digits", size=16, glyph=8, placement="grid",
        contrasts=(1.0, 0.5, 0.3), unique=(1, 16, 1024), tested=10_000, epochs=0.7, views=GENTLE,
    ),
    "paper": Setting(
        images="imagenet", glyphs="mnist", size=224, glyph=28, placement="apart",
        contrasts=(1.0, 0.3), unique=(1, 4, 16, 64, 256, 1024),
    ),
}  # fmt: skip


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    at = SETTINGS[scale]
    found = []
    for seed in seeds:
        for contrast in at.contrasts:
            one = partial(_one, scale, seed, contrast)
            found += [one(k, SIMCLR) for k in at.unique]
            found += [one(k, SUPERVISED) for k in at.unique]
            found += [one(None, SUPERVISED, "digit"), one(None, UNTRAINED)]
    return found


def _one(
    scale: str,
    seed: int,
    contrast: float,
    unique: int | None,
    method: str,
    label: str = "image",
) -> Job:
    """A run on images with `unique` digits (None: all); probes have images with any digit."""
    at = SETTINGS[scale]
    words = f"glyph={at.glyph}, placement={at.placement}, contrast={contrast}"
    probed = f"digits-on-images({at.images}, {at.glyphs}, {words})"
    chosen = "" if unique is None else f", unique={unique}"
    facts = {
        "data": at.images, "contrast": contrast, "unique": unique,
        "label": label if method == SUPERVISED else None,
    }  # fmt: skip
    measures: tuple[Measure, ...] = ()
    if label == "image":
        shown = at.unique if unique is None else (unique,)
        measures = (partial(own_digits, images=probed, unique=shown),)
    if method == UNTRAINED:
        measures += tuple(partial(of, images=probed) for of in (raw_pixels, glyphs_tested))
    return job(
        scale=scale, seed=seed, facts=facts, method=method, size=at.size, probed=probed,
        name=f"{method}-contrast{contrast}-{'all' if unique is None else unique}-{label}",
        images=f"{probed[:-1]}{chosen}, label={label})",
        epochs=at.epochs, views=at.views,
        tested=at.tested, measures=measures,
    )  # fmt: skip


def own_digits(of: Trained, *, images: str, unique: Sequence[int]) -> dict[str, dict[str, float]]:
    """{"own": {unique digits: accuracy}} of a probe of h for the class of the image.

    It is fitted and tested on images with only these digits, as in training.
    """
    found = {}
    for count in unique:
        call = f"{images[:-1]}, unique={count})"
        both = both_splits(call, of.recipe.size, len(of.train), len(of.test))
        train, test = (replace(x, features={"image": x.features["image"]}) for x in both)
        h, h_test = of.embed(train).h, of.embed(test).h
        read = probed_features(h, train, h_test, test, of.device, of.seed)
        found[str(count)] = read["image"]
    return {"own": found}


def glyphs_tested(of: Trained, *, images: ImagesOrName) -> dict[str, int]:
    """The number of different glyphs in the test images."""
    _, test = both_splits(images, of.recipe.size, None, len(of.test))
    return {"glyphs": len(torch.unique(layout(test, torch.arange(len(test))).glyph))}


# ---- figures -------------------------------------------------------------------------------------


def accuracies(results: Results, *, feature: str) -> Chart:
    traces = []
    for contrast in results.column("contrast"):
        here = results.where(contrast=contrast)
        at = list(map(str, here.where(method=SIMCLR).column("unique")))
        group = {"legendgroup": f"{contrast:g}"}
        for method, dash in ((SIMCLR, "solid"), (SUPERVISED, "dot")):
            taught = here.where(method=method, label="image" if method == SUPERVISED else None)
            unique = [k for k in taught.column("unique") if k is not None]
            if means := taught.means(feature, "unique", unique):
                x, y = list(map(str, means)), [*means.values()]
                name = f"{method}, contrast {contrast:g}"
                traces.append(line(name, x, y, line={"dash": dash}, **group))
        for name, measure in ((UNTRAINED, feature), ("raw pixels", f"raw.{feature}")):
            value = here.mean(measure, method=UNTRAINED)
            if at and not math.isnan(value):
                y, dash = [value] * len(at), "dash" if name == UNTRAINED else "dashdot"
                name, look = f"{name}, contrast {contrast:g}", {"dash": dash, "width": 1}
                traces.append(line(name, at, y, line=look, mode="lines", **group))
    axis = {"type": "category"}
    return chart(traces, "unique digits in training", f"accuracy of the {feature}", xaxis=axis)


def suppressed(results: Results) -> Chart:
    traces: list[Trace] = []
    for contrast in results.column("contrast"):
        here = results.where(contrast=contrast)
        every = {"image": claims.scores(here, "image"), "own": claims.own_scores(here)}
        for (name, found), dash in zip(every.items(), ("solid", "dot"), strict=True):
            look = {"line": {"dash": dash}, "legendgroup": f"{contrast:g}"}
            drawn = suppression_chart({f"{name}, contrast {contrast:g}": found}, "", **look)
            traces += drawn["data"] if drawn else []
    return chart(traces, "unique digits in training", "suppression score of the image")


EXPERIMENT = Experiment(
    name="digits_on_images",
    title="Easy features suppress hard ones: digits on images",
    source="S0, DigitOnImageNet, figure 4 (Chen, Luo and Li, NeurIPS 2021)",
    jobs=jobs,
    measures=READABLE
    | {
        "own": "accuracy of the image by probes of images with the digits of training alone, by "
        "the number of these digits",
        "raw": "accuracy of the same probes on the pixels instead of h",
        "glyphs": "different glyphs that the test images show",
    },
    claims=(
        Claim(
            "With more unique digits, SimCLR's accuracy of the digit rises, at the lowest contrast "
            "of the images.",
            "S0 [S0]; the contrast is this project's",
            claims.digits_rise,
        ),
        Claim(
            "With many unique digits SimCLR reads less of the image than with one, at the lowest "
            "contrast.",
            "S0 [S0]; the contrast is this project's",
            claims.images_are_lost,
        ),
        Claim(
            "The more unique digits, the less: no step between goes the other way.",
            "S0 [S0]; the contrast is this project's",
            claims.images_fall_on,
        ),
        Claim(
            "With many unique digits SimCLR reads less of the image at full contrast too.",
            "S0 [S0], on ImageNet with ResNet-50",
            claims.images_are_lost_at_full_contrast,
        ),
        Claim(
            "At full contrast the number of unique digits does not matter to SimCLR: within "
            f"{claims.UNAFFECTED:g} of accuracy of the image.",
            "this project",
            claims.digits_do_not_matter_at_full_contrast,
        ),
        Claim(
            "The fainter the image beside the digit, the more of its accuracy is lost to it.",
            "this project",
            claims.fainter_images_lose_more,
        ),
        Claim(
            "Beside one digit SimCLR learns the image, at the lowest contrast too: more is read "
            "than before training.",
            "this project's control",
            claims.image_is_learned_beside_one_digit,
        ),
        Claim(
            f"The supervised control is unaffected: within {claims.UNAFFECTED:g} of accuracy.",
            "S0 [S0]; the bound is this project's",
            claims.labels_are_unaffected,
        ),
        Claim(
            "SimCLR loses more of the image to the digits than labels of the image do, at the "
            "lowest contrast.",
            "S0 [S0]; the contrast is this project's",
            claims.labels_lose_less,
        ),
        Claim(
            "More of the image is suppressed with the most unique digits than with the fewest, at "
            "the lowest contrast.",
            "this project's score of S0's claim",
            claims.image_is_suppressed,
        ),
        Claim(
            "So it is by probes of images with the digits of training alone, against labels with "
            "as many digits.",
            "this project's score of S0's claim",
            claims.image_is_suppressed_beside_its_own_digits,
        ),
        Claim(
            "By such probes SimCLR adds less to untrained weights with the most unique digits than "
            "with the fewest.",
            "this project's control",
            claims.gain_shrinks_beside_its_own_digits,
        ),
    ),
    figures=(
        Figure(
            "Accuracy of the image by the number of unique digits",
            partial(accuracies, feature="image"),
            "Solid: SimCLR; dotted: learned from the labels of the images; dashed: before "
            "training; dash-dot: raw pixels.",
        ),
        Figure(
            "Accuracy of the digit by the number of unique digits",
            partial(accuracies, feature="digit"),
            "The other feature of the same encoders.",
        ),
        Figure(
            "Suppression",
            suppressed,
            "0: as much is read as labels of the image teach; 1: nothing above guessing. Dotted: "
            "by probes of the digits of training alone. Bars: standard error by the test images.",
        ),
    ),
    costs={
        "smoke": "1 min on 2 cores",
        "cpu": "17 min a seed on one busy core",
        "paper": "18 runs of ResNet-50 on ImageNet, 400 epochs, on GPUs (not timed)",
    },
    notes=(
        "Accuracies and the numbers of unique digits were not found; the example notebook has 16 "
        "[C]. Element-wise maximum and, at scale paper, nine copies apart: the notebook's [C].",
        "Contrast: pixels of the images are multiplied by it before digits are pasted; digits keep "
        "their brightness. S0 has 1.",
        "What the digit's accuracy is measured on was not found. Here probes see images with any "
        "digit, from the training and the test split of the glyphs, whatever the encoder was "
        "trained with, so that numbers compare.",
        "With `own` digits, those of training, alone, images are easier to read the fewer digits "
        "there are, before training too; so `own` is set against labels and untrained weights at "
        "the same number of digits.",
        "The standard error of a difference, in brackets, has a part by the test images (as of two "
        "independent binomials; for the digit n is the number of test glyphs) and one by the "
        "seeds. A claim is decided beyond twice that.",
        "Views at scale cpu: crops of area 0.5 to 1, SimCLR's full distortion of colour and "
        "intensity, no flip, no blur; at scale paper SimCLR's. S0 does not say.",
        "Scale cpu: 5,000 images of CIFAR-10 at 16 px under two by two copies of a digit of 8 px "
        "(scikit-learn's, 1,438 to train with, 359 others to test), 14 epochs, a small network.",
    ),
)
