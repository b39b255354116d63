"""The protocol of S0 (Chen, Luo & Li, NeurIPS 2021) at three scales, for competing features.

`job` makes one run from its images, the method (SimCLR, labels, no training) and what varies. Every
run has the same measures: a linear probe of h for each feature of the images, and how much of the
picture a ridge regression reads. `suppression_of` computes scores from runs.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from contrapose import adapt, augment, losses, recipes
from contrapose.data import ImageSet
from contrapose.data.composed import features_of
from contrapose.encoders import Stem, mlp, resnet50, small_conv
from contrapose.evaluation import probes
from contrapose.evaluation.embed import embed
from contrapose.evaluation.features import read_features
from contrapose.evaluation.suppression import (
    Suppression,
    explained,
    majority_accuracy,
    pictures,
    standardised,
)
from contrapose.experiments import evidence
from contrapose.experiments.charts import Chart, Trace, chart, line
from contrapose.experiments.evidence import all_of
from contrapose.experiments.form import Job, Results, Verdict
from contrapose.experiments.trained import (
    ImagesOrName,
    Measure,
    Trained,
    both_splits,
    trained,
)
from contrapose.training import optim
from contrapose.training.recipe import Recipe, supervised

SIMCLR, SUPERVISED, UNTRAINED = "SimCLR", "supervised", "untrained"
NT_XENT, DECOUPLED = "NT-Xent", "decoupled NT-Xent"
SWD_SPHERE, SWD_NORMAL, SWD_CUBE = "SWD hypersphere", "SWD normal", "SWD hypercube"
TAU = 0.2  # S0, both data sets [C, issue 166]
DIM = 64  # of z on small images; 128 on ImageNet [C, issue 166]

READABLE = {
    "image": "test accuracy of a linear probe of h for the class of the image",
    "digit": "test accuracy of a linear probe of h for the class of the digit",
    "pixels": "R2 of ridge regression from h to the picture at 8 px",
    "network": "R2 of ridge regression from h to the h of another untrained network",
    "chance": "accuracy of naming the most common class",
    "n_test": "test images",
    "train_seconds": "training time, s",
}
OTHER = 1000  # added to the seed of the other untrained network
FEW = 10  # rows of its rarest class below which a probe has its l2 set, not chosen


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The settings in which a scale differs from the protocol of the paper."""

    images: int | None = None  # training images; None: all
    tested: int | None = None  # test images; None: all
    width: int | None = None  # of small_conv; None: ResNet-50
    epochs: float = 100
    changes: Mapping[str, Any] = field(default_factory=dict)  # fields of the recipe


SCALES = {
    "smoke": Scale(images=256, tested=128, width=16, epochs=2, changes={"batch_size": 64}),
    "cpu": Scale(images=5000, tested=2000, width=64, epochs=20, changes={"batch_size": 128}),
    "paper": Scale(epochs=400),
}


