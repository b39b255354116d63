"""S2 table 9: augmentation policies of the two stages in pairs.

    contrapose reproduce policy_pairs --scale cpu

Expect more than the four points of the paper (75.4 to 78.6) between pairs. At scale cpu, about 4
min a seed on 2 cores, the policy of the first stage moves accuracy by 0.064 and that of the second
by 0.020, and AutoAugment is best in both.
"""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from contrapose import augment
from contrapose.experiments.charts import Chart
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Published, Results, Verdict
from contrapose.experiments.noise import decided
from contrapose.experiments.supervised.protocol import (
    MEASURES,
    SUPCON,
    THEN,
    Stage,
    heat,
    job,
    second_stages,
    spread_out,
)
from contrapose.training import optim
from contrapose.training.stages import linear_stage

POLICIES: Mapping[str, Any] = {
    "AutoAugment": partial(augment.autoaugment),
    "RandAugment": partial(augment.randaugment),
    "SimAugment": partial(augment.simaugment),
    "Stacked": partial(augment.stacked_randaugment),
}
GLYPHS: Mapping[str, Any] = {  # at scale smoke, whose images have no colours to change
    "crops": partial(augment.digits),
    "larger crops": partial(augment.crop_flip, area=(0.6, 1.0)),
}
EVERY = (*POLICIES, *GLYPHS)
EPOCHS = {"smoke": 20.0, "cpu": 10.0, "paper": 350.0}  # of the second stage
PUBLISHED = {
    "AutoAugment": (0.786, 0.781, 0.754, 0.774), "RandAugment": (0.783, 0.784, 0.763, 0.758),
    "SimAugment": (0.761, 0.759, 0.779, 0.764), "Stacked": (0.781, 0.782, 0.779, 0.759),
}  # fmt: skip


def policies(scale: str) -> Mapping[str, Any]:
    return GLYPHS if scale == "smoke" else POLICIES


def last_stages(scale: str) -> dict[str, Stage]:
    how = partial(
        linear_stage, epochs=EPOCHS[scale], batch_size=256, lr=1e-2,
        optimizer=partial(optim.adamw, weight_decay=0.0), schedule=partial(optim.warmup_cosine),
    )  # fmt: skip
    return {name: partial(how, views=policy) for name, policy in policies(scale).items()}


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    return [
        job(
            scale=scale, seed=seed, name=f"first-{first}", facts={"first": first}, method=SUPCON,
            views=policy, measures=(partial(second_stages, stages=last_stages(scale)),),
        )
        for seed in seeds
        for first, policy in policies(scale).items()
    ]  # fmt: skip


def pairs(results: Results) -> Results:
    return spread_out(results, "last")


def _means(results: Results, along: str) -> list[float]:
    """The mean accuracy of each policy in one stage, over those of the other."""
    rows = pairs(results).rows
    by: dict[str, list[float]] = {}
    for row in rows:
        by.setdefault(row[along], []).append(row["accuracy"])
    return [statistics.fmean(values) for values in by.values()]


def last_matters_more(results: Results) -> Verdict:
    """Range over policies of the second stage, against that over policies of the first."""
    first, last = _means(results, "first"), _means(results, "last")
    if min(len(first), len(last)) < 2 or len(first) != len(last):
        return Verdict.not_tested("not every pair has a result")
    sizes = [max(v) - min(v) for v in (first, last)]
    n = min(row["n_test"] for row in results.rows) * len(results.column("seed"))
    error = (2 * 0.25 / (n * len(first))) ** 0.5 * 2**0.5
    words = f"range over the first {sizes[0]:.3f}, over the second {sizes[1]:.3f} ({error:.3f})"
    return decided(sizes[1] - sizes[0], error, words)


def same_pair_is_best(results: Results) -> Verdict:
    """Whether each first stage has its best second stage with its own policy."""
    found = pairs(results)
    names = [n for n in POLICIES if n in {row["first"] for row in found.rows}]
    if len(names) < len(POLICIES):
        return Verdict.not_tested("not every policy has a result")
    best = {a: max(names, key=lambda b: found.mean("accuracy", first=a, last=b)) for a in names}
    words = ", ".join(f"{a}: best with {b}" for a, b in best.items())
    return Verdict(all(a == b for a, b in best.items()), words)


def table(results: Results) -> Chart:
    return heat(pairs(results), "first", "last", "policy")


EXPERIMENT = Experiment(
    name="policy_pairs",
    title="Augmentation policies of the two stages",
    source="S2 table 9 (Khosla et al., NeurIPS 2020)",
    jobs=jobs,
    measures=MEASURES
    | {f"{THEN}{name}": f"test accuracy, {name} in the second stage" for name in EVERY},
    published=tuple(
        Published(f"{THEN}{last}", {"first": first}, v, "S2 table 9, ImageNet, ResNet-50 [P]")
        for first, values in PUBLISHED.items()
        for last, v in zip(POLICIES, values, strict=True)
    ),
    claims=(
        Claim("The policy of the second stage matters more than that of the first.",
              "S2 table 9 [D]: its means have ranges of 1.4 and 1.0 points", last_matters_more),
        Claim("The best second stage has the policy of the first.",
              "S2 table 9 [P], where it does not for Stacked", same_pair_is_best),
    ),
    figures=(
        Figure("Accuracy by policies of both stages", table,
               "A bright row is a good first stage, a bright column a good second one."),
    ),
    costs={
        "smoke": "15 s on 2 cores",
        "cpu": "about 4 min a seed on 2 cores",
        "paper": "4 runs of ResNet-50, 1,000 epochs, and 16 second stages (not timed)",
    },
    notes=(
        "At scale smoke two policies of crops stand for the four, since glyphs have no colours.",
        "SimAugment is with its warp at the probability of the released configuration, 0.",
    ),
)  # fmt: skip
