"""A study as an experiment: its jobs by rung, and which candidates go on.

    shortcuts   what the default's views share, by the features that `contrapose shortcuts` knows
    rung 0      the default and every change to it alone, each for e epochs
    rung 1      the best third of the changes, and the default, for 2 e epochs
    rung 2      the default, the best change, and the best of each factor together, 4 e, two seeds
    labels      a linear classifier on h of the recommended run, against training from scratch

(successive halving, arXiv 1502.07943, with the default kept throughout). A fifth of the images is
held out: the first fifth judges rungs 0 and 1, and every seed of rung 2 has a fifth of its own, so
that the gain is measured on images by which nothing was chosen.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from contrapose import adapt, recipes
from contrapose.data import ImageSet, Request, evenly, hold_out
from contrapose.data.copies import as_places, named_groups
from contrapose.downstream import finetune
from contrapose.errors import UserError
from contrapose.evaluation import geometry
from contrapose.evaluation.embed import embed_views
from contrapose.experiments import measures as standard
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results
from contrapose.experiments.measures import without_labels
from contrapose.experiments.trained import Trained, trained
from contrapose.studies import findings
from contrapose.studies.candidates import Candidate, candidates
from contrapose.studies.findings import (
    COMBINED,
    DEFAULT,
    HEAD,
    LOSS,
    SHORTCUTS,
    TEMPERATURE,
    UNSHARED,
    VIEWS,
    Candidates,
    values_of,
)
from contrapose.studies.shortcuts import LEAST, PARTLY, read_from_h, shared_by_views
from contrapose.training.recipe import Recipe

NAME = "study"
SCALE = "cpu"  # what the study is called among an experiment's scales
TIMES = (1, 2, 4)  # epochs of a rung, in units of those of rung 0
SEEDS = 2  # of the last rung
FOLDS = 5  # one for rungs 0 and 1, one for each seed of the last rung
POOL = 10_000  # images at most that are trained on or held out
LOOKED_AT = 500  # images whose views are compared for shortcuts
ASKED, TURNED = 200, 1000  # held-out images that signals without labels are of, and if they decide
FEW_OF_A_CLASS = 5  # labelled images; classes with fewer judge nothing
DRAWS = 3  # of the labels


def candidates_of(channels: int, size: int) -> Candidates:
    """The changes to SimCLR's recipe that are tried, by factor."""
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
        "no flips": ("views=simclr", "views.flip=0", "views.strength=0.5", "views.blur=false"),
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
    return {
        VIEWS: views,
        TEMPERATURE: {
            f"temperature {t:g}": (f"loss.temperature={t:g}",) for t in (0.1, 0.2, 0.5, 1.0)
        },
        LOSS: {
            "DCL": ("loss=dcl", "loss.temperature=0.2"),
            "alignment and uniformity": ("loss=align_uniform",),
            "NT-Logistic": ("loss=nt_logistic", "loss.temperature=0.5"),
        },
        HEAD: {"no head": ("head=none",), "linear head": ("head=linear",)},
    }


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
    recommended: str | None = None,
    labels: Sequence[str] = (),
) -> Experiment:
    """The jobs of the rungs so far.

    images: of training, at most. base: changes of all runs; kept: candidates of rung 1; final:
    name -> changes of rung 2; recommended: one of these, of which labels are asked; labels: how
    many, as `contrapose finetune` takes them.
    """
    source = partial(fifth, data=dict(data), most=images)
    signals = partial(label_free, recipe=recipe, turned=ASKED if labelled else TURNED)
    every = {
        name: (factor, tuple(c)) for factor, each in candidates.items() for name, c in each.items()
    }
    every[DEFAULT] = (DEFAULT, ())

    def job(rung: int, name: str, factor: str, changes: Sequence[str], seed: int) -> Job:
        measures: list[Any] = [judged] if labelled else []
        measures += [signals] if rung == 0 or not labelled else []
        measures += [partial(easy_features_in_h, recipe=recipe)] if rung == 2 else []
        return Job(
            name=_name(rung, name, seed),
            call=partial(
                trained, images=partial(source, fold=seed), recipe=recipe, encoder=encoder,
                changes=(*base, *changes), epochs=epochs * TIMES[rung], batch_size=batch, seed=seed,
                device=device, measures=tuple(measures),
            ),
            facts={"rung": rung, "factor": factor, "candidate": name},
            seed=seed,
        )  # fmt: skip

    def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
        looked = Job(
            name=SHORTCUTS,
            call=partial(shared_features, data=dict(data), recipe=recipe),
            facts={"rung": -1, "factor": SHORTCUTS, "candidate": DEFAULT},
            seed=0,
        )
        found = [looked, job(0, DEFAULT, DEFAULT, (), 0)]
        found += [job(0, n, f, c, 0) for n, (f, c) in every.items() if n != DEFAULT]
        if kept:
            found += [job(1, n, *every[n], 0) for n in (DEFAULT, *kept)]
        for seed in range(1, SEEDS + 1) if final else ():
            found += [job(2, n, factor_of(n, every), c, seed) for n, c in (final or {}).items()]
        if labels and recommended is not None:
            found.append(
                Job(
                    name="labels",
                    call=partial(
                        labels_saved, run=_name(2, recommended, 1), images=partial(source, fold=1),
                        recipe=recipe, labels=tuple(labels), device=device,
                    ),
                    facts={"rung": 3, "factor": "labels", "candidate": recommended},
                    seed=1,
                )
            )  # fmt: skip
        return found

    words = {k: v for k, v in findings.MEASURES.items() if labelled or k not in findings.OF_LABELS}
    criterion, better = findings.criterion(labelled), findings.recommended_is_better
    source_of = "this study"
    return Experiment(
        name=NAME,
        title=f"Which recipe suits {Path(str(data['source'])).name or data['source']}",
        source="a study of your own images",
        jobs=jobs,
        measures=words,
        costs={SCALE: f"{len(every)} recipes, {epochs} epochs of {images:,} images at first"},
        claims=(
            Claim(
                "The recommended recipe is better than the default.",
                f"{source_of}, rung 2: images by which nothing was chosen",
                partial(better, criterion=criterion, final=dict(final or {})),
            ),
            *(
                Claim(f"{findings.OTHER[factor]} than the default's.", f"{source_of}, rung 0",
                      partial(findings.factor_matters, criterion=criterion, factor=factor))
                for factor in candidates
            ),
            *(
                (
                    Claim("Some views destroy what the labels need.", f"{source_of}, rung 0",
                          findings.views_destroy),
                )
                if labelled else ()
            ),
            Claim("The views share no shortcut that h holds.", f"{source_of}; pictures: "
                  "`contrapose shortcuts`", partial(findings.shortcut, criterion=criterion)),
            *(
                (
                    Claim("Training without labels first saves labels.",
                          f"{source_of}: a linear classifier on h against the same network from "
                          "scratch", partial(findings.saves_labels, counted=bool(labels))),
                    Claim("Signals without labels order the candidates as labels do.",
                          f"{source_of}, rung 0", findings.signals_agree),
                )
                if labelled else ()
            ),
        ),
        figures=(
            *(
                Figure(f"Rung 0: {factor}",
                       partial(findings.by_candidate, criterion=criterion, factor=factor),
                       f"{words[criterion].capitalize()}, and two standard errors each way; "
                       "the default is grey.")
                for factor in candidates
            ),
            Figure("The last rung", partial(findings.last_rung, criterion=criterion),
                   "Each point a seed with held-out images of its own; the distance of the columns "
                   "is the gain."),
            Figure("What views share", findings.shared_bits,
                   "Bits about the image that two views share by each easy feature alone."),
            *(
                (Figure("Accuracy by labels", findings.label_curves,
                        "Where a horizontal line meets both curves, their distance is what is "
                        "saved."),)
                if labels else ()
            ),
        ),
        notes=_notes(labelled, encoder, base, epochs, data.get("size")),
        lead=partial(findings.lead, criterion=criterion, final=dict(final or {})),
    )  # fmt: skip


