"""A recipe: all settings of a training run, as plain values and partial functions.

It can be printed, is written to the run folder as JSON, and is changed by `dataclasses.replace`.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from types import ModuleType
from typing import Any

from contrapose.encoders import none
from contrapose.errors import UserError
from contrapose.losses import cross_entropy
from contrapose.partials import describe as describe
from contrapose.partials import given, revive, unknown

TIME = "time"
POSITIVES = ("image", "class", "shared", TIME)
BATCH_NORMS = ("global", "local")
FEATURE = "feature:"  # before the name of a feature of composed images, in `positives`


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a training run. Batches count images: B images with V views are V*B rows."""

    name: str
    views: Callable[..., Any]  # policy(image, generator, size=) -> one view of each image
    backbone: Callable[..., Any]  # () -> module with `width`: image -> h
    head: Callable[..., Any]  # (width) -> module: h -> z
    # called by the names of its arguments: (z, group) -> scalar; against keys (query, key, match),
    # or (z, group, key, key_group); of a linear classifier on h (logits, label)
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
    # beside a loss of z: (logits, label) -> scalar, of a linear classifier on h
    classifier: Callable[..., Any] | None = field(
        default=None,
        metadata={"like": "contrapose.losses.classification.cross_entropy", "keep": False},
    )
    classifier_weight: float = 0.0  # of its gradient in the encoder; 0: behind a stop-gradient
    # (images, shares of classes, generator) -> both mixed, for a loss of a classifier
    mixing: Callable[..., Any] | None = field(
        default=None, metadata={"like": "contrapose.augment.mixing.mixup", "keep": False}
    )
    # (recipe) -> the recipe that trains a classifier after it, in the same run; None: one stage
    second_stage: Callable[..., Any] | None = field(
        default=None, metadata={"like": "contrapose.training.stages.linear_stage", "keep": False}
    )
    # image; class; shared: images that have a label in common, where each has several; time: frames
    # of video, near in time (a loss of `time`) or of several cameras at one (any other);
    # feature:NAME of composed images
    positives: str = "image"
    # a run folder, a file of weights, or `pretrained`; None: drawn by the seed
    start: str | None = None
    freeze: tuple[str, ...] = ()  # parts of the encoder that training leaves as they are
    number_of_views: int = 2
    size: int = 32  # px, side of a view
    batch_size: int = 256  # images per step
    epochs: float = 100
    warmup: float = 10  # epochs; a tenth of all, with a warning, where they are fewer
    lr: float = 0.3  # before `scaling`
    clip: float | None = None  # largest norm of the gradient
    chunk: int | None = None  # views per pass through the encoder (gradient caching); None: all
    # over all ranks (global), or each rank's own (local), which leaks which views belong together
    batch_norm: str = "global"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.positives not in POSITIVES and not self.positives.startswith(FEATURE):
            known = [*POSITIVES, f"{FEATURE}NAME"]  # of a feature of composed images
            raise UserError(f"positives: there is no {unknown(self.positives, known)}")
        if self.batch_norm not in BATCH_NORMS:
            raise UserError(f"batch_norm: there is no {unknown(self.batch_norm, BATCH_NORMS)}")
        alone = self.keys is not None or classifies(self.loss)
        at_least: list[tuple[str, float, str]] = [
            ("number_of_views", 1 if alone or self.of_time else 2, "a positive pair needs two"),
            ("classifier_weight", 0, "0 keeps the encoder from learning of the classifier"),
            ("chunk", 1, "views; none embeds a batch at once"),
            ("size", 1, "pixels"),
            ("batch_size", 2, "every image needs another one as a negative"),
            ("warmup", 0, "epochs"),
            ("seed", 0, "and less than 2^63"),
        ]
        for name, low, why in at_least:
            if getattr(self, name) is not None and not getattr(self, name) >= low:
                raise UserError(f"{name}={getattr(self, name)}: use at least {low} ({why})")
        if self.seed >= 2**63:
            raise UserError(f"seed={self.seed}: use a whole number from 0 to less than 2^63")
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
        self._check_classification()
        if self.keys is not None and self.positives == "shared":
            raise UserError("positives=shared is of the batch alone; leave out keys from elsewhere")
        if self.of_time and self.keys is not None:
            raise UserError("positives=time is of the batch alone; leave out keys from elsewhere")
        together = self.positives == "image" or self.of_time
        if self.batches is not None and (self.keys is not None or not together):
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

    def _check_classification(self) -> None:
        """UserError for fields of a contrast with a classifier's loss, or the reverse."""
        if self.classifier is not None and not classifies(self.classifier):
            raise UserError(
                f"classifier={_named(self.classifier)}: a loss of logits and labels belongs there, "
                "such as cross_entropy"
            )
        if self.second_stage is not None and self.classifier is not None:
            if not self.classifier_weight:
                raise UserError(
                    f"classifier={_named(self.classifier)} learns behind a stop-gradient, and "
                    f"second_stage={_named(self.second_stage)} would draw it anew: leave one out"
                )
        if not classifies(self.loss):
            if self.mixing is not None:
                raise UserError(
                    f"mixing={_named(self.mixing)} mixes labels, which loss={_named(self.loss)} "
                    "cannot take; use --set loss=cross_entropy"
                )
            if self.classifier is None and self.classifier_weight:
                raise UserError(
                    f"classifier_weight={self.classifier_weight}: there is no classifier; put "
                    "--set classifier=cross_entropy before it"
                )
            return
        beside = ("keys", "batches", "classifier")
        if given := [name for name in beside if getattr(self, name) is not None]:
            raise UserError(
                f"loss={_named(self.loss)} is a classifier's: it compares no embeddings, so leave "
                f"out {', '.join(given)}"
            )
        if self.positives in ("shared", TIME):
            raise UserError(
                f"loss={_named(self.loss)} takes one label of each image, not "
                f"positives={self.positives}"
            )

    @property
    def of_labels(self) -> bool:
        """True if positives are by a label: the class, a feature, or the time of a frame."""
        return self.positives not in ("image", "shared")

    @property
    def of_time(self) -> bool:
        """True if positives are frames of one time, or near in time, as the loss has it."""
        return self.positives == TIME

    @property
    def learns_from_labels(self) -> bool:
        """True if a part of the training uses labels of images."""
        return self.of_labels or self.needs_classifier

    @property
    def needs_classifier(self) -> bool:
        """True if the encoder has a linear classifier on h."""
        of_its_own = self.classifier is not None or self.second_stage is not None
        return of_its_own or classifies(self.loss)

    @property
    def classifier_bias(self) -> bool:
        """True if the logits are W h + b, for losses of logits; others take h and W."""
        if self.second_stage is not None and self.classifier is None and not classifies(self.loss):
            return True
        return "logits" in given(self.loss if self.classifier is None else self.classifier)

    @property
    def temperature(self) -> float | None:
        """The temperature of the loss; None without one, and if it follows from a perplexity."""
        found = getattr(self.loss, "keywords", {}).get("temperature")
        return None if found is None else float(found)

    @property
    def policy(self) -> Callable[..., Any]:
        """The views at this recipe's size."""
        return partial(self.views, size=self.size)


