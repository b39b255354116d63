"""The scores of a run with labels: kNN and linear probes, and the same of controls."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from contrapose.augment import center
from contrapose.data import ImageSet, evenly
from contrapose.data.video import TIME
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.evaluation import probes, scores
from contrapose.evaluation.embed import Embedded
from contrapose.evaluation.features import probes_of_features
from contrapose.evaluation.scores import Score
from contrapose.evaluation.several import mean_average_precision, prevalence
from contrapose.evaluation.sgd_probe import PROTOCOLS, sgd_probe
from contrapose.explain import pictures
from contrapose.explain.headline import CLASSIFIER, UNTRAINED, WORDS
from contrapose.explain.subject import (
    Subject,
    of_known_classes,
    sample,
    with_labels,
    written_about,
)
from contrapose.partials import unknown
from contrapose.progress import counted, stage
from contrapose.training.run import Run

UNEVEN = 1.5  # times as many images of one class as of another
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
    """Scores of a run's encoder, by labels: kNN and linear probes, and the same of controls.

    Controls are raw pixels, the encoder before training, and the most common class.
    images: other images than the run's own. protocol: one of PROTOCOLS, whose linear probe by
    gradient descent is measured in addition. Writes evaluation.json and the confusion matrix; for
    other images only evaluation-NAME.json. Without labels the list is empty.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol}: there is no {unknown(protocol, PROTOCOLS)}")
    with written_about(run, images, device, recipe) as subject:
        return _evaluation(subject, protocol)


def _evaluation(subject: Subject, protocol: str | None) -> list[Score]:
    train, test, split = with_labels(subject.train), with_labels(subject.test), subject.split
    found: list[Score] = []
    if train is not None and test is not None:
        test, lost = of_known_classes(test, train)
        split += f", {lost:,} images of classes without a training image left out" if lost else ""
    if train is not None and test is not None:
        seed = subject.recipe.seed
        found, named, (of_train, of_test) = _score(subject, train, test, split)
        classes = len(train.classes)
        assert train.label is not None and test.label is not None
        if protocol is not None:
            by = sgd_probe(of_train.h, train.label, PROTOCOLS[protocol], seed=seed)
            metric = f"linear probe accuracy ({PROTOCOLS[protocol].name}'s SGD)"
            found.append(
                scores.accuracy(
                    by.scores(of_test.h), test.label, metric=metric, protocol=by.protocol,
                    split=split, seed=seed, features="h", images=test.fingerprint,
                    group=test.group,
                )
            )  # fmt: skip
        if not subject.other:
            pictures.add(
                subject.run,
                classes=np.array(train.classes, dtype=np.str_),
                confusion=scores.confusion(named, test.label, classes).numpy(),
                confusion_of=np.array(f"linear probe on h, {split}, {len(test):,} images"),
            )
    if set(subject.train.features) - {TIME}:
        encoders: list[tuple[Encoder, scores.Features]] = [
            (subject.encoder, "h"),
            (subject.untrained, "untrained h"),
        ]
        for encoder, features in encoders:
            found += probes_of_features(
                encoder, sample(subject.train, PIXELS_FROM), subject.test,
                size=subject.recipe.size, device=subject.device, seed=subject.recipe.seed,
                split=subject.split, of=features,
            ).values()  # fmt: skip
    if subject.train.labels is not None and subject.test.labels is not None:
        found += _of_several(subject, split)
    subject.run.write(subject.file("evaluation"), [asdict(score) for score in found])
    return found