def _name(rung: int, candidate: str, seed: int) -> str:
    words = "".join(c if c.isalnum() or c in "._-" else "-" for c in candidate)
    return f"rung{rung}-{words}-seed{seed}"


def _notes(
    labelled: bool, encoder: str | None, base: Sequence[str], epochs: int, size: int | None
) -> tuple[str, ...]:
    first, then, last = (epochs * t for t in TIMES)
    found = [
        f"Rung 0: every change to the default alone, {first} epochs; rung 1: the best third of "
        f"them, {then} epochs; rung 2, the last: the best, and the best of each kind together "
        f"where several are better, {last} epochs, two seeds.",
        f"Held-out images are fifths of the training split, of {POOL:,} images at most; a test "
        "split is not touched. Rungs 0 and 1 are judged on one fifth, the last on two others.",
        "The runs are short: what wins here may not after many more epochs.",
    ]
    if labelled:
        found.append(
            f"Labels saved: {DRAWS} draws of the labels; a linear classifier on h of the "
            "recommended run, against the same network trained from scratch on these labels "
            "(AdamW, 200 steps or ten epochs, the best of three rates). `contrapose finetune RUN` "
            "measures it with more care."
        )
    else:
        found.append(findings.WITHOUT)
    if encoder is not None:
        network = " ".join((encoder, *base)) + (f" at {size} px" if size else "")
        found.append(f"All runs have the network {network}, which is quick; others may differ.")
    return tuple(found)