def supervised(recipe: Recipe, positives: str = "class") -> Recipe:
    """The supervised control of a recipe: a linear classifier on h in place of its loss and head.

    Views, backbone, optimiser and steps stay; each view is an example, and the loss is
    cross-entropy of the logits W h + b. positives: the label, class or feature:NAME.
    """
    return replace(
        recipe, name=f"{recipe.name}-supervised", head=partial(none), loss=partial(cross_entropy),
        positives=positives, keys=None, batches=None, classifier=None, classifier_weight=0.0,
        mixing=None, second_stage=None,
    )  # fmt: skip


def classifies(loss: Callable[..., Any]) -> bool:
    """True if the arguments of the loss are logits, or inputs of a classifier, and labels."""
    wanted = {*given(loss)}
    return "label" in wanted and wanted <= {"logits", "label", "x", "classes"}


def _named(function: Callable[..., Any]) -> str:
    return str(describe(getattr(function, "func", function))).rpartition(".")[2]


def recipe_from(described: dict[str, Any], own: ModuleType | None = None) -> Recipe:
    """The recipe that `describe` wrote; UserError where it names a function outside `own`."""
    functions = {
        "views", "backbone", "head", "loss", "optimizer", "schedule", "scaling", "keys", "batches",
        "classifier", "mixing", "second_stage",
    }  # fmt: skip
    known = {f.name: f for f in fields(Recipe)}
    for name in described.keys() - known.keys():
        raise UserError(f"a recipe has no {unknown(name, known)}")
    for name, expected in known.items():
        if name not in described and expected.default is MISSING:
            raise UserError(f"the recipe lacks {name}")
    values: dict[str, Any] = dict(described)
    for name in values.keys() - functions:  # JSON has no tuples
        values[name] = tuple(values[name]) if isinstance(values[name], list) else values[name]
    for name in functions & values.keys():
        if values[name] is None and known[name].default is None:
            continue
        try:
            values[name] = revive(values[name], own)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error
    return Recipe(**values)
