"""One optimisation step: images -> views -> (h, z) -> loss -> update."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor

from contrapose.augment import views as make_views
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.keys import chunked
from contrapose.keys.contrast import Contrast, InBatch, SharedLabels, WithinParts
from contrapose.keys.sources import Entries, KeySource
from contrapose.losses.checks import RowsOutOfRange
from contrapose.training.recipe import Recipe

ABOVE_CLASSES = 2**23  # more classes than there are; with as many images again exact in float32


class NonFiniteError(ArithmeticError):
    """The loss or its gradient is NaN or infinite; the weights are still those before the step."""


@dataclass(frozen=True)
class Step:
    """What a step saw, for whoever measures: rows are views, V*B of them, view by view."""

    loss: float
    gradient_norm: float
    h: Float[Tensor, "N F"]
    z: Float[Tensor, "N D"]
    group: Int[Tensor, " N"]
    label: Int[Tensor, " N"] | None
    contrast: Contrast  # what the rows were compared with
    entries: Entries | None  # for the source of the keys to take in


def step(
    encoder: Encoder,
    optimizer: torch.optim.Optimizer,
    image: UInt8[Tensor, "B C S S"],
    label: Int[Tensor, " B"] | None,
    recipe: Recipe,
    generator: torch.Generator,
    *,
    index: Int[Tensor, " B"] | None = None,
    source: KeySource | None = None,
    part: Int[Tensor, " B"] | None = None,
    labels: Int8[Tensor, "B K"] | None = None,
    bf16: bool = False,
) -> Step:
    """Update the encoder once. Raises NonFiniteError before a bad gradient touches the weights.

    source, index: where keys come from if not from the batch, and which images these are. The
    source is left as it was: `source.update(encoder, seen.entries)` takes the batch's keys in.
    part: which part of the batch an image belongs to, where parts contrast on their own.
    labels: several of each image, where the positives share one.
    """
    view = make_views(recipe.policy, image, generator, n=recipe.number_of_views)
    query = view if source is None else source.queries(view)
    rows = query.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    group = positive_groups(recipe, label, len(image), image.device)
    entries = None
    with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
        h, z = encoder(rows) if recipe.chunk is None else chunked(encoder, rows, chunk=recipe.chunk)
        shared = labels if recipe.positives == "shared" else None
        contrast = in_batch(group, part, len(query), shared)
        if source is not None:
            assert index is not None
            entries = source.entries(view, z, index, lasting_groups(recipe, label, index))
            contrast = source.contrast(len(z), entries)
    try:
        loss = contrast.loss(recipe.loss, z)
    except RowsOutOfRange as error:
        raise NonFiniteError(_where(rows, h, z) or str(error)) from error
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [p for p in encoder.parameters() if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    value, size = torch.stack([loss.detach().float(), norm.float()]).tolist()  # one synchronisation
    if not (math.isfinite(value) and math.isfinite(size)):
        reason = f"the loss was {value} and the norm of its gradient {size}"
        raise NonFiniteError(_where(rows, h, z) or reason)
    if recipe.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, recipe.clip, norm)
    optimizer.step()
    repeated = None if label is None else label.repeat(len(query))
    h, z = h.detach().float(), z.detach().float()
    return Step(value, size, h, z, group.repeat(len(query)), repeated, contrast, entries)


def in_batch(
    group: Int[Tensor, " B"],
    part: Int[Tensor, " B"] | None,
    views: int,
    labels: Int8[Tensor, "B K"] | None = None,
) -> Contrast:
    """What V views of B images are compared with: all others, or those of their part."""
    of = torch.arange(len(group), device=group.device).repeat(views)
    if labels is not None:
        return SharedLabels(group.repeat(views), of, labels.repeat(views, 1))
    if part is None:
        return InBatch(group.repeat(views), of)
    return WithinParts(group.repeat(views), of, part.repeat(views))


def positive_groups(
    recipe: Recipe, label: Int[Tensor, " B"] | None, batch: int, device: torch.device
) -> Int[Tensor, " B"]:
    """Which images are positives of each other: each alone, or those of one class. Those that share
    one of several labels form no groups: here each is alone.

    A class keeps its number. An image without a label (-1) is alone in its group.
    """
    alone = torch.arange(batch, device=device)
    if recipe.positives != "class":
        return alone
    if label is None:
        raise UserError(
            f"recipe {recipe.name!r} takes positives from classes, and these images have no "
            "labels; use --recipe simclr, or class subfolders"
        )
    return torch.where(label < 0, int(label.max()) + 1 + alone, label)


def lasting_groups(
    recipe: Recipe, label: Int[Tensor, " B"] | None, index: Int[Tensor, " B"]
) -> Int[Tensor, " B"]:
    """`positive_groups` by names that mean the same in every batch, for keys that outlive one.

    An image without a label has a number of its own, above those of classes.
    """
    if recipe.positives != "class" or label is None:
        return index
    return torch.where(label < 0, ABOVE_CLASSES + index, label)


def _where(view: Tensor, h: Tensor, z: Tensor) -> str:
    """What held NaN or infinity first; an empty text where none of them did."""
    for name, x in (("the views", view), ("the representation h", h), ("the embedding z", z)):
        if not x.isfinite().all():
            return f"{name} held NaN or infinity"
    return ""
