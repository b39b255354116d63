"""S3 figure 9 and table B.1: large batches help most in short training; how the rate is scaled.

    contrapose reproduce batch_and_epochs --scale cpu --seeds 3 --jobs 2

Expect at scale cpu, after about 6 min a seed on 2 cores, longer training to be better at every
batch and square-root scaling to help small ones (0.382, linear 0.365, at 32). That large ones are
better after 10 epochs (512: 0.384) is within the noise of three seeds.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.evidence import all_of
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Published, Results, Verdict
from contrapose.experiments.noise import above, decided, difference
from contrapose.experiments.simclr.protocol import MEASURES, SCALES, job
from contrapose.training import optim

LINEAR, ROOT = "linear", "square root"
BATCHES = {
    "smoke": (32, 64), "cpu": (32, 128, 512), "paper": (256, 512, 1024, 2048, 4096, 8192),
}  # fmt: skip
LONGER = {"smoke": (1.0,), "cpu": (1.0, 2.0, 4.0), "paper": (1.0, 2.0, 4.0, 8.0)}  # times epochs
EQUAL = {"smoke": 64, "cpu": 512, "paper": 4096}  # the batch at which both rules give one rate
RATE = {"smoke": 1.6, "cpu": 4.5, "paper": 4.8}  # that rate, of LARS
PUBLISHED = {  # linear / square root by epochs
    256: (0.575, 0.628, 0.619, 0.643, 0.647, 0.657, 0.666, 0.665),
    512: (0.607, 0.638, 0.640, 0.656, 0.662, 0.667, 0.678, 0.674),
    1024: (0.628, 0.643, 0.653, 0.661, 0.672, 0.672, 0.685, 0.683),
    2048: (0.640, 0.647, 0.661, 0.668, 0.681, 0.679, 0.689, 0.688),
    4096: (0.646, 0.645, 0.665, 0.668, 0.682, 0.680, 0.689, 0.691),
    8192: (0.648, 0.648, 0.666, 0.670, 0.678, 0.683, 0.690, 0.691),
}


def rate_of(scale: str, rule: str, batch: int) -> float:
    """The rate at this batch, so that both rules agree at EQUAL."""
    return float(RATE[scale] * (batch / EQUAL[scale]) ** {LINEAR: 1.0, ROOT: 0.5}[rule])


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    found = []
    base = SCALES[scale].epochs
    decay = 1e-6 if scale == "paper" else 1e-4
    for seed in seeds:
        for times in LONGER[scale]:
            for batch in BATCHES[scale]:
                for rule in (LINEAR,) if batch == EQUAL[scale] else (LINEAR, ROOT):
                    facts = {"batch": batch, "epochs": base * times, "rule": rule}
                    changes: Mapping[str, Any] = {
                        "batch_size": batch,
                        "lr": rate_of(scale, rule, batch),
                        "scaling": optim.no_scaling,
                        "optimizer": partial(optim.lars, weight_decay=decay),
                    }
                    found.append(
                        job(
                            scale=scale, seed=seed, facts=facts, changes=changes, epochs=times,
                            name=f"batch{batch}-epochs{base * times:g}-{rule}",
                        )
                    )  # fmt: skip
    return found


def _at(results: Results, batch: int, epochs: float, rule: str) -> dict[str, Any]:
    """The facts of a job; at the batch where both rules agree, of the one that was run."""
    rules = {row["rule"] for row in (*results.rows, *results.missing) if row["batch"] == batch}
    return {"batch": batch, "epochs": epochs, "rule": rule if rule in rules else LINEAR}


def _ends(results: Results) -> tuple[list[int], list[float]]:
    return [int(b) for b in results.column("batch")], [float(e) for e in results.column("epochs")]


def large_helps_when_short(results: Results) -> Verdict:
    batches, epochs = _ends(results)
    here, there = (_at(results, b, epochs[0], LINEAR) for b in (batches[-1], batches[0]))
    return above(results, here, there)


def gap_closes(results: Results) -> Verdict:
    """The gap of the largest batch to the smallest: in the shortest training, in the longest."""
    batches, epochs = _ends(results)
    if len(epochs) < 2:
        return Verdict.not_tested("one number of epochs")
    gaps = []
    for e in (epochs[0], epochs[-1]):
        large, small = (_at(results, b, e, LINEAR) for b in (batches[-1], batches[0]))
        one, two = (results.by_seed("accuracy", **facts) for facts in (large, small))
        if not one.keys() & two.keys():
            return Verdict.not_tested(f"{e:g} epochs lack a batch")
        gaps.append(difference(one, two, results.mean("n_test", **large)))
    (short, e1), (long, e2) = gaps
    words = f"batch {batches[-1]} over {batches[0]}: {short:+.3f} ({e1:.3f}) after {epochs[0]:g} "
    words += f"epochs, {long:+.3f} ({e2:.3f}) after {epochs[-1]:g}"
    return decided(short - long, (e1**2 + e2**2) ** 0.5, words)


def longer_is_better(results: Results) -> Verdict:
    batches, epochs = _ends(results)
    if len(epochs) < 2:
        return Verdict.not_tested("one number of epochs")
    return all_of(
        *(
            above(results, _at(results, b, epochs[-1], LINEAR), _at(results, b, epochs[0], LINEAR))
            for b in batches
        )
    )


def root_helps_small(results: Results) -> Verdict:
    batches, epochs = _ends(results)
    here, there = (_at(results, batches[0], epochs[0], rule) for rule in (ROOT, LINEAR))
    return above(results, here, there)


def bars_by_batch(rule: str) -> Any:
    def draw(results: Results) -> Chart:
        batches, epochs = _ends(results)
        traces = []
        for e in epochs:
            y = [results.mean("accuracy", **_at(results, b, e, rule)) for b in batches]
            known = [(str(b), v) for b, v in zip(batches, y, strict=True) if v == v]
            if known:
                traces.append(line(f"{e:g} epochs", *map(list, zip(*known, strict=True))))
        return chart(traces, "batch, images", "accuracy", xaxis={"type": "category"})

    return draw


EXPERIMENT = Experiment(
    name="batch_and_epochs",
    title="Batch, epochs, and how the rate is scaled",
    source="S3 figure 9 and table B.1 (Chen et al., ICML 2020)",
    jobs=jobs,
    measures=MEASURES,
    published=tuple(
        Published(
            "accuracy", {"batch": batch, "epochs": 100.0 * 2 ** (k // 2), "rule": rule}, value,
            "S3 table B.1, ImageNet, ResNet-50, one run [P]",
        )
        for batch, values in PUBLISHED.items()
        for k, value in enumerate(values)
        if (rule := (LINEAR, ROOT)[k % 2]) == LINEAR or batch != EQUAL["paper"]
    ),
    claims=(
        Claim("In the shortest training the largest batch is better than the smallest, with linear "
              "scaling.", "S3 figure 9 [P]", large_helps_when_short),
        Claim("That gap closes with training.", "S3 figure 9 [P]", gap_closes),
        Claim("Longer training is better at every batch.", "S3 figure 9 [P]", longer_is_better),
        Claim("At the smallest batch, in the shortest training, square-root scaling is better than "
              "linear.", "S3 table B.1 [P]", root_helps_small),
    ),
    figures=(
        Figure("Accuracy by batch, rate scaled linearly", bars_by_batch(LINEAR),
               "S3 figure 9: lines rise to the right, and come closer from below."),
        Figure("Accuracy by batch, rate scaled by the square root", bars_by_batch(ROOT),
               "S3 table B.1: flatter."),
    ),
    costs={
        "smoke": "10 s on 2 cores",
        "cpu": "about 6 min a seed on 2 cores with --jobs 2",
        "paper": "44 runs of ResNet-50 on ImageNet up to 800 epochs, on accelerators (not timed)",
    },
    notes=(
        "Both rules give one rate at the batch 4,096 (cpu: 512), which is trained once; the "
        "paper's two numbers there are two runs of one setting.",
        "cpu: LARS at a rate of 4.5 at batch 512, near the best of `batch_size` at that scale.",
    ),
)  # fmt: skip
