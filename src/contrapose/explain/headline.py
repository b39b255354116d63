"""The headline of a verdict: whether training made the encoder useful.

The encoder is useful where a linear classifier names more classes from h than from raw pixels, and
more than from h of the encoder before training, on the same images and beyond chance; where images
have several labels, where its mean average precision is higher. Nothing else is green.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from contrapose import paired
from contrapose.explain.findings import Finding, score_of

LINEAR, SEVERAL = "linear probe accuracy", "mean average precision"
CLASSIFIER = "classifier accuracy"  # of the classifier that the run itself has trained
PIXELS, UNTRAINED = "pixels", "untrained h"
WORDS = {PIXELS: "raw pixels", UNTRAINED: "the encoder before training"}


@dataclass(frozen=True)
class Comparison:
    """The accuracy (or mean average precision) of a linear probe on h, and on a control."""

    h: float
    control: float
    sign: int  # 1: h is better beyond chance; -1: worse; 0: the test images do not tell
    evidence: str


def compared(scores: Sequence[dict[str, Any]], features: str) -> Comparison | None:
    """h compared with a control: by a paired test if the result of each image is recorded, else by
    confidence intervals."""
    control = score_of(scores, LINEAR, features) or score_of(scores, SEVERAL, features)
    if control is None:
        return None
    same = [s for s in scores if s["features"] == "h" and s["metric"] == control["metric"]]
    h = same[0] if same else best_of_h(scores)
    return None if h is None else _compared(h, control)


def headline(scores: Sequence[dict[str, Any]]) -> Finding | None:
    """The headline from the scores of evaluation.json; None without labels."""
    h, guess = best_of_h(scores), guessing(scores)
    if h is None or guess is None:
        return None
    several = str(h["metric"]).startswith(SEVERAL)
    who = "A linear classifier reads the classes"
    what, base = "The classes are read", "the most common class"
    if several:
        who = "By mean average precision, linear classifiers read the labels"
        what, base = "By mean average precision, the labels are read", "chance"
    pixels, untrained = compared(scores, PIXELS), compared(scores, UNTRAINED)
    told = [f"h {h['value']:.1%} of {h['n']:,} test images, {base} {guess['value']:.1%}"]
    told += [
        f"{WORDS[name]} {c.evidence}"
        for name, c in ((PIXELS, pixels), (UNTRAINED, untrained))
        if c is not None
    ]
    evidence = "; ".join(told)
    if not above_guessing(scores):
        sentence = (
            f"Nothing about the {'labels' if several else 'classes'} is readable from the encoder "
            f"beyond guessing: {h['value']:.1%}"
            f"{' mean average precision' if several else ' by a linear classifier'}, {base} alone "
            f"{guess['value']:.1%}."
        )
        return Finding("not readable", "bad", sentence, evidence)
    for name, found in ((PIXELS, pixels), (UNTRAINED, untrained)):
        if found is not None and found.sign < 0:
            sentence = (
                f"{who} better from {WORDS[name]} ({found.control:.1%}) than from the trained "
                f"encoder ({found.h:.1%})."
            )
            state = "worse than raw pixels" if name == PIXELS else "worse than before training"
            return Finding(state, "bad", sentence, evidence)
    if untrained is not None and untrained.sign == 0:
        sentence = (
            f"{what} no better from the encoder ({untrained.h:.1%}) than before training "
            f"({untrained.control:.1%}): the difference is within chance."
        )
        return Finding("no better than before training", "bad", sentence, evidence)
    if pixels is not None and pixels.sign == 0:
        sentence = (
            f"{what} no better from the encoder ({pixels.h:.1%}) than from raw pixels "
            f"({pixels.control:.1%}): the difference is within chance."
        )
        return Finding("no better than raw pixels", "warn", sentence, evidence)
    if pixels is None or untrained is None:
        sentence = f"{who} from the encoder: {h['value']:.1%}."
        return Finding("readable", "info", sentence, evidence)
    sentence = (
        f"{who} better from the encoder ({pixels.h:.1%}) than from raw pixels "
        f"({pixels.control:.1%}) and than before training ({untrained.control:.1%})."
    )
    return Finding("better than pixels and than before training", "good", sentence, evidence)


def frozen(scores: Sequence[dict[str, Any]]) -> Finding:
    """The decisive sentence where the backbone was frozen: h is what it was, and only what was
    trained on top of it can be better or worse."""
    h, own = best_of_h(scores), score_of(scores, CLASSIFIER, "h")
    sentence = "The backbone was frozen: h is as it was before training."
    if h is None or own is None:
        evidence = "" if h is None else f"h {h['value']:.1%} of {h['n']:,} test images"
        return Finding("frozen backbone", "info", sentence, evidence)
    found = _compared(own, h)
    sentence += f" The classifier trained on it names {own['value']:.1%}"
    evidence = f"classifier {own['value']:.1%} of {own['n']:,} test images; probe {found.evidence}"
    if found.sign < 0:
        sentence += f", where h allows {h['value']:.1%}: train it longer or at another rate."
        return Finding("classifier not at its end", "warn", sentence, evidence)
    return Finding("frozen backbone", "info", f"{sentence}, all that h allows.", evidence)


def best_of_h(scores: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What is read from h: by a linear probe, else by neighbours, else of several labels."""
    return next(
        (s for m in (LINEAR, "kNN accuracy", SEVERAL) if (s := score_of(scores, m, "h"))), None
    )


def guessing(scores: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What guessing gives: the most common class, or scores that know nothing of several labels."""
    return score_of(scores, "most common class", "none") or score_of(scores, SEVERAL, "none")


def above_guessing(scores: Sequence[dict[str, Any]]) -> bool:
    """True if a linear probe on h is more accurate than naming the most common class.

    If classes are uneven, also true for a mean accuracy over the C classes above 1 / C.
    """
    h, guess = best_of_h(scores), guessing(scores)
    if h is None or guess is None:
        return False
    if _compared(h, guess).sign > 0:
        return True
    by_class = score_of(scores, "mean per-class", "h")
    even = score_of(scores, "mean per-class", "none")
    return by_class is not None and even is not None and by_class["low"] > even["value"]


def _compared(h: dict[str, Any], control: dict[str, Any]) -> Comparison:
    found = paired.of_scores(h, control)
    if found is not None:
        told = (
            f"{control['value']:.1%} ({found.only_a:,} images h alone, {found.only_b:,} the other "
            f"alone, p = {found.p:.2g})"
        )
        return Comparison(h["value"], control["value"], found.sign, told)
    if (p := paired.of_draws(h, control)) is not None:
        better = 1 if h["value"] > control["value"] else -1
        told = f"{control['value']:.1%} (p = {p:.2g}, on the same draws of the test images)"
        return Comparison(h["value"], control["value"], better if p < paired.CLEAR else 0, told)
    sign = int(h["low"] > control["high"]) - int(h["high"] < control["low"])
    told = f"{control['value']:.1%} ({control['low']:.1%} to {control['high']:.1%})"
    return Comparison(h["value"], control["value"], sign, told)
