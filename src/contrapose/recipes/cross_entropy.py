"""Cross-entropy: the network and a linear classifier on h learn from labels. Needs labels.

    contrapose train cifar10 --recipe cross_entropy

The control of every other recipe: what the same network, views and steps learn from labels alone.
"""

from dataclasses import replace

from contrapose.recipes import simclr
from contrapose.training.recipe import Recipe, supervised


def recipe(size: int, channels: int) -> Recipe:
    """SimCLR's setting, logits W h + b in place of its head, each view an example."""
    return replace(supervised(simclr.recipe(size, channels)), name="cross_entropy")
