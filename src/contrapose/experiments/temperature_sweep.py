"""S1 figures 2 and 4 to 9 and table 1: what temperature and hard negatives do to embeddings.

    contrapose reproduce temperature_sweep --scale cpu --jobs 2

Contrastive, simple, hard and hard-simple losses over a sweep of temperatures, against S1's memory
bank and, named apart, against the batch. `paper` is the protocol: ResNet-18, 200 epochs.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from contrapose.experiments import evidence, wang_liu
from contrapose.experiments.evidence import all_of
from contrapose.experiments.form import (
    Claim,
    Experiment,
    Figure,
    Job,
    Published,
    Results,
    Verdict,
)
from contrapose.experiments.wang_liu import (
    BANK,
    CONTRASTIVE,
    HARD,
    HARD_SIMPLE,
    IMAGENET_100,
    IN_BATCH,
    SCALES,
    SIMPLE,
    job,
    plane,
)

TABLE = (0.07, 0.3, 0.7, 1.0)  # the columns of table 1
MAPPED = (0.07, 0.2)  # figure 2
SWEEP = (0.07, 0.2, 0.3, 0.7, 1.0)  # all that S1 names
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
        "uniformity": (3.86, 3.60, 3.17, 2.96, 1.68, 3.88, 3.89, 3.87, 3.86, 3.85),
        "tolerance": (0.04, 0.178, 0.333, 0.372, 0.61, 0.034, 0.0267, 0.030, 0.030, 0.030),
    },
    "cifar100": {
        "accuracy": (51.82, 56.44, 50.99, 48.33, 39.31, 50.77, 56.55, 57.54, 56.77, 55.71),
        "uniformity": (3.86, 3.60, 3.18, 2.96, 2.12, 3.87, 3.88, 3.87, 3.86, 3.86),
        "tolerance": (0.10, 0.269, 0.331, 0.343, 0.39, 0.088, 0.124, 0.158, 0.172, 0.174),
    },
    "svhn": {
        "accuracy": (92.55, 95.47, 94.17, 92.07, 70.83, 91.82, 94.79, 95.02, 95.26, 94.99),
        "uniformity": (3.88, 3.65, 3.27, 3.05, 1.50, 3.89, 3.91, 3.90, 3.88, 3.85),
        "tolerance": (0.032, 0.137, 0.186, 0.197, 0.074, 0.025, 0.021, 0.021, 0.023, 0.026),
    },
    IMAGENET_100: {
        "accuracy": (71.53, 75.10, 69.03, 63.57, 48.09, 68.33, 74.21, 74.70, 74.28, 74.31),
        "uniformity": (3.917, 3.693, 3.323, 3.08, 1.742, 3.929, 3.932, 3.927, 3.923, 3.917),
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
    settings = [*COLUMNS, *((CONTRASTIVE, tau) for tau in SWEEP if tau not in TABLE)]
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


# ---- claims --------------------------------------------------------------------------------------


def _everywhere(results: Results, test: Any) -> Verdict:
    """The test for every data set and protocol that has a job."""
    verdicts = []
    for data in results.column("data"):
        for protocol in (BANK, IN_BATCH):
            found: Verdict = test(results.where(data=data, protocol=protocol))
            verdicts.append(Verdict(found.holds, f"{data}, {protocol}: {found.evidence}"))
    return all_of(*verdicts)


def uniformity_falls(results: Results) -> Verdict:
    return _everywhere(results, lambda r: evidence.falls(r, "uniformity", "tau", loss=CONTRASTIVE))


def tolerance_rises(results: Results) -> Verdict:
    return _everywhere(results, lambda r: evidence.rises(r, "tolerance", "tau", loss=CONTRASTIVE))


def hard_is_flat(results: Results) -> Verdict:
    """Its range over TABLE is at most a third of the ordinary loss's."""

    def test(r: Results) -> Verdict:
        hard = [r.mean("uniformity", loss=HARD, tau=t) for t in TABLE]
        plain = [r.mean("uniformity", loss=CONTRASTIVE, tau=t) for t in TABLE]
        if any(map(math.isnan, (*hard, *plain))):
            return Verdict.not_tested("not all temperatures have a result")
        one, other = max(hard) - min(hard), max(plain) - min(plain)
        words = f"range over temperatures {one:.2f}, of the ordinary loss {other:.2f}"
        return Verdict(one <= other / 3, f"{words} ({_seeds(r)})")

    return _everywhere(results, test)


