"""Steps tried before a run begins: how long they take, kept in the cache for the same run again."""

import json
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from contrapose.augment import views as make_views
from contrapose.data import ImageSet
from contrapose.data.images import digest
from contrapose.encoders import Encoder
from contrapose.files import cache_root
from contrapose.machine import processor, synchronize
from contrapose.partials import describe
from contrapose.training.recipe import Recipe


def timed_step(
    trial: Encoder, recipe: Recipe, picture: Tensor, bf16: bool, embed: nn.Module | None = None
) -> float:
    """Seconds of a step without loss and update: views, forward and backward pass.

    embed: what computes (h, z) in place of the encoder, such as the compiled one.
    """
    start = time.perf_counter()
    try_step(trial, recipe, picture, bf16, embed)
    return time.perf_counter() - start


def try_step(
    trial: Encoder, recipe: Recipe, picture: Tensor, bf16: bool, embed: nn.Module | None = None
) -> None:
    """The step of `timed_step`. The weights stay as they are."""
    generator = torch.Generator(picture.device).manual_seed(0)
    view = make_views(recipe.policy, picture, generator, n=recipe.number_of_views)
    rows = view.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    with torch.autocast(picture.device.type, torch.bfloat16, enabled=bf16):
        h, z = (trial if embed is None else embed)(rows)
        out = z.float().square().sum()
        if trial.classifier is not None:
            out = out + trial.logits(h).square().sum()
    out.backward()
    trial.zero_grad(set_to_none=True)
    synchronize(picture.device)


def remembered(
    kind: str,
    needed: Collection[str],
    recipe: Recipe,
    images: ImageSet,
    measure: Callable[[], dict[str, float]],
    *more: object,
) -> tuple[dict[str, float], str]:
    """(what was measured, "before" or "at the start").

    It is kept in the cache folder `kind`, under the network, the sizes, the processor and whatever
    `more` decides, so that the same command chooses the same again. needed: the numbers, above
    zero, without which what was kept is measured anew.
    """
    path = _place(kind, recipe, images, more)
    try:
        seen = json.loads(path.read_text()) if path is not None else None
        if seen is not None and min(seen[name] for name in needed) > 0:
            return seen, "before"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    seen = measure() | {"measured": time.time()}
    if path is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(seen))
    return seen, "at the start"


def _place(kind: str, recipe: Recipe, images: ImageSet, more: tuple[object, ...]) -> Path | None:
    try:
        root = cache_root()
    except RuntimeError:  # nobody's home: there is no ~
        return None
    parts = (
        processor(), torch.__version__, torch.get_num_threads(), describe(recipe.backbone),
        describe(recipe.head), recipe.size, images.channels, recipe.batch_size,
        recipe.number_of_views, *more,
    )  # fmt: skip
    return None if root is None else root / kind / f"{digest(repr(parts).encode())}.json"
