"""A study as an experiment: its jobs by rung, which candidates go on, and what they say.

    rung 0   the default and every change to it alone, each for e epochs
    rung 1   the best third of the changes, and the default, for 2 e epochs
    rung 2   the default, the best change, and the best change of each kind together, 4 e, two seeds

(successive halving, arXiv 1502.07943, with the default kept throughout).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from contrapose import adapt, recipes
from contrapose.data import ImageSet
from contrapose.evaluation.histograms import identify_source
from contrapose.experiments import measures as standard
from contrapose.experiments.charts import Chart, chart
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.measures import CRITERION, without_labels
from contrapose.experiments.noise import difference
from contrapose.experiments.trained import trained
from contrapose.studies.tuning import opened
from contrapose.training.recipe import Recipe

NAME = "study"
DEFAULT, COMBINED = "default", "combined"
VIEWS, LOSS, HEAD = "views", "loss", "head"
OTHER = {
    VIEWS: "Other views are better",
    LOSS: "Another loss or temperature is better",
    HEAD: "Another head is better",
}
ACCURACY = "linear_probe"
SCALE = "cpu"  # what the study is called among an experiment's scales
TIMES = (1, 2, 4)  # epochs of a rung, in units of those of rung 0
SEEDS = 2  # of the last rung

Sure = Literal["sure", "fairly", "cannot tell"]
Candidates = Mapping[str, Mapping[str, tuple[str, ...]]]  # factor -> name -> what is set


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The recipe that a study ends in, and what it should gain over the default."""

    recommended: str
    changes: tuple[str, ...]  # to the recipe, as --set takes them
    measure: str
    default: float
    gain: float
    low: float
    high: float  # 95 % interval of the gain
    sure: Sure
    n: int  # held-out images
    sentence: str


def candidates_of(channels: int, size: int, labelled: bool) -> Candidates:
    """The changes to SimCLR's recipe that are tried, by factor; views only where labels tell what
    they destroy."""
    views: dict[str, tuple[str, ...]] = {
        "crops and flips alone": ("views=crop_flip",),
        "weak colour": ("views=simclr", "views.strength=0.25", "views.blur=false"),
        "full colour": ("views=simclr", "views.strength=1", "views.blur=false"),
        "milder crops": (
            "views=simclr",
            "views.area=0.3,1",
            "views.strength=0.5",
            "views.blur=false",
        ),
        "RandAugment": ("views=randaugment",),
    }
    if channels == 1 and size <= 64:
        views = {
            "wider crops": ("views=digits", "views.area=0.2,1"),
            "milder crops": ("views=digits", "views.area=0.8,1"),
            "crops and flips": ("views=crop_flip", "views.area=0.5,1"),
            "brightness too": (
                "views=simclr",
                "views.flip=0",
                "views.area=0.5,1",
                "views.blur=false",
            ),
        }
    loss: dict[str, tuple[str, ...]] = {
        **{f"temperature {t:g}": (f"loss.temperature={t:g}",) for t in (0.1, 0.2, 0.5, 1.0)},
        "DCL": ("loss=dcl", "loss.temperature=0.2"),
        "alignment and uniformity": ("loss=align_uniform",),
        "NT-Logistic": ("loss=nt_logistic", "loss.temperature=0.5"),
    }
    head: dict[str, tuple[str, ...]] = {"none": ("head=none",), "linear": ("head=linear",)}
    return {VIEWS: views, LOSS: loss, HEAD: head} if labelled else {LOSS: loss, HEAD: head}


def default_of(recipe: str, encoder: str | None, base: Sequence[str], images: ImageSet) -> Recipe:
    """The recipe that a study varies, adapted to the images."""
    chosen = recipes.recipe_for(recipe, images.size, images.shown)
    return adapt.beside_constants(adapt.changed(chosen, images, encoder, changes=base), images)


