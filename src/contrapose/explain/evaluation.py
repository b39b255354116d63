"""The scores of a run with labels: nearest neighbours, linear probes, and controls beside them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.augment import center
from contrapose.data import ImageSet
from contrapose.evaluation import probes, scores
from contrapose.evaluation.embed import Embedded
from contrapose.evaluation.features import probes_of_features
from contrapose.evaluation.scores import Score
from contrapose.evaluation.sgd_probe import PROTOCOLS, sgd_probe
from contrapose.explain import pictures
from contrapose.explain.subject import (
    Subject,
    labelled,
    of_known_classes,
    spread,
    written_about,
)
from contrapose.partials import unknown
from contrapose.training.run import Run

PIXELS_FROM = 10_000  # training images of the control that reads raw pixels
PIXEL_SIDE = 16  # px, side to which that control shrinks colour images (grey ones: 28)


def evaluate(
    run: Subject | Run | Path | str,
    images: Any = None,
    *,
    protocol: str | None = None,
    device: str = "auto",
    recipe: Any = None,
) -> list[Score]:
    """Scores of the run's encoder with labels: kNN and linear probes, a pixel control beside them.

    images: another set to evaluate on than the run's own. protocol: one of PROTOCOLS, whose linear
    probe by gradient descent is measured besides. Writes evaluation.json and the confusion matrix;
    without labels the list is empty.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise ValueError(f"--protocol {protocol}: there is no {unknown(protocol, PROTOCOLS)}")
    with written_about(run, images, device, recipe) as subject:
        return _evaluation(subject, protocol)


def _evaluation(subject: Subject, protocol: str | None) -> list[Score]:
    train, test, split = labelled(subject.train), labelled(subject.test), subject.split
    found: list[Score] = []
    if train is not None and test is not None:
        test, lost = of_known_classes(test, train)
        split += f", {lost:,} images of classes without a training image left out" if lost else ""
    if train is not None and test is not None:
        of_train, of_test = subject.embed(train), subject.embed(test)
        seed = subject.recipe.seed
        found, named = _score(of_train, of_test, train, test, split, seed)
        classes = len(train.classes)
        assert train.label is not None and test.label is not None
        if protocol is not None:
            by = sgd_probe(of_train.h, train.label, PROTOCOLS[protocol], seed=seed)
            metric = f"linear probe accuracy ({PROTOCOLS[protocol].name}'s SGD)"
            found.append(
                scores.accuracy(
                    by.scores(of_test.h), test.label, metric=metric, protocol=by.protocol,
                    split=split, seed=seed, features="h",
                )
            )  # fmt: skip
        pictures.add(
            subject.run,
            classes=np.array(train.classes, dtype=np.str_),
            confusion=scores.confusion(named, test.label, classes).numpy(),
            confusion_of=np.array(f"linear probe on h, {split}, {len(test):,} images"),
        )
    if subject.train.features:
        found += probes_of_features(
            subject.encoder, spread(subject.train, PIXELS_FROM), subject.test,
            size=subject.recipe.size, device=subject.device, seed=subject.recipe.seed,
            split=subject.split,
        ).values()  # fmt: skip
    subject.run.write("evaluation.json", [asdict(score) for score in found])
    return found


def _score(
    of_train: Embedded, of_test: Embedded, train: ImageSet, test: ImageSet, split: str, seed: int
) -> tuple[list[Score], Int[Tensor, " N"]]:
    """The scores, and the classes that the linear probe on h names."""
    label, test_label = train.label, test.label
    assert label is not None and test_label is not None
    few = spread(train, PIXELS_FROM)
    assert few.label is not None
    k = min(200, max(5, len(train) // 50), len(train) - 1)  # 200 from 10,000 images on
    vote = f"{k} nearest of {len(train):,} training images vote exp(similarity / 0.1)"
    plain, learned = _probe(pixels(few), few.label, seed), _probe(of_train.h, label, seed)
    shrunk = f"; control on raw pixels, {few.shown} x {_side(few)} x {_side(few)}"
    votes = learned.scores(of_test.h)
    rows: list[tuple[Tensor, str, str, scores.Features, str]] = [
        (votes, "linear probe accuracy", learned.protocol, "h", learned.chosen),
        (probes.knn(of_test.h, of_train.h, label, k=k), "kNN accuracy", vote, "h", ""),
        (probes.knn(of_test.z, of_train.z, label, k=k), "kNN accuracy", vote, "z", ""),
        (
            plain.scores(pixels(test)),
            "linear probe accuracy",
            plain.protocol + shrunk,
            "pixels",
            plain.chosen,
        ),
        (_always(label, test_label), "most common class accuracy", "no features", "none", ""),
    ]
    found = [
        scores.accuracy(
            value, test_label, metric=metric, protocol=protocol, split=split, seed=seed,
            features=features, chosen=chosen,
        )
        for value, metric, protocol, features, chosen in rows
    ]  # fmt: skip
    return found, votes.argmax(dim=1)


def _always(label: Int[Tensor, " N"], test_label: Int[Tensor, " M"]) -> Float[Tensor, "M C"]:
    """Scores that name the most common training class, whatever the image."""
    return torch.bincount(label).double().expand(len(test_label), -1)


def _probe(x: Tensor, label: Tensor, seed: int) -> probes.LinearProbe:
    """A linear probe; with a class of a single image nothing can be held out to choose l2."""
    single = int(torch.unique(label, return_counts=True)[1].min()) < 2
    return probes.linear_probe(x, label, seed=seed, l2=1.0 if single else probes.DECADES)


def pixels(images: ImageSet) -> Float[Tensor, "N P"]:
    """Raw pixels as features: what a classifier reads without any encoder."""
    side = _side(images)
    parts: Sequence[Tensor] = [
        center(images.batch(index)[:, : images.shown], side).flatten(1).cpu()
        for index in torch.split(torch.arange(len(images)), 1024)
    ]
    return torch.cat(list(parts))


def _side(images: ImageSet) -> int:
    return min(images.size, 28 if images.shown == 1 else PIXEL_SIDE)
