"""A search for the temperature on your own images, by short runs.

    contrapose tune-temperature photos --encoder small_conv

Each temperature of a grid is trained with a few seeds and measured on held-out images. With labels,
runs are compared by the accuracy of a linear classifier on h. Without labels, they are compared by
instance retrieval: how often the nearest neighbour of a view, by h, is another view of the same
image. This is not an accuracy (measured on z after long training it misleads at low temperatures:
SimCLR, table 5); `contrapose reproduce temperature_sweep` tests how well it and other signals order
temperatures. The search is an experiment, written into its folder as tune_temperature.py: it
continues after a kill, and can be run again from that file.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from contrapose import adapt, experiments, recipes
from contrapose.data import HELD_OUT, ImageSet, NoSuchSplit, Request, evenly
from contrapose.data.copies import as_places, named_groups
from contrapose.errors import UserError
from contrapose.experiments import measures as standard
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.measures import CRITERION, uniformity, without_labels
from contrapose.experiments.running import engine
from contrapose.experiments.running.collect import collect, results
from contrapose.experiments.running.task import job_folders
from contrapose.experiments.trained import Trained, trained
from contrapose.files import (
    RUNS,
    as_file_name,
    as_json_bytes,
    check_writable,
    clear,
    replace_file,
    said_of,
)
from contrapose.report import write_experiment
from contrapose.training import loop

GRID = (0.05, 0.1, 0.2, 0.5, 1.0)
SCALE = "cpu"  # what this search is called among an experiment's scales
ACCURACY = "linear_probe"
APART = 2.0  # standard errors beyond which two temperatures differ significantly
LEAST_OF_A_CLASS = 5  # labelled images; with fewer a class cannot be held out and judged
NAME = "tune_temperature"

Sure = Literal["sure", "fairly", "cannot tell"]


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The recommended temperature, the criterion, and how certain it is."""

    temperature: float
    sure: Sure
    criterion: str  # the measure the runs were compared by
    close: tuple[float, ...]  # temperatures that are not significantly worse, itself included
    sentences: tuple[str, ...]


def experiment(
    *,
    data: Mapping[str, Any],
    recipe: str,
    encoder: str | None,
    temperatures: Sequence[float],
    epochs: float,
    images: int,
    labelled: bool,
    changes: Sequence[str],
    device: str,
) -> Experiment:
    """The search as an experiment: one job for each temperature and seed.

    data: fields of a `Request`. images: at most this many of the training split, of which a fifth
    is held out; a test split is not used.
    """
    source = partial(opened, data=dict(data), most=images)
    measures = [without_labels, uniformity, effective_negatives]
    measures += [standard.linear_probe, standard.knn, standard.tolerance] if labelled else []

    def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
        return [
            Job(
                name=f"temperature{t:g}-seed{seed}",
                call=partial(
                    trained, images=source, recipe=recipe, encoder=encoder, temperature=t,
                    epochs=epochs, changes=tuple(changes), seed=seed, device=device,
                    measures=tuple(measures),
                ),
                facts={"tau": t},
                seed=seed,
            )
            for seed in seeds  # all temperatures first: a stopped search has seen the whole grid
            for t in temperatures
        ]  # fmt: skip

    words = dict(MEASURES)
    if not labelled:
        words = {k: v for k, v in words.items() if k not in WITH_LABELS}
    return Experiment(
        name=NAME,
        title=f"Which temperature suits {Path(data['source']).name or data['source']}",
        source="a search on your own images",
        jobs=jobs,
        measures=words,
        costs={SCALE: f"{len(temperatures)} temperatures, {epochs:g} epochs of {images:,} images"},
        claims=(
            Claim(
                "One temperature is significantly better than all others.",
                "this search",
                partial(one_temperature_is_best, labelled=labelled),
            ),
        ),
        figures=tuple(
            Figure(f"{words[name][0].upper()}{words[name][1:]}", against_temperature(name), about)
            for name, about in ABOUT.items()
            if name in words
        ),
        notes=(
            "Short runs: over more epochs another temperature may win, as in SimCLR's figure B.8.",
            "Measured on images held out of the training split; a test split is not touched.",
        ),
    )


WITH_LABELS = (ACCURACY, "knn", "tolerance")
MEASURES = {
    CRITERION: "share of held-out views whose nearest neighbour by h shows the same image",
    "effective_rank_h": "effective rank of h (RankMe), held-out images",
    ACCURACY: "held-out accuracy of a linear classifier on h",
    "knn": "held-out accuracy of a vote of neighbours by h",
    "uniformity": "L_uniform of z, t = 2; low is even",
    "minus_uniformity": "-L_uniform of z",
    "tolerance": "mean similarity of z of two images of one class",
    "effective_negatives": "negatives that share the repulsion at the end of training",
    "effective_rank_z": "effective rank of z",
    "lidar": "effective rank of h between images, in units of views (LiDAR)",
}
ABOUT = {
    CRITERION: "What stands in for an accuracy where there are no labels.",
    "effective_rank_h": "How many directions h uses.",
    ACCURACY: "What counts, where there are labels.",
    "minus_uniformity": "-uniformity: falls as the temperature rises, on most images.",
    "effective_negatives": "The temperature as a number: how many negatives share the repulsion.",
}


