"""SupCon (arXiv 2004.11362): all images of a class attract each other. Needs labels.

    contrapose train cifar10 --recipe supcon

Expect 0.97 linear accuracy on digits (raw pixels 0.95), about 1 min on 2 cores, with 0.98 by kNN.
Larger sets were not run.
"""

from dataclasses import replace
from functools import partial

from contrapose.losses import supcon
from contrapose.recipes import simclr
from contrapose.training.recipe import Recipe


def recipe(size: int, channels: int) -> Recipe:
    """SimCLR's setting with positives from classes and temperature 0.1 (section 4)."""
    return replace(
        simclr.recipe(size, channels),
        name="supcon",
        loss=partial(supcon, temperature=0.1),
        positives="class",
    )
