"""S3 table 7: fine-tuned with 1 % and 10 % of the labels, against training from scratch.

    contrapose reproduce fine_tuning --scale cpu --seeds 3 --jobs 2

Expect at scale cpu, after about 2 min a seed on 2 cores, fine-tuning to be above training from
scratch at 1 % (0.233 and 0.215) and 10 % (0.397 and 0.374) of the labels, which saves a factor of
1.3 at the fewest.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from contrapose import api, downstream
from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.evidence import all_of
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Published, Results, Verdict
from contrapose.experiments.noise import above
from contrapose.experiments.simclr.protocol import SCALES, recipe, side_by_side
from contrapose.experiments.trained import both_splits
from contrapose.explain.subject import Subject
from contrapose.machine import choose_device
from contrapose.training.run import Run

LABELS: Mapping[str, tuple[str, ...]] = {
    "smoke": ("10%",), "cpu": ("1%", "10%", "100%"), "paper": ("1%", "10%", "100%"),
}  # fmt: skip
DRAWS = {"smoke": 1, "cpu": 3, "paper": 1}
METHODS = ("finetuned", "scratch", "probe")
PUBLISHED = {
    ("scratch", "1%"): 0.254, ("scratch", "10%"): 0.564,
    ("finetuned", "1%"): 0.483, ("finetuned", "10%"): 0.656,
}  # fmt: skip


def with_few_labels(folder: Path, *, scale: str, seed: int) -> dict[str, Any]:
    """An encoder trained without labels in `folder`/run, and then `downstream.finetune`."""
    at = SCALES[scale]
    train, test = both_splits(at.data, at.size, at.images, at.tested)
    chosen = recipe(train.size, train.shown, scale=scale, changes={"seed": seed})
    encoder = api.encoder_in(folder / "run", chosen, train).eval()
    subject = Subject(
        Run.open(folder / "run"), chosen, encoder, train, test, "test", choose_device("auto")
    )
    protocol = "simclr" if scale == "paper" else "default"
    found = downstream.finetune(
        subject, labels=LABELS[scale], draws=DRAWS[scale], seed=seed, protocol=protocol
    )
    measured: dict[str, Any] = {"n_train": len(train), "n_test": found["n_test"]}
    for row in found["rows"]:
        measured[f"{row['method']}_{row['labels'].rstrip('%')}"] = row["value"]
        measured[f"{row['method']}_n_{row['labels'].rstrip('%')}"] = row["n"]
    for row in found["saved"]:
        share = row["labels"].rstrip("%")
        measured[f"saved_{share}"] = row["factor"]
        measured[f"saved_least_{share}"] = row["beyond"] if row["factor"] is None else row["least"]
    return measured


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    return [
        Job(
            name=f"few-labels-seed{seed}",
            call=partial(with_few_labels, scale=scale, seed=seed),
            facts={"data": SCALES[scale].data},
            seed=seed,
        )
        for seed in seeds
    ]


def _shares(results: Results) -> list[str]:
    names = {name for row in results.rows for name in row if name.startswith("finetuned_n_")}
    shares = [name.removeprefix("finetuned_n_") for name in names]
    return sorted(shares, key=float)


def _compared(results: Results, here: str, there: str, shares: Sequence[str]) -> Verdict:
    if not shares:
        return Verdict.not_tested("no result with so many labels")
    verdicts = []
    for share in shares:
        words = {m: f"{m}, {share} %" for m in (here, there)}
        both = side_by_side(results, {words[m]: f"{m}_{share}" for m in (here, there)})
        verdicts.append(above(both, {"of": words[here]}, {"of": words[there]}))
    return all_of(*verdicts)


def over_scratch(results: Results) -> Verdict:
    return _compared(
        results, "finetuned", "scratch", [s for s in _shares(results) if float(s) < 100]
    )


def over_probe(results: Results) -> Verdict:
    return _compared(
        results, "finetuned", "probe", [s for s in _shares(results) if float(s) == 100]
    )


def saves_labels(results: Results) -> Verdict:
    """By how many times more labels are needed from scratch, at the fewest; its least over draws
    and seeds must be above 1."""
    shares = _shares(results)
    if not shares:
        return Verdict.not_tested("no result yet")
    least = results.values(f"saved_least_{shares[0]}")
    mean = results.values(f"saved_{shares[0]}")
    about = f"{sum(mean) / len(mean):.1f} times as many" if mean else "more than there are"
    words = f"from scratch as much as {shares[0]} % fine-tuned takes {about} labels; least over "
    words += f"draws and seeds {min(least):.2f}"
    if not min(least) > 1:
        return Verdict(None, f"undecided: {words}")
    return Verdict(True, words)


def curves(results: Results) -> Chart:
    shares = _shares(results)
    traces = []
    for method in METHODS:
        at = {
            results.mean(f"{method}_n_{s}"): results.mean(f"{method}_{s}") for s in shares
        }  # the number of labels, and the accuracy
        traces += [line(method, [*at], [*at.values()])] if at else []
    return chart(traces, "labels", "accuracy", xaxis={"type": "log"})


def _measures() -> dict[str, str]:
    found = {"n_train": "images, with and without a label", "n_test": "test images"}
    for share in sorted({s.rstrip("%") for shares in LABELS.values() for s in shares}, key=float):
        for method, words in (
            ("finetuned", "test accuracy of the fine-tuned network"),
            ("scratch", "test accuracy of the same network from drawn weights"),
            ("probe", "test accuracy of a probe of the frozen h"),
        ):
            found[f"{method}_{share}"] = f"{words}, {share} % of the labels"
            found[f"{method}_n_{share}"] = f"labels that {share} % are"
        found[f"saved_{share}"] = f"times as many labels from scratch as {share} % fine-tuned"
        found[f"saved_least_{share}"] = "the least of that over draws"
    return found


EXPERIMENT = Experiment(
    name="fine_tuning",
    title="Fine-tuned with few labels",
    source="S3 table 7 and appendix B.4 (Chen et al., ICML 2020)",
    jobs=jobs,
    measures=_measures(),
    published=tuple(
        Published(f"{method}_{share.rstrip('%')}", {"data": "imagenet"}, value,
                  "S3 table 7, ImageNet, ResNet-50 [P]")
        for (method, share), value in PUBLISHED.items()
    ),
    claims=(
        Claim("With few labels fine-tuning is above training from scratch.", "S3 table 7 [P]",
              over_scratch),
        Claim("With all labels fine-tuning is above a probe of the frozen encoder.",
              "S3 table 8 [P]", over_probe),
        Claim("Pretraining saves labels at the fewest.", "S3 table 7; the number is this project's",
              saves_labels),
    ),
    figures=(
        Figure("Accuracy by labels", curves,
               "Where a horizontal line meets both curves, their distance is what is saved."),
    ),
    costs={
        "smoke": "25 s on 2 cores",
        "cpu": "about 2 min a seed on 2 cores with --jobs 2",
        "paper": "ResNet-50 on ImageNet, 100 epochs, and fine-tuning, on accelerators (not timed)",
    },
    notes=(
        "Draws of labels are balanced over classes and nested, 3 for each seed; the rate of each "
        "method is chosen on held-out labels of the first (`contrapose finetune`).",
    ),
)  # fmt: skip
