"""A recipe that trains on scikit-learn's digits in seconds."""

from functools import partial
from typing import Any

from contrapose import augment, encoders, losses
from contrapose.training import optim
from contrapose.training.recipe import Recipe


def quick(*, width: int = 32, dim: int = 16, **changes: Any) -> Recipe:
    """SimCLR with a network of that width and an embedding of that dim; changes: other fields."""
    values: dict[str, Any] = dict(
        name="quick",
        views=augment.digits,
        backbone=partial(encoders.small_conv, width=width),
        head=partial(encoders.mlp, dim=dim),
        loss=partial(losses.nt_xent, temperature=0.2),
        optimizer=partial(optim.lars, weight_decay=1e-6),
        schedule=partial(optim.warmup_cosine),
        scaling=optim.linear_scaling,
        size=8,
        batch_size=128,
        epochs=4,
        warmup=1,
        lr=0.5,
    )
    return Recipe(**values | changes)