def factor_of(name: str, every: Mapping[str, tuple[str, Sequence[str]]]) -> str:
    """The factor of a candidate; COMBINED for several together."""
    return every[name][0] if name in every else COMBINED


# ---- images --------------------------------------------------------------------------------------


def fifth(split: str, *, data: Mapping[str, Any], most: int, fold: int = 0) -> ImageSet:
    """The training split in two: `test` is the fifth of this number, `train` at most `most` others.

    Of POOL images, evenly spaced. Copies and groups stay together. A label of which training has
    fewer than two images is removed.
    """
    kept, held = _parted(json.dumps(dict(data), sort_keys=True), most, fold)
    return kept if split == "train" else held


@functools.lru_cache(maxsize=SEEDS + 1)  # a process runs many jobs on the same images
def _parted(data: str, most: int, fold: int) -> tuple[ImageSet, ImageSet]:
    request = Request(**json.loads(data))
    pool = request.open("train")
    if request.groups is not None:
        told = as_places(named_groups(pool, request.groups))
        pool = replace(pool, group=torch.from_numpy(told))
    pool = pool if len(pool) <= POOL else pool.subset(evenly(len(pool), POOL))
    together = request.together(pool)
    rest, held = replace(pool, group=together), pool
    for k in range(fold + 1):
        rest, held = hold_out(rest, 1 / (FOLDS - k), 0, rest.group)
    kept = pool.subset(torch.nonzero(~torch.isin(pool.index, held.index)).flatten())
    kept = kept if len(kept) <= most else kept.subset(evenly(len(kept), most))
    if kept.label is not None and held.label is not None:
        common = _frequent(kept.label, 2)
        kept, held = (replace(part, label=_of(part.label, common)) for part in (kept, held))
    return replace(kept, split="train"), replace(held, split="test")


def judged_by(images: ImageSet) -> tuple[bool, str]:
    """Whether recipes are compared by labels, and in words what they are compared by.

    They are if two classes at least have FEW_OF_A_CLASS images, and most labelled images are of
    such classes.
    """
    label = None if images.label is None else images.label[images.label >= 0]
    if label is None or not len(label):
        return False, "without labels"
    common = _frequent(label, FEW_OF_A_CLASS)
    inside = int(torch.isin(label, common).sum())
    if len(common) < 2 or 2 * inside < len(label):
        few = f"only {len(common)} classes have {FEW_OF_A_CLASS} labelled images or more"
        return False, f"without labels: {few}"
    words = f"by {len(label):,} labels of {len(torch.unique(label)):,} classes"
    if (rare := len(torch.unique(label)) - len(common)) > 0:
        words += f"; {rare} of them with fewer than {FEW_OF_A_CLASS} images say little"
    return True, words


def _frequent(label: Int[Tensor, " N"], least: int) -> Int[Tensor, " C"]:
    values, count = torch.unique(label[label >= 0], return_counts=True)
    common: Tensor = values[count >= least]
    return common


def _of(label: Int[Tensor, " N"] | None, common: Int[Tensor, " C"]) -> Int[Tensor, " N"]:
    assert label is not None
    return torch.where(torch.isin(label, common), label, -1)


# ---- what a run is asked -------------------------------------------------------------------------


def judged(of: Trained) -> dict[str, float]:
    """Accuracy of a linear classifier on h on the held-out images with a label; their number."""
    return {**standard.linear_probe(of), "n_judged": int((of.labels(of.test) >= 0).sum())}


def label_free(of: Trained, *, recipe: str, turned: int) -> dict[str, float]:
    """Signals without labels, of some of the held-out images.

    `default_retrieval` is instance retrieval by the default's views, the same for all candidates:
    by its own views a candidate with weaker ones always seems better.
    """
    policy = default_of(recipe, None, (), of.train).policy
    few = replace(of, test=of.test.subset(evenly(len(of.test), ASKED)))
    h, group = embed_views(
        of.encoder, few.test, policy, features="h", seed=of.seed, device=of.device
    )
    return {
        **without_labels(few),
        **standard.rotation_probe(of, most=turned),
        "default_retrieval": geometry.contrastive_accuracy(h, group),
    }


