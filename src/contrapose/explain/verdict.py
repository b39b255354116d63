"""The verdict of a run: rules from signals to sentences. Numbers only, no torch and no pictures.

Every finding states the numbers it is based on and claims no more than they show. Without labels no
rule can know whether features suit a task, and a shortcut is only suspected.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any, Literal

from contrapose.explain.findings import Finding, number_text, score_of
from contrapose.explain.headline import PIXELS, SEVERAL, compared, frozen, headline

AT_CHANCE = 0.03  # share of the first loss by which it must fall to count as learning
TASK_GAIN = 0.01  # gain of held-out contrastive accuracy over the untrained encoder, at least
MANY_COPIES = 0.02  # share of images that repeat one, above which it matters
SEPARATE = 0.99  # groups for each test image, above which they need no word
SURE = 0.01  # p of that gain
ROW_GAIN = 0.1  # gain of contrastive accuracy in batches over the first row, where only it is known
DISAGREE = 0.5  # share of the uniformity of training batches that the saved encoder must reach
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
WAITING = 0.05  # share of training spent waiting for images from which it is said
ENOUGH_ROWS = 5  # below this a trend is not spoken of


def verdict(
    rows: Sequence[dict[str, Any]],
    scores: Sequence[dict[str, Any]] = (),
    *,
    status: dict[str, Any] | None = None,
    width: int | None = None,
    signals: dict[str, Any] | None = None,
) -> list[Finding]:
    """Findings from rows of metrics.jsonl and scores of evaluation.json, most important first.

    signals: of the saved encoder (`diagnosis.signals_of_run`), which take precedence over the rows
    of training. width: of h, if there are no signals.
    """
    signals = signals or {}
    rows = [row for row in rows if row.get("loss") is not None]
    last = late(rows) if rows else {}
    kept = "backbone" in signals.get("frozen", ())
    first = frozen(scores) if kept else headline(scores)
    findings: list[Finding | None] = [_status(status or {}), first, _across(signals)]
    if rows:
        findings.append(None if kept else _task(rows, last, signals))
    else:
        nothing = "Nothing was measured, so nothing can be said about training."
        findings.append(Finding("no measurements", "info", nothing, "metrics.jsonl has no rows"))
    if rows or signals:
        findings += [_geometry(last, signals, width), _modes(last, signals, status or {})]
        findings += [_shortcut(rows, last, scores), _readable(last, scores, signals)]
        findings += [_repeats(signals), _groups(signals)]
    if rows:
        findings += [_parts(rows), _trend(rows, last), _waiting(rows)]
    return [finding for finding in findings if finding is not None]


def verdict_of_embeddings(signals: dict[str, Any]) -> list[Finding]:
    """Findings about a matrix of embeddings, from the signals of `diagnose_embeddings`."""
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
        findings = [Finding("spread", "info", "The embeddings use many dimensions.", evidence)]
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
        sentence = (
            "Nothing was found suppressed, so all images of a batch repel each other; of easy "
            "features only codes such as random bits are found, no frame, cast or watermark."
        )
        return Finding("plain batches", "info", sentence, f"batches of {batch:,.0f}")
    since = next((epoch for epoch, size in sizes if size < batch), None)
    sentence = (
        "Something easy was found to crowd out the rest: since then only images that the early "
        "encoder confused repel each other."
    )
    evidence = (
        f"groups of {last:,.0f}, by epoch {number_text(since)}; batches of {batch:,.0f} before"
    )
    return Finding("conditional batches", "info", sentence, evidence)


def _waiting(rows: Sequence[dict[str, Any]]) -> Finding | None:
    """The share of training in which steps waited for their images, where it is worth a word."""
    waited = total = 0.0
    for before, row in pairwise(rows):
        if (share := row.get("waiting_share")) is not None and row.get("seconds") is not None:
            spent = max(0.0, row["seconds"] - (before.get("seconds") or 0.0))
            waited, total = waited + share * spent, total + spent
    if not total or waited / total <= WAITING:
        return None
    sentence = (
        f"{waited / total:.0%} of the time was spent waiting for images: reading and decoding them "
        "is slower than the step. Store them nearer to the size of training, on a faster disk, or "
        "decode on more cores."
    )
    evidence = f"{waited:,.0f} of {total:,.0f} s between measured steps"
    return Finding("waiting for images", "warn", sentence, evidence)


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


def _task(
    rows: Sequence[dict[str, Any]], last: dict[str, float], signals: dict[str, Any]
) -> Finding:
    """Whether views of different images are distinguished better than before training.

    The loss at chance decides little: at a low temperature an encoder that learns can have a higher
    loss than equal embeddings, and an untrained encoder a lower one.
    """
    loss, chance, accuracy = (
        last.get(n) for n in ("loss", "loss_at_chance", "contrastive_accuracy")
    )
    evidence = (
        f"loss {number_text(loss)}, {number_text(rows[0].get('loss'))} at first, one embedding for "
        f"all would give {number_text(chance)}"
    )
    if accuracy is not None:
        evidence += f"; contrastive accuracy {accuracy:.0%} in batches"
    now, before = (signals.get(n) for n in ("task_accuracy", "task_accuracy_untrained"))
    if now is not None and before is not None:
        n = signals.get("images", 0)
        evidence += f"; {now:.1%} of {n:,} held-out images, {before:.1%} before training"
        p = signals.get("task_gain_p", 0.0)
        evidence += f" (p = {p:.2g})"
        learned = now - before > TASK_GAIN and p < SURE
    elif len(rows) < 2:
        sentence = "One measurement alone does not say whether anything was learned."
        return Finding("unknown task", "info", sentence, evidence)
    else:
        first = rows[0]
        learned = (accuracy or 0) - (first.get("contrastive_accuracy") or 0) > ROW_GAIN or (
            first["loss"] - last["loss"] > AT_CHANCE * abs(first["loss"])
        )
    if accuracy is not None and accuracy >= SATURATED:
        sentence = (
            "The contrastive task is solved: nearly every view is nearest to a positive. "
            "Larger batches or stronger views would make it teach more."
        )
        return Finding("saturated", "warn", sentence, evidence)
    if before is not None and before >= SOLVED and not learned:
        sentence = (
            "Views of an image are found as often by the encoder before training: the task has "
            "little to teach. Stronger views would make it teach more."
        )
        return Finding("easy task", "warn", sentence, evidence)
    if not learned:
        sentence = (
            "Nothing is learned yet that shows: views of an image are told from other images no "
            "better than before training. Train longer, or try another learning rate."
        )
        return Finding("at chance", "bad", sentence, evidence)
    sentence = "The encoder tells views of one image from other images better than before training."
    return Finding("learning", "info", sentence, evidence)


def _geometry(last: dict[str, float], signals: dict[str, Any], width: int | None) -> Finding:
    """The spread of the saved encoder's embeddings, or of training batches without its signals."""
    of = signals if "uniformity" in signals else last
    rank_z, rank_h, uniformity = (
        of.get(n) for n in ("effective_rank_z", "effective_rank_h", "uniformity")
    )
    width = signals.get("width_h", width)
    cosine = signals.get("mean_cosine")
    evidence = (
        f"effective rank of z {number_text(rank_z)}, of h {number_text(rank_h)}; "
        f"uniformity {number_text(uniformity)}"
    )
    evidence += "" if cosine is None else f"; mean cosine of two images {cosine:.2f}"
    evidence += " of the saved encoder" if of is signals else " of training batches"
    if rank_z is not None and rank_z < COLLAPSED_RANK:
        sentence = (
            "The embedding is collapsing: nearly all images get the same direction. "
            "Lower the learning rate or the temperature."
        )
        return Finding("collapsing", "bad", sentence, evidence)
    if cosine is not None and cosine > ONE_SIDED:
        sentence = (
            "All embeddings share one direction: two images are similar whatever they show. "
            "Train longer; subtracting the mean of z would spread them."
        )
        return Finding("one-sided", "warn", sentence, evidence)
    if rank_h is not None and width and rank_h < THIN_RANK * width:
        sentence = (
            f"The representation uses few of its {width} dimensions; "
            "longer training or a smaller encoder may help."
        )
        return Finding("few dimensions", "warn", sentence, evidence)
    if rank_z is None:
        return Finding("no geometry", "info", "The geometry was not measured.", evidence)
    return Finding(
        "spread", "info", "The embeddings are spread out; no collapse is seen.", evidence
    )


