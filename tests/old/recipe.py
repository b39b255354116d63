"""A recipe file as version 0.1.0 took it, kept to see that it still opens."""

from dataclasses import replace
from functools import partial

from contrapose.encoders import small_conv
from contrapose.recipes import simclr


def recipe(size: int, channels: int):
    """SimCLR's setting with a narrow network."""
    return replace(
        simclr.recipe(size, channels),
        name="narrow",
        backbone=partial(small_conv, channels=channels, width=16),
    )