def shared_features(folder: Path, *, data: Mapping[str, Any], recipe: str) -> dict[str, Any]:
    """Bits about the image that the default's views share by each easy feature, and the change
    that removes those that share much; nothing for images that it cannot look at."""
    images = fifth("train", data=data, most=LOOKED_AT)
    if len(images) < LEAST or (images.shown not in (1, 3) and images.rgb is None):
        return {"shared": {}, "changes": [], "n_test": len(images)}
    chosen = default_of(recipe, None, (), images)
    every = candidates(images)
    bits, found, taken = {}, {}, []
    for c in every:
        seen, _ = shared_by_views(c, images, chosen.policy, 0)
        bits[c.name] = {"value": seen.bits.value, "low": seen.bits.low}
        found[c.name] = seen.found.value
        taken += [c] if seen.bits.low >= PARTLY else []
    return {
        "shared": bits, "found": found, "changes": list(_without(chosen, images, taken)),
        "n_test": len(images),
    }  # fmt: skip


def _without(chosen: Recipe, images: ImageSet, taken: Sequence[Candidate]) -> tuple[str, ...]:
    """The changes that add the suggestions against these features to the recipe's views; none if
    its views have arguments, which `--set` cannot say one level down."""
    settings = {k: v for c in taken for k, v in c.settings.items()}
    inner = chosen.views
    if not settings or getattr(inner, "keywords", None):
        return ()
    name = getattr(getattr(inner, "func", inner), "__name__", "")
    told = (f"views.{k}={v:g}" for k, v in settings.items())
    changes = ("views=hardened", f"views.views={name}", *told)
    try:
        adapt.changed(chosen, images, changes=changes)
    except UserError:  # views of the user's own
        return ()
    return changes


def easy_features_in_h(of: Trained, *, recipe: str) -> dict[str, Any]:
    """R^2 with which each easy feature of an image is read from h of a view of it."""
    pool = of.train.subset(evenly(len(of.train), LOOKED_AT))
    if len(pool) < LEAST or (pool.shown not in (1, 3) and pool.rgb is None):
        return {"read": {}}
    policy = default_of(recipe, None, (), of.train).policy
    found = read_from_h(candidates(pool), pool, of.encoder, policy, of.seed, of.device)
    return {"read": {name: score.value for name, score in found.items()}}


def labels_saved(
    folder: Path, *, run: str, images: Any, recipe: str, labels: Sequence[str], device: str
) -> dict[str, Any]:
    """Accuracies of a linear classifier on h and of training from scratch by number of labels."""
    found = finetune(
        folder.parent / run / "run", images, labels=labels, draws=DRAWS, protocol="brief",
        methods=("scratch", "probe"), device=device,
        recipe=recipe if recipe.endswith(".py") else None,
    )  # fmt: skip
    return {"rows": found["rows"], "saved": found["saved"], "n_test": found["n_test"]}


def budgets(images: ImageSet, most: int) -> tuple[str, ...]:
    """About a sixteenth and a quarter of the labels of each class, and all of them."""
    assert images.label is not None
    known = images.label[images.label >= 0]
    classes = len(torch.unique(known))
    each = min(len(known), round(most * len(known) / len(images))) // classes
    few = sorted({max(1, each // 16), max(1, each // 4)})
    return (*(f"{n}-per-class" for n in few if n < each), "100%")


# ---- which candidates go on ----------------------------------------------------------------------


def survivors(found: Results, criterion: str) -> tuple[str, ...]:
    """The best third of the candidates of rung 0, the best first."""
    values = values_of(found, 0, criterion)
    order = sorted((n for n in values if n != DEFAULT), key=lambda n: -values[n])
    return tuple(order[: math.ceil(len(order) / 3)])


def unshared(found: Results) -> dict[str, tuple[str, ...]]:
    """The candidate whose views do not share what the default's do; none if these share little."""
    rows = found.where(factor=SHORTCUTS).rows
    changes = tuple(rows[0]["changes"]) if rows else ()
    return {UNSHARED: changes} if changes else {}


def finalists(found: Results, criterion: str, candidates: Candidates) -> dict[str, tuple[str, ...]]:
    """name -> changes of the last rung: the default, the best change, and the best change of each
    factor together, where several are better than the default in rung 1.

    A loss and a temperature are one factor here, since each loss has a temperature of its own.
    """
    values = values_of(found, 1, criterion)
    changes = {name: tuple(c) for each in candidates.values() for name, c in each.items()}
    own = values.get(DEFAULT, -math.inf)
    chosen: dict[str, tuple[str, ...]] = {DEFAULT: ()}
    best: dict[str, str] = {}
    for factor, each in candidates.items():
        kind = LOSS if factor == TEMPERATURE else factor
        for name in (*each, best.get(kind, "")):
            above = values.get(name, -math.inf)
            if above > own and above >= values.get(best.get(kind, ""), -math.inf):
                best[kind] = name
    ranked = sorted((n for n in values if n != DEFAULT), key=lambda n: -values[n])
    for name in ranked[:1]:
        chosen[name] = changes[name]
    if len(best) > 1:
        chosen[COMBINED] = tuple(c for name in best.values() for c in changes[name])
    return chosen