def _modes(
    last: dict[str, float], signals: dict[str, Any], status: dict[str, Any]
) -> Finding | None:
    """A difference of training and evaluation mode, or the correction that removed it.

    In training, batch normalisation uses the statistics of the batch; the saved encoder uses
    running ones.
    """
    batch, saved = last.get("uniformity"), signals.get("uniformity_views")
    if batch is not None and saved is not None and saved > DISAGREE * batch and batch < FLAT:
        sentence = (
            "The saved encoder spreads images much less than training batches did: its statistics "
            "of batch normalisation lag behind its weights. Train longer."
        )
        evidence = f"uniformity of views {batch:.2f} in training batches, {saved:.2f} as saved"
        return Finding("modes disagree", "warn", sentence, evidence)
    made = status.get("estimated_statistics")
    if isinstance(made, dict):
        sentence = (
            "Training was too short for the running statistics of batch normalisation; those of "
            "the saved encoder were estimated over training images at the end."
        )
        evidence = (
            f"{made.get('updates')} updates; {made.get('views')} views of {made.get('images')} "
            "images; checkpoints are left as they were"
        )
        return Finding("statistics estimated", "info", sentence, evidence)
    return None


def _shortcut(
    rows: Sequence[dict[str, Any]], last: dict[str, float], scores: Sequence[dict[str, Any]]
) -> Finding | None:
    """A suspected shortcut: the task was solved early, but classes are not readable from h."""
    end = (rows[-1].get("step") or 0) if rows else 0
    early = next((r for r in rows if (r.get("contrastive_accuracy") or 0) > 0.95), None)
    solved = (last.get("contrastive_accuracy") or 0) >= SOLVED
    pixels = compared(scores, PIXELS)
    if solved and pixels is not None and pixels.sign < 0:
        sentence = (
            "A shortcut is suspected: the contrastive task is solved while raw pixels tell more of "
            "the classes, so something easier may identify the images."
        )
        evidence = f"linear probe on h {pixels.h:.1%}, on pixels {pixels.control:.1%}"
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


