"""The classifier of a run under corruptions: accuracy and calibration, made images or published."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from contrapose.augment import center
from contrapose.data import ImageSet
from contrapose.encoders import modes_kept
from contrapose.errors import UserError
from contrapose.evaluation.calibration import BINS, fitted_temperature
from contrapose.evaluation.corruptions import (
    BENCHMARK,
    CORRUPTIONS,
    corrupted,
    known_corruption,
)
from contrapose.evaluation.robustness import (
    BLOCK,
    SEVERITIES,
    Robustness,
    classified,
    labelled,
    published,
    robustness_of_published,
    seed_of,
)
from contrapose.evaluation.robustness import robustness as robustness_of_made
from contrapose.explain import pictures
from contrapose.explain.subject import Subject, written_about
from contrapose.training.run import Run

FIT_EVERY = 5  # of the labelled test images, one in so many fits the temperature and nothing else


def robustness(
    run: Subject | Run | Path | str,
    images: Any = None,
    *,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    at: Path | str | None = None,
    bins: int = BINS,
    seed: int = 0,
    device: str = "auto",
    recipe: Any = None,
) -> Robustness:
    """Accuracy and calibration of the run's own classifier on its test images, clean and corrupted,
    before and after temperature scaling.

    corruptions: by default the 15 of ImageNet-C, those that make no sense for the images' channels
    left out and named in the notes; ["all"] adds the four more. at: a folder of published images
    (CIFAR-10-C, ImageNet-C) to read in place of making them. Every fifth labelled test image fits
    the temperature, the rest is measured: the training images are no guide, as they were learned.
    Writes robustness.json. Raises UserError where the run has no classifier, or none of the images
    is of a class that it knows.
    """
    with written_about(run, images, device, recipe) as subject:
        encoder = subject.encoder
        if encoder.classifier is None:
            raise UserError(
                f"{subject.run.path} has no classifier, so there is nothing to measure: train one "
                f"with contrapose train {subject.train.name} --recipe cross_entropy, or beside "
                "another loss with --set classifier=cross_entropy"
            )
        test, notes = as_classes(subject.test, encoder.classes)
        fit, rest = divided(test)
        with predicting(subject) as predict:
            logits = classified(
                predict, blocks(test, fit, subject), "", 0, seed=seed, device=subject.device
            )
            assert test.label is not None
            temperature = fitted_temperature(logits, test.label[fit])
            how: dict[str, Any] = {
                "size": subject.recipe.size, "temperature": temperature, "seed": seed,
                "bins": bins, "device": subject.device,
            }  # fmt: skip
            if at is not None:
                there = published(at, size=test.size)
                wanted = None if corruptions in (None, ["all"]) else corruptions
                found = robustness_of_published(
                    predict, test, there, rows=rest, names=wanted, **how
                )
            else:
                names, left = chosen(corruptions, test)
                notes += left
                found = robustness_of_made(
                    predict, test.subset(rest), names=names, severities=severities, **how
                )
        notes += (
            f"split: {subject.split}; one in {FIT_EVERY} of its images, {len(fit):,}, fitted the "
            "temperature and was not measured",
        )
        found = replace(found, notes=(*found.notes, *notes))
        written = found.as_json() | {"split": subject.split, "classes": list(encoder.classes)}
        subject.run.write(subject.file("robustness"), written)
        if at is None and not subject.other:
            pictures.add(subject.run, **contact_sheet(test.subset(rest), found, subject))
    return found


def contact_sheet(images: ImageSet, found: Robustness, subject: Subject) -> dict[str, NDArray[Any]]:
    """The first image as it is, then under each corruption that was measured, by severity: tiles of
    [corruption, severity], with draws of their own."""
    names = [*dict.fromkeys(m.corruption for m in found.corrupted)]
    severities = [*dict.fromkeys(m.severity for m in found.corrupted)]
    x = center(images.batch(torch.tensor([0])).cpu(), subject.recipe.size)
    rows = []
    for name in names:
        draws = [Generator().manual_seed(seed_of(found.seed, name, s, -1)) for s in severities]
        pairs = zip(severities, draws, strict=True)
        rows.append(torch.cat([x, *(corrupted(x, name, s, g) for s, g in pairs)]))
    side = min(subject.recipe.size, pictures.SHEET_SIDE)
    tiles = [images.picture(center(row, side)) for row in rows]
    return {
        "corrupted": pictures.to_uint8(torch.stack(tiles)),
        "corrupted_names": np.array(names, np.str_),
        "corrupted_severities": np.array(severities),
        "corrupted_of": np.array(f"{found.source}, seed {found.seed}"),
    }


def chosen(names: Sequence[str] | None, images: ImageSet) -> tuple[list[str], tuple[str, ...]]:
    """The corruptions to measure, and what is said of those that were left out. Those that were
    asked for by name are never left out.
    """
    if names is not None and list(names) != ["all"]:
        for name in names:
            known_corruption(name)
        return list(names), ()
    every = list(BENCHMARK if names is None else CORRUPTIONS)
    fit = [n for n in every if images.channels in (CORRUPTIONS[n].channels or (images.channels,))]
    left = [name for name in every if name not in fit]
    said = f"not defined for images of {images.channels} channels: {', '.join(left)}"
    return fit, (said,) if left else ()


def as_classes(images: ImageSet, classes: Sequence[str]) -> tuple[ImageSet, tuple[str, ...]]:
    """The images with the classifier's numbers of their classes, -1 for one that it lacks."""
    if images.label is None or not bool((images.label >= 0).any()):
        raise UserError(f"robustness: {images.name} ({images.split}) has no labels")
    place = {name: k for k, name in enumerate(classes)}
    number = torch.tensor([place.get(name, -1) for name in images.classes])
    label = torch.where(images.label >= 0, number[images.label.clamp(min=0)], -1)
    if not bool((label >= 0).any()):
        raise UserError(
            f"{images.name}: none of its classes ({', '.join(images.classes[:5])}) is one that the "
            f"classifier knows ({', '.join(classes[:5])})"
        )
    unknown = int(((images.label >= 0) & (label < 0)).sum())
    note = f"{unknown:,} images of classes that the classifier does not know left out"
    named = replace(images, label=label, classes=tuple(classes))
    return named, (note,) if unknown else ()


def divided(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Positions of labelled images: every FIT_EVERY-th, and the others. Raises UserError where that
    leaves nothing on one side.
    """
    _, index = labelled(images)
    fits = torch.arange(len(index)) % FIT_EVERY == FIT_EVERY - 1
    if not bool(fits.any()):
        raise UserError(
            f"robustness: {len(index)} labelled test images; at least {FIT_EVERY} are needed, as "
            f"one in {FIT_EVERY} fits the temperature"
        )
    return index[fits], index[~fits]


def blocks(images: ImageSet, index: Tensor, subject: Subject) -> Iterator[tuple[int, Tensor]]:
    """Centre crops of these images, some at a time."""
    for k, rows in enumerate(torch.split(index, BLOCK)):
        yield k, center(images.batch(rows).to(subject.device), subject.recipe.size)


@contextmanager
def predicting(subject: Subject) -> Iterator[Callable[[Tensor], Tensor]]:
    """images in [0, 1] -> logits of the run's classifier, in evaluation mode."""
    encoder = subject.encoder.to(subject.device)
    with modes_kept(encoder):
        encoder.eval()
        yield lambda x: encoder.logits(encoder(x)[0])
