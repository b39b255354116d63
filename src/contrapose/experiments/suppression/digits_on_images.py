"""S0: digits pasted over images, an easy feature, keep the images, a hard one, from being learned.

    contrapose reproduce digits_on_images --scale cpu --seeds 3

The more unique digits there are, the more they tell images apart, and the less the encoder needs
the images for. Whether that shows depends on which of the two outweighs the other, so the contrast
of the images beside the digits is varied too. Expect, at scale cpu: at full contrast next to
nothing; at 0.3 of it half of the accuracy of the image is gone with 16 digits.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from contrapose import augment
from contrapose.data.composed import layout
from contrapose.experiments import evidence
from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.suppression.noise import decided, difference
from contrapose.experiments.suppression.protocol import (
    READABLE,
    SIMCLR,
    SUPERVISED,
    UNTRAINED,
    job,
    more_suppressed,
    raw_pixels,
    suppression_chart,
    suppression_of,
)
from contrapose.experiments.trained import Images, Trained, both_splits

UNAFFECTED = 0.03  # of accuracy


@dataclass(frozen=True, kw_only=True)
class Setting:
    images: str
    glyphs: str
    classes: int
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
        images="digits", glyphs="digits", classes=10, size=16, glyph=8, placement="grid",
        contrasts=(1.0, 0.3), unique=(1, 64),
    ),
    "cpu": Setting(
        images="cifar10", glyphs="digits", classes=10, size=16, glyph=8, placement="grid",
        contrasts=(1.0, 0.5, 0.3), unique=(1, 16, 1024), tested=10_000, epochs=0.7, views=GENTLE,
    ),
    "paper": Setting(
        images="imagenet", glyphs="mnist", classes=1000, size=224, glyph=28, placement="apart",
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
            found += [one(k, SUPERVISED) for k in (at.unique[0], at.unique[-1])]
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
    """A run on images with so many digits; None: all. Probes read images with any digit."""
    at = SETTINGS[scale]
    words = f"glyph={at.glyph}, placement={at.placement}, contrast={contrast}"
    probed = f"digits-on-images({at.images}, {at.glyphs}, {words})"
    chosen = "" if unique is None else f", unique={unique}"
    facts = {
        "data": at.images, "contrast": contrast, "unique": unique,
        "label": label if method == SUPERVISED else None,
    }  # fmt: skip
    return job(
        scale=scale, seed=seed, facts=facts, method=method, size=at.size, probed=probed,
        name=f"{method}-contrast{contrast}-{'all' if unique is None else unique}-{label}",
        images=f"{probed[:-1]}{chosen}, label={label})",
        classes=at.classes if label == "image" else 10, epochs=at.epochs, views=at.views,
        tested=at.tested,
        measures=tuple(partial(of, images=probed) for of in (raw_pixels, glyphs_tested))
        if method == UNTRAINED else (),
    )  # fmt: skip


def glyphs_tested(of: Trained, *, images: Images) -> dict[str, int]:
    """How many different glyphs the test images show."""
    _, test = both_splits(images, of.recipe.size, None, len(of.test))
    return {"glyphs": len(torch.unique(layout(test, torch.arange(len(test))).glyph))}


# ---- claims --------------------------------------------------------------------------------------


def digits_rise(results: Results) -> Verdict:
    return changes(at_contrast(results, min), "digit", sign=1)


def images_fall(results: Results) -> Verdict:
    return changes(at_contrast(results, min), "image", sign=-1)


def images_fall_at_full_contrast(results: Results) -> Verdict:
    return changes(at_contrast(results, max), "image", sign=-1)


def fainter_images_lose_more(results: Results) -> Verdict:
    """The accuracy of the image that is lost from the fewest to the most digits, at the lowest
    contrast less at the highest."""
    lost = {}
    for contrast in results.column("contrast"):
        found = _by_unique(results.where(contrast=contrast), "image")
        if len(found) < 2:
            return Verdict.not_tested(f"not every number of digits has a result at {contrast:g}")
        lost[contrast] = difference(found[min(found)], found[max(found)], _units(results, "image"))
    if len(lost) < 2:
        return Verdict.not_tested("fewer than two contrasts")
    words = ", ".join(f"{c:g}: {gap:+.3f} ({error:.3f})" for c, (gap, error) in lost.items())
    (faint, one), (full, other) = lost[min(lost)], lost[max(lost)]
    return decided(faint - full, math.hypot(one, other), f"lost by contrast {words}")


def image_is_learned_beside_one_digit(results: Results) -> Verdict:
    here = at_contrast(results, min)
    found = _by_unique(here, "image")
    before = here.by_seed("image", method=UNTRAINED) if found else {}
    if not before:
        return Verdict.not_tested("no result with one digit, or none before training")
    few = found[min(found)]
    words = f"image with {min(found)} digit {_spread(few)}, untrained {_spread(before)}"
    return decided(*difference(few, before, _units(here, "image")), words)


def labels_lose_less(results: Results) -> Verdict:
    """What SimCLR loses of the image from the fewest to the most digits, less what labels lose."""
    here = at_contrast(results, min)
    lost = {}
    for name, label in ((SIMCLR, None), (SUPERVISED, "image")):
        found = _by_unique(here, "image", method=name, label=label)
        if len(found) < 2:
            return Verdict.not_tested(f"{name}: not every number of digits has a result")
        lost[name] = difference(found[min(found)], found[max(found)], _units(here, "image"))
    words = ", ".join(f"{name}: {gap:+.3f} ({error:.3f})" for name, (gap, error) in lost.items())
    (ours, one), (taught, other) = lost.values()
    return decided(ours - taught, math.hypot(one, other), f"lost of the image by {words}")


def labels_are_unaffected(results: Results) -> Verdict:
    """Within UNAFFECTED between the fewest and the most digits, at every contrast."""

    def test(contrast: float) -> Verdict:
        here = results.where(contrast=contrast)
        found = _by_unique(here, "image", method=SUPERVISED, label="image")
        if len(found) < 2:
            return Verdict.not_tested(f"no control with two numbers of digits at {contrast:g}")
        gap, error = difference(found[max(found)], found[min(found)], _units(here, "image"))
        words = f"contrast {contrast:g}: {_listed(found)}; last less first {gap:+.3f} ({error:.3f})"
        return decided(UNAFFECTED - abs(gap), error, f"{words}, allowed {UNAFFECTED:g}")

    return evidence.all_of(*map(test, results.column("contrast")))


def image_is_suppressed(results: Results) -> Verdict:
    here = at_contrast(results, min)
    return more_suppressed(here, scores(here, "image"), "unique digits")


def at_contrast(results: Results, choose: Callable[..., float]) -> Results:
    """The runs at the lowest (min) or highest (max) contrast there is."""
    contrasts = results.column("contrast")
    return results.where(contrast=choose(contrasts)) if contrasts else results


def changes(results: Results, measure: str, *, sign: int) -> Verdict:
    """Does SimCLR's accuracy rise (sign 1) or fall (-1) from the fewest to the most unique digits?

    Holds where the whole difference is larger than twice its standard error and no step goes the
    other way by more than that; undecided where the difference is smaller; else it does not.
    """
    found = _by_unique(results, measure)
    if len(found) < 2:
        return Verdict.not_tested("not every number of digits has a result")
    n = _units(results, measure)
    if math.isnan(n):
        return Verdict.not_tested("no untrained encoder, with which test glyphs are counted")
    at = sorted(found)
    gap, error = difference(found[at[-1]], found[at[0]], n)
    words = f"{measure} by unique digits {_listed(found)}; last less first {gap:+.3f} ({error:.3f})"
    against = []
    for few, many in itertools.pairwise(at):
        step, its_error = difference(found[many], found[few], n)
        if sign * step < -2 * its_error:
            against.append(f"{few} to {many}")
    if against:
        return Verdict(False, f"{words}; the other way from {', '.join(against)}")
    return decided(sign * gap, error, words)


def _units(results: Results, measure: str) -> float:
    """Independent test cases of an accuracy: images; of the digit no more than there are glyphs.
    NaN where these are not counted yet."""
    n = min(float(row["n_test"]) for row in results.rows)
    if measure != "digit":
        return n
    counted = [float(row["glyphs"]) for row in results.rows if "glyphs" in row]
    return min(n, *counted) if counted else math.nan


def _by_unique(results: Results, measure: str, **facts: Any) -> dict[int, dict[int, float]]:
    """Unique digits -> seed -> accuracy, SimCLR's by default; {} where one has no result."""
    chosen = results.where(**({"method": SIMCLR} | facts))
    found = {k: chosen.by_seed(measure, unique=k) for k in chosen.column("unique")}
    return found if all(found.values()) else {}


