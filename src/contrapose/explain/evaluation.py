"""The scores of a run with labels: kNN and linear probes, and the same of controls."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
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
from contrapose.processes import Rank, shared
from contrapose.progress import counted, stage
from contrapose.training.run import Run

UNEVEN = 1.5  # times as many images of one class as of another
PIXELS_FROM = 10_000  # training images of the control that reads raw pixels
QUERIES = 4096  # images whose neighbours one rank searches at least
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

    Controls are raw pixels, the encoder before training, and the most common class. Processes of
    torchrun share images, neighbours and probes; the numbers are those of one process.
    images: other images than the run's own. protocol: one of PROTOCOLS, whose linear probe by
    gradient descent is measured in addition. Writes evaluation.json and the confusion matrix; for
    other images only evaluation-NAME.json. Without labels the list is empty.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        words = f"--protocol {protocol}: there is no {unknown(protocol, PROTOCOLS)}"
        raise shared(UserError(words))
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
            h, label = of_train.h, train.label
            by = subject.me.first_does(lambda: sgd_probe(h, label, PROTOCOLS[protocol], seed=seed))
            metric = f"linear probe accuracy ({PROTOCOLS[protocol].name}'s SGD)"
            found.append(
                scores.accuracy(
                    by.scores(of_test.h), test.label, metric=metric, protocol=by.protocol,
                    split=split, seed=seed, features="h", images=test.fingerprint,
                    group=test.group,
                )
            )  # fmt: skip
        if not subject.other:
            confusion = {
                "classes": np.array(train.classes, dtype=np.str_),
                "confusion": scores.confusion(named, test.label, classes).numpy(),
                "confusion_of": np.array(f"linear probe on h, {split}, {len(test):,} images"),
            }
            subject.me.first_does(lambda: pictures.add(subject.run, **confusion))
    if set(subject.train.features) - {TIME}:
        encoders: list[tuple[Encoder, scores.Features]] = [
            (subject.encoder, "h"),
            (subject.untrained, "untrained h"),
        ]
        for encoder, features in encoders:
            found += probes_of_features(
                encoder, sample(subject.train, PIXELS_FROM), subject.test,
                size=subject.recipe.size, device=subject.device, seed=subject.recipe.seed,
                split=subject.split, of=features, me=subject.me,
            ).values()  # fmt: skip
    if subject.train.labels is not None and subject.test.labels is not None:
        found += _of_several(subject, split)
    written = [asdict(score) for score in found]
    subject.me.first_does(lambda: subject.run.write(subject.file("evaluation"), written))
    return found


def _score(
    subject: Subject, train: ImageSet, test: ImageSet, split: str
) -> tuple[list[Score], Int[Tensor, " N"], tuple[Embedded, Embedded]]:
    """(scores, the classes that the linear probe on h predicts, (train, test) embeddings).

    Probes of the controls are fitted on at most PIXELS_FROM training images. If there are more, a
    probe of h is fitted on as many too, for a fair comparison.
    """
    label, seed, me = train.label, subject.recipe.seed, subject.me
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
    with stage(WORDS[UNTRAINED]):
        before, before_test = (subject.embed(x, untrained=True).h for x in (controls, test))
    raw, raw_test = pixels(controls, me), pixels(test, me)
    assert controls.label is not None
    every: list[tuple[Tensor, Tensor, scores.Features]] = [
        (of_train.h, label, "h"),
        (before, controls.label, "untrained h"),
        (raw, controls.label, "pixels"),
    ]
    if beside != linear:
        every.append((of_train.h[few], controls.label, "h"))
    learned, of_untrained, of_pixels, *of_few = me.dealt(
        [partial(_probe, x, of, seed, WORDS.get(name, name)) for x, of, name in every]
    )
    votes = learned.scores(of_test.h)

    def neighbours(query: Tensor, bank: Tensor) -> Tensor:
        def some(parts: Sequence[Tensor]) -> list[Tensor]:
            return [probes.knn(torch.cat([*parts]), bank, label, k=k)]

        return me.rows_of(torch.split(query, QUERIES), some)[0]

    rows: list[tuple[Tensor, str, str, scores.Features, str]] = [
        (votes, linear, learned.protocol, "h", learned.chosen),
        (neighbours(of_test.h, of_train.h), "kNN accuracy", vote, "h", ""),
        (neighbours(of_test.z, of_train.z), "kNN accuracy", vote, "z", ""),
    ]

    if (own := _own_classifier(subject, of_test, train.classes)) is not None:
        said = "the classifier that training fitted on h"
        rows.insert(1, (own, CLASSIFIER, said, "h", ""))

    shrunk = f"; control: raw pixels, {train.shown} x {_side(train)} x {_side(train)}"
    the_start = "; control: the weights at the start"
    by: list[tuple[probes.LinearProbe, Tensor, scores.Features, str]] = [
        *((probe, of_test.h, "h", "") for probe in of_few),
        (of_untrained, before_test, "untrained h", the_start),
        (of_pixels, raw_test, "pixels", shrunk),
    ]
    for probe, x_test, features, what in by:
        told = probe.scores(x_test), beside, probe.protocol + what, features, probe.chosen
        rows.append(told)
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
        (pixels(few, subject.me), pixels(test, subject.me), "pixels"),
    ]
    found = subject.me.dealt(
        [
            partial(mean_average_precision, x, given, x_test, wanted, features=name, **told)
            for x, x_test, name in features
        ]
    )
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


def _probe(x: Tensor, label: Tensor, seed: int, words: str) -> probes.LinearProbe:
    """A linear probe, with a fixed l2 if a class has a single image and none can be held out."""
    single = int(torch.unique(label, return_counts=True)[1].min()) < 2
    with stage(words):
        return probes.linear_probe(x, label, seed=seed, l2=1.0 if single else probes.DECADES)


def pixels(images: ImageSet, me: Rank | None = None) -> Float[Tensor, "N P"]:
    """Raw pixels as features, the control without any encoder; me: as for `embed`."""
    side = _side(images)

    def rows(batches: Sequence[Tensor]) -> list[Tensor]:
        read = (images.batch(index) for index in counted(batches, "raw pixels"))
        return [torch.cat([center(x[:, : images.shown], side).flatten(1).cpu() for x in read])]

    return (me or Rank()).rows_of(torch.split(torch.arange(len(images)), 1024), rows)[0]


def _side(images: ImageSet) -> int:
    return min(images.size, 28 if images.shown == 1 else PIXEL_SIDE)
