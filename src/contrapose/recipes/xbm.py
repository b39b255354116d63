"""Cross-batch memory (arXiv 1912.06798): SupCon with the embeddings of the last batches as keys.

    contrapose train cifar10 --recipe xbm

Expect 0.96 linear accuracy on digits (raw pixels 0.95), about 2 min on 2 cores, with 0.98 by kNN.
Larger sets were not run.
"""

from dataclasses import replace
from functools import partial

from contrapose import keys
from contrapose.losses import supcon_memory
from contrapose.recipes import supcon
from contrapose.training.recipe import Recipe


def recipe(size: int, channels: int) -> Recipe:
    """The setting of `supcon` with a memory of 8,192 embeddings, this project's choice.

    The paper trains metric losses of pairs, with a memory of up to all images, after a warm-up
    without it; here learning rates warm up instead.
    """
    return replace(
        supcon.recipe(size, channels),
        name="xbm",
        loss=partial(supcon_memory, temperature=0.1),
        keys=partial(keys.memory, size=8192),
    )