def opened(split: str, *, data: Mapping[str, Any], most: int) -> ImageSet:
    """At most `most` images of the training split; NoSuchSplit for others, so a fifth is held
    out."""
    if split != "train":
        raise NoSuchSplit("a search holds out images of the training split")
    request = Request(**data)
    found = request.open("train")
    if request.groups is not None:
        told = as_places(named_groups(found, request.groups))
        found = replace(found, group=torch.from_numpy(told))
    return found if len(found) <= most else found.subset(evenly(len(found), most))


def effective_negatives(of: Trained) -> dict[str, float]:
    """The effective number of negatives in the last measured batch."""
    rows = [] if of.run is None else of.run.metrics()
    found = [row["effective_negatives"] for row in rows if row.get("effective_negatives")]
    return {"effective_negatives": found[-1]} if found else {}


def prepared(
    data: Any,
    *,
    out: Path | str | None = None,
    recipe: str = "simclr",
    encoder: str | None = None,
    temperatures: Sequence[float] = GRID,
    epochs: float = 20,
    images: int = 5000,
    changes: Sequence[str] = (),
    device: str = "auto",
    **how: Any,
) -> Path:
    """Check the request on the images and write the file of the search into `out`; returns it.

    data: a name, a path or a `Request`; how: fields of that request. out: by default runs/tune- and
    the name of the images.
    Raises UserError for fewer than two temperatures, for too few images for a batch and its
    negatives, for a recipe without a temperature, and for a folder with another search.
    """
    grid = sorted(set(temperatures))
    if len(grid) < 2 or not all(0 < t < math.inf for t in grid):
        raise UserError(
            f"--temperatures {','.join(f'{t:g}' for t in temperatures)}: give two positive numbers "
            "at least, such as 0.05,0.1,0.2,0.5"
        )
    if images < 1:
        raise UserError(f"--images {images}: use a positive number")
    asked = Request.of(data, **how)
    folder = (
        RUNS / f"tune-{as_file_name(Path(str(asked.source)).stem)}" if out is None else Path(out)
    )
    check_writable(folder)
    source = asked.open("train")
    source = source if len(source) <= images else source.subset(evenly(len(source), images))
    kept, _ = asked.divided(source, HELD_OUT, seed=0)
    chosen = recipes.recipe_for(recipe, source.size, source.channels)
    for t in (grid[0], grid[-1]):
        loop.check(adapt.changed(chosen, kept, encoder, epochs, None, t, 0, changes), kept)
    request = {
        "data": asked.asked(),
        "recipe": str(Path(recipe).resolve()) if recipe.endswith(".py") else recipe,
        "encoder": encoder,
        "temperatures": tuple(grid),
        "epochs": epochs,
        "images": images,
        "labelled": can_be_judged(source),
        "changes": tuple(changes),
        "device": device,
    }
    file = folder / f"{NAME}.py"
    text = _file(request)
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise UserError(
            f"--out {folder} holds another search; name another folder, or go on with that one: "
            f"contrapose reproduce {file} --out {folder}"
        )
    with said_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
    clear(folder)
    replace_file(file, text.encode())
    return file


def can_be_judged(images: ImageSet) -> bool:
    """True if runs can be compared by labels: two or more classes, each with a few images."""
    if images.label is None:
        return False
    count = torch.bincount(images.label[images.label >= 0])
    count = count[count > 0]
    return len(count) > 1 and int(count.min()) >= LEAST_OF_A_CLASS


def _file(request: dict[str, Any]) -> str:
    lines = "".join(f"    {name}={value!r},\n" for name, value in request.items())
    return (
        '"""Which temperature suits these images: a search by `contrapose tune-temperature`.\n\n'
        f'contrapose reproduce {NAME}.py\n"""\n\n'
        "from contrapose.studies.tuning import experiment\n\n"
        f"EXPERIMENT = experiment(\n{lines})\n"
    )


# ---- what the runs say ---------------------------------------------------------------------------


