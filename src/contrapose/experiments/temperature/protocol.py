"""The protocol of S1 (Wang & Liu, CVPR 2021) at three scales, for the experiments on temperature.

`job` makes one of their runs from a data set, the source of negatives, a loss and its temperature.
"bank" is the paper's protocol: one view, whose positive is the image's own key in a memory bank,
and all keys in the softmax. "in-batch" is this library's variant: two views, negatives from the
batch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose import losses
from contrapose.data import NAMED, ImageSet, balanced, open_images
from contrapose.encoders import linear, small_conv
from contrapose.errors import UserError
from contrapose.evaluation import probes
from contrapose.evaluation.embed import embed
from contrapose.evaluation.projection import project
from contrapose.evaluation.sgd_probe import PROTOCOLS, sgd_probe
from contrapose.experiments.form import Job
from contrapose.experiments.measures import (
    knn,
    local_separation,
    tolerance,
    uniformity,
    without_labels,
)
from contrapose.experiments.trained import Measure, Trained, trained
from contrapose.recipes import instance_discrimination
from contrapose.similarity import Pairs, paired, topk
from contrapose.training.recipe import Recipe

BANK, IN_BATCH = "bank", "in-batch"
CONTRASTIVE, SIMPLE, HARD, HARD_SIMPLE = "contrastive", "simple", "hard", "hard-simple"
COLD = "cold"  # S1's eq. 6: a triplet loss without margin, on the nearest negative
UNTRAINED = "untrained"  # the encoder before training: its loss is never called
HARDEST = 4095  # negatives that the hard losses keep of S1's banks
ALPHA = HARDEST / 50_000  # as a share: S1's alpha on CIFAR; for banks and batches of other sizes


def cold_limit_of_keys(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    match: Int[Tensor, " N"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """InfoNCE as its temperature goes to 0 (S1, eq. 6): max(nearest negative - positive, 0) / t."""
    every = torch.arange(len(key), device=key.device)
    nearest, _ = topk(query, key, 1, pairs=Pairs(row_id=match, col_id=every))
    return ((nearest[:, 0] - paired(query, key[match])).relu() / temperature).mean()


LOSSES: Mapping[tuple[str, str], Any] = {
    (BANK, CONTRASTIVE): losses.info_nce,
    (BANK, SIMPLE): losses.simple_info_nce,
    (BANK, HARD): losses.hard_info_nce,
    (BANK, HARD_SIMPLE): losses.hard_simple_info_nce,
    (IN_BATCH, CONTRASTIVE): losses.nt_xent,
    (IN_BATCH, SIMPLE): losses.simple,
    (IN_BATCH, HARD): losses.hard,
    (IN_BATCH, HARD_SIMPLE): losses.hard_simple,
    (BANK, COLD): cold_limit_of_keys,
    (IN_BATCH, COLD): losses.cold_limit,
    (IN_BATCH, UNTRAINED): losses.nt_xent,
}


MEASURES = {
    "accuracy": "test accuracy of a linear classifier on h",
    "uniformity": "L_uniform of z, t = 2, test images without augmentation; low is even",
    "minus_uniformity": "-L_uniform, which the paper plots",
    "tolerance": "mean similarity of z of two test images of one class",
    "local_separation": "similarity of two views, then of the ten nearest other images",
    "knn": "accuracy of a vote of the 200 nearest training images by h",
    "effective_rank_h": "effective rank of h (RankMe), test images",
    "effective_rank_z": "effective rank of z, test images",
    "lidar": "effective rank of h between images, in units of views (LiDAR)",
    "instance_retrieval": "share of views whose nearest neighbour by h is the image's other view",
    "train_seconds": "training time, s",
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The settings in which a scale differs from the protocol of the paper."""

    data: tuple[str, ...]
    images: int | None = None  # training images; None: all
    probed: int | None = None  # images of either split for the probe; None: all
    changes: Mapping[str, Any] = field(default_factory=dict)  # fields of the recipe
    width: int | None = None  # of small_conv; None: the recipe's ResNet
    batch_norm: bool = False  # behind the linear head
    epochs: float = 200
    protocol: str | None = "wang_liu"  # of the linear probe; None: logistic regression, solved


IMAGENET_100 = "imagenet-100"
SCALES = {
    "smoke": Scale(
        data=("digits",), width=16, epochs=2, protocol=None, changes={"batch_size": 64}
    ),
    "cpu": Scale(
        data=("cifar10",), images=5000, probed=10_000, width=128, batch_norm=True, protocol=None,
        epochs=100, changes={"lr": 0.1, "size": 16},
    ),
    "paper": Scale(data=("cifar10", "cifar100", "svhn", IMAGENET_100)),
}  # fmt: skip


def job(
    *,
    scale: str,
    seed: int,
    data: str,
    protocol: str,
    loss: str,
    tau: float | None = None,
    trained_for: float | None = None,
    measures: Sequence[Measure] = (),
) -> Job:
    """One run with the facts data, protocol, loss and tau, the standard measures and these.

    trained_for: epochs, if not the scale's; 0 is the encoder before training.
    """
    at = SCALES[scale]
    call = partial(
        trained,
        images=source(data),
        recipe=partial(recipe, data=data, protocol=protocol, loss=loss, tau=tau, scale=scale),
        subset=at.images,
        seed=seed,
        epochs=epochs_of(scale, protocol) if trained_for is None else trained_for,
        measures=(*standard(scale, data), *measures),
    )
    facts = {"data": data, "protocol": protocol, "loss": loss, "tau": tau}
    name = "-".join([data, protocol, loss] + ([] if tau is None else [f"tau{tau:g}"]))
    return Job(name=f"{name}-seed{seed}", call=call, facts=facts, seed=seed)


