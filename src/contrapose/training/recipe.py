"""A recipe is everything that decides a training run, as plain values and partial functions.

It prints, is written to the run folder as JSON, and varies by `dataclasses.replace`.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from types import ModuleType
from typing import Any, Literal

from contrapose.errors import UserError
from contrapose.partials import describe as describe
from contrapose.partials import revive, unknown


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `contrapose train` runs. Batches count images: B images with V views are V*B rows."""

    name: str
    views: Callable[..., Any]  # policy(image, generator, size=) -> one view of each image
    backbone: Callable[..., Any]  # () -> module with `width`: image -> h
    head: Callable[..., Any]  # (width) -> module: h -> z
    # called by the names of its arguments: (z, group) -> scalar; against keys (query, key, match),
    # or (z, group, key, key_group)
    loss: Callable[..., Any] = field(metadata={"any": True})
    optimizer: Callable[..., Any]  # (module, lr=) -> torch.optim.Optimizer
    schedule: Callable[..., Any]  # (epoch, epochs, warmup=) -> factor of lr
    scaling: Callable[..., Any]  # (lr, batch_size) -> lr
    # (encoder, images, dim) -> source of keys; None: the batch is all there is
    keys: Callable[..., Any] | None = field(
        default=None, metadata={"like": "contrapose.keys.sources.bank", "keep": False}
    )
    # (images, batch_size) -> which images share a batch; None: drawn anew in every epoch
    batches: Callable[..., Any] | None = field(
        default=None,
        metadata={"like": "contrapose.training.batches.conditional", "keep": False},
    )
    # shared: images that have a label in common, where each has several
    positives: Literal["image", "class", "shared"] = "image"
    number_of_views: int = 2
    size: int = 32  # px, side of a view
    batch_size: int = 256  # images per step
    epochs: float = 100
    warmup: float = 10  # epochs; a tenth of all, with a warning, where they are fewer
    lr: float = 0.3  # before `scaling`
    clip: float | None = None  # largest norm of the gradient
    chunk: int | None = None  # views per pass through the encoder (gradient caching); None: all
    seed: int = 0

    def __post_init__(self) -> None:
        at_least: list[tuple[str, float, str]] = [
            ("number_of_views", 2 if self.keys is None else 1, "a positive pair needs two"),
            ("chunk", 1, "views; none embeds a batch at once"),
            ("size", 1, "pixels"),
            ("batch_size", 2, "every image needs another one as a negative"),
            ("warmup", 0, "epochs"),
        ]
        for name, low, why in at_least:
            if getattr(self, name) is not None and not getattr(self, name) >= low:
                raise UserError(f"{name}={getattr(self, name)}: use at least {low} ({why})")
        for name, value in (("epochs", self.epochs), ("lr", self.lr), ("clip", self.clip)):
            if value is not None and not (0 < value < math.inf):
                raise UserError(f"{name}={value}: use a positive number")
        if "size" in getattr(self.views, "keywords", {}):
            raise UserError("views.size: a view's side is the recipe's `size`; set that alone")
        keywords = getattr(self.loss, "keywords", {})
        temperature, perplexity = keywords.get("temperature"), keywords.get("perplexity")
        if temperature is not None and not 0 < temperature < math.inf:
            raise UserError(f"temperature={temperature}: use a positive number, such as 0.1 or 0.5")
        if perplexity is not None and not 1 < perplexity < math.inf:
            raise UserError(
                f"perplexity={perplexity}: use an effective number of negatives above 1, such as 50"
            )
        if self.keys is not None and self.positives == "shared":
            raise UserError("positives=shared is of the batch alone; leave out keys from elsewhere")
        if self.batches is not None and (self.keys is not None or self.positives != "image"):
            raise UserError(
                "batches decides which images of a batch repel each other; leave it out with keys "
                f"from elsewhere and with positives={self.positives}"
            )
        if self.warmup > self.epochs:
            shorter = self.epochs / 10  # as `--epochs` does
            warnings.warn(
                f"recipe {self.name!r}: a warm-up of {self.warmup:g} epochs of {self.epochs:g} is "
                f"shortened to {shorter:g}",
                stacklevel=2,
            )
            object.__setattr__(self, "warmup", shorter)

    @property
    def temperature(self) -> float | None:
        """The loss's; None where it has none, or one that follows from a perplexity."""
        found = getattr(self.loss, "keywords", {}).get("temperature")
        return None if found is None else float(found)

    @property
    def policy(self) -> Callable[..., Any]:
        """The views at this recipe's size."""
        return partial(self.views, size=self.size)


def recipe_from(described: dict[str, Any], own: ModuleType | None = None) -> Recipe:
    """The recipe that `describe` wrote; ValueError where it names a function outside `own`."""
    functions = {
        "views", "backbone", "head", "loss", "optimizer", "schedule", "scaling", "keys", "batches",
    }  # fmt: skip
    known = {f.name: f for f in fields(Recipe)}
    for name in described.keys() - known.keys():
        raise UserError(f"a recipe has no {unknown(name, known)}")
    for name, expected in known.items():
        if name not in described and expected.default is MISSING:
            raise UserError(f"the recipe lacks {name}")
    values = dict(described)
    for name in functions & values.keys():
        if values[name] is None and known[name].default is None:
            continue
        try:
            values[name] = revive(values[name], own)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error
    return Recipe(**values)