def _listed(found: Mapping[int, Mapping[int, float]]) -> str:
    return ", ".join(f"{unique}: {_spread(by_seed)}" for unique, by_seed in found.items())


def _spread(by_seed: Mapping[int, float]) -> str:
    return evidence.spread([*by_seed.values()])


def scores(results: Results, feature: str) -> Mapping[Any, Any]:
    """Unique digits -> suppression, of the runs at one contrast; the control of the image learned
    it with the fewest unique digits."""
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
    found = {
        f"{name}, contrast {contrast:g}": scores(results.where(contrast=contrast), name)
        for contrast in results.column("contrast")
        for name in ("image", "digit")
    }
    return suppression_chart(found, "unique digits in training")


EXPERIMENT = Experiment(
    name="digits_on_images",
    title="Easy features suppress hard ones: digits on images",
    source="S0, DigitOnImageNet, figure 4 (Chen, Luo and Li, NeurIPS 2021)",
    jobs=jobs,
    measures=READABLE
    | {
        "raw": "accuracy of the same probes on the pixels instead of h",
        "glyphs": "different glyphs that the test images show",
    },
    claims=(
        Claim(
            "With more unique digits, SimCLR's accuracy of the digit rises, at the lowest contrast "
            "of the images.",
            "S0 [S0]; the contrast is this project's",
            digits_rise,
        ),
        Claim(
            "With more unique digits, SimCLR's accuracy of the image falls, at the lowest contrast "
            "of the images.",
            "S0 [S0]; the contrast is this project's",
            images_fall,
        ),
        Claim(
            "It falls at full contrast too.",
            "S0 [S0], on ImageNet with ResNet-50",
            images_fall_at_full_contrast,
        ),
        Claim(
            "The fainter the image beside the digit, the more of its accuracy is lost to it.",
            "this project",
            fainter_images_lose_more,
        ),
        Claim(
            "Beside one digit SimCLR learns the image, at the lowest contrast too: more is read "
            "than before training.",
            "this project's control",
            image_is_learned_beside_one_digit,
        ),
        Claim(
            f"The supervised control is unaffected: within {UNAFFECTED:g} of accuracy.",
            "S0 [S0]; the bound is this project's",
            labels_are_unaffected,
        ),
        Claim(
            "SimCLR loses more of the image to the digits than labels of the image do, at the "
            "lowest contrast.",
            "S0 [S0]; the contrast is this project's",
            labels_lose_less,
        ),
        Claim(
            "More of the image is suppressed with the most unique digits than with the fewest, at "
            "the lowest contrast.",
            "this project's score of S0's claim",
            image_is_suppressed,
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
            "0: as much is read as labels of that feature teach; 1: nothing above guessing. Bars: "
            "standard error by the test images.",
        ),
    ),
    costs={
        "smoke": "1 min on 2 cores",
        "cpu": "15 min on 2 cores with --seeds 3 --jobs 2",
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
        "The standard error of a difference, in brackets, has a part by the test images (as of two "
        "independent binomials; for the digit n is the number of test glyphs) and one by the "
        "seeds. A claim is decided beyond twice that.",
        "Views at scale cpu: crops of area 0.5 to 1, SimCLR's full distortion of colour and "
        "intensity, no flip, no blur; at scale paper SimCLR's. S0 does not say.",
        "Scale cpu: 5,000 images of CIFAR-10 at 16 px under two by two copies of a digit of 8 px "
        "(scikit-learn's, 1,438 to train with, 359 others to test), 14 epochs, a small network.",
    ),
)
