"""The time and memory of a run on this machine, and a smaller run if they are too large.

A ResNet-50 on photographs of 224 px needs a GPU; on two cores it takes weeks, and more memory than
there is. Settings that the user did not ask for (encoder, size, batch, epochs) are then chosen so
that a first result takes minutes. Settings that were asked for are never changed; if they do not
fit, UserError says what would.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from contrapose import recipes
from contrapose.data import ImageSet, batches_ahead
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.machine import free_memory
from contrapose.partials import describe
from contrapose.progress import duration, stage
from contrapose.training.cost import Cost, cost
from contrapose.training.recipe import Recipe
from contrapose.training.start import Start

PATIENCE = 30 * 60.0  # s: a run of a recipe as it is may take as long without a GPU
AIM = 8 * 60.0  # s of training that are chosen otherwise; evaluation comes on top
LONGEST = 10 * 60.0  # s of training from which a run that was made smaller has fewer epochs too
LEAST = 10  # epochs, below which a smaller encoder is chosen rather than fewer epochs
STEPS = 100  # that a run has at least, however slow the machine: fewer teach nothing
SHARE = 0.7  # of the free memory that a run may take
LEAST_BATCH = 32  # images, below which there are too few negatives to choose it unasked
SIDE = 32  # px
LEAST_LARGE, OTHER_SIZE = 64, 224  # px: recipes tell small photographs from large ones
SMALL: dict[str, dict[str, Any]] = {  # by the flag that it stands for
    "encoder": {"encoder": "small_conv", "backbone.width": 128},  # 0.1 M parameters
    "size": {"size": SIDE},
}


class Made(NamedTuple):
    """A run that is ready to start: recipe, images and encoder."""

    recipe: Recipe
    images: ImageSet  # as training sees them
    network: Encoder
    data: dict[str, Any]  # which images, as recipe.json records it
    start: Start | None = None  # what its weights were taken from, if they were not drawn

    def cost(self, device: str, bf16: bool) -> Cost:
        with stage("measuring what a step takes"):
            return cost(self.recipe, self.images, self.network, device, bf16=bf16)


@dataclass(frozen=True)
class Plan:
    """Cost of a run, and the settings that were chosen for this machine instead of the recipe's."""

    cost: Cost
    chosen: Mapping[str, Any]  # {"encoder": "small_conv", "epochs": 60 ...}; empty: nothing
    reason: str = ""
    otherwise: str = ""  # flags that ask for the recipe's own setting

    def as_json(self) -> dict[str, Any]:
        return {
            "cost": asdict(self.cost),
            "words": self.cost.words(),
            "chosen": dict(self.chosen),
            "reason": self.reason,
            "otherwise": self.otherwise,
        }


