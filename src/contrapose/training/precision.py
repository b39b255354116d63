"""Whether a processor that multiplies bf16 trains faster in it: measured before training begins.

bf16 halves the bytes of activations, and its instructions do twice the products; but small
networks are bound by neither, and casts cost time. So a few steps of each precision decide.
"""

import copy
import statistics
import warnings

import torch

from contrapose.data import ImageSet
from contrapose.encoders import Encoder, fastest_layout
from contrapose.machine import freed_memory_kept
from contrapose.training.batches import shuffled
from contrapose.training.cost import ENOUGH, FEW
from contrapose.training.global_batchnorm import exactly
from contrapose.training.recipe import Recipe
from contrapose.training.trials import remembered, timed_step

STEPS = 5  # of each precision, in turn
GAIN = 1.05  # times as fast bf16 must be, which rounds more coarsely
WORTH = 50_000  # images seen in a whole run, from which it is measured


def faster_precision(recipe: Recipe, images: ImageSet, network: Encoder) -> tuple[bool, str] | None:
    """(True if training on this CPU is faster in bf16, the measurement in words).

    None for a run that sees fewer than WORTH images, which is over before it matters. A copy of
    the network takes STEPS steps in bf16 and in fp32 in turn, as `training.trials` does, and the
    medians are compared. The result is kept in the cache for the same network, size and processor,
    so that the same command has the same precision again. The random state is left as it was.
    """
    if len(images) * recipe.epochs < WORTH:
        return None
    seen, when = remembered(
        "precision", ("bf16", "fp32", "images"), recipe, images,
        lambda: _measured(recipe, images, network),
    )  # fmt: skip
    bf16 = seen["fp32"] > GAIN * seen["bf16"]
    words = (
        f"measured {when}: a step of {seen['images']:.0f} images takes {seen['bf16']:.2g} s in "
        f"bf16, {seen['fp32']:.2g} s in fp32"
    )
    return bf16, words


def _measured(recipe: Recipe, images: ImageSet, network: Encoder) -> dict[str, float]:
    """Median seconds of a step in each precision, and its images."""
    with (
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(action="ignore"),
        freed_memory_kept(),
    ):
        trials = {
            bf16: exactly(fastest_layout(copy.deepcopy(network), recipe.size, bf16=bf16).train())
            for bf16 in (True, False)
        }
        order = shuffled(len(images), recipe.seed, 0, recipe.batch_size)[0]
        count = min(FEW, recipe.batch_size)
        while True:
            picture = images.batch(order[:count])
            took = min(timed_step(trial, recipe, picture, bf16) for bf16, trial in trials.items())
            if took > ENOUGH or count == recipe.batch_size:
                break
            count = min(recipe.batch_size, count * 4)
        took_by: dict[bool, list[float]] = {bf16: [] for bf16 in trials}
        for _ in range(STEPS):
            for bf16, times in took_by.items():
                times.append(timed_step(trials[bf16], recipe, picture, bf16))
    fast, exact = (statistics.median(took_by[bf16]) for bf16 in (True, False))
    return {"bf16": fast, "fp32": exact, "images": count}
