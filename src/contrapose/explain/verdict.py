"""From signals to plain words. Rules on numbers, written down here once; no torch, no pictures.

Every rule says what it saw. None claims more: without labels nothing here can know whether the
features fit your task, and a shortcut is only ever suspected.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

AT_CHANCE = 0.03  # share of the chance level that a loss must fall below it to count as learning
COLLAPSED_RANK = 2.0  # effective rank of z: two directions carry all there is
THIN_RANK = 0.05  # of the width: fewer directions than this are used
SATURATED = 0.99  # contrastive accuracy: the task is solved, its gradient nearly gone
SOLVED = 0.9  # contrastive accuracy from which losing to raw pixels is called a shortcut
ENDED = 0.1  # of the highest learning rate: below it a flat loss is the schedule's doing
EARLY = 0.1  # of the run: a task solved this early is suspiciously easy
IMPROVING = 0.01  # relative fall of the loss over the last fifth that counts as one
CERTAIN = 3.0  # standard errors a trend must exceed: wrong in 1 of 20 flat runs at most
FLAT = -0.05  # uniformity above which all rows are all but one point
ONE_SIDED = 0.5  # mean similarity of two rows above which all share a direction
ENOUGH_ROWS = 5  # below this a trend is not spoken of


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict, how good the news is, and the numbers it rests on."""

    state: str
    level: Literal["good", "warn", "bad", "info"]
    sentence: str
    evidence: str


def verdict(
    rows: Sequence[dict[str, Any]],
    scores: Sequence[dict[str, Any]] = (),
    *,
    status: dict[str, Any] | None = None,
    width: int | None = None,
) -> list[Finding]:
    """Findings from metrics.jsonl rows and evaluation.json scores, most important first."""
    findings = [finding for finding in (_status(status or {}),) if finding]
    rows = [row for row in rows if row.get("loss") is not None]
    if not rows:
        nothing = "Nothing was measured, so nothing can be said about training."
        return [*findings, Finding("no measurements", "info", nothing, "metrics.jsonl has no rows")]
    last = late(rows)
    findings.append(_task(rows, last))
    findings.append(_geometry(last, width))
    shortcut = _shortcut(rows, last, scores)
    findings += [shortcut] if shortcut else []
    findings.append(_readable(last, scores))
    gain = _gain(last, scores)
    findings += [gain] if gain else []
    parts = _parts(rows)
    findings += [parts] if parts else []
    findings.append(_trend(rows, last))
    return findings


def verdict_of_embeddings(signals: dict[str, Any]) -> list[Finding]:
    """Findings about a matrix of embeddings, from `diagnose_embeddings`' signals."""
    rank, width, rows = signals["effective_rank"], signals["width"], signals["rows"]
    most = min(width, rows)
    uniformity = signals["uniformity"]
    evidence = f"effective rank {rank:.1f} of at most {most}; uniformity {uniformity:.2f}"
    if rank < min(COLLAPSED_RANK, 1 + THIN_RANK * (most - 1)) or uniformity > FLAT:
        sentence = "The embeddings are collapsed: nearly all rows point the same way."
        findings = [Finding("collapsed", "bad", sentence, evidence)]
    elif rank < THIN_RANK * most:
        sentence = f"The embeddings use few of their {width} dimensions."
        findings = [Finding("few dimensions", "warn", sentence, evidence)]
    else:
        findings = [Finding("spread", "good", "The embeddings use many dimensions.", evidence)]
    mean = signals["mean_similarity"]
    if mean > ONE_SIDED:
        sentence = "All rows share one direction; subtracting the mean would spread them."
        found = Finding("one-sided", "warn", sentence, f"mean similarity of two rows {mean:.2f}")
        findings.append(found)
    lost = {n: signals[n] for n in ("duplicate_rows", "zero_rows") if signals[n]}
    if lost:
        sentence = "Some rows repeat others or are zero; neighbours among them mean nothing."
        said = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in lost.items())
        findings.append(Finding("duplicates", "warn", sentence, f"{said} of {rows:,}"))
    if "knn_leave_one_out" not in signals:
        sentence = "Without labels it cannot be said whether these features fit your task."
        return [*findings, Finding("no labels", "info", sentence, "give --labels to know more")]
    right, base = signals["knn_leave_one_out"], signals["most_common_class"]
    evidence = f"kNN, leave one out, {right:.1%}; always the most common class {base:.1%}"
    if right > base + 2 * math.sqrt(base * (1 - base) / rows):
        sentence = f"Neighbours share a class in {right:.1%} of cases, more than guessing would."
        return [*findings, Finding("readable", "good", sentence, evidence)]
    sentence = "Neighbours say no more about the classes than guessing would."
    return [*findings, Finding("not readable", "bad", sentence, evidence)]


def as_json(findings: Sequence[Finding]) -> list[dict[str, str]]:
    return [asdict(finding) for finding in findings]