def _score(
    subject: Subject, train: ImageSet, test: ImageSet, split: str
) -> tuple[list[Score], Int[Tensor, " N"], tuple[Embedded, Embedded]]:
    """(scores, the classes that the linear probe on h predicts, (train, test) embeddings).

    Probes of the controls are fitted on at most PIXELS_FROM training images. If there are more, a
    probe of h is fitted on as many too, for a fair comparison.
    """
    label, seed = train.label, subject.recipe.seed
    assert label is not None and test.label is not None
    with stage("h of training and test images"):
        of_train, of_test = subject.embed(train), subject.embed(test)
    few = evenly(len(train), PIXELS_FROM)
    controls = train if len(few) == len(train) else train.subset(few)
    k = min(200, max(5, len(train) // 50), len(train) - 1)  # 200 from 10,000 images on
    vote = f"{k} nearest of {len(train):,} training images vote exp(similarity / 0.1)"
    linear, beside = "linear probe accuracy", "linear probe accuracy"
    if len(few) < len(train):
        beside += f" from {len(few):,} training images"
    with stage("h"):
        learned = _probe(of_train.h, label, seed)
    votes = learned.scores(of_test.h)
    rows: list[tuple[Tensor, str, str, scores.Features, str]] = [
        (votes, linear, learned.protocol, "h", learned.chosen),
        (probes.knn(of_test.h, of_train.h, label, k=k), "kNN accuracy", vote, "h", ""),
        (probes.knn(of_test.z, of_train.z, label, k=k), "kNN accuracy", vote, "z", ""),
    ]

    if (own := _own_classifier(subject, of_test, train.classes)) is not None:
        said = "the classifier that training fitted on h"
        rows.insert(1, (own, CLASSIFIER, said, "h", ""))

    def control(
        x: Tensor, x_test: Tensor, features: scores.Features, what: str
    ) -> tuple[Tensor, str, str, scores.Features, str]:
        assert controls.label is not None
        with stage(WORDS.get(features, features)):
            probe = _probe(x, controls.label, seed)
        return probe.scores(x_test), beside, probe.protocol + what, features, probe.chosen

    if beside != linear:
        rows.append(control(of_train.h[few], of_test.h, "h", ""))
    with stage(WORDS[UNTRAINED]):
        before, before_test = (subject.embed(x, untrained=True).h for x in (controls, test))
    rows.append(control(before, before_test, "untrained h", "; control: the weights at the start"))
    shrunk = f"; control: raw pixels, {train.shown} x {_side(train)} x {_side(train)}"
    rows.append(control(pixels(controls), pixels(test), "pixels", shrunk))
    always = _always(label, test.label)
    rows.append((always, "most common class accuracy", "no features", "none", ""))
    found = [
        scores.accuracy(
            value, test.label, metric=metric, protocol=protocol, split=split, seed=seed,
            features=features, chosen=chosen, images=test.fingerprint, group=test.group,
        )
        for value, metric, protocol, features, chosen in rows
    ]  # fmt: skip
    if uneven(test.label):
        by_class: list[tuple[Tensor, str, scores.Features]] = [
            (votes, learned.protocol, "h"),
            (always, "no features", "none"),
        ]
        found += [
            scores.mean_per_class_accuracy(
                value, test.label, metric="mean per-class accuracy", protocol=protocol,
                split=split, seed=seed, features=features,
            )
            for value, protocol, features in by_class
        ]  # fmt: skip
    return found, votes.argmax(dim=1), (of_train, of_test)


def _own_classifier(
    subject: Subject, of_test: Embedded, classes: Sequence[str]
) -> Float[Tensor, "M C"] | None:
    """Logits of the run's own classifier in the order of `classes`, the lowest for those that it
    does not know; None where there is no classifier, or it tells apart something else."""
    encoder = subject.encoder
    place = {name: k for k, name in enumerate(encoder.classes)}
    if not any(name in place for name in classes):
        return None
    with torch.no_grad():
        logits = encoder.logits(of_test.h.to(subject.device)).cpu()
    blank = torch.full((len(logits),), -torch.inf)
    return torch.stack([logits[:, place[c]] if c in place else blank for c in classes], dim=1)


def _of_several(subject: Subject, split: str) -> list[Score]:
    """Mean average precision for images with several labels: of h, of an untrained encoder, of raw
    pixels, all from the same (at most PIXELS_FROM) training images, and that of chance."""
    few, test = sample(subject.train, PIXELS_FROM), subject.test
    assert few.labels is not None
    given, wanted = few.labels, _columns(test, few.classes)
    told: dict[str, Any] = {"split": split, "seed": subject.recipe.seed, "images": test.fingerprint}
    features: list[tuple[Tensor, Tensor, scores.Features]] = [
        (subject.embed(few).h, subject.embed(test).h, "h"),
        (*(subject.embed(x, untrained=True).h for x in (few, test)), "untrained h"),  # type: ignore[list-item]
        (pixels(few), pixels(test), "pixels"),
    ]
    found = [
        mean_average_precision(x, given, x_test, wanted, features=name, **told)
        for x, x_test, name in features
    ]
    return [s for s in (*found, prevalence(wanted, **told)) if s is not None]


def _columns(images: ImageSet, classes: Sequence[str]) -> Int8[Tensor, "N K"]:
    """The labels of the images as columns in the order of `classes`; -1 for an unknown class."""
    assert images.labels is not None
    place = {name: k for k, name in enumerate(images.classes)}
    blank = torch.full((len(images),), -1, dtype=torch.int8)
    return torch.stack(
        [images.labels[:, place[c]] if c in place else blank for c in classes], dim=1
    )


def uneven(label: Int[Tensor, " N"]) -> bool:
    """True if a class has UNEVEN times the images of another, so that accuracy alone misleads."""
    count = torch.bincount(label[label >= 0])
    count = count[count > 0]
    return bool(count.max() >= UNEVEN * count.min())


def _always(label: Int[Tensor, " N"], test_label: Int[Tensor, " M"]) -> Float[Tensor, "M C"]:
    """Scores by which every image is assigned to the most common training class."""
    return torch.bincount(label).double().expand(len(test_label), -1)


def _probe(x: Tensor, label: Tensor, seed: int) -> probes.LinearProbe:
    """A linear probe, with a fixed l2 if a class has a single image and none can be held out."""
    single = int(torch.unique(label, return_counts=True)[1].min()) < 2
    return probes.linear_probe(x, label, seed=seed, l2=1.0 if single else probes.DECADES)


def pixels(images: ImageSet) -> Float[Tensor, "N P"]:
    """Raw pixels as features, the control without any encoder."""
    side = _side(images)
    parts: Sequence[Tensor] = [
        center(images.batch(index)[:, : images.shown], side).flatten(1).cpu()
        for index in counted(torch.split(torch.arange(len(images)), 1024), "raw pixels")
    ]
    return torch.cat(list(parts))


def _side(images: ImageSet) -> int:
    return min(images.size, 28 if images.shown == 1 else PIXEL_SIDE)