def recipe(
    size: int, channels: int, *, data: str, protocol: str, loss: str, tau: float | None, scale: str
) -> Recipe:
    """S1's recipe with this loss, scaled down by SCALES."""
    at = SCALES[scale]
    found = instance_discrimination.recipe(size, channels)
    glyphs = channels == 1  # have an optimiser of their own, and its rate
    changes = {k: v for k, v in at.changes.items() if not (glyphs and k == "lr")}
    found = dataclasses.replace(found, **changes)
    if protocol == IN_BATCH:
        found = dataclasses.replace(found, keys=None, number_of_views=2)
    if at.width is not None:
        found = dataclasses.replace(
            found,
            backbone=partial(small_conv, channels=channels, width=at.width),
            head=partial(linear, dim=128, batch_norm=at.batch_norm),
        )
    negatives = number_of_negatives(data, protocol, scale, found.batch_size)
    whole_bank = protocol == BANK and at.images is None and data != "digits"
    k = HARDEST if whole_bank else max(1, round(ALPHA * negatives))
    return dataclasses.replace(found, loss=loss_of(protocol, loss, tau, negatives, k))


def loss_of(protocol: str, loss: str, tau: float | None, negatives: int, k: int) -> Any:
    """The loss with lambda = 1 / (number of negatives in its sum), which S1 does not print."""
    function = LOSSES[protocol, loss]
    if loss in (CONTRASTIVE, COLD, UNTRAINED):
        return partial(function, temperature=0.1 if tau is None else tau)
    if loss == HARD:
        return partial(function, temperature=tau, k=k)
    if loss == SIMPLE:
        return partial(function, weight=1 / negatives)
    return partial(function, weight=1 / k, k=k)


def epochs_of(scale: str, protocol: str) -> float:
    """Epochs, so that both protocols have the same number of views of every image.

    In-batch runs have two views and so half the epochs; at the paper's scale both have its epochs.
    """
    epochs = SCALES[scale].epochs
    return epochs / 2 if protocol == IN_BATCH and scale == "cpu" else epochs


def number_of_negatives(data: str, protocol: str, scale: str, batch: int) -> int:
    """Negatives of an anchor: other images of the bank, or views of other images of the batch."""
    if protocol == IN_BATCH:
        return 2 * batch - 2
    images = SCALES[scale].images
    if images is None:
        images = 130_000 if data == IMAGENET_100 else NAMED[data].images[0]
    return images - 1


def source(data: str) -> Any:
    """The images for `trained`: a name, or a function of the split."""
    return imagenet_100 if data == IMAGENET_100 else data


def imagenet_100(split: str) -> ImageSet:
    """Every tenth class of ImageNet by id, since S1's own list was not found."""
    whole = open_images("imagenet", split=split)
    if whole.label is None:
        raise UserError("imagenet-100: the images of imagenet have no classes")
    chosen = whole.subset(torch.nonzero(whole.label % 10 == 0).flatten())
    assert chosen.label is not None
    return dataclasses.replace(chosen, label=chosen.label // 10, classes=whole.classes[::10])


def standard(scale: str, data: str) -> tuple[Measure, ...]:
    """Accuracy, uniformity, tolerance, local separation, kNN, and signals without labels."""
    at = SCALES[scale]
    probe = partial(accuracy, images=source(data), subset=at.probed, protocol=at.protocol)
    return probe, uniformity, tolerance, local_separation, knn, without_labels


def accuracy(
    of: Trained, *, images: Any, subset: int | None, protocol: str | None
) -> dict[str, float]:
    """Test accuracy of a linear classifier on h: by S1's SGD, or by solved logistic regression.

    subset: number of images for fitting, whether the encoder was trained on them or not, and for
    testing.
    """
    train, test = of.train, of.test
    if subset is not None:
        opened = [
            open_images(images, split=s) if isinstance(images, str) else images(split=s)
            for s in ("train", "test")
        ]
        train, test = (balanced(i, min(subset, len(i))) for i in opened)
    of_train = of.of_train if train is of.train else _embedded(of, train)
    of_test = of.of_test if test is of.test else _embedded(of, test)
    x, y, truth = of_train.h.to(of.device), of.labels(train), of.labels(test)
    if protocol is None:
        fitted = probes.linear_probe(x, y, l2=probes.DECADES, seed=of.seed)
    else:
        fitted = sgd_probe(x, y, PROTOCOLS[protocol], seed=of.seed)
    right = fitted.predict(of_test.h.to(of.device)) == truth
    return {"accuracy": float(right.double().mean())}


def _embedded(of: Trained, images: ImageSet) -> Any:
    return embed(of.encoder, images, size=of.recipe.size, device=of.device)


def plane(of: Trained, *, points: int = 1000) -> dict[str, list[float]]:
    """A t-SNE map of z of test images: coordinates and class of each point (S1 figure 2)."""
    few = balanced(of.test, min(points, len(of.test)))
    found = project(_embedded(of, few).z, max_points=points, seed=of.seed)
    assert few.label is not None
    x, y = found.xy.T
    return {"map_x": x.tolist(), "map_y": y.tolist(), "map_class": few.label[found.index].tolist()}
