"""S1 figures 2 and 4 to 9 and table 1: the effect of temperature and hard negatives on embeddings.

    contrapose reproduce temperature_sweep --scale cpu --jobs 2

Expect at scale cpu, with the memory bank, that uniformity falls from 3.62 to 2.69 and tolerance
rises from 0.08 to 0.19 between temperatures 0.07 and 1, with the best accuracy, 0.52, at 0.2, after
about 35 min on 2 cores.

Contrastive, simple, hard and hard-simple losses over a sweep of temperatures, against S1's memory
bank and, named apart, against the batch. `paper` is the protocol: ResNet-18, 200 epochs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from contrapose.experiments.form import (
    Claim,
    Experiment,
    Figure,
    Job,
    Published,
    Results,
    Verdict,
)
from contrapose.experiments.temperature import claims as claims
from contrapose.experiments.temperature import plots as plots
from contrapose.experiments.temperature.claims import COLDER, SWEEP, TABLE
from contrapose.experiments.temperature.plots import MAPPED
from contrapose.experiments.temperature.protocol import (
    BANK,
    CONTRASTIVE,
    HARD,
    HARD_SIMPLE,
    IMAGENET_100,
    IN_BATCH,
    MEASURES,
    SCALES,
    SIMPLE,
    job,
    plane,
)

COLUMNS = (
    *((CONTRASTIVE, tau) for tau in TABLE),
    (SIMPLE, None),
    *((HARD, tau) for tau in TABLE),
    (HARD_SIMPLE, None),
)

WHOLE = 50_000  # training images of the smallest set of table 1

TABLE_1 = {
    "cifar10": {
        "accuracy": (79.75, 83.27, 82.69, 82.21, 74.83, 79.2, 83.63, 84.19, 84.19, 84.84),
        "minus_uniformity": (3.86, 3.60, 3.17, 2.96, 1.68, 3.88, 3.89, 3.87, 3.86, 3.85),
        "tolerance": (0.04, 0.178, 0.333, 0.372, 0.61, 0.034, 0.0267, 0.030, 0.030, 0.030),
    },
    "cifar100": {
        "accuracy": (51.82, 56.44, 50.99, 48.33, 39.31, 50.77, 56.55, 57.54, 56.77, 55.71),
        "minus_uniformity": (3.86, 3.60, 3.18, 2.96, 2.12, 3.87, 3.88, 3.87, 3.86, 3.86),
        "tolerance": (0.10, 0.269, 0.331, 0.343, 0.39, 0.088, 0.124, 0.158, 0.172, 0.174),
    },
    "svhn": {
        "accuracy": (92.55, 95.47, 94.17, 92.07, 70.83, 91.82, 94.79, 95.02, 95.26, 94.99),
        "minus_uniformity": (3.88, 3.65, 3.27, 3.05, 1.50, 3.89, 3.91, 3.90, 3.88, 3.85),
        "tolerance": (0.032, 0.137, 0.186, 0.197, 0.074, 0.025, 0.021, 0.021, 0.023, 0.026),
    },
    IMAGENET_100: {
        "accuracy": (71.53, 75.10, 69.03, 63.57, 48.09, 68.33, 74.21, 74.70, 74.28, 74.31),
        "minus_uniformity": (3.917, 3.693, 3.323, 3.08, 1.742, 3.929, 3.932, 3.927, 3.923, 3.917),
        "tolerance": (0.093, 0.380, 0.427, 0.456, 0.528, 0.067, 0.096, 0.121, 0.134, 0.157),
    },
}


def published() -> Iterator[Published]:
    for data, rows in TABLE_1.items():
        for measure, values in rows.items():
            for (loss, tau), value in zip(COLUMNS, values, strict=True):
                at = {"data": data, "protocol": BANK, "loss": loss, "tau": tau}
                share = round(value / 100, 4) if measure == "accuracy" else value
                yield Published(measure, at, share, "S1 table 1 [S1]")


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    taus = sorted({*TABLE, *SWEEP, *COLDER})
    settings = [(CONTRASTIVE, tau) for tau in taus] + [c for c in COLUMNS if c[0] != CONTRASTIVE]
    return [
        job(
            scale=scale, seed=seed, data=data, protocol=protocol, loss=loss, tau=tau,
            measures=(plane,) if loss == CONTRASTIVE and tau in MAPPED else (),
        )
        for data in SCALES[scale].data
        for protocol in (BANK, IN_BATCH)
        for loss, tau in settings
        for seed in seeds
    ]  # fmt: skip


NEAR = {"accuracy": 0.010, "minus_uniformity": 0.1}  # of a published cell


def table_is_reached(results: Results) -> Verdict:
    """Whether every published cell that was run on the whole set is within NEAR of its number."""
    whole = Results(
        rows=[r for r in results.rows if r.get("n_train", 0) >= WHOLE],
        missing=results.missing,
        measures=results.measures,
    )
    words, cells, hits = [], 0, 0
    for cell in published():
        if cell.measure not in NEAR or cell.at["data"] not in whole.column("data"):
            continue
        mean = whole.mean(cell.measure, **cell.at)
        if math.isnan(mean):
            continue
        off, cells = mean - cell.value, cells + 1
        hits += abs(off) <= NEAR[cell.measure]
        words.append(f"{cell.at['data']} {cell.at['loss']} {cell.at['tau'] or ''} {off:+.3f}")
    if not cells:
        return Verdict.not_tested("no run on a whole set: this needs --scale paper")
    return Verdict(
        hits == cells, f"{hits} of {cells} cells are near; distances: {'; '.join(words)}"
    )


def of_protocol(protocol: str) -> Iterator[Claim]:
    """The claims of S1 for its bank, and the same claims for the batch."""
    sentences: list[tuple[str, str, Callable[..., Verdict]]] = [
        ("uniformity falls as the temperature rises.", "figure 4", claims.uniformity_falls),
        ("tolerance rises with the temperature.", "figure 5", claims.tolerance_rises),
        (
            "with hard negatives alone, uniformity hardly depends on the temperature.",
            "figure 6",
            claims.hard_is_flat,
        ),
        (
            "with hard negatives alone, embeddings are more uniform at every temperature.",
            "figure 6",
            claims.hard_is_more_uniform,
        ),
        (
            "a lower temperature separates positives further from the nearest negatives, a higher "
            "one brings positives closer.",
            "figure 8",
            claims.cold_separates,
        ),
        (
            "accuracy of the ordinary loss is best inside the sweep of temperatures.",
            "figure 9",
            claims.best_inside,
        ),
        (
            "at a high temperature the hard loss is better than the ordinary one.",
            "figure 9",
            claims.hard_likes_warmth,
        ),
        (
            f"the simple loss is clearly worse: by more than {claims.CLEARLY:g} of accuracy.",
            "table 1",
            claims.simple_is_worse,
        ),
        (
            "with hard negatives the simple loss recovers most of that gap.",
            "table 1",
            claims.hard_simple_recovers,
        ),
        (
            "a signal without labels, how often h finds an image again in another view, orders "
            "temperatures as accuracy does.",
            "",
            claims.a_signal_follows,
        ),
    ]
    where = "Bank" if protocol == BANK else "In the batch"
    for sentence, source, test in sentences:
        of = f"S1 {source} [S1]" if source else "this project; `tune-temperature` rests on it"
        of += "; the batch is this project's" if source and protocol == IN_BATCH else ""
        yield Claim(f"{where}: {sentence}", of, partial(test, protocol=protocol))


EXPERIMENT = Experiment(
    name="temperature_sweep",
    title="Temperature trades uniformity against tolerance; hard negatives do not need it",
    source="S1 figures 2, 4 to 9 and table 1 (Wang & Liu, CVPR 2021)",
    jobs=jobs,
    measures={
        **MEASURES,
        "map_x": "t-SNE of z, first coordinate",
        "map_y": "t-SNE of z, second coordinate",
        "map_class": "class of each point of the map",
    },
    published=tuple(published()),
    claims=(
        *(claim for protocol in (BANK, IN_BATCH) for claim in of_protocol(protocol)),
        Claim(
            "The cells of table 1 are reached within 1.0 point of accuracy and 0.1 of uniformity.",
            "S1 table 1 [S1]; the bounds are this project's",
            table_is_reached,
        ),
    ),
    figures=(
        Figure(
            "Uniformity against temperature (figures 4 and 6)",
            plots.against_temperature("minus_uniformity", "-uniformity of z"),
            "Solid: all negatives; dotted: the hardest alone.",
        ),
        Figure(
            "Tolerance against temperature (figures 5 and 7)",
            plots.against_temperature("tolerance", "tolerance"),
            "Solid: all negatives; dotted: the hardest alone.",
        ),
        Figure(
            "Accuracy against temperature (figure 9)",
            plots.against_temperature("accuracy", "linear accuracy"),
            "An arch where the ordinary loss has a best temperature inside.",
        ),
        Figure(
            "Local separation (figure 8)",
            plots.separation,
            "Similarity to the positive, then to the ten nearest negatives, averaged over anchors.",
        ),
        Figure(
            "Maps of embeddings (figure 2)",
            plots.maps,
            "t-SNE of test images by class. Distances between far groups mean little.",
        ),
        Figure(
            "The plane of uniformity and tolerance",
            plots.tradeoff,
            "Numbers are temperatures; pointing at a mark shows the accuracy.",
        ),
    ),
    costs={
        "smoke": "30 s on 2 cores",
        "cpu": "35 min on 2 cores",
        "paper": "24 runs of 200 epochs a set, on a GPU (not timed)",
    },
    notes=(
        "The bank is S1's protocol as its author's earlier code has it [C]: one view, the image's "
        "own entry its positive, softmax over the whole bank, entries uniform at first, momentum "
        "0.5. The paper itself does not print the momentum.",
        "The in-batch variant is this project's: two views, the same optimiser and batch.",
        "lambda of the simple losses is not printed in S1. Equation 7 implies 1 / (number of "
        "negatives) [D], which is taken here; of the hard-simple loss 1 / k by analogy.",
        "Hard losses keep 4,095 negatives of a whole bank, as S1's text says (its printed alphas "
        "for SVHN and ImageNet-100 do not agree with that); of smaller banks and of batches the "
        "share that this is on CIFAR, 0.0819.",
        "Which split, how many images and whether views or plain images S1 measures uniformity and "
        "tolerance on was not found; here z of all test images, without augmentation.",
        "S1's full list of temperatures was not found. These are all that it names, and 0.03 to "
        "see a best below them, which enters the claim about the best temperature alone.",
        "ImageNet-100: S1's classes were not found; every tenth of ImageNet's is taken.",
    ),
)