def recipe(
    size: int,
    channels: int,
    *,
    scale: str,
    loss: Callable[..., Any] | None = None,
    layers: int = 2,
    views: Callable[..., Any] | None = None,
    keys: Callable[..., Any] | None = None,
    batches: Callable[..., Any] | None = None,
    rate: float | None = None,
    taught: bool = False,
    positives: Literal["image", "class"] = "image",
) -> Recipe:
    """S0's recipe, scaled down by SCALES: NT-Xent at temperature 0.2, or this loss.

    layers: of the projection head. views: a policy in place of SimCLR's. keys: a source of keys for
    losses that need one. batches: which images share a batch. rate: of the paper's optimiser LARS
    whatever the batch, at the small scales too, which otherwise take AdamW. taught: by labels, in
    place of the loss (`supervised`). positives: of what an image is one.
    """
    at = SCALES[scale]
    small = size <= 64
    found = recipes.recipe_for("simclr", size, channels)
    found = dataclasses.replace(
        found,
        loss=partial(losses.nt_xent, temperature=TAU) if loss is None else loss,
        head=head_for(loss, dim=DIM if small else 128, layers=layers),
        keys=keys,
        batches=batches,
        positives=positives,
        optimizer=partial(optim.lars, weight_decay=1e-4 if small else 1e-6),
        scaling=optim.sqrt_scaling,
        lr=0.2 if small else 0.075,  # times the root of the batch [C, issue 166]
        batch_size=128 if small else 1024,
        warmup=min(10, at.epochs / 10),
        epochs=at.epochs,
    )
    if at.width is None:
        stem: Stem = "cifar" if small else "imagenet"
        found = dataclasses.replace(found, backbone=partial(resnet50, stem=stem, channels=channels))
    else:
        small_net = partial(small_conv, channels=channels, width=at.width)
        found = dataclasses.replace(found, **{"backbone": small_net, **at.changes})
        if rate is None:
            adamw = partial(optim.adamw, weight_decay=1e-4)
            found = dataclasses.replace(found, optimizer=adamw, scaling=optim.no_scaling, lr=2e-3)
    if rate is not None:
        found = dataclasses.replace(found, scaling=optim.no_scaling, lr=rate)
    if channels == 1:  # canvases of any size hold glyphs, which a photograph's views would undo
        found = dataclasses.replace(found, views=partial(augment.digits))
    if views is not None:
        found = dataclasses.replace(found, views=views)
    return supervised(found) if taught else found


def job(
    *,
    scale: str,
    seed: int,
    name: str,
    facts: Mapping[str, Any],
    images: ImagesOrName,
    method: str = SIMCLR,
    measures: Sequence[Measure] = (),
    size: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    labels: int | None = None,
    probed: ImagesOrName | None = None,
    tested: int | None = None,
    **options: Any,
) -> Job:
    """One run with the standard measures and these; `options` go to `recipe`.

    method: what teaches the encoder. labels: so many images have one for SIMCLR to use: those of a
    class are positives of each other. probed: the images that probes read, by default those of
    training. tested: so many test images, by default the scale's. epochs: a multiple of the
    scale's.
    """
    at = SCALES[scale]
    tested = at.tested if tested is None else tested
    if method == SUPERVISED:
        options |= {"taught": True}
    with_labels: dict[str, Any] = {}
    if labels is not None:
        options |= {"positives": "class"}
        with_labels = {"labels": labels}
    standard = partial(feature_accuracies, images=probed, subset=(at.images, tested), size=size)
    call = partial(
        trained,
        images=images,
        size=size,
        subset=at.images,
        test_subset=tested,
        recipe=partial(recipe, scale=scale, **options),
        epochs=0 if method == UNTRAINED else at.epochs * (1 if epochs is None else epochs),
        batch_size=batch_size,
        seed=seed,
        measures=(standard, *measures),
        **with_labels,
    )
    return Job(name=f"{name}-seed{seed}", call=call, facts={**facts, "method": method}, seed=seed)


# ---- losses --------------------------------------------------------------------------------------


def loss_of(name: str, *, temperature: float | None = None, weight: float | None = None) -> Any:
    """The five losses of D2, with the settings of re-implementations [R] or others.

    Decoupled NT-Xent and SWD are scaled as in the notebook, with alignment divided by the width of
    z; tau = 1, lambda = 0.1 and lambda = 5 are for this scaling.
    """
    if name == NT_XENT:
        return partial(losses.nt_xent, temperature=TAU if temperature is None else temperature)
    if name == DECOUPLED:
        return partial(
            losses.gcl_notebook,
            temperature=1.0 if temperature is None else temperature,
            weight=0.1 if weight is None else weight,
        )
    by = 5.0 if weight is None else weight
    if name == SWD_SPHERE:
        return partial(losses.gcl_swd_hypersphere, weight=by)
    found = {SWD_NORMAL: losses.gcl_swd_normal, SWD_CUBE: losses.gcl_swd_hypercube}[name]
    return partial(found, weight=by)


