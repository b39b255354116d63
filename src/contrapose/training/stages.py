"""A second stage of training: a linear classifier on h, the encoder frozen.

A recipe's `second_stage` makes, of the recipe, the one that trains after it in the same run. At the
border the running statistics of batch normalisation are settled and the classifier is drawn anew;
from then on everything but the classifier is frozen, statistics too, and no gradient reaches it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from contrapose import augment
from contrapose.losses import cross_entropy
from contrapose.training import optim
from contrapose.training.recipe import Recipe

SGD = partial(optim.sgd, momentum=0.9, weight_decay=0.0)
THREE_STEPS = partial(optim.steps, milestones=(0.6, 0.75, 0.9), factor=0.2)


def linear_stage(
    recipe: Recipe,
    *,
    epochs: float = 100,
    lr: float = 5.0,
    batch_size: int = 512,
    warmup: float = 0,
    loss: Callable[..., Any] = cross_entropy,
    optimizer: Callable[..., Any] = SGD,
    schedule: Callable[..., Any] = THREE_STEPS,
    scaling: Callable[..., Any] = optim.no_scaling,
    views: Callable[..., Any] | None = None,
) -> Recipe:
    """The stage of the linear classifier: SupCon's on CIFAR by default (HobbitLong/SupContrast).

    views: of the images; by default crops and flips, and crops alone for glyphs. The rate is that
    of SGD on h as it is, which after another loss or network may have to be another.
    """
    small = recipe.size <= 64
    crops = partial(augment.crop_flip, area=(0.2 if small else 0.08, 1.0))
    if views is None:
        glyphs = getattr(recipe.views, "func", recipe.views) is augment.digits
        views = partial(augment.digits) if glyphs else crops
    return replace(
        recipe, loss=loss, optimizer=optimizer, schedule=schedule, scaling=scaling, views=views,
        positives=recipe.positives if recipe.of_labels else "class", number_of_views=1,
        keys=None, batches=None, classifier=None, classifier_weight=0.0, mixing=None, chunk=None,
        clip=None, epochs=epochs, lr=lr, batch_size=batch_size, warmup=min(warmup, epochs),
        freeze=("backbone", "head"),
        second_stage=None,
    )  # fmt: skip


def stages_of(recipe: Recipe) -> list[Recipe]:
    """The recipe, and that of its second stage where it has one."""
    return [recipe] if recipe.second_stage is None else [recipe, recipe.second_stage(recipe)]