def experiment(
    *,
    data: Mapping[str, Any],
    recipe: str,
    encoder: str | None,
    images: int,
    epochs: int,
    batch: int,
    labelled: bool,
    candidates: Candidates,
    device: str,
    base: Sequence[str] = (),
    kept: Sequence[str] = (),
    final: Mapping[str, Sequence[str]] | None = None,
) -> Experiment:
    """The jobs of the rungs so far. base: changes of all runs; kept: candidates of rung 1; final:
    name -> changes of rung 2."""
    source = partial(opened, data=dict(data), most=images)
    measures: list[Any] = [without_labels] + ([standard.linear_probe] if labelled else [])
    every = {
        name: (factor, tuple(c)) for factor, each in candidates.items() for name, c in each.items()
    }
    every[DEFAULT] = (DEFAULT, ())

    def job(rung: int, name: str, factor: str, changes: Sequence[str], seed: int) -> Job:
        words = "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
        return Job(
            name=f"rung{rung}-{words}-seed{seed}",
            call=partial(
                trained, images=source, recipe=recipe, encoder=encoder, changes=(*base, *changes),
                epochs=epochs * TIMES[rung], batch_size=batch, seed=seed, device=device,
                measures=tuple(measures),
            ),
            facts={"rung": rung, "factor": factor, "candidate": name},
            seed=seed,
        )  # fmt: skip

    def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
        shortcut = Job(
            name="colours",
            call=partial(colours, data=dict(data), recipe=recipe),
            facts={"rung": -1, "factor": "shortcut", "candidate": "colours"},
            seed=0,
        )
        found = [shortcut, job(0, DEFAULT, DEFAULT, (), 0)]
        found += [job(0, n, f, c, 0) for n, (f, c) in every.items() if n != DEFAULT]
        if kept:
            found += [job(1, n, *every[n], 0) for n in (DEFAULT, *kept)]
        for seed in range(1, SEEDS + 1) if final else ():
            found += [job(2, n, factor_of(n, every), c, seed) for n, c in (final or {}).items()]
        return found

    criterion = ACCURACY if labelled else CRITERION
    words = {k: v for k, v in MEASURES.items() if labelled or k != ACCURACY}
    return Experiment(
        name=NAME,
        title=f"Which recipe suits {Path(str(data['source'])).name or data['source']}",
        source="a study of your own images",
        jobs=jobs,
        measures=words,
        costs={SCALE: f"{len(every)} recipes, {epochs} epochs of {images:,} images at first"},
        claims=(
            Claim("The recommended recipe is better than the default.", "this study",
                  partial(recommended_is_better, criterion=criterion, final=dict(final or {}))),
            *(
                Claim(f"{OTHER[factor]} than the default's.", "this study, rung 0",
                      partial(factor_matters, criterion=criterion, factor=factor))
                for factor in candidates
            ),
            Claim("The views give a shortcut: the colours of a crop tell its image.",
                  "this study; `contrapose shortcuts` looks for more", colours_tell),
        ),
        figures=(
            *(
                Figure(f"Rung 0: {factor}",
                       partial(by_candidate, criterion=criterion, factor=factor),
                       f"{words[criterion]}; the default among them.")
                for factor in candidates
            ),
            Figure("The last rung", partial(last_rung, criterion=criterion),
                   "Each point a seed; the distance of the columns is the gain."),
        ),
        notes=_notes(labelled, encoder, images),
    )  # fmt: skip


MEASURES = {
    ACCURACY: "held-out accuracy of a linear classifier on h",
    CRITERION: "share of held-out views whose nearest neighbour by h shows the same image",
    "effective_rank_h": "effective rank of h (RankMe), held-out images",
    "effective_rank_z": "effective rank of z",
    "lidar": "effective rank of h between images, in units of views (LiDAR)",
    "n_test": "held-out images",
    "n_train": "images of training",
    "train_seconds": "s of training",
    "found": "share of crops whose image their histogram finds, views as they are",
    "chance": "that share by chance",
}


