"""Decoupled contrastive learning (arXiv 2110.06848): the positive leaves the denominator.

    contrapose train cifar10 --recipe dcl

Expect 0.98 linear accuracy on digits (raw pixels 0.95), about 1 min on 2 cores. Larger sets were
not run.
"""

from dataclasses import replace
from functools import partial

from contrapose.losses import dcl
from contrapose.recipes import simclr
from contrapose.training.recipe import Recipe


def recipe(size: int, channels: int) -> Recipe:
    """SimCLR's setting with temperature 0.1."""
    return replace(simclr.recipe(size, channels), name="dcl", loss=partial(dcl, temperature=0.1))
