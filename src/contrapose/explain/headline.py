"""The decisive sentence of a verdict: whether what was learned is of more use than what was there.

The encoder is useful where a linear classifier names more classes from h than from raw pixels, and
more than from h of the encoder before training, on the same images and beyond chance. Nothing else
is green.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from contrapose import paired
from contrapose.explain.findings import Finding, score_of

LINEAR = "linear probe accuracy"
PIXELS, UNTRAINED = "pixels", "untrained h"
WORDS = {PIXELS: "raw pixels", UNTRAINED: "the encoder before training"}


@dataclass(frozen=True)
class Comparison:
    """The accuracy of a linear probe on h beside that on a control's features."""

    h: float
    control: float
    sign: int  # 1: h is better beyond chance; -1: worse; 0: the test images do not tell
    evidence: str


def compared(scores: Sequence[dict[str, Any]], features: str) -> Comparison | None:
    """h against a control, image by image where that was recorded, else by their intervals."""
    control = score_of(scores, LINEAR, features)
    if control is None:
        return None
    same = [s for s in scores if s["features"] == "h" and s["metric"] == control["metric"]]
    h = same[0] if same else score_of(scores, LINEAR, "h")
    return None if h is None else _compared(h, control)


def headline(scores: Sequence[dict[str, Any]]) -> Finding | None:
    """The decisive sentence from scores of evaluation.json; None without labels."""
    h = score_of(scores, LINEAR, "h") or score_of(scores, "kNN accuracy", "h")
    guess = score_of(scores, "most common class", "none")
    if h is None or guess is None:
        return None
    pixels, untrained = compared(scores, PIXELS), compared(scores, UNTRAINED)
    told = [
        f"h {h['value']:.1%} of {h['n']:,} test images, the most common class {guess['value']:.1%}"
    ]
    told += [
        f"{WORDS[name]} {c.evidence}"
        for name, c in ((PIXELS, pixels), (UNTRAINED, untrained))
        if c is not None
    ]
    evidence = "; ".join(told)
    if not above_guessing(scores):
        sentence = (
            f"Nothing about the classes is readable from the encoder beyond guessing: a linear "
            f"classifier names {h['value']:.1%}, the most common class alone {guess['value']:.1%}."
        )
        return Finding("not readable", "bad", sentence, evidence)
    for name, found in ((PIXELS, pixels), (UNTRAINED, untrained)):
        if found is not None and found.sign < 0:
            sentence = (
                f"A linear classifier reads the classes better from {WORDS[name]} "
                f"({found.control:.1%}) than from the trained encoder ({found.h:.1%})."
            )
            state = "worse than raw pixels" if name == PIXELS else "worse than before training"
            return Finding(state, "bad", sentence, evidence)
    if untrained is not None and untrained.sign == 0:
        sentence = (
            f"The classes are read no better from the encoder ({untrained.h:.1%}) than before "
            f"training ({untrained.control:.1%}): the difference is within chance."
        )
        return Finding("no better than before training", "bad", sentence, evidence)
    if pixels is not None and pixels.sign == 0:
        sentence = (
            f"The classes are read no better from the encoder ({pixels.h:.1%}) than from raw "
            f"pixels ({pixels.control:.1%}): the difference is within chance."
        )
        return Finding("no better than raw pixels", "warn", sentence, evidence)
    if pixels is None or untrained is None:
        sentence = f"A linear classifier names the class of {h['value']:.1%} of the test images."
        return Finding("readable", "info", sentence, evidence)
    sentence = (
        f"A linear classifier reads the classes better from the encoder ({pixels.h:.1%}) than from "
        f"raw pixels ({pixels.control:.1%}) and than before training ({untrained.control:.1%})."
    )
    return Finding("better than pixels and than before training", "good", sentence, evidence)


def above_guessing(scores: Sequence[dict[str, Any]]) -> bool:
    """Whether more is read from h than the most common class alone would give.

    Where classes are uneven, a mean accuracy over classes above 1 / C says so too.
    """
    h = score_of(scores, LINEAR, "h") or score_of(scores, "kNN accuracy", "h")
    guess = score_of(scores, "most common class", "none")
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
    sign = int(h["low"] > control["high"]) - int(h["high"] < control["low"])
    told = f"{control['value']:.1%} ({control['low']:.1%} to {control['high']:.1%})"
    return Comparison(h["value"], control["value"], sign, told)