def _notes(labelled: bool, encoder: str | None, images: int) -> tuple[str, ...]:
    found = [
        "Measured on a fifth of the training split; a test split is not touched.",
        "The runs are short: what wins here may not after many more epochs.",
    ]
    if not labelled:
        found.append(
            "Without labels recipes are compared by how often a view finds the other view of its "
            "image, not by an accuracy. That says nothing of what views destroy, so views were not "
            "compared."
        )
    if encoder is not None:
        found.append(f"All runs have the network {encoder}, which is quick; others may differ.")
    found.append("How many labels a run saves, `contrapose finetune RUN` says.")
    return tuple(found)


def factor_of(name: str, every: Mapping[str, tuple[str, Sequence[str]]]) -> str:
    """The factor of a candidate; COMBINED for several together."""
    return every[name][0] if name in every else COMBINED


def colours(folder: Path, *, data: Mapping[str, Any], recipe: str) -> dict[str, float]:
    """How often the histogram of a view finds its image, with the views of the recipe."""
    images = opened("train", data=data, most=1000)
    chosen = default_of(recipe, None, (), images)
    found = identify_source(images, chosen.views, size=min(chosen.size, images.size), count=500)
    return {"found": found.score.value, "chance": found.chance, "n_test": found.score.n}


# ---- what the runs say ---------------------------------------------------------------------------


def survivors(found: Results, criterion: str) -> tuple[str, ...]:
    """The best third of the candidates of rung 0, the best first."""
    values = _values(found, 0, criterion)
    order = sorted((n for n in values if n != DEFAULT), key=lambda n: -values[n])
    return tuple(order[: math.ceil(len(order) / 3)])


def finalists(found: Results, criterion: str, candidates: Candidates) -> dict[str, tuple[str, ...]]:
    """name -> changes of the last rung: the default, the best change, and the best change of each
    factor together, where several are better than the default in rung 1."""
    values = _values(found, 1, criterion)
    changes = {name: tuple(c) for each in candidates.values() for name, c in each.items()}
    own = values.get(DEFAULT, -math.inf)
    chosen: dict[str, tuple[str, ...]] = {DEFAULT: ()}
    best: list[str] = []
    for each in candidates.values():
        better = [n for n in each if values.get(n, -math.inf) > own]
        if better:
            best.append(max(better, key=lambda n: values[n]))
    ranked = sorted((n for n in values if n != DEFAULT), key=lambda n: -values[n])
    for name in ranked[:1]:
        chosen[name] = changes[name]
    if len(best) > 1:
        chosen[COMBINED] = tuple(c for name in best for c in changes[name])
    return chosen


def advise(found: Results, criterion: str, final: Mapping[str, Sequence[str]]) -> Advice | None:
    """The best of the last rung, if it is above the default by a standard error at least; else the
    default. None before every run of it has a result."""
    at = {name: found.where(rung=2, candidate=name) for name in final}
    if not final or any(len(r.rows) < SEEDS for r in at.values()):
        return None
    own = at[DEFAULT].by_seed(criterion)
    n = int(min(row["n_test"] for r in at.values() for row in r.rows))
    others = {name: r.by_seed(criterion) for name, r in at.items() if name != DEFAULT}
    default = statistics.fmean(own.values())
    best, gap, error = DEFAULT, 0.0, 0.0
    for name, values in others.items():
        one, noise = difference(values, own, n)
        if best == DEFAULT or one > gap:
            best, gap, error = name, one, noise
    sure: Sure = "sure" if gap >= 2 * error else "fairly" if gap >= error else "cannot tell"
    low, high = gap - 1.96 * error, gap + 1.96 * error
    measured = f"{gap:+.3f} ({low:+.3f} to {high:+.3f}) over {default:.3f}, n = {n:,}"
    if sure == "cannot tell" or gap <= 0:
        return Advice(
            recommended=DEFAULT, changes=(), measure=criterion, default=default, gain=0.0, low=0.0,
            high=0.0, sure="cannot tell", n=n,
            sentence=f"keep the default: the best other, {best}, gains {measured}, within noise",
        )  # fmt: skip
    return Advice(
        recommended=best, changes=tuple(final[best]), measure=criterion, default=default, gain=gap,
        low=low, high=high, sure=sure, n=n, sentence=f"{best}: gains {measured}",
    )  # fmt: skip