def hard_is_more_uniform(results: Results) -> Verdict:
    def test(r: Results) -> Verdict:
        return all_of(
            *(
                evidence.higher(
                    r, "uniformity", {"loss": HARD, "tau": t}, {"loss": CONTRASTIVE, "tau": t}
                )
                for t in TABLE
            )
        )

    return _everywhere(results, test)


def best_inside(results: Results) -> Verdict:
    return _everywhere(
        results, lambda r: evidence.peaks_inside(r, "accuracy", "tau", loss=CONTRASTIVE)
    )


def hard_likes_warmth(results: Results) -> Verdict:
    """At temperature 1 the hard loss is better than the ordinary one."""
    here, there = {"loss": HARD, "tau": 1.0}, {"loss": CONTRASTIVE, "tau": 1.0}
    return _everywhere(results, lambda r: evidence.higher(r, "accuracy", here, there))


CLEARLY = 0.02  # of accuracy; S1's gap on CIFAR-10 is 0.084


def simple_is_worse(results: Results) -> Verdict:
    def test(r: Results) -> Verdict:
        best = _best(r)
        if best is None:
            return Verdict.not_tested("no result of the ordinary loss")
        here = {"loss": CONTRASTIVE, "tau": best}
        return evidence.higher(r, "accuracy", here, {"loss": SIMPLE}, by=CLEARLY)

    return _everywhere(results, test)


def hard_simple_recovers(results: Results) -> Verdict:
    """It makes up for more than half of what the simple loss lacks to the best ordinary one."""

    def test(r: Results) -> Verdict:
        best = _best(r)
        simple, hard = (r.mean("accuracy", loss=name) for name in (SIMPLE, HARD_SIMPLE))
        if best is None or math.isnan(simple) or math.isnan(hard):
            return Verdict.not_tested("not all of them have a result")
        top = r.mean("accuracy", loss=CONTRASTIVE, tau=best)
        words = (
            f"accuracy of simple {simple:.3f}, hard-simple {hard:.3f}, contrastive {top:.3f} at "
            f"its best temperature {best:g} ({_seeds(r)})"
        )
        if top - simple < CLEARLY:
            return Verdict(None, f"undecided: no gap to speak of; {words}")
        share = (hard - simple) / (top - simple)
        return Verdict(share > 0.5, f"{share:.0%} of the gap; {words}")

    return _everywhere(results, test)


def cold_separates(results: Results) -> Verdict:
    """Figure 8: positive less nearest negative falls, the positive itself rises with tau."""

    def test(r: Results) -> Verdict:
        curves = {t: r.curve("local_separation", loss=CONTRASTIVE, tau=t) for t in SWEEP}
        if not all(curves.values()):
            return Verdict.not_tested("not all temperatures have a result")
        gaps = [curves[t][0] - curves[t][1] for t in SWEEP]
        positives = [curves[t][0] for t in SWEEP]
        words = ", ".join(
            f"{t:g}: {p:.3f} less {p - g:.3f}"
            for t, p, g in zip(SWEEP, positives, gaps, strict=True)
        )
        holds = gaps == sorted(gaps, reverse=True) and positives == sorted(positives)
        return Verdict(holds, f"positive less nearest negative by tau, {words} ({_seeds(r)})")

    return _everywhere(results, test)


NEAR = {"accuracy": 0.010, "uniformity": 0.1}  # of a published cell


def table_is_reached(results: Results) -> Verdict:
    """Every published cell that was run on the whole set is within NEAR of its number."""
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


WITHOUT_LABELS = ("effective_rank_h", "effective_rank_z", "lidar", "found_again", "uniformity")
FOLLOWS = 0.7  # rank correlation from which a signal is said to follow the accuracy


def a_signal_follows(results: Results) -> Verdict:
    """Spearman's correlation of each signal with accuracy, over temperatures of the ordinary loss.

    The claim is about `effective_rank_h`, which `contrapose tune-temperature` goes by.
    """

    def test(r: Results) -> Verdict:
        rows = [row for row in r.where(loss=CONTRASTIVE).rows if row.get("accuracy") is not None]
        if len(rows) < 4:
            return Verdict.not_tested(f"{len(rows)} runs have a result")
        from scipy import stats

        right = [row["accuracy"] for row in rows]
        found = {
            name: float(stats.spearmanr([row[name] for row in rows], right).statistic)
            for name in WITHOUT_LABELS
            if all(row.get(name) is not None for row in rows)
        }
        words = ", ".join(f"{name} {rho:.2f}" for name, rho in found.items())
        evidence_ = f"Spearman's correlation with accuracy over {len(rows)} runs: {words}"
        if math.isnan(rho := found.get(wang_liu.CRITERION, math.nan)):
            return Verdict.not_tested(evidence_)
        return Verdict(rho >= FOLLOWS, evidence_)

    return _everywhere(results, test)