def head_for(loss: Any, *, dim: int, layers: int) -> Callable[..., nn.Module]:
    """`mlp`; its z has unit length, except for losses with a prior in R^D (normal, cube)."""
    planar = (losses.gcl_swd_normal, losses.gcl_swd_hypercube)
    as_it_is = {"unit_length": False} if getattr(loss, "func", loss) in planar else {}
    return partial(mlp, dim=dim, layers=layers, **as_it_is)


# ---- measures ------------------------------------------------------------------------------------


def feature_accuracies(
    of: Trained,
    *,
    images: ImagesOrName | None = None,
    subset: tuple[int | None, int | None] = (None, None),
    size: int | None = None,
) -> dict[str, Any]:
    """Accuracy of a linear probe of h for every feature, that of guessing, and two R2 of pictures.

    images: other images than those of training; subset: how many of each split. Features of one
    kind are averaged: `bits_read` over `bit 0`, `bit 1` ..., `holds` over digits.
    """
    train, test = of.train, of.test
    h, of_test = of.of_train.h, of.of_test.h
    if images is not None:
        train, test = both_splits(images, size, *subset)
        h, of_test = of.embed(train).h, of.embed(test).h
    other = adapt.build(
        dataclasses.replace(of.recipe, seed=of.recipe.seed + OTHER), of.train
    ).eval()
    drawn, drawn_test = (
        embed(other, part, size=of.recipe.size, device=of.device).h for part in (train, test)
    )
    pixels, pixels_test = (pictures(part) for part in (train, test))
    network = standardised(drawn, drawn), standardised(drawn_test, drawn)
    return {
        **probed_features(h, train, of_test, test, of.device, of.seed),
        "pixels": explained(h, pixels, of_test, pixels_test, seed=of.seed),
        "network": explained(h, network[0], of_test, network[1], seed=of.seed),
    }


def raw_pixels(of: Trained, *, images: ImagesOrName | None = None) -> dict[str, Any]:
    """{"raw": accuracies of the same probes on the pixels of the images, at the encoder's size}.

    images: as in `feature_accuracies`, as many of each split as the run has.
    """
    train, test = of.train, of.test
    if images is not None:
        train, test = both_splits(images, of.recipe.size, len(train), len(test))
    x, x_test = (pictures(part, side=of.recipe.size).to(of.device) for part in (train, test))
    found = probed_features(x, train, x_test, test, of.device, of.seed)
    del found["chance"]
    return {"raw": found}


def probed_features(
    h: Float[Tensor, "N F"],
    train: ImageSet,
    h_test: Float[Tensor, "M F"],
    test: ImageSet,
    device: str,
    seed: int,
) -> dict[str, Any]:
    """{feature: accuracy}, with "chance": {feature: accuracy of the most common class}."""
    found: dict[str, list[float]] = {}
    guessed: dict[str, list[float]] = {}
    label, tested = features_of(train), features_of(test)
    for name in label:
        y = label[name]
        kind, rare = _kind(name), int(torch.unique(y[y >= 0], return_counts=True)[1].min()) < FEW
        one, two = (
            dataclasses.replace(part, features={name: every[name].to(device)})
            for part, every in ((train, label), (test, tested))
        )
        score = read_features(
            h.to(device), one, h_test.to(device), two, names=[name], seed=seed,
            l2=1.0 if rare or kind != name else probes.DECADES,
        )[name]  # fmt: skip
        found.setdefault(kind, []).append(score.value)
        guessed.setdefault(kind, []).append(majority_accuracy(y, tested[name]))
    means = {kind: statistics.fmean(values) for kind, values in found.items()}
    return means | {"chance": {kind: statistics.fmean(v) for kind, v in guessed.items()}}


