"""What the experiments of this lab share: methods as recipes, jobs, measures, and verdicts.

Every method has the same network, views, optimiser, batch and epochs; what differs is what the
step optimises. Accuracy is that of the method's own second stage: the classifier that was trained
(cross-entropy and its kin), or a linear probe of h, solved, in place of the paper's stage of 90 or
100 epochs on a frozen encoder (contrast). Both are measured where a run has both.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from contrapose import api, augment, losses, recipes
from contrapose.data import few_labels
from contrapose.encoders import mlp, none, small_conv
from contrapose.evaluation import probes
from contrapose.evaluation.calibration import calibration
from contrapose.evaluation.corruptions import BENCHMARK, CORRUPTIONS
from contrapose.evaluation.embed import embed
from contrapose.evaluation.robustness import robustness
from contrapose.experiments.charts import Chart, chart
from contrapose.experiments.charts import bars as bars
from contrapose.experiments.form import Job, Results
from contrapose.experiments.noise import above as above
from contrapose.experiments.trained import ADAMW, Measure, Scale, Trained, trained
from contrapose.experiments.trained import TAU as TAU
from contrapose.training.recipe import Recipe, supervised

Stage = Callable[[Recipe], Recipe]  # of a second stage: `training.stages`
THEN = "then "  # before the name of a second stage: its accuracy as a measure
CROSS_ENTROPY, SUPCON, SUPCON_IN, SIMCLR = "cross-entropy", "SupCon", "SupCon in", "SimCLR"
MIXUP, CUTMIX, MARGIN, JOINT = "MixUp", "CutMix", "max-margin", "joint"
PLAIN_VIEWS = "cross-entropy, crop and flip"

MEASURES = {
    "accuracy": "test accuracy of the method's own second stage",
    "ece": "expected calibration error of the same, 15 bins",
    "probe": "test accuracy of a linear probe of h",
    "probe_ece": "expected calibration error of that probe, 15 bins",
    "classifier": "test accuracy of the classifier that was trained, where there is one",
    "classifier_ece": "expected calibration error of that classifier, 15 bins",
    "parameters": "weights of backbone, head and classifier",
    "n_train": "training images",
    "n_test": "test images",
    "train_seconds": "s of training",
    "measure_seconds": "s of measuring",
}

SCALES = {
    "smoke": Scale(
        data="digits", images=256, tested=128, width=16, epochs=2,
        changes=ADAMW | {"batch_size": 64, "lr": 2e-3, "warmup": 0.2},
    ),
    # of rates from 5e-4 to 3.2e-2 and temperatures from 0.1 to 1, for this network, seed 0: 8e-3 is
    # the best for every contrastive loss and within 0.003 of the best for cross-entropy
    "cpu": Scale(
        data="cifar10", size=16, images=5000, tested=10_000, width=64, epochs=20,
        taus={SIMCLR: 0.2, SUPCON: 0.5, SUPCON_IN: 0.5, JOINT: 0.5},
        changes=ADAMW | {"batch_size": 128, "lr": 8e-3, "warmup": 2.0},
    ),
    "paper": Scale(data="cifar10", epochs=1000, changes={"batch_size": 1024, "lr": 0.5}),
}  # fmt: skip


def views_of(channels: int) -> Callable[..., Any]:
    """SupCon's policy on CIFAR-10 [C]; crops alone for glyphs, whose colour says nothing."""
    return partial(augment.digits) if channels == 1 else partial(augment.supcon_cifar)