def late(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The median of every signal over the last tenth of the rows."""
    tail = rows[-max(1, len(rows) // 10) :]
    names = {name for row in tail for name, value in row.items() if value is not None}
    knn = [row["knn"] for row in rows if row.get("knn") is not None]
    found = {n: median(r[n] for r in tail if r.get(n) is not None) for n in names}
    return found | ({"knn": knn[-1]} if knn else {})


def _parts(rows: Sequence[dict[str, Any]]) -> Finding | None:
    """What the finder of `batches=conditional` found; None for a run without one."""
    sizes = [(row.get("epoch"), row["part_size"]) for row in rows if row.get("part_size")]
    if not sizes:
        return None
    (_, batch), (_, last) = sizes[0], sizes[-1]
    if last >= batch:
        sentence = "Nothing was found suppressed, so all images of a batch repel each other."
        return Finding("plain batches", "info", sentence, f"batches of {batch:,.0f}")
    since = next((epoch for epoch, size in sizes if size < batch), None)
    sentence = (
        "Something easy was found to crowd out the rest: since then only images that the early "
        "encoder confused repel each other."
    )
    evidence = f"groups of {last:,.0f}, by epoch {_number(since)}; batches of {batch:,.0f} before"
    return Finding("conditional batches", "info", sentence, evidence)


def _status(status: dict[str, Any]) -> Finding | None:
    state, reason = status.get("state"), status.get("reason")
    at = f"step {status.get('step')} of {status.get('steps')}"
    if state == "failed":
        return Finding("failed", "bad", f"Training stopped: {reason}", at)
    if state == "killed":
        sentence = f"Training was killed ({reason}); what follows describes it until then."
        return Finding("killed", "bad", sentence, at)
    if state in ("interrupted", "running"):
        sentence = "Training has not finished; what follows describes it so far."
        return Finding("unfinished", "warn", sentence, at)
    return None


def _task(rows: Sequence[dict[str, Any]], last: dict[str, float]) -> Finding:
    loss, chance, accuracy = (last.get(n) for n in ("loss", "chance", "contrastive_accuracy"))
    evidence = f"loss {loss:.3f}, one embedding for all would give {_number(chance)}"
    if accuracy is not None:
        evidence += f"; contrastive accuracy {accuracy:.0%}"
    if chance is None or loss is None:
        return Finding("unknown task", "info", "The loss has no chance level to compare.", evidence)
    if loss > chance - AT_CHANCE * abs(chance):
        sentence = (
            "Nothing is learned yet: the loss is at the level of guessing. "
            "Train longer, or try another learning rate."
        )
        return Finding("at chance", "bad", sentence, evidence)
    if accuracy is not None and accuracy >= SATURATED:
        sentence = (
            "The contrastive task is solved: nearly every view is nearest to a positive. "
            "Larger batches or stronger views would make it teach more."
        )
        return Finding("saturated", "warn", sentence, evidence)
    sentence = "The encoder is learning: it tells views of one image from other images."
    return Finding("learning", "good", sentence, evidence)


def _geometry(last: dict[str, float], width: int | None) -> Finding:
    rank_z, rank_h, uniformity = (
        last.get(n) for n in ("effective_rank_z", "effective_rank_h", "uniformity")
    )
    evidence = (
        f"effective rank of z {_number(rank_z)}, of h {_number(rank_h)}; "
        f"uniformity {_number(uniformity)}"
    )
    if rank_z is not None and rank_z < COLLAPSED_RANK:
        sentence = (
            "The embedding is collapsing: nearly all images get the same direction. "
            "Lower the learning rate or the temperature."
        )
        return Finding("collapsing", "bad", sentence, evidence)
    if rank_h is not None and width and rank_h < THIN_RANK * width:
        sentence = (
            f"The representation uses few of its {width} dimensions; "
            "longer training or a smaller encoder may help."
        )
        return Finding("few dimensions", "warn", sentence, evidence)
    if rank_z is None:
        return Finding("no geometry", "info", "The geometry was not measured.", evidence)
    return Finding(
        "spread", "good", "The embeddings are spread out; no collapse is seen.", evidence
    )


def _shortcut(
    rows: Sequence[dict[str, Any]], last: dict[str, float], scores: Sequence[dict[str, Any]]
) -> Finding | None:
    """Solved early while what people call the content is not readable: suspected, not proven."""
    end = rows[-1].get("step") or 0
    early = next((r for r in rows if (r.get("contrastive_accuracy") or 0) > 0.95), None)
    learned, pixels = _score(scores, "linear probe", "h"), _score(scores, "linear probe", "pixels")
    solved = (last.get("contrastive_accuracy") or 0) >= SOLVED
    if solved and learned and pixels and learned["high"] < pixels["low"]:
        sentence = (
            "A shortcut is suspected: a linear classifier reads the classes better from raw pixels "
            "than from the encoder, so something easier may identify the images."
        )
        evidence = f"linear probe on h {learned['value']:.1%}, on pixels {pixels['value']:.1%}"
        return Finding("shortcut suspected", "warn", sentence, evidence)
    rank = last.get("effective_rank_h")
    if early and end and len(rows) >= ENOUGH_ROWS and early["step"] <= EARLY * end:
        if rank is not None and rank < 10:
            sentence = (
                "A shortcut is suspected: the task was solved almost at once, with few dimensions. "
                "Look at the views for what they share: colours, borders, added channels."
            )
            evidence = f"contrastive accuracy above 95% at step {early['step']} of {end}"
            return Finding("shortcut suspected", "warn", sentence, evidence)
    return None


def _readable(last: dict[str, float], scores: Sequence[dict[str, Any]]) -> Finding:
    best = _score(scores, "linear probe", "h") or _score(scores, "kNN", "h")
    if best:
        name = best["metric"]
        share = f"{best['value']:.1%} of {best['n']:,} images"
        sentence = f"A {name.replace(' accuracy', '')} on h names the class of {share}."
        evidence = (
            f"{best['low']:.1%} to {best['high']:.1%} at {best['confidence']:.0%} confidence, "
            f"n = {best['n']}, {best['split']}"
        )
        base = _score(scores, "most common class", "none")
        if base is None:
            return Finding("readable", "info", sentence, evidence)
        evidence += f"; always the most common class {base['value']:.1%}"
        if best["low"] > base["high"]:
            return Finding("readable", "good", sentence, evidence)
        sentence = "Nothing about the classes is readable from h beyond guessing."
        return Finding("not readable", "bad", sentence, evidence)
    if last.get("knn") is not None:
        sentence = f"Neighbours among training images share a class in {last['knn']:.1%} of cases."
        return Finding("readable", "info", sentence, "online kNN, k = 20, training images")
    sentence = "Without labels it cannot be said whether these features fit your task."
    return Finding("no labels", "info", sentence, "no evaluation with labels")


def _gain(last: dict[str, float], scores: Sequence[dict[str, Any]]) -> Finding | None:
    """What the encoder adds to the pixels it was given, for a linear classifier."""
    learned, pixels = _score(scores, "linear probe", "h"), _score(scores, "linear probe", "pixels")
    if learned is None or pixels is None:
        return None
    if learned["high"] < pixels["low"] and (last.get("contrastive_accuracy") or 0) >= SOLVED:
        return None  # said already, as a shortcut
    evidence = (
        f"h {learned['low']:.1%} to {learned['high']:.1%}, "
        f"pixels {pixels['low']:.1%} to {pixels['high']:.1%}"
    )
    if learned["low"] > pixels["high"]:
        sentence = f"That is clearly more than the {pixels['value']:.1%} read from raw pixels."
        return Finding("beats pixels", "good", sentence, evidence)
    if learned["high"] < pixels["low"]:
        sentence = f"That is less than the {pixels['value']:.1%} read from raw pixels."
        return Finding("behind pixels", "bad", sentence, evidence)
    sentence = (
        f"Raw pixels give {pixels['value']:.1%}; with so few test images the intervals overlap."
    )
    return Finding("near pixels", "info", sentence, evidence)


def _trend(rows: Sequence[dict[str, Any]], last: dict[str, float]) -> Finding:
    losses = [row["loss"] for row in rows]
    if len(losses) < ENOUGH_ROWS * 2:
        sentence = "The run is too short to speak of a trend."
        return Finding("short", "info", sentence, f"{len(losses)} measurements")
    fall, noise = slope(losses[-max(ENOUGH_ROWS, len(losses) // 5) :])
    scale = max(abs(last["loss"]), 1e-9)
    evidence = (
        f"loss changes by {-fall / scale:+.1%} over the last fifth (noise {noise / scale:.1%})"
    )
    if fall > max(IMPROVING * scale, CERTAIN * noise):
        sentence = "It is still improving: more epochs would probably help."
        return Finding("still improving", "info", sentence, evidence)
    if -fall > max(IMPROVING * scale, CERTAIN * noise):
        sentence = "The loss is rising at the end; lower the learning rate."
        return Finding("rising", "warn", sentence, evidence)
    highest = max(row.get("lr") or 0.0 for row in rows)
    if highest and (rows[-1].get("lr") or 0.0) < ENDED * highest:
        sentence = (
            "The loss has levelled off as the learning rate ran out; "
            "only a longer run, with a schedule of its own, could tell whether more is to be had."
        )
        return Finding("levelled off", "info", sentence, evidence)
    sentence = "The loss has levelled off: more of the same epochs would change little."
    return Finding("levelled off", "info", sentence, evidence)


def slope(values: Sequence[float]) -> tuple[float, float]:
    """(fall from first to last of a fitted line, its standard error)."""
    n = len(values)
    x = [i - (n - 1) / 2 for i in range(n)]
    mean = sum(values) / n
    xx = sum(a * a for a in x)
    rate = sum(a * (v - mean) for a, v in zip(x, values, strict=True)) / xx
    residual = sum((v - mean - rate * a) ** 2 for a, v in zip(x, values, strict=True))
    error = math.sqrt(residual / max(1, n - 2) / xx)
    return -rate * (n - 1), error * (n - 1)


def _score(scores: Sequence[dict[str, Any]], metric: str, features: str) -> dict[str, Any] | None:
    for score in scores:
        if str(score["metric"]).startswith(metric) and score["features"] == features:
            return score
    return None


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"