def planned(
    make: Callable[[Mapping[str, Any]], Made],
    *,
    asked: Collection[str],
    device: str,
    bf16: bool,
    free: float | None = None,
    command: str = "contrapose train DATA",
) -> tuple[Made, Plan]:
    """The run to start, and its plan.

    make: a function from settings that replace the recipe's ({} for none) to the run.
    asked: which of encoder, size, batch_size and epochs must stay as they are.
    free: bytes of memory, default the free memory of the machine.
    command: the command that UserError repeats if the memory is too small.
    """
    instead: dict[str, Any] = {}
    made = make(instead)
    first = price = made.cost(device, bf16)
    room = SHARE * (free_memory(device) if free is None else free)
    if device != "cpu" or (price.seconds <= PATIENCE and price.memory <= room):
        return made, Plan(price, {})
    own = _settings(made.recipe)
    smaller = {
        name: value
        for flag, settings in SMALL.items()
        if flag not in asked and not (flag == "size" and made.images.size <= SIDE)
        for name, value in settings.items()
    }
    for more in ({}, smaller):
        if more:
            instead = more
            made = make(instead)
            price = made.cost(device, bf16)
        if price.memory > room and "batch_size" not in asked:
            instead = instead | {"batch_size": max(LEAST_BATCH, _fitting(price, room, made.recipe))}
            made = make(instead)
            price = made.cost(device, bf16)
        epochs = math.floor(made.recipe.epochs * AIM / price.seconds)
        enough = price.seconds <= PATIENCE if "epochs" in asked else epochs >= LEAST
        if price.memory <= room and enough:
            break
    if price.memory > room:
        raise UserError(_too_large(price, room, made.recipe, command))
    if "epochs" not in asked and price.seconds > (LONGEST if instead else PATIENCE):
        least = math.ceil(STEPS / max(1, len(made.images) // made.recipe.batch_size))
        before = made.recipe.epochs
        instead = instead | {"epochs": max(1, epochs, least)}
        made = make(instead)
        price = replace(price, seconds=price.seconds * made.recipe.epochs / before)
    if not instead:
        return made, Plan(price, {})
    reason = (
        f"{own['encoder']} at {own['size']} px, batch {own['batch_size']}, {own['epochs']:g} "
        f"epochs would take {duration(first.seconds)} and {first.memory / 1e9:.1f} GB here"
    )
    flags = " ".join(f"--{k.replace('_', '-')} {own[k]}" for k in own if k in instead)
    return made, Plan(price, instead, reason, flags)


def choices(
    made: Made, recipe: str | Path | Recipe, asked: Mapping[str, str], chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """{"encoder": ["small_conv, 0.1 M parameters", "chosen for this machine"], ...}: what a run
    has, and why; "beside size": what the recipe has otherwise at this size, where it was chosen.

    asked: by which flag; chosen: of the `Plan`; recipe: as it was given.
    """
    own, named = _settings(made.recipe), not isinstance(recipe, Recipe)
    parameters = sum(p.numel() for p in made.network.parameters())
    shown = {
        "encoder": f"{own['encoder']}, {parameters / 1e6:.2g} M parameters",
        "size": f"{own['size']} px",
        "batch_size": f"{own['batch_size']} images",
        "epochs": f"{own['epochs']:g}",
    }
    found: dict[str, Any] = {}
    plain = recipes.recipe_for(recipe, made.images.size, made.images.shown) if named else None
    for name, value in shown.items():
        why = f"of the recipe at {own['size']} px" if named else "of the recipe"
        if name in asked:
            why = f"asked for by {asked[name]}"
        elif name in chosen:
            why = "chosen for this machine"
        elif name == "size" and named:
            why = "of the images"
        elif name == "batch_size" and plain is not None and plain.batch_size != own["batch_size"]:
            why = f"a quarter of the images, which are fewer than the recipe's {plain.batch_size}"
        found[name] = [value, why]
    ahead, room = batches_ahead(made.images, made.recipe.batch_size)
    if ahead:
        size = f"{ahead} batch{'es' if ahead > 1 else ''}, {max(room / 1e6, 1):,.0f} MB"
        found["prefetch"] = [size, "read while a step computes"]
    if named and ("size" in asked or "size" in chosen):
        found["beside size"] = beside_size(str(recipe), made)
    return found


def beside_size(name: str, made: Made) -> str:
    """What a recipe has otherwise at this size than it would have at another, in words."""
    size, channels = made.recipe.size, made.images.shown
    other = OTHER_SIZE if size <= LEAST_LARGE else SIDE
    here, there = (_flat(describe(recipes.recipe_for(name, s, channels))) for s in (size, other))
    has, words = _flat(describe(made.recipe)), []
    for path, value in here.items():
        unlike = path in there and value != there[path]
        if unlike and has.get(path) == value and path.split(".")[0] not in ("size", "backbone"):
            parts = path.removesuffix(".call").split(".")
            shown = " ".join(parts[parts[0] in ("loss", "optimizer") and len(parts) > 1 :])
            shown = shown.replace("_", " ")
            shown = "learning rate" if shown == "lr" else shown
            words.append(f"{shown} {_said(value)} ({_said(there[path])})")
    if not words:
        return ""
    return f"with {size} px, {name} also has (in parentheses: with {other} px) {', '.join(words)}"


def _flat(described: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries by dotted path."""
    if not isinstance(described, dict):
        return {path: described}
    found: dict[str, Any] = {}
    for name, value in described.items():
        found |= _flat(value, f"{path}.{name}" if path else str(name))
    return found


def _said(value: Any) -> str:
    if isinstance(value, str):
        return value.rpartition(".")[2]
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _fitting(price: Cost, room: float, recipe: Recipe) -> int:
    """The largest batch, a power of two, that fits into this many bytes."""
    return int(2 ** max(1, math.floor(math.log2(recipe.batch_size * room / price.memory))))


def _settings(recipe: Recipe) -> dict[str, Any]:
    """The recipe's encoder, size, batch and epochs, by the names of their flags."""
    name = getattr(getattr(recipe.backbone, "func", recipe.backbone), "__name__", "its encoder")
    if name == "timm":
        name = f"timm:{recipe.backbone.keywords['name']}"  # type: ignore[attr-defined]
    return {
        "encoder": name,
        "size": recipe.size,
        "batch_size": recipe.batch_size,
        "epochs": recipe.epochs,
    }


def _too_large(price: Cost, room: float, recipe: Recipe, command: str) -> str:
    """The message for a run that does not fit, with a command that would."""
    batch = _fitting(price, room, recipe)
    own = _settings(recipe)
    return (
        f"{own['encoder']} at {recipe.size} px with a batch of {recipe.batch_size} takes "
        f"{price.memory / 1e9:.1f} GB, and {room / 1e9:.1f} GB of the free memory may be used. "
        f"These fit: {command} --batch-size {batch}, or, with the batch kept and gradients cached, "
        f"{command} --set chunk={batch * recipe.number_of_views}"
    )