def recipe(
    size: int,
    channels: int,
    *,
    scale: str,
    method: str,
    temperature: float | None = None,
    max_positives: int | None = None,
    label_smoothing: float = 0.0,
    alpha: float = 1.0,
    blend: float = 30.0,
    views: Callable[..., Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of a method, scaled down as SCALES says.

    temperature: of SupCon and SimCLR, in place of the scale's. max_positives: of an anchor of
    SupCon. label_smoothing: of cross-entropy. alpha: of MixUp and CutMix. blend: of the
    large-margin softmax; with 1 this network does not train. views: in place of `views_of`.
    changes: other fields of the recipe, which outrank those of the scale.
    """
    at = SCALES[scale]
    temperature = at.tau(method) if temperature is None else temperature
    found = recipes.recipe_for("simclr", size, channels)
    if at.width is not None:
        net = partial(small_conv, channels=channels, width=at.width)
        found = dataclasses.replace(found, backbone=net, head=partial(mlp, dim=64))
    found = dataclasses.replace(
        found,
        views=views or views_of(channels),
        loss=partial(losses.nt_xent, temperature=temperature),
        epochs=at.epochs,
        **{**at.changes, **(changes or {})},
    )
    if method == SIMCLR:
        return found
    supcon = partial(losses.supcon, temperature=temperature)
    if max_positives is not None:
        supcon = partial(losses.supcon, temperature=temperature, max_positives=max_positives)
    contrast = dataclasses.replace(found, name="supcon", loss=supcon, positives="class")
    by_labels = supervised(found)
    by_labels = dataclasses.replace(
        by_labels, loss=partial(losses.cross_entropy, label_smoothing=label_smoothing)
    )
    made = {
        SUPCON: contrast,
        SUPCON_IN: dataclasses.replace(
            contrast, loss=partial(losses.supcon_in, temperature=temperature)
        ),
        JOINT: dataclasses.replace(
            contrast, classifier=partial(losses.cross_entropy), classifier_weight=1.0
        ),
        CROSS_ENTROPY: by_labels,
        PLAIN_VIEWS: dataclasses.replace(
            by_labels,
            views=by_labels.views if channels == 1 else partial(augment.crop_flip, area=(0.2, 1)),
        ),
        MIXUP: dataclasses.replace(by_labels, mixing=partial(augment.mixup, alpha=alpha)),
        CUTMIX: dataclasses.replace(by_labels, mixing=partial(augment.cutmix, alpha=alpha, p=0.5)),
        MARGIN: dataclasses.replace(
            by_labels, loss=partial(losses.large_margin_softmax, m=2, blend=blend)
        ),
    }
    return made[method]


def job(
    *,
    scale: str,
    seed: int,
    name: str,
    facts: Mapping[str, Any],
    method: str,
    measures: Sequence[Measure] = (),
    labels: int | None = None,
    subset: int | None = None,
    epochs: float = 1.0,
    batch_size: int | None = None,
    tuned: bool = False,
    **options: Any,
) -> Job:
    """One run with `classified` and these measures; `options` go to `recipe`.

    labels: so many training images have one, for training and for the probe. subset: so many
    images in place of the scale's. epochs: a multiple of the scale's. tuned: as for `classified`.
    """
    at = SCALES[scale]
    call = partial(
        trained,
        images=at.data,
        size=at.size,
        subset=at.images if subset is None else subset,
        test_subset=at.tested,
        recipe=partial(recipe, scale=scale, method=method, **options),
        epochs=at.epochs * epochs,
        batch_size=batch_size,
        seed=seed,
        labels=labels,
        measures=(partial(classified, labels=labels, tuned=tuned), *measures),
    )
    words = name.replace(" ", "-").replace(",", "")
    return Job(name=f"{words}-seed{seed}", call=call, facts={**facts, "method": method}, seed=seed)


def classified(of: Trained, *, labels: int | None = None, tuned: bool = False) -> dict[str, float]:
    """MEASURES of a probe of h, and of the classifier where training made one.

    labels: the probe knows as many, those that training knew. tuned: the images of `shares` that
    tune give `tuning` alone, by which settings are chosen, and the others all the rest.
    """
    known = of.train if labels is None else few_labels(of.train, labels)
    label = of.labels(known)
    kept = label >= 0
    single = int(torch.unique(label[kept], return_counts=True)[1].min()) < 10
    l2 = 1.0 if single else probes.DECADES  # too few of a class to hold some out
    probe = probes.linear_probe(
        of.of_train.h.to(label.device)[kept], label[kept], l2=l2, seed=of.seed
    )
    h, wanted = of.of_test.h.to(of.device), of.labels(of.test)
    logits = {"probe": probe.scores(h)}
    if of.encoder.classifier is not None:
        with torch.no_grad():
            logits["classifier"] = of.encoder.logits(h)
    own = [*logits][-1]
    tuning, judged = shares(of) if tuned else (None, torch.arange(len(wanted)))
    found: dict[str, float] = {}
    for name, scores in logits.items():
        found |= _judged(name, scores[judged], wanted[judged])
    found |= {"accuracy": found[own], "ece": found[f"{own}_ece"]}
    if tuning is not None:
        right = logits[own][tuning].argmax(dim=1) == wanted[tuning]
        found |= {"tuning": float(right.double().mean()), "n_judged": float(len(judged))}
    return found | {"parameters": float(sum(p.numel() for p in of.encoder.parameters()))}


def shares(of: Trained) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows of test images by which settings are chosen, every fifth; rows of the others)."""
    row = torch.arange(len(of.test))
    return row[row % 5 == 0], row[row % 5 != 0]


def classifier_of(of: Trained) -> Callable[[torch.Tensor], torch.Tensor]:
    """Images -> logits: by the classifier of the encoder, or by a probe of h where it has none."""
    if of.encoder.classifier is not None:
        return lambda image: of.encoder.logits(of.encoder(image)[0])
    probe = probes.linear_probe(of.of_train.h.to(of.device), of.labels(of.train), seed=of.seed)
    return lambda image: probe.scores(of.encoder(image)[0])


def fitting(channels: int) -> list[str]:
    """The corruptions of ImageNet-C that images of so many channels allow."""
    return [n for n in BENCHMARK if channels in (CORRUPTIONS[n].channels or (channels,))]


def corrupted(of: Trained, *, images: int) -> dict[str, Any]:
    """Accuracy and calibration under the 15 corruptions of ImageNet-C at five severities, of the
    classifier or of a probe of h, on as many test images that tune nothing; the constants are those
    for 32 px."""
    few = of.test.subset(shares(of)[1][:images])
    seen = robustness(
        classifier_of(of), few, size=of.recipe.size, names=fitting(few.channels), seed=of.seed,
        device=of.device,
    )  # fmt: skip
    by: dict[int, list[Any]] = {}
    for each in seen.corrupted:
        by.setdefault(each.severity, []).append(each.before)
    rows = {s: (_mean([b.accuracy for b in v]), _mean([b.ece for b in v])) for s, v in by.items()}
    return {
        "corrupted_accuracy": _mean([a for a, _ in rows.values()]),
        "corrupted_ece": _mean([e for _, e in rows.values()]),
        "accuracy_by_severity": [a for _, (a, _) in sorted(rows.items())],
        "ece_by_severity": [e for _, (_, e) in sorted(rows.items())],
    }


def _judged(name: str, logits: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
    found = calibration(logits.float().cpu(), label.cpu(), resamples=100)
    return {name: found.accuracy, f"{name}_ece": found.ece}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def second_stages(of: Trained, *, stages: Mapping[str, Stage]) -> dict[str, Any]:
    """Test accuracy of the classifier of each second stage on the same frozen encoder, as "then
    NAME". Each stage is a run beside that of the encoder, so that it goes on after a kill."""
    assert of.run is not None, "an encoder that was trained"
    found = {}
    for name, stage in stages.items():
        last = stage(of.recipe)
        last = dataclasses.replace(
            last, head=partial(none), freeze=("backbone",), start=str(of.run.path),
            batch_size=min(last.batch_size, len(of.train)),
        )  # fmt: skip
        place = of.run.path.parent / f"second-{name.replace(' ', '-')}"
        encoder = api.encoder_in(place, last, of.train, of.device).to(of.device)
        h = embed(encoder, of.test, size=last.size, device=of.device).h
        with torch.no_grad():
            named = encoder.logits(h.to(of.device)).argmax(dim=1)
        found[f"{THEN}{name}"] = float((named == of.labels(of.test)).double().mean())
    return found


def spread_out(results: Results, along: str) -> Results:
    """One row for each second stage of each run: its name is the fact `along`, its accuracy
    `accuracy`."""
    rows = [
        {**row, along: name.removeprefix(THEN), "accuracy": value}
        for row in results.rows
        for name, value in row.items()
        if name.startswith(THEN)
    ]
    return Results(rows=rows, missing=results.missing)


def heat(results: Results, first: str, second: str, title: str) -> Chart:
    """The accuracy of each pair of two facts, as a picture with its numbers."""
    rows, columns = (results.column(name) for name in (first, second)) if results.rows else ((), ())
    z = [[results.mean("accuracy", **{first: r, second: c}) for c in columns] for r in rows]
    shown = [[None if v != v else round(v, 4) for v in line_] for line_ in z]
    trace = {
        "type": "heatmap", "x": [*map(str, columns)], "y": [*map(str, rows)], "z": shown,
        "texttemplate": "%{z:.3f}", "showscale": False,
    }  # fmt: skip
    return chart([trace] if rows else [], f"second stage: {title}", f"first stage: {title}")
