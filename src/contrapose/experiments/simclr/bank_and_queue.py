"""S3's question: a memory bank or a queue of keys in place of large batches.

    contrapose reproduce bank_and_queue --scale cpu --jobs 1

Expect at scale cpu, after about 6 min a seed on 2 cores, a batch of 32 to be above one of 512 at
equal epochs (0.413, 0.398), a bank to add nothing to it, and a queue to take from it (0.386).

S3 has no bank and takes batches of thousands instead. A queue has as many negatives at the memory
of a small batch; what it costs is time, and keys of an older encoder. Compared at the memory of a
small batch, and at equal time.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from contrapose import keys, losses
from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.evidence import all_of
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.noise import above, decided, difference
from contrapose.experiments.simclr.protocol import MEASURES, SCALES, SIMCLR, job
from contrapose.experiments.trained import Trained
from contrapose.training.cost import cost
from contrapose.training.objective import source_of_keys

SMALL, LARGE, BANK, QUEUE = "small batch", "large batch", "bank", "queue"
METHODS = (SMALL, LARGE, BANK, QUEUE)
BATCHES = {"smoke": (16, 64), "cpu": (32, 512), "paper": (256, 4096)}
HELD = {"smoke": 128, "cpu": 2048, "paper": 65536}  # keys in the queue
MOMENTUM = {"smoke": 0.9, "cpu": 0.99, "paper": 0.999}  # of the queue's encoder
LONGER = (1.0, 2.0)  # times the scale's epochs


def memory(of: Trained) -> dict[str, float]:
    """Memory of a training step, and of the keys with the encoder that makes them, in MB."""
    step = cost(of.recipe, of.train, of.encoder, of.device)
    source = source_of_keys(of.recipe, of.encoder, len(of.train))
    held = () if source is None else source.state_dict().values()
    found = sum(x.numel() * x.element_size() for x in held if hasattr(x, "numel"))
    return {"memory": step.memory / 1e6, "memory_of_keys": found / 1e6}


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    found = []
    at = SCALES[scale]
    small, large = BATCHES[scale]
    usual = int(at.changes["batch_size"])
    rate = float(at.changes.get("lr", 0.075 * math.sqrt(usual)))
    for seed in seeds:
        for method in METHODS:
            batch = large if method == LARGE else small
            changes: dict[str, Any] = {
                "batch_size": batch,
                "lr": rate * math.sqrt(batch / usual),
                "scaling": at.changes.get("scaling", _as_given),
            }
            if method in (BANK, QUEUE):
                changes["loss"] = partial(losses.info_nce, temperature=at.tau(SIMCLR))
            if method == BANK:
                changes |= {"keys": partial(keys.bank, momentum=0.5), "number_of_views": 2}
            if method == QUEUE:
                queue = partial(keys.queue, size=HELD[scale], momentum=MOMENTUM[scale])
                changes["keys"] = queue
            for times in LONGER:
                facts = {"method": method, "batch": batch, "epochs": at.epochs * times}
                found.append(
                    job(
                        scale=scale, seed=seed, name=f"{method}-x{times:g}", facts=facts,
                        changes=changes, epochs=times, measures=(memory,),
                    )
                )  # fmt: skip
    return found


def _as_given(lr: float, batch_size: int) -> float:
    """The rate as it stands."""
    return lr


def _at(results: Results, method: str) -> dict[str, Any]:
    return {"method": method, "epochs": results.column("epochs")[0]}


def large_over_small(results: Results) -> Verdict:
    return above(results, _at(results, LARGE), _at(results, SMALL))


def keys_over_small(results: Results) -> Verdict:
    """Bank and queue against the small batch alone, at its memory, after as many epochs."""
    verdict = all_of(*(above(results, _at(results, m), _at(results, SMALL)) for m in (BANK, QUEUE)))
    sizes = [
        f"{m} {results.mean('memory', **_at(results, m)):.0f} MB and "
        f"{results.mean('memory_of_keys', **_at(results, m)):.1f} MB of keys"
        for m in (SMALL, BANK, QUEUE)
        if results.where(**_at(results, m)).rows
    ]
    return Verdict(verdict.holds, verdict.evidence + f"\n{'; '.join(sizes)}")


def at_time(results: Results, method: str, seconds: float) -> tuple[float, float]:
    """(seconds, accuracy) of a method's training of so many seconds: by a straight line between
    both lengths on a logarithmic axis of time, or its shorter one where that took longer; NaN
    without both."""
    points = []
    for epochs in results.column("epochs"):
        at = {"method": method, "epochs": epochs}
        points.append((results.mean("train_seconds", **at), results.mean("accuracy", **at)))
    if any(math.isnan(v) for point in points for v in point) or len(points) < 2:
        return math.nan, math.nan
    (t1, a1), (t2, a2) = points[0], points[-1]
    if seconds <= t1 or t1 == t2:
        return t1, a1
    share = (math.log(seconds) - math.log(t1)) / (math.log(t2) - math.log(t1))
    return seconds, a1 + (a2 - a1) * share


def large_at_equal_time(results: Results) -> Verdict:
    """The large batch against the queue, at the time of the quicker one's longer training; where
    the other had more, that is said, and counts for it."""
    longest = results.column("epochs")[-1]
    ends = [results.mean("train_seconds", method=m, epochs=longest) for m in (LARGE, QUEUE)]
    if any(map(math.isnan, ends)):
        return Verdict.not_tested("the large batch or the queue lacks a length")
    (t1, one), (t2, two) = (at_time(results, m, min(ends)) for m in (LARGE, QUEUE))
    if math.isnan(one + two):
        return Verdict.not_tested("one length of training only")
    n = min(row["n_test"] for row in results.rows) * len(results.column("seed"))
    words = f"large batch {one:.3f} after {t1:.0f} s, queue {two:.3f} after {t2:.0f} s"
    gap, error = difference({0: one}, {0: two}, n)
    if gap * (t1 - t2) > 0:  # the better one had more time, which proves nothing
        return Verdict(None, f"undecided: {words}")
    return decided(gap, error, words)


def by_time(results: Results) -> Chart:
    traces = []
    for method in METHODS:
        at = results.where(method=method)
        x, y = (at.means(m, "epochs") for m in ("train_seconds", "accuracy"))
        both = [e for e in x if e in y]
        text = [f"{e:g} epochs" for e in both]
        if both:
            traces.append(line(method, [x[e] for e in both], [y[e] for e in both], text=text))
    return chart(traces, "s of training", "accuracy", xaxis={"type": "log"})


EXPERIMENT = Experiment(
    name="bank_and_queue",
    title="A bank or a queue in place of large batches",
    source="S3 sections 2.1 and 2.2, a question of its text; MoCo (1911.05722), Wu et al. (2018)",
    jobs=jobs,
    measures=MEASURES
    | {
        "memory": "MB of a training step, as the backward pass keeps it, images included",
        "memory_of_keys": "MB of stored keys, and of the encoder that makes them",
    },
    claims=(
        Claim("At equal epochs a large batch is better than a small one.", "S3 figure 9 [P]",
              large_over_small),
        Claim("At the memory of a small batch a bank and a queue are better than the batch alone.",
              "MoCo, the idea of its section 1; the comparison is this project's", keys_over_small),
        Claim("At equal time a large batch is better than a queue with a small one.",
              "S3 section 2.1, its reason to have no bank; the comparison is this project's",
              large_at_equal_time),
    ),
    figures=(
        Figure("Accuracy by time of training", by_time,
               "Two lengths each; at one time, the higher line is the better use of it."),
    ),
    costs={
        "smoke": "10 s on 2 cores",
        "cpu": "about 6 min a seed on 2 cores; with --jobs 1, since it measures time",
        "paper": "8 runs of ResNet-50 on ImageNet, up to 200 epochs, on accelerators (not timed)",
    },
    notes=(
        "The rate is scaled by the square root of the batch. The bank compares each of two views "
        "with the entry of its image; the queue has keys of one view, embedded by a slow copy.",
        "Memory is counted, not measured: `contrapose.training.cost`.",
    ),
)  # fmt: skip
