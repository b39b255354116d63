"""Whether a processor that multiplies bf16 trains faster in it: measured before training begins.

bf16 halves the bytes of activations, and its instructions do twice the products; but small
networks are bound by neither, and casts cost time. So a few steps of each precision decide.
"""

import copy
import json
import statistics
import time
import warnings
from contextlib import suppress
from pathlib import Path

import torch

from contrapose.data import ImageSet
from contrapose.data.images import digest
from contrapose.encoders import Encoder, fastest_layout
from contrapose.files import cache_root
from contrapose.machine import freed_memory_kept, processor
from contrapose.partials import describe
from contrapose.training.batches import shuffled
from contrapose.training.cost import ENOUGH, FEW, timed_step
from contrapose.training.recipe import Recipe

STEPS = 5  # of each precision, in turn
GAIN = 1.05  # times as fast bf16 must be, which rounds more coarsely
WORTH = 50_000  # images seen in a whole run, from which it is measured


def faster_precision(recipe: Recipe, images: ImageSet, network: Encoder) -> tuple[bool, str] | None:
    """(True if training on this CPU is faster in bf16, the measurement in words).

    None for a run that sees fewer than WORTH images, which is over before it matters. A copy of
    the network takes STEPS steps in bf16 and in fp32 in turn, as `training.cost` does, and the
    medians are compared. The result is kept in the cache for the same network, size and processor,
    so that the same command has the same precision again. The random state is left as it was.
    """
    if len(images) * recipe.epochs < WORTH:
        return None
    kept = _place(recipe, images)
    seen, when = _recall(kept), "before"
    if seen is None:
        seen, when = _measured(recipe, images, network), "at the start"
        if kept is not None:
            with suppress(OSError):
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(seen))
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
            bf16: fastest_layout(copy.deepcopy(network), recipe.size, bf16=bf16).train()
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
    return {"bf16": fast, "fp32": exact, "images": count, "measured": time.time()}


def _place(recipe: Recipe, images: ImageSet) -> Path | None:
    try:
        root = cache_root()
    except RuntimeError:  # nobody's home: there is no ~
        return None
    parts = (
        processor(), torch.__version__, torch.get_num_threads(), describe(recipe.backbone),
        describe(recipe.head), recipe.size, images.channels, recipe.batch_size,
        recipe.number_of_views,
    )  # fmt: skip
    return None if root is None else root / "precision" / f"{digest(repr(parts).encode())}.json"


def _recall(path: Path | None) -> dict[str, float] | None:
    try:
        seen = json.loads(path.read_text()) if path is not None else None
        return seen if seen is None or min(seen["bf16"], seen["fp32"], seen["images"]) > 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
