"""The objective of a training step: the rows that are embedded, and the loss of their outputs.

An objective is made once for a run (`objective_of`); its state is part of every checkpoint.

    contrastive      the recipe's `loss` of the embeddings z, compared with each other or with keys
    classification   a `loss` of the logits W h + b of a linear classifier and the labels
    joint            both: the encoder descends  L + w L_c  and the classifier  L_c,  where L_c is
                     the recipe's `classifier` and w its `classifier_weight`

The names of the arguments of a recipe's losses decide which one it is (`recipe.classifies`).
"""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Int8, UInt8
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from contrapose.augment import views as make_views
from contrapose.data import ImageSet
from contrapose.data.composed import features_of
from contrapose.data.video import times_of
from contrapose.encoders import Encoder, modes_kept
from contrapose.errors import UserError
from contrapose.keys.contrast import (
    Contrast,
    Halves,
    InBatch,
    Loss,
    OverTime,
    SharedLabels,
    WithinParts,
)
from contrapose.keys.sources import Entries, KeySource
from contrapose.partials import given, unknown
from contrapose.portions import portion_in_force, portion_of_batch
from contrapose.similarity import gather_rows
from contrapose.training.recipe import FEATURE, Recipe, classifies
from contrapose.training.signals import agreement, temperature_signals

Gather = Callable[[Tensor], Tensor]  # from the rows of this rank to those of all, in their order
ABOVE_CLASSES = 2**23  # more classes than there are; with as many images again exact in float32


@dataclass(frozen=True, eq=False)
class Batch:
    """The images of one step, as they are stored, with their positions and labels."""

    image: UInt8[Tensor, "B C S S"]
    index: Int[Tensor, " B"]  # which images of the set
    label: Int[Tensor, " B"] | None = None  # what the recipe learns from (`learned_label`)
    several: Int8[Tensor, "B K"] | None = None  # where each image has several labels
    part: Int[Tensor, " B"] | None = None  # of the batch, where parts contrast on their own
    # where each image stands in the batch of all ranks; None: these are the whole batch
    place: Int[Tensor, " B"] | None = None

    @property
    def number(self) -> Int[Tensor, " B"]:
        """A number for each image that no other image of the batch of all ranks has."""
        if self.place is not None:
            return self.place
        return torch.arange(len(self.image), device=self.image.device)


@dataclass(frozen=True, eq=False)
class Rows:
    """The N rows to embed: Q views of B images, view by view."""

    image: Float[Tensor, "N C S S"]
    view: Float[Tensor, "V B C S S"]  # all views, those of keys among them
    batch: Batch
    target: Int[Tensor, " N"] | Float[Tensor, "N K"] | None = None  # of a classifier


@dataclass(frozen=True, eq=False)
class Compared:
    """What the rows are compared with: other rows and keys, or labels."""

    contrast: Contrast | None = None
    entries: Entries | None = None  # for the source of the keys to take in
    classified: dict[str, Tensor] = field(default_factory=dict)  # arguments of a classifier's loss


@runtime_checkable
class Objective(Protocol):
    """One step is `rows`, the encoder, `compare`, `loss`, an update of the weights, `update`."""

    def rows(self, batch: Batch, generator: Generator) -> Rows:
        """The rows to embed: views, drawn by the generator."""

    def compare(self, encoder: Encoder, rows: Rows, h: Tensor, z: Tensor) -> Compared:
        """The comparison for h [N, F] and z [N, D] of the rows; called in autocast."""

    def loss(self, compared: Compared, z: Float[Tensor, "N D"]) -> Float[Tensor, ""]: ...

    def of_all(self, compared: Compared, rows: int, gather: Gather) -> Compared:
        """The comparison of the rows of all ranks, of which there are `rows`."""

    def update(self, encoder: Encoder, compared: Compared) -> None:
        """Called after the update of the weights, with the comparison of all ranks."""

    def signals(self, compared: Compared, z: Float[Tensor, "N D"]) -> dict[str, float]:
        """The signals of this objective, called before `update`."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


def objective_of(recipe: Recipe, encoder: Encoder, images: int) -> Objective:
    """The recipe's objective for this encoder, on its device, and this number of images."""
    classes = len(encoder.classes)
    if classifies(recipe.loss):
        return Classification(recipe, recipe.loss, classes)
    contrastive = Contrastive(recipe, source_of_keys(recipe, encoder, images))
    if recipe.classifier is None:
        return contrastive
    beside = Classification(recipe, recipe.classifier, classes, recipe.classifier_weight)
    return Joint(contrastive, beside)


