"""The diagnosis of a run: geometry of held-out images, verdict and pictures; needs no labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose import paired
from contrapose.data import ImageSet
from contrapose.data.copies import Descriptors, copies_in, descriptors_of, repeated_in
from contrapose.data.split import equal_keys
from contrapose.errors import UserError
from contrapose.evaluation import geometry
from contrapose.evaluation.embed import Embedded
from contrapose.evaluation.embed import embed_views as views_embedded
from contrapose.evaluation.penalties import penalties
from contrapose.explain import pictures
from contrapose.explain.findings import as_json
from contrapose.explain.subject import Subject, sample, written_about
from contrapose.explain.verdict import verdict
from contrapose.keys.contrast import InBatch
from contrapose.progress import stage
from contrapose.training.objective import lasting_groups, learned_label
from contrapose.training.recipe import Recipe
from contrapose.training.run import Run
from contrapose.training.signals import temperature_signals

TEMPERATURES = (0.05, 0.1, 0.2, 0.5, 1.0)  # at which the repulsion between rows is shown
LOOKED_AT = 2000  # images whose geometry, neighbours and map are shown


def diagnose(
    run: Subject | Run | Path | str,
    images: Any = None,
    *,
    device: str = "auto",
    recipe: Any = None,
) -> dict[str, Any]:
    """{"verdict": findings, "signals": numbers, "duplicates": files} of a run; needs no labels.

    It is computed from up to LOOKED_AT test (or held-out) images and two views of each, which
    processes of torchrun share. Writes diagnosis.json and pictures.npz; for other images than the
    run's own only diagnosis-NAME.json.
    """
    with written_about(run, images, device, recipe) as subject:
        return _diagnosis(subject)


def _diagnosis(subject: Subject) -> dict[str, Any]:
    shown = sample(subject.test, LOOKED_AT)
    embedded = subject.embed(shown)
    z, group = embed_views(subject, shown)
    with stage("the encoder before training"):
        before, _ = embed_views(subject, shown, untrained=True)
    return subject.me.first_does(lambda: _found(subject, shown, embedded, z, before, group))


def _found(
    subject: Subject,
    shown: ImageSet,
    embedded: Embedded,
    z: Float[Tensor, "N D"],
    before: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
) -> dict[str, Any]:
    """The diagnosis by the embeddings of images and views, which is written too.

    before: z of the views by the encoder before training; group: the image that each row shows.
    """
    # where images are decoded on access, all of them would be decoded for it
    with stage("copies"):
        of_train, of_test = descriptors_of(subject.train), descriptors_of(subject.test)
        equal = equal_keys(of_train.keys) if of_train and subject.train.in_memory else None
        repeats = repeat_signals(subject, of_train, of_test)
    with stage("geometry"):
        signals = signals_of_run(subject, embedded, z, group, shown.label, equal)
    if subject.recipe.freeze:
        signals["frozen"] = list(subject.recipe.freeze)
    signals |= task_signals(z, before, group, positives_of(subject.recipe, shown))
    signals |= repeats | class_signals(subject.train.label)
    scored, status = subject.run.scores(subject.file("evaluation")), subject.run.status()
    findings = verdict(subject.run.metrics(), scored, status=status, signals=signals)
    found = {"verdict": as_json(findings), "signals": signals}
    with stage("repulsion by temperature"):
        found["repulsion"] = repulsion(z, group, also=signals.get("temperature"))
    found["duplicates"] = named_groups(subject.train, equal or ())
    subject.run.write(subject.file("diagnosis"), found)
    if not subject.other:
        with stage("map, neighbours and contact sheet"):
            shown_of_run = pictures.of_run(subject.recipe, shown, embedded, z, group)
        with stage("what views are of"):
            shown_of_run |= pictures.crops(subject.run, subject.recipe, subject.train)
        pictures.add(subject.run, **shown_of_run)
    return found


def signals_of_run(
    subject: Subject,
    embedded: Embedded,
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    label: Int[Tensor, " B"] | None,
    duplicates: Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """The signals of a diagnosis, of held-out images under the saved encoder in evaluation mode."""
    signals: dict[str, Any] = {
        "images": len(embedded.h),
        "split": subject.split,
        "alignment": geometry.alignment(z, group),
        "uniformity": geometry.uniformity(embedded.z),
        "uniformity_views": geometry.uniformity(z),
        "mean_cosine": mean_cosine(embedded.z),
        "contrastive_accuracy": geometry.contrastive_accuracy(z, group),
        "effective_rank_h": geometry.effective_rank(embedded.h),
        "effective_rank_z": geometry.effective_rank(embedded.z),
        **temperature_signals(subject.recipe, z, InBatch(group, group)),
        "width_h": embedded.h.shape[1],
        "width_z": embedded.z.shape[1],
    }
    if duplicates is not None:
        # they would be each other's negatives
        signals["duplicate_images"] = sum(len(group) - 1 for group in duplicates)
    if label is not None and most_common(label) > 1:
        signals["tolerance"] = geometry.tolerance(embedded.z, label)
    return signals


def task_signals(
    z: Float[Tensor, "N D"],
    before: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    positive: Int[Tensor, " B"],
) -> dict[str, float]:
    """How often the nearest view shows a positive, now and before training, and p of the gain.

    group: the image that each row shows. positive: equal for images that are positives of each
    other.
    """
    same = positive[group]
    now, then = (geometry.contrastive_hits(x, same) for x in (z, before))
    counted = torch.bincount(same)[same] > 1
    gain = paired.difference(now.numpy(), then.numpy(), group[counted].numpy())
    return {
        "task_accuracy": float(now.double().mean()),
        "task_accuracy_untrained": float(then.double().mean()),
        "task_gain_p": gain.p,
    }


def class_signals(label: Int[Tensor, " N"] | None) -> dict[str, float]:
    """Number of classes of the training labels, and the share of the most common class."""
    known = torch.empty(0, dtype=torch.long) if label is None else label[label >= 0]
    if not len(known):
        return {}
    return {
        "classes": len(torch.unique(known)),
        "most_common_class": most_common(known) / len(known),
    }


def repeat_signals(
    subject: Subject, of_train: Descriptors | None, of_test: Descriptors | None
) -> dict[str, int]:
    """Numbers of images that repeat another, within train and between train and test.

    Also how many were compared. Empty for large sets that decode on access, since every image would
    have to be decoded.
    """
    train, test = subject.train, subject.test
    if of_train is None:
        return {}
    across, exact = (torch.empty(0), 0) if of_test is None else repeated_in(of_test, of_train)
    inside = [copies_in(of_train)]
    if test.group is not None and of_test is not None:
        inside.append(copies_in(of_test))
    signals = {
        "near_copies": sum(found.near for found in inside),
        "exact_copies": sum(found.exact for found in inside),
        "compared_images": of_train.compared,
        "train_images": len(train),
        "test_images": len(test),
        "test_images_in_train": len(across),
        "test_images_in_train_exactly": exact,
    }
    if test.group is not None:
        signals["test_groups"] = len(torch.unique(test.group))
    return signals


def repulsion(
    z: Float[Tensor, "N D"], group: Int[Tensor, " N"], also: float | None = None
) -> list[dict[str, float]]:
    """The distribution of the repulsion over negatives, for several temperatures and `also`.

    For each temperature: effective negatives, the entropy of their shares (nats), its derivative
    with respect to the temperature, and the similarity above which 90 % of the repulsion lies (see
    `evaluation.penalties`).
    """
    temperatures = sorted({*TEMPERATURES, *([] if also is None else [also])})
    return [
        {
            "temperature": p.temperature,
            "effective_negatives": p.perplexity,
            "entropy": p.entropy,
            "slope": p.slope,
            "from_similarity": p.interval[0],
        }
        for p in penalties(z, group, temperatures=temperatures)
    ]


def embed_views(
    subject: Subject, images: ImageSet, *, untrained: bool = False
) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"]]:
    """(z of the recipe's views of each image, the image that each row shows)."""
    encoder = subject.untrained if untrained else subject.encoder
    recipe, device = subject.recipe, subject.device
    return views_embedded(
        encoder, images, recipe.policy, seed=recipe.seed, device=device, me=subject.me
    )


def positives_of(recipe: Recipe, images: ImageSet) -> Int[Tensor, " B"]:
    """Equal numbers for images that are positives of each other: by image, or by class.

    Each alone too where another set lacks that label.
    """
    label = None
    if recipe.of_labels:
        try:
            label, _ = learned_label(recipe, images)
        except UserError:
            return torch.arange(len(images))
    return lasting_groups(recipe, label, torch.arange(len(images)))


def mean_cosine(z: Float[Tensor, "N D"]) -> float:
    """Mean cosine of the embeddings of different images: 0 if uniformly spread, 1 if all equal."""
    n, total = len(z), torch.nn.functional.normalize(z, dim=1).double().sum(dim=0)
    return float((total.square().sum() - n) / (n * (n - 1))) if n > 1 else 1.0


def named_groups(
    images: ImageSet, groups: Sequence[Sequence[int]], most: int = 100
) -> list[list[str]]:
    """The files of the first groups of images."""
    return [images.subset(torch.tensor(list(group))).files for group in groups[:most]]


def most_common(label: Int[Tensor, " N"]) -> int:
    known = label[label >= 0]
    return int(torch.bincount(known).max()) if len(known) else 0