def _kind(feature: str) -> str:
    """`bits_read` of `bit 3`, `holds` of `holds 7`; else the feature itself."""
    return {"bit": "bits_read", "holds": "holds"}.get(feature.split()[0], feature)


# ---- claims over runs ----------------------------------------------------------------------------


def rises_over(results: Results, measure: str, along: str, *, slack: float) -> Verdict:
    """Whether the mean never falls by over `slack` below its maximum so far, and rises by more."""
    steps = evidence.rises(results, measure, along, slack=slack)
    at = [{along: value} for value in results.column(along) if value is not None]
    if len(at) < 2:
        return steps
    return all_of(steps, evidence.higher(results, measure, at[-1], at[0], by=slack))


def falls_over(results: Results, measure: str, along: str, *, slack: float) -> Verdict:
    """As `rises_over`, with rising and falling exchanged."""
    steps = evidence.falls(results, measure, along, slack=slack)
    at = [{along: value} for value in results.column(along) if value is not None]
    if len(at) < 2:
        return steps
    return all_of(steps, evidence.lower(results, measure, at[-1], at[0], by=slack))


def suppression_of(
    results: Results,
    feature: str,
    *,
    here: Mapping[str, Any],
    supervised: Mapping[str, Any],
    untrained: Mapping[str, Any],
) -> Suppression | None:
    """The suppression of a feature by the run with the facts `here`, relative to its controls.

    Accuracies are means over seeds. None if one of the three has no result.
    """

    numbers = [results.mean(feature, **facts) for facts in (here, supervised, untrained)]
    floor, n = results.mean(f"chance.{feature}", **here), results.mean("n_test", **here)
    if any(map(math.isnan, (*numbers, floor, n))):
        return None
    return Suppression(
        accuracy=numbers[0], supervised=numbers[1], untrained=numbers[2], chance=floor, n=int(n)
    )


def scored(found: Mapping[Any, Suppression | None]) -> str:
    """Scores with standard errors as text: `suppression 16: 0.42 (0.03), 64: 0.12 (0.04)`."""
    listed = ", ".join(
        f"{at}: {s.score:.2f} ({s.error:.2f})" for at, s in found.items() if s is not None
    )
    return f"suppression {listed}" if listed else ""


def suppression_chart(
    found: Mapping[str, Mapping[Any, Suppression | None]], along: str, **more: Any
) -> Chart:
    """A chart with a line of scores for each name; more: as in `line`."""
    lines = [_line_of_scores(name, scores, **more) for name, scores in found.items()]
    return chart([t for t in lines if t], along, "suppression score")


def _line_of_scores(
    name: str, found: Mapping[Any, Suppression | None], **more: Any
) -> Trace | None:
    """A line of scores with standard errors; None without scores."""
    known = {at: s for at, s in found.items() if s is not None and not math.isnan(s.score)}
    if not known:
        return None
    bars = {"type": "data", "array": [s.error for s in known.values()]}
    return line(
        name, list(map(str, known)), [s.score for s in known.values()], error_y=bars, **more
    )


def more_suppressed(
    results: Results, found: Mapping[Any, Suppression | None], name: str
) -> Verdict:
    """Whether suppression is higher at the last setting than at the first, by 2 standard errors.

    Undecided if the difference is smaller; not tested if a setting has no result.
    """
    known = [s for s in found.values() if s is not None and not math.isnan(s.score)]
    if len(known) < max(2, len(found)):
        return Verdict.not_tested(f"not every setting of {name} has a result and its controls")
    gap = known[-1].score - known[0].score
    error = math.hypot(known[0].error, known[-1].error)
    n = len(results.column("seed"))
    seeds = "1 seed" if n == 1 else f"means of {n} seeds"
    words = f"{scored(found)} by {name}; last less first {gap:+.2f} ({seeds})"
    if abs(gap) < 2 * error:
        return Verdict(None, f"undecided: {words}")
    return Verdict(gap > 0, words)
