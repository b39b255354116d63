"""S3 table 1: stronger colour distortion helps contrast and hurts labels.

    contrapose reproduce colour_strength --scale cpu --seeds 3 --jobs 2

Expect at scale cpu, after about 4 min a seed on 2 cores, SimCLR to be best at strength 1/2 (0.420;
1/8: 0.393, 1: 0.385) and the supervised at 1/4 or less (0.483; 1: 0.459). By the paper SimCLR rises
up to 1, a larger network's.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from contrapose import augment
from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Published, Results, Verdict
from contrapose.experiments.noise import above, decided, difference
from contrapose.experiments.simclr.protocol import MEASURES, SIMCLR, SUPERVISED, job

AUTO = "AutoAugment"
STRENGTHS: Mapping[str, Any] = {
    **{
        word: partial(augment.simclr, strength=value, blur=False)
        for word, value in (("1/8", 0.125), ("1/4", 0.25), ("1/2", 0.5), ("1", 1.0))
    },
    "1 and blur": partial(augment.simclr, strength=1.0, blur=True),
    AUTO: partial(augment.autoaugment),
}
PUBLISHED = {
    SIMCLR: (0.596, 0.610, 0.626, 0.632, 0.645, 0.611),
    SUPERVISED: (0.770, 0.767, 0.765, 0.757, 0.754, 0.771),
}
ORDERED = ("1/8", "1/4", "1/2", "1")


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    words = ("1/8", "1") if scale == "smoke" else tuple(STRENGTHS)
    found = []
    for seed in seeds:
        for method in (SIMCLR, SUPERVISED):
            for word in words:
                facts = {"method": method, "strength": word}
                found.append(
                    job(
                        scale=scale, seed=seed, name=f"{method}-{word}", facts=facts,
                        method=method, views=STRENGTHS[word],
                    )
                )  # fmt: skip
    return found


def _at(method: str, strength: str) -> dict[str, Any]:
    return {"method": method, "strength": strength}


def contrast_gains(results: Results) -> Verdict:
    return above(results, _at(SIMCLR, "1"), _at(SIMCLR, "1/8"))


def labels_lose(results: Results) -> Verdict:
    return above(results, _at(SUPERVISED, "1/8"), _at(SUPERVISED, "1"))


def contrast_gains_more(results: Results) -> Verdict:
    """The gain of contrast from 1/8 to 1 against that of labels, paired by seed."""
    gains = {}
    for method in (SIMCLR, SUPERVISED):
        strong, weak = (results.by_seed("accuracy", **_at(method, s)) for s in ("1", "1/8"))
        gap, error = difference(strong, weak, results.mean("n_test", **_at(method, "1")))
        if gap != gap:
            return Verdict.not_tested(f"{method} lacks a strength")
        gains[method] = gap, error
    (one, e1), (two, e2) = gains[SIMCLR], gains[SUPERVISED]
    words = f"SimCLR {one:+.3f} ({e1:.3f}), supervised {two:+.3f} ({e2:.3f}) from 1/8 to 1"
    return decided(one - two, (e1**2 + e2**2) ** 0.5, words)


def auto_is_for_labels(results: Results) -> Verdict:
    return above(results, _at(SIMCLR, "1"), _at(SIMCLR, AUTO))


def curves(results: Results) -> Chart:
    traces = []
    for method in (SIMCLR, SUPERVISED):
        means = results.where(method=method).means("accuracy", "strength", [*STRENGTHS])
        traces += [line(method, [*means], [*means.values()])] if means else []
    return chart(traces, "colour distortion", "accuracy", xaxis={"type": "category"})


EXPERIMENT = Experiment(
    name="colour_strength",
    title="The strength of colour distortion, with and without labels",
    source="S3 table 1 (Chen et al., ICML 2020)",
    jobs=jobs,
    measures=MEASURES,
    published=tuple(
        Published("accuracy", _at(method, s), v, "S3 table 1, ImageNet, ResNet-50 [P]")
        for method, values in PUBLISHED.items()
        for s, v in zip(STRENGTHS, values, strict=True)
    ),
    claims=(
        Claim("SimCLR is better with strength 1 than with 1/8.", "S3 table 1 [P]", contrast_gains),
        Claim("The supervised is worse with strength 1 than with 1/8.", "S3 table 1 [P]",
              labels_lose),
        Claim("Contrast gains more of it than labels do.", "S3 table 1 [P]", contrast_gains_more),
        Claim("SimCLR is better with strength 1 than with AutoAugment, a policy found for labels.",
              "S3 table 1 [P]", auto_is_for_labels),
    ),
    figures=(
        Figure("Accuracy by colour distortion", curves, "Up with contrast, down with labels."),
    ),
    costs={
        "smoke": "10 s on 2 cores",
        "cpu": "about 4 min a seed on 2 cores with --jobs 2",
        "paper": "12 runs of ResNet-50 on ImageNet, 100 epochs, on accelerators (not timed)",
    },
    notes=(
        "Accuracy of the supervised is that of a linear probe of its h too, so that both are "
        "measured alike; it has as many epochs as SimCLR.",
        "Blur has a kernel of a tenth of the side, so at 16 px it is none: that column repeats "
        "strength 1 with other draws, and its distance from it is noise.",
    ),
)  # fmt: skip
