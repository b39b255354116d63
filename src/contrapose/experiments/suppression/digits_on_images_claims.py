"""The claims of `digits_on_images`: accuracies of image and digit by the number of unique digits.

A claim is decided only if a difference exceeds twice its standard error. Facts of the runs are the
`contrast` of the images, the `unique` digits in training, `method`, and the `label` of controls.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

from contrapose.evaluation.suppression import Suppression
from contrapose.experiments import evidence
from contrapose.experiments.form import Results, Verdict
from contrapose.experiments.noise import decided, difference
from contrapose.experiments.suppression.protocol import (
    SIMCLR,
    SUPERVISED,
    UNTRAINED,
    more_suppressed,
    suppression_of,
)

UNAFFECTED = 0.03  # of accuracy


def digits_rise(results: Results) -> Verdict:
    return changes(at_contrast(results, min), "digit", sign=1)


def images_are_lost(results: Results) -> Verdict:
    return ends_apart(at_contrast(results, min), "image", sign=-1)


def images_fall_on(results: Results) -> Verdict:
    return changes(at_contrast(results, min), "image", sign=-1)


def images_are_lost_at_full_contrast(results: Results) -> Verdict:
    return ends_apart(at_contrast(results, max), "image", sign=-1)


def digits_do_not_matter_at_full_contrast(results: Results) -> Verdict:
    return unaffected(at_contrast(results, max), method=SIMCLR, label=None)


def fainter_images_lose_more(results: Results) -> Verdict:
    """Compare the loss of accuracy of the image, from the fewest to the most digits, at the lowest
    contrast with that at the highest."""
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
    """Compare the loss of accuracy of SimCLR, from the fewest to the most digits, with labels'."""
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
    """Whether labels change by at most UNAFFECTED from the fewest to the most digits."""

    def test(contrast: float) -> Verdict:
        found = unaffected(results.where(contrast=contrast), method=SUPERVISED, label="image")
        return Verdict(found.holds, f"contrast {contrast:g}: {found.evidence}")

    return evidence.all_of(*map(test, results.column("contrast")))


def image_is_suppressed(results: Results) -> Verdict:
    here = at_contrast(results, min)
    return more_suppressed(here, scores(here, "image"), "unique digits")


def image_is_suppressed_beside_its_own_digits(results: Results) -> Verdict:
    here = at_contrast(results, min)
    return more_suppressed(here, own_scores(here), "unique digits")


def gain_shrinks_beside_its_own_digits(results: Results) -> Verdict:
    """Compare the gain of SimCLR over untrained weights with the fewest digits and with the most;
    probes have only the digits of training."""
    here = at_contrast(results, min)
    gains = {}
    for unique in here.where(method=SIMCLR).column("unique"):
        ours = here.by_seed(f"own.{unique}", method=SIMCLR, unique=unique)
        before = here.by_seed(f"own.{unique}", method=UNTRAINED)
        gains[unique] = difference(ours, before, _units(here, "image"))
    if len(gains) < 2 or any(math.isnan(gap) for gap, _ in gains.values()):
        return Verdict.not_tested("not every number of digits has a result and its control")
    words = ", ".join(
        f"{unique}: {gap:+.3f} ({error:.3f})" for unique, (gap, error) in gains.items()
    )
    (few, one), (many, other) = gains[min(gains)], gains[max(gains)]
    return decided(few - many, math.hypot(one, other), f"gain by unique digits {words}")


def at_contrast(results: Results, choose: Callable[..., float]) -> Results:
    """The runs at the lowest (min) or highest (max) contrast."""
    contrasts = results.column("contrast")
    return results.where(contrast=choose(contrasts)) if contrasts else results


def ends_apart(results: Results, measure: str, *, sign: int) -> Verdict:
    """Whether SimCLR's accuracy with the most unique digits is higher (sign 1) or lower (-1) than
    with the fewest, by over twice the standard error of the difference."""
    found, n = _by_unique(results, measure), _units(results, measure)
    if len(found) < 2 or math.isnan(n):
        return Verdict.not_tested("not every number of digits has a result")
    gap, error = difference(found[max(found)], found[min(found)], n)
    words = f"{measure} by unique digits {_listed(found)}; last less first {gap:+.3f} ({error:.3f})"
    return decided(sign * gap, error, words)


def changes(results: Results, measure: str, *, sign: int) -> Verdict:
    """As `ends_apart`, and no step between is opposite by over twice its error."""
    whole, found = ends_apart(results, measure, sign=sign), _by_unique(results, measure)
    against = []
    for few, many in itertools.pairwise(sorted(found)):
        step, error = difference(found[many], found[few], _units(results, measure))
        if sign * step < -2 * error:
            against.append(f"{few} to {many} ({step:+.3f}, error {error:.3f})")
    if not against:
        return whole
    return Verdict(False, f"{whole.evidence}; the other way from {', '.join(against)}")


def unaffected(results: Results, *, method: str, label: str | None) -> Verdict:
    """Whether the accuracy of the image with the fewest and the most unique digits differs by at
    most UNAFFECTED, beyond twice the standard error, at one contrast."""
    found = _by_unique(results, "image", method=method, label=label)
    if len(found) < 2:
        return Verdict.not_tested("not every number of digits has a result")
    gap, error = difference(found[max(found)], found[min(found)], _units(results, "image"))
    words = f"{_listed(found)}; last less first {gap:+.3f} ({error:.3f}), allowed {UNAFFECTED:g}"
    return decided(UNAFFECTED - abs(gap), error, words)


def _units(results: Results, measure: str) -> float:
    """Number of independent test cases: the images; for the digit at most the number of glyphs.
    NaN if these are not counted yet."""
    n = min((float(row["n_test"]) for row in results.rows), default=math.nan)
    if measure != "digit":
        return n
    counted = [float(row["glyphs"]) for row in results.rows if "glyphs" in row]
    return min(n, *counted) if counted else math.nan


def _by_unique(results: Results, measure: str, **facts: Any) -> dict[int, dict[int, float]]:
    """{unique digits: {seed: accuracy}}, by default of SimCLR; {} if one has no result."""
    chosen = results.where(**({"method": SIMCLR} | facts))
    found = {k: chosen.by_seed(measure, unique=k) for k in chosen.column("unique")}
    return found if all(found.values()) else {}


def _listed(found: Mapping[int, Mapping[int, float]]) -> str:
    return ", ".join(f"{unique}: {_spread(by_seed)}" for unique, by_seed in found.items())


def _spread(by_seed: Mapping[int, float]) -> str:
    return evidence.spread([*by_seed.values()])


def scores(results: Results, feature: str) -> Mapping[Any, Any]:
    """{unique digits: suppression} of the runs at one contrast; the control learned the image with
    the fewest unique digits."""
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


def own_scores(results: Results) -> dict[int, Suppression | None]:
    """{unique digits: suppression} at one contrast, by probes of images with only these digits; the
    control learned labels with as many digits."""
    found: dict[int, Suppression | None] = {}
    for unique in results.where(method=SIMCLR).column("unique"):
        here = {"unique": unique, "label": None, "method": SIMCLR}
        taught = here | {"label": "image", "method": SUPERVISED}
        own = f"own.{unique}"
        numbers = [results.mean(own, **facts) for facts in (here, taught, {"method": UNTRAINED})]
        floor, n = results.mean("chance.image", **here), results.mean("n_test", **here)
        found[unique] = None
        if not any(map(math.isnan, (*numbers, floor, n))):
            found[unique] = Suppression(
                accuracy=numbers[0], supervised=numbers[1], untrained=numbers[2], chance=floor,
                n=int(n),
            )  # fmt: skip
    return found