def recommend(results: Results, *, labelled: bool) -> Recommendation | None:
    """The temperature with the best mean, and those that are not significantly worse.

    The noise is the standard deviation over seeds, pooled over temperatures. Two means of S seeds
    differ significantly if they differ by APART standard errors, noise sqrt(2 / S). None before
    there is a result.
    """
    criterion = ACCURACY if labelled else CRITERION
    found = {t: results.values(criterion, tau=t) for t in results.column("tau")}
    found = {t: values for t, values in found.items() if values}
    if len(found) < 2:
        return None
    means = {t: statistics.fmean(values) for t, values in found.items()}
    grid, best = sorted(means), max(means, key=lambda t: means[t])
    freedom = sum(len(values) - 1 for values in found.values())
    fewest = min(map(len, found.values()))
    words = [f"{MEASURES[criterion]}: " + ", ".join(f"{t:g}: {means[t]:.4g}" for t in grid)]
    if not freedom:
        close: tuple[float, ...] = tuple(grid)
        words.append(
            "One seed shows no noise, so no difference is significant; use --seeds 2 or more."
        )
    else:
        squares = sum(statistics.variance(v) * (len(v) - 1) for v in found.values() if len(v) > 1)
        error = math.sqrt(squares / freedom) * math.sqrt(2 / fewest)
        close = tuple(t for t in grid if means[best] - means[t] <= APART * error)
        words.append(
            f"Differences below {APART * error:.2g} are within the noise of {fewest} seeds."
            if error
            else f"All {fewest} seeds gave the same numbers."
        )
    sure: Sure = (
        "sure" if len(close) == 1 else "cannot tell" if len(close) == len(grid) else "fairly"
    )
    if 1 < len(close) < len(grid):
        words.append(f"Not significantly worse: {', '.join(f'{t:g}' for t in close if t != best)}.")
    if best in (grid[0], grid[-1]):
        most, more = ("lowest", "lower") if best == grid[0] else ("highest", "higher")
        sure = "fairly" if sure == "sure" else sure
        words.append(f"It is the {most} tried: a {more} one may be better still.")
    if not labelled:
        words.append(
            "Without labels this compares how often an image is found again, not an accuracy; what "
            "that is worth, `contrapose reproduce temperature_sweep` measures."
        )
    elif len(grid) > 3:
        from scipy import stats

        rank = [results.mean(CRITERION, tau=t) for t in grid]
        rho = stats.spearmanr(rank, [means[t] for t in grid]).statistic
        words.append(f"The signal without labels correlates with it: Spearman's {rho:.2f}.")
    words.append("These were short runs: over more epochs another temperature may win.")
    return Recommendation(
        temperature=best, sure=sure, criterion=criterion, close=close, sentences=tuple(words)
    )


def one_temperature_is_best(results: Results, *, labelled: bool) -> Verdict:
    found = recommend(results, labelled=labelled)
    if found is None or results.missing:
        return Verdict.not_tested(f"{len(results.missing)} runs are missing")
    return Verdict(len(found.close) == 1, " ".join(found.sentences))


def search(
    file: Path,
    *,
    seeds: int = 2,
    jobs: int = 1,
    begin: Any = lambda experiment, task, at: None,
    watch: Any = lambda at: None,
    command: str | None = None,
) -> tuple[Recommendation | None, list[dict[str, Any]], dict[str, str], Path]:
    """Run the missing jobs of the search that `prepared` wrote, also after a kill.

    Returns the recommendation, the table it is based on, errors of jobs by name, and the report.
    """
    task, _ = engine.reproduce(
        str(file), scale=SCALE, seeds=seeds, jobs=jobs, out=file.parent, begin=begin, watch=watch
    )
    page = write_experiment(collect(task, command).parent)
    found = results(experiments.experiment(str(file)), job_folders(task))
    labelled = any(row.get(ACCURACY) is not None for row in found.rows)
    advice = write_recommendation(file.parent, found, labelled=labelled)
    return advice, table(found), engine.errors(task), page


def write_recommendation(
    folder: Path, results: Results, *, labelled: bool
) -> Recommendation | None:
    """Write tuning.json into the folder: the recommendation and the means it is based on."""
    found = recommend(results, labelled=labelled)
    if found is not None:
        replace_file(
            folder / "tuning.json", as_json_bytes(asdict(found) | {"rows": table(results)})
        )
    return found


def table(results: Results) -> list[dict[str, Any]]:
    """One row for each temperature: the mean of every measure over seeds, and their number."""
    rows = []
    for t in results.column("tau"):
        at = results.where(tau=t)
        row: dict[str, Any] = {"temperature": t, "seeds": len(at.rows)}
        for name in MEASURES:
            if values := [r[name] for r in at.rows if r.get(name) is not None]:
                row[name] = statistics.fmean(values)
        rows.append(row)
    return rows


def against_temperature(measure: str) -> Any:
    """A chart of a measure over the temperature, one point for each seed."""

    def draw(results: Results) -> Any:
        rows = [row for row in results.rows if row.get(measure) is not None]
        if not rows:
            return None
        means = [(t, results.mean(measure, tau=t)) for t in results.column("tau")]
        means = [(t, y) for t, y in means if not math.isnan(y)]
        traces = [
            {
                "type": "scatter", "mode": "lines", "name": "mean",
                "x": [t for t, _ in means], "y": [y for _, y in means],
            },
            {
                "type": "scatter", "mode": "markers", "name": "seeds",
                "x": [row["tau"] for row in rows], "y": [row[measure] for row in rows],
            },
        ]  # fmt: skip
        axes = {"xaxis": {"type": "log", "title": {"text": "temperature"}}}
        return {"data": traces, "layout": axes}

    return draw