def _best(results: Results) -> float | None:
    """The temperature at which the ordinary loss has the best mean accuracy."""
    means = {t: results.mean("accuracy", loss=CONTRASTIVE, tau=t) for t in SWEEP}
    known = {t: value for t, value in means.items() if not math.isnan(value)}
    return max(known, key=lambda t: known[t]) if known else None


def _seeds(results: Results) -> str:
    n = len(results.column("seed"))
    return "1 seed" if n == 1 else f"{n} seeds"


# ---- figures -------------------------------------------------------------------------------------


def against_temperature(measure: str, title: str) -> Any:
    """A line for the ordinary and the hard loss of each protocol, and of each data set."""

    def draw(results: Results) -> Any:
        traces = []
        for data in results.column("data"):
            for protocol in (BANK, IN_BATCH):
                for loss in (CONTRASTIVE, HARD):
                    at = {"data": data, "protocol": protocol, "loss": loss}
                    points = [(t, results.mean(measure, **at, tau=t)) for t in SWEEP]
                    points = [(t, y) for t, y in points if not math.isnan(y)]
                    if points:
                        traces.append(
                            {
                                "type": "scatter",
                                "mode": "lines+markers",
                                "name": f"{loss}, {data}, {protocol}",
                                "x": [t for t, _ in points],
                                "y": [y for _, y in points],
                                "line": {"dash": "solid" if loss == CONTRASTIVE else "dot"},
                            }
                        )
        axes = {"xaxis": {"title": {"text": "temperature"}}, "yaxis": {"title": {"text": title}}}
        return {"data": traces, "layout": axes} if traces else None

    return draw


def separation(results: Results) -> Any:
    """Figure 8."""
    data = "cifar100" if "cifar100" in results.column("data") else results.column("data")[0]
    names = ["pos", *(f"n{i}" for i in range(1, 11))]
    traces = []
    for t in SWEEP:
        at = {"data": data, "protocol": BANK, "loss": CONTRASTIVE, "tau": t}
        y = results.curve("local_separation", **at)
        if y:
            traces.append(
                {"type": "scatter", "mode": "lines+markers", "name": f"{t:g}", "x": names, "y": y}
            )
    layout = {"yaxis": {"title": {"text": f"mean similarity, {data}"}}}
    return {"data": traces, "layout": layout} if traces else None


def maps(results: Results) -> Any:
    """Figure 2: one map for each temperature, side by side."""
    traces: list[dict[str, Any]] = []
    for i, t in enumerate(MAPPED):
        at = {"protocol": BANK, "loss": CONTRASTIVE, "tau": t}
        rows = [row for row in results.where(**at).rows if row.get("map_x")]
        if not rows:
            return None
        row, axis = rows[0], "" if i == 0 else "2"
        classes = sorted(set(row["map_class"]))
        for c in classes:
            here = [j for j, label in enumerate(row["map_class"]) if label == c]
            traces.append(
                {
                    "type": "scatter", "mode": "markers", "name": f"class {c}",
                    "legendgroup": str(c), "showlegend": i == 0, "marker": {"size": 4},
                    "x": [row["map_x"][j] for j in here], "y": [row["map_y"][j] for j in here],
                    "xaxis": f"x{axis}", "yaxis": f"y{axis}",
                }
            )  # fmt: skip
    bare = {"showticklabels": False, "zeroline": False}
    layout = {
        "xaxis": {"domain": [0, 0.48], "title": {"text": f"temperature {MAPPED[0]:g}"}} | bare,
        "xaxis2": {"domain": [0.52, 1], "title": {"text": f"temperature {MAPPED[1]:g}"}} | bare,
        "yaxis": bare,
        "yaxis2": {"anchor": "x2"} | bare,
    }
    return {"data": traces, "layout": layout}