class Contrastive:
    """Contrast of the embeddings of views with each other, or with keys of a source."""

    def __init__(self, recipe: Recipe, source: KeySource | None = None) -> None:
        self.recipe, self.source = recipe, source

    def rows(self, batch: Batch, generator: Generator) -> Rows:
        view = make_views(self.recipe.policy, batch.image, generator, n=self.recipe.number_of_views)
        query = view if self.source is None else self.source.queries(view)
        return Rows(query.flatten(0, 1), view, batch)

    def compare(self, encoder: Encoder, rows: Rows, h: Tensor, z: Tensor) -> Compared:
        recipe, batch = self.recipe, rows.batch
        if self.source is not None:
            group = lasting_groups(recipe, batch.label, batch.index)
            entries = self.source.entries(rows.view, z, batch.index, group)
            return Compared(self.source.contrast(len(z), entries), entries)
        views = len(z) // max(1, len(batch.image))
        return Compared(
            contrast_of(recipe, batch.label, batch.number, batch.part, batch.several, views)
        )

    def loss(self, compared: Compared, z: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
        assert compared.contrast is not None
        return compared.contrast.loss(self.recipe.loss, z)

    def of_all(self, compared: Compared, rows: int, gather: Gather) -> Compared:
        if self.source is not None:
            assert compared.entries is not None
            entries = compared.entries.of_all(gather)
            return replace(compared, contrast=self.source.contrast(rows, entries), entries=entries)
        assert isinstance(compared.contrast, InBatch)
        return replace(compared, contrast=compared.contrast.of_all(gather))

    def update(self, encoder: Encoder, compared: Compared) -> None:
        if self.source is not None and compared.entries is not None:
            self.source.update(encoder, compared.entries)

    def signals(self, compared: Compared, z: Float[Tensor, "N D"]) -> dict[str, float]:
        """The loss at chance, alignment and accuracy of positives, the temperature in force."""
        assert compared.contrast is not None
        return {
            "loss_at_chance": self._loss_at_chance(z, compared.contrast),
            **agreement(z, compared.contrast),
            **temperature_signals(self.recipe, z, compared.contrast),
        }

    def _loss_at_chance(self, z: Float[Tensor, "N D"], contrast: Contrast) -> float:
        """The loss if all embeddings, also those of keys, are equal: ln(2B - 1) for NT-Xent.

        For InfoNCE with a bank of n keys it is ln(n).
        """
        same = torch.zeros_like(z)
        same[:, 0] = 1.0
        if not isinstance(contrast, InBatch):
            key = torch.zeros_like(contrast.key)
            key[:, 0] = 1.0
            contrast = replace(contrast, key=key)
        with warnings.catch_warnings(action="ignore"):  # equal embeddings have every temperature
            return float(contrast.loss(self.recipe.loss, same))

    def state_dict(self) -> dict[str, Tensor]:
        kept = {} if self.source is None else self.source.state_dict()
        return {f"keys.{name}": x for name, x in kept.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self.source is not None:
            self.source.load_state_dict(
                {n.removeprefix("keys."): x for n, x in state.items() if n.startswith("keys.")}
            )


class Classification:
    """A linear classifier on h, trained with labels; images and labels are mixed if asked for.

    weight: the factor of its gradient for the encoder; at 0 only the classifier learns.
    """

    def __init__(self, recipe: Recipe, loss: Loss, classes: int, weight: float = 1.0) -> None:
        self.recipe, self.of, self.classes, self.weight = recipe, loss, classes, weight

    def rows(self, batch: Batch, generator: Generator) -> Rows:
        recipe = self.recipe
        view = make_views(recipe.policy, batch.image, generator, n=recipe.number_of_views)
        rows = self.labelled(Rows(view.flatten(0, 1), view, batch))
        if recipe.mixing is None:
            return rows
        assert rows.target is not None
        share = one_hot(rows.target.clamp(min=0), self.classes).float()
        share = share * (rows.target >= 0)[:, None]  # nothing of an image without a label
        image, share = mixed_over_ranks(recipe.mixing, rows.image, share, generator)
        return replace(rows, image=image, target=share)

    def labelled(self, rows: Rows) -> Rows:
        """The rows with their labels."""
        batch = rows.batch
        assert batch.label is not None, "checked before training"
        return replace(rows, target=batch.label.repeat(len(rows.image) // len(batch.image)))

    def compare(self, encoder: Encoder, rows: Rows, h: Tensor, z: Tensor) -> Compared:
        if self.weight != 1:  # the classifier gets its whole gradient either way
            h = self.weight * h + (1 - self.weight) * h.detach() if self.weight else h.detach()
        assert encoder.classifier is not None and rows.target is not None
        of = {"logits": encoder.logits(h), "label": rows.target}
        return Compared(classified=of | {"x": h, "classes": encoder.classifier.weight})

    def loss(self, compared: Compared, z: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
        wanted = inspect.signature(self.of).parameters
        return self.of(**{n: x for n, x in compared.classified.items() if n in wanted})

    def of_all(self, compared: Compared, rows: int, gather: Gather) -> Compared:
        of = compared.classified
        whole = {name: x if name == "classes" else gather(x) for name, x in of.items()}
        return replace(compared, classified=whole)

    def update(self, encoder: Encoder, compared: Compared) -> None: ...

    def signals(self, compared: Compared, z: Float[Tensor, "N D"]) -> dict[str, float]:
        """The loss at chance (equal logits), and the accuracy of the classifier on the batch."""
        of = compared.classified
        blank = of | {name: torch.zeros_like(of[name]) for name in ("logits", "x")}
        chance = float(self.loss(Compared(classified=blank), z))
        label = of["label"]
        known = label >= 0 if label.ndim == 1 else label.sum(dim=1) > 0
        label = label if label.ndim == 1 else label.argmax(dim=1)
        right = (of["logits"].argmax(dim=1) == label)[known]
        accuracy = {"classifier_accuracy": float(right.float().mean())} if len(right) else {}
        return {"loss_at_chance": chance, **accuracy}

    def state_dict(self) -> dict[str, Tensor]:
        return {}  # the classifier is the encoder's

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class Joint:
    """L + w L_c: contrast of z, and a linear classifier on h, for the same rows."""

    def __init__(self, contrastive: Contrastive, classification: Classification) -> None:
        self.contrastive, self.classification = contrastive, classification

    def rows(self, batch: Batch, generator: Generator) -> Rows:
        return self.classification.labelled(self.contrastive.rows(batch, generator))

    def compare(self, encoder: Encoder, rows: Rows, h: Tensor, z: Tensor) -> Compared:
        classified = self.classification.compare(encoder, rows, h, z).classified
        return replace(self.contrastive.compare(encoder, rows, h, z), classified=classified)

    def loss(self, compared: Compared, z: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
        """The sum of both losses; the gradient of the second reaches the encoder times `weight`."""
        return self.contrastive.loss(compared, z) + self.classification.loss(compared, z)

    def of_all(self, compared: Compared, rows: int, gather: Gather) -> Compared:
        compared = self.classification.of_all(compared, rows, gather)
        return self.contrastive.of_all(compared, rows, gather)

    def update(self, encoder: Encoder, compared: Compared) -> None:
        self.contrastive.update(encoder, compared)

    def signals(self, compared: Compared, z: Float[Tensor, "N D"]) -> dict[str, float]:
        beside = self.classification.signals(compared, z)
        beside["classifier_loss"] = float(self.classification.loss(compared, z))
        of_z = self.contrastive.signals(compared, z)
        return beside | of_z | {"loss_at_chance": of_z["loss_at_chance"] + beside["loss_at_chance"]}

    def state_dict(self) -> dict[str, Tensor]:
        return self.contrastive.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.contrastive.load_state_dict(state)


def source_of_keys(recipe: Recipe, encoder: Encoder, images: int) -> KeySource | None:
    """The source of keys of the recipe, for this encoder and number of images, or None."""
    if recipe.keys is None:
        return None
    weight = next(encoder.parameters())
    blank = weight.new_zeros(1, encoder.channels, recipe.size, recipe.size)
    with modes_kept(encoder), torch.no_grad():
        width = encoder.eval()(blank)[1].shape[1]
    source: KeySource = recipe.keys(encoder, images, width).to(weight.device, weight.dtype)
    return source


def mixed_over_ranks(
    mixing: Callable[..., Any], image: Tensor, share: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """`mixing` of the rows of all ranks, of which those of this one are returned."""
    if (portion := portion_in_force()) is None:
        made: tuple[Tensor, Tensor] = mixing(image, share, generator)
        return made
    mine = portion.rows(len(image)).to(image.device)
    order = gather_rows(mine).argsort()
    with portion_of_batch(None):
        image, share = mixing(gather_rows(image)[order], gather_rows(share)[order], generator)
    return image[mine], share[mine]


def contrast_of(
    recipe: Recipe,
    label: Int[Tensor, " B"] | None,
    number: Int[Tensor, " B"],
    part: Int[Tensor, " B"] | None = None,
    several: Int8[Tensor, "B K"] | None = None,
    views: int | None = None,
) -> InBatch:
    """The contrast of a recipe without keys: of V views of B images with each other.

    label: what the recipe learns from; of positives=time the time in ms. number: one for each image
    that no other has. Of frames the arguments of the loss decide: `time`; or `query, key`, the
    first half of the rows and the second; or `group`, which are the rows of one time.
    """
    views = recipe.number_of_views if views is None else views
    group = lasting_groups(recipe, label, number)
    if not recipe.of_time:
        shared = several if recipe.positives == "shared" else None
        return in_batch(group, number, part, views, shared)
    wanted = given(recipe.loss)
    of = number.repeat(views)
    if "time" in wanted:
        return OverTime(group.repeat(views), of, group.repeat(views))
    if in_halves(recipe):
        portion = portion_in_force()
        rows = torch.arange(len(of)) if portion is None else portion.rows(len(of))
        half = (len(of) if portion is None else portion.whole * views) // 2
        return Halves((rows % max(1, half)).to(of.device), of)
    return InBatch(group.repeat(views), of)


def in_halves(recipe: Recipe) -> bool:
    """True if the partner of a frame stands in the other half of the batch, at the same place."""
    return recipe.of_time and {"query", "key"} <= set(given(recipe.loss))


def in_batch(
    group: Int[Tensor, " B"],
    image: Int[Tensor, " B"],
    part: Int[Tensor, " B"] | None,
    views: int,
    labels: Int8[Tensor, "B K"] | None = None,
) -> InBatch:
    """The contrast of V views of B images: with all others, or with those of their part.

    image: a number of each that no other one has.
    """
    of = image.repeat(views)
    if labels is not None:
        return SharedLabels(group.repeat(views), of, labels.repeat(views, 1))
    if part is None:
        return InBatch(group.repeat(views), of)
    return WithinParts(group.repeat(views), of, part.repeat(views))


def learned_label(recipe: Recipe, images: ImageSet) -> tuple[Int[Tensor, " N"], tuple[str, ...]]:
    """(the label of each image that the recipe learns from, the names of its values).

    It is the class, or the feature that `positives` names; -1 is an image without a label. Raises
    UserError for images without it.
    """
    if recipe.of_time:
        return times_of(images), ()
    name = recipe.positives.removeprefix(FEATURE)
    if name == recipe.positives:
        if images.label is None:
            raise UserError(
                f"recipe {recipe.name!r} learns from classes, and the images of {images.name} have "
                f"{'several labels' if images.labels is not None else 'no labels'}; use --recipe "
                "simclr, or class subfolders"
            )
        return images.label, images.classes
    features = features_of(images)
    if name not in features:
        raise UserError(
            f"positives={recipe.positives}: {images.name} has no feature {unknown(name, features)}"
        )
    label = features[name]
    if images.label is not None and torch.equal(label, images.label):
        return label, images.classes
    return label, tuple(map(str, range(int(label.max()) + 1)))


def lasting_groups(
    recipe: Recipe, label: Int[Tensor, " B"] | None, index: Int[Tensor, " B"]
) -> Int[Tensor, " B"]:
    """Equal numbers for images that are positives of each other: by image, class or feature.

    They mean the same wherever `index`, the number of an image, does: in the set, for stored keys,
    or in the batch. Classes keep their numbers. An image without a label (-1) is alone in its
    group, with a number above those of classes. With several labels, which form no groups, each
    image is alone.
    """
    if not recipe.of_labels or label is None:
        return index
    return torch.where(label < 0, ABOVE_CLASSES + index, label)