def _readable(
    last: dict[str, float], scores: Sequence[dict[str, Any]], signals: dict[str, Any]
) -> Finding:
    """The accuracy on classes, always with that of guessing."""
    best = score_of(scores, "linear probe", "h") or score_of(scores, "kNN", "h")
    if best:
        name = best["metric"].replace(" accuracy", "")
        sentence = f"A {name} on h names the class of {best['value']:.1%} of {best['n']:,} images"
        base = score_of(scores, "most common class", "none")
        sentence += "." if base is None else f"; always the most common class, {base['value']:.1%}."
        evidence = (
            f"{best['low']:.1%} to {best['high']:.1%} at {best['confidence']:.0%} confidence, "
            f"n = {best['n']}, {best['split']}"
        )
        by_class, even = (score_of(scores, "mean per-class", of) for of in ("h", "none"))
        if by_class is not None and even is not None:
            sentence += (
                f" Classes are uneven: the mean over classes is {by_class['value']:.1%}, by "
                f"guessing {even['value']:.1%}."
            )
        return Finding("accuracy", "info", sentence, evidence)
    if of_several := score_of(scores, SEVERAL, "h"):
        chance = score_of(scores, SEVERAL, "none")
        sentence = (
            f"Linear probes on h reach a mean average precision of {of_several['value']:.1%} over "
            f"{of_several['n']:,} images of several labels"
        )
        sentence += "." if chance is None else f"; without knowledge it is {chance['value']:.1%}."
        evidence = f"{of_several['low']:.1%} to {of_several['high']:.1%}, {of_several['split']}"
        return Finding("accuracy", "info", sentence, evidence)
    classes, common = signals.get("classes"), signals.get("most_common_class")
    if classes == 1:
        sentence = "All labelled images are of one class, so there is nothing to tell apart."
        return Finding("one class", "info", sentence, "no accuracy of one class means anything")
    if last.get("knn") is not None:
        sentence = f"Neighbours among training images share a class in {last['knn']:.1%} of cases"
        sentence += "." if common is None else f"; the most common class has {common:.1%} of them."
        return Finding("accuracy", "info", sentence, "online kNN, k = 20, training images")
    sentence = "Without labels it cannot be said whether these features fit your task."
    return Finding("no labels", "info", sentence, "no evaluation with labels")


def _across(signals: dict[str, Any]) -> Finding | None:
    """Test images that are also in train, on which accuracy shows memory and not learning."""
    across, n = signals.get("test_images_in_train", 0), signals.get("test_images", 0)
    if not across:
        return None
    sentence = (
        f"{across:,} of {n:,} test images are copies of training images: their classes can be "
        "named from memory, so the scores are too high. Remove them from one of the two."
    )
    exact = signals.get("test_images_in_train_exactly", 0)
    level: Literal["bad", "warn"] = "bad" if across > MANY_COPIES * n else "warn"
    return Finding("copies across the split", level, sentence, f"{exact:,} of them byte for byte")


def _repeats(signals: dict[str, Any]) -> Finding | None:
    exact, near = signals.get("exact_copies", 0), signals.get("near_copies", 0)
    if not exact + near:
        return None
    n, compared = signals["train_images"], signals["compared_images"]
    sentence = (
        f"{exact + near:,} images are copies of another one. They are kept on one side of what is "
        "held out; as different images they repel each other in training: better remove them."
    )
    evidence = f"{exact:,} byte for byte, {near:,} nearly"
    evidence += f"; {compared:,} of {n:,} training images were compared" if compared < n else ""
    level: Literal["warn", "info"] = "warn" if exact + near > MANY_COPIES * n else "info"
    return Finding("copies", level, sentence, evidence)


def _groups(signals: dict[str, Any]) -> Finding | None:
    groups, n = signals.get("test_groups"), signals.get("test_images")
    if groups is None or n is None or groups > SEPARATE * n:
        return None
    sentence = (
        f"The {n:,} test images are {groups:,} groups of what belongs together; intervals and p "
        "count groups, not images."
    )
    return Finding("groups", "info", sentence, "copies, and the groups that were told")


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
    if CERTAIN * noise > IMPROVING * scale:
        sentence = (
            f"The loss is too noisy to tell whether it still falls: a change below "
            f"{CERTAIN * noise / scale:.1%} would not show."
        )
        return Finding("too noisy to tell", "info", sentence, evidence)
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