def recommended_is_better(
    found: Results, *, criterion: str, final: Mapping[str, Sequence[str]]
) -> Verdict:
    advice = advise(found, criterion, final)
    if advice is None:
        return Verdict.not_tested("the last rung has not finished")
    if advice.recommended == DEFAULT:
        return Verdict(None, advice.sentence)
    words = f"{advice.sentence}; {' '.join(f'--set {c}' for c in advice.changes)}; recipe.py"
    return Verdict(True if advice.sure == "sure" else None, words)


def factor_matters(found: Results, *, criterion: str, factor: str) -> Verdict:
    """The best candidate of the factor in rung 0 against the default."""
    values = _values(found, 0, criterion)
    at = {n: v for n, v in values.items() if n in _of_factor(found, factor)}
    if DEFAULT not in values or not at:
        return Verdict.not_tested("rung 0 has not finished")
    n = min(row["n_test"] for row in found.where(rung=0).rows)
    best = max(at, key=lambda name: at[name])
    gap, error = difference({0: at[best]}, {0: values[DEFAULT]}, n)
    worst = min(at, key=lambda name: at[name])
    words = f"{best} {at[best]:.3f}, default {values[DEFAULT]:.3f}: {gap:+.3f} ({error:.3f}), n = "
    words += f"{n:,}; the worst, {worst}, {at[worst]:.3f}"
    if abs(gap) < 2 * error:
        return Verdict(None, f"undecided, within the noise: {words}")
    return Verdict(gap > 0, words)


def colours_tell(found: Results) -> Verdict:
    rows = found.where(factor="shortcut").rows
    if not rows:
        return Verdict.not_tested("not looked at yet")
    value, chance, n = rows[0]["found"], rows[0]["chance"], rows[0]["n_test"]
    words = f"a histogram finds {value:.1%} of the images, chance {chance:.1%}, n = {n:,}"
    return Verdict(value >= 10 * chance, words)


def by_candidate(found: Results, *, criterion: str, factor: str) -> Chart:
    values = _values(found, 0, criterion)
    names = [n for n in (*_of_factor(found, factor), DEFAULT) if n in values]
    names.sort(key=lambda n: values[n])
    if len(names) < 2:
        return None
    trace = {
        "type": "bar", "orientation": "h", "x": [values[n] for n in names], "y": names,
        "text": [f"{values[n]:.3f}" for n in names],
        "marker": {"color": ["var(--muted)" if n == DEFAULT else "var(--r0)" for n in names]},
    }  # fmt: skip
    low, high = values[names[0]], values[names[-1]]
    room = 0.25 * (high - low) + 1e-3
    axis = {"range": [max(0.0, low - 2 * room), high + room]}
    return chart([trace], MEASURES[criterion], "", xaxis=axis)


def last_rung(found: Results, *, criterion: str) -> Chart:
    rows = [row for row in found.where(rung=2).rows if row.get(criterion) is not None]
    trace = {
        "type": "scatter", "mode": "markers", "x": [row["candidate"] for row in rows],
        "y": [row[criterion] for row in rows], "marker": {"size": 10}, "name": "seeds",
    }  # fmt: skip
    return chart([trace] if rows else [], None, MEASURES[criterion])


def _of_factor(found: Results, factor: str) -> list[str]:
    every = [*found.rows, *found.missing]
    return list(
        dict.fromkeys(r["candidate"] for r in every if r["factor"] == factor and r["rung"] == 0)
    )


def _values(found: Results, rung: int, criterion: str) -> dict[str, float]:
    """{candidate: criterion} of the finished runs of a rung."""
    rows = found.where(rung=rung).rows
    return {r["candidate"]: float(r[criterion]) for r in rows if r.get(criterion) is not None}
