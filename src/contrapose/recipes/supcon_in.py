"""SupCon with the sum inside the logarithm (arXiv 2004.11362, eq. 3). Needs labels.

    contrapose train cifar10 --recipe supcon_in

Expect 0.98 linear accuracy on digits (raw pixels 0.95), about 1 min on 2 cores. Larger sets were
not run.
"""

from dataclasses import replace
from functools import partial

from contrapose.losses import supcon_in
from contrapose.recipes import supcon
from contrapose.training.recipe import Recipe


def recipe(size: int, channels: int) -> Recipe:
    """The setting of `supcon` with its other loss: what the paper's table 1 compares."""
    loss = partial(supcon_in, temperature=0.1)
    return replace(supcon.recipe(size, channels), name="supcon_in", loss=loss)