def tradeoff(results: Results) -> Any:
    """Every run on the plane of uniformity and tolerance, its accuracy in words."""
    traces = []
    for protocol in (BANK, IN_BATCH):
        for loss in (CONTRASTIVE, SIMPLE, HARD, HARD_SIMPLE):
            rows = [
                row
                for row in results.where(protocol=protocol, loss=loss).rows
                if row.get("accuracy") is not None
            ]
            if rows:
                rows.sort(key=lambda row: (row["data"], row["tau"] or 0))
                traces.append(
                    {
                        "type": "scatter", "mode": "markers+text", "name": f"{loss}, {protocol}",
                        "x": [row["uniformity"] for row in rows],
                        "y": [row["tolerance"] for row in rows],
                        "text": ["" if row["tau"] is None else f"{row['tau']:g}" for row in rows],
                        "textposition": "top center",
                        "hovertext": [f"accuracy {row['accuracy']:.3f}" for row in rows],
                    }
                )  # fmt: skip
    axes = {
        "xaxis": {"title": {"text": "uniformity"}},
        "yaxis": {"title": {"text": "tolerance"}},
    }
    return {"data": traces, "layout": axes} if traces else None


EXPERIMENT = Experiment(
    name="temperature_sweep",
    title="Temperature trades uniformity against tolerance; hard negatives do not need it",
    source="S1 figures 2, 4 to 9 and table 1 (Wang & Liu, CVPR 2021)",
    jobs=jobs,
    measures={
        **wang_liu.MEASURES,
        "map_x": "t-SNE of z, first coordinate",
        "map_y": "t-SNE of z, second coordinate",
        "map_class": "class of each point of the map",
    },
    published=tuple(published()),
    claims=(
        Claim("Uniformity falls as the temperature rises.", "S1 figure 4 [S1]", uniformity_falls),
        Claim("Tolerance rises with the temperature.", "S1 figure 5 [S1]", tolerance_rises),
        Claim(
            "With hard negatives alone, uniformity hardly depends on the temperature.",
            "S1 figure 6 [S1]",
            hard_is_flat,
        ),
        Claim(
            "With hard negatives alone, embeddings are more uniform at every temperature.",
            "S1 figure 6 [S1]",
            hard_is_more_uniform,
        ),
        Claim(
            "A lower temperature separates positives further from the nearest negatives; a higher "
            "one brings positives closer.",
            "S1 figure 8 [S1]",
            cold_separates,
        ),
        Claim(
            "Accuracy of the ordinary loss is best inside the sweep of temperatures.",
            "S1 figure 9 [S1]",
            best_inside,
        ),
        Claim(
            "At a high temperature the hard loss is better than the ordinary one.",
            "S1 figure 9 [S1]",
            hard_likes_warmth,
        ),
        Claim(
            f"The simple loss is clearly worse: by more than {CLEARLY:g} of accuracy.",
            "S1 table 1 [S1]",
            simple_is_worse,
        ),
        Claim(
            "With hard negatives the simple loss recovers most of that gap.",
            "S1 table 1 [S1]",
            hard_simple_recovers,
        ),
        Claim(
            "The cells of table 1 are reached within 1.0 point of accuracy and 0.1 of uniformity.",
            "S1 table 1 [S1]; the bound is this project's",
            table_is_reached,
        ),
        Claim(
            "A signal without labels, the effective rank of h, orders the temperatures as accuracy "
            "does.",
            "this project; what `contrapose tune-temperature` rests on",
            a_signal_follows,
        ),
    ),
    figures=(
        Figure(
            "Uniformity against temperature (figures 4 and 6)",
            against_temperature("uniformity", "uniformity"),
            "Solid: all negatives; dotted: the hardest alone.",
        ),
        Figure(
            "Tolerance against temperature (figures 5 and 7)",
            against_temperature("tolerance", "tolerance"),
            "Solid: all negatives; dotted: the hardest alone.",
        ),
        Figure(
            "Accuracy against temperature (figure 9)",
            against_temperature("accuracy", "linear accuracy"),
            "An arch where the ordinary loss has a best temperature inside.",
        ),
        Figure(
            "Local separation (figure 8)",
            separation,
            "Similarity to the positive, then to the ten nearest negatives, averaged over anchors.",
        ),
        Figure(
            "Maps of embeddings (figure 2)",
            maps,
            "t-SNE of test images by class. Distances between far groups mean little.",
        ),
        Figure(
            "The plane of uniformity and tolerance",
            tradeoff,
            "Numbers are temperatures; pointing at a mark shows the accuracy.",
        ),
    ),
    costs={
        "smoke": "30 s on 2 cores",
        "cpu": "45 min on 2 cores",
        "paper": "22 runs of 200 epochs a set, on a GPU (not timed)",
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
        "S1's full list of temperatures was not found; these are all that it names.",
        "ImageNet-100: S1's classes were not found; every tenth of ImageNet's is taken.",
    ),
)
