"""The standard job of an experiment: train an encoder and measure it; continues after a kill.

    Job(
        name="digits-tau0.1-seed0", facts={"tau": 0.1}, seed=0,
        call=partial(trained, images="digits", temperature=0.1, epochs=5, seed=0,
                     measures=(linear_probe, uniformity)),
    )

A measure is a function (Trained) -> dict of numbers or lists; one of your own stands in your file,
its arguments set by functools.partial. Controls are values, not switches: epochs=0 is the encoder
before any training, recipe=partial(taught, of="simclr") learns from labels.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from contrapose import adapt, api, recipes
from contrapose.data import UNKNOWN_CLASSES, ImageSet, Request, balanced, few_labels
from contrapose.encoders import Encoder, read_weights
from contrapose.errors import UserError
from contrapose.evaluation.embed import Embedded, embed, embed_views
from contrapose.experiments.running.folders import note_progress
from contrapose.files import unfinished
from contrapose.machine import choose_device
from contrapose.training import optim
from contrapose.training.recipe import Recipe, supervised
from contrapose.training.run import Run
from contrapose.training.state import Progress

ImagesOrName = str | Path | Callable[..., ImageSet]
VIEWS_OF = 2000  # test images of which views are embedded


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained encoder and its images, for measures; embeddings are computed once, on access."""

    encoder: Encoder
    recipe: Recipe
    train: ImageSet
    test: ImageSet
    device: str
    seed: int
    run: Run | None = None  # None: the encoder was not trained

    @cached_property
    def of_train(self) -> Embedded:
        return self.embed(self.train)

    @cached_property
    def of_test(self) -> Embedded:
        return self.embed(self.test)

    @cached_property
    def views_of_test(self) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"]]:
        """(z of two views of up to VIEWS_OF test images, the image that each row shows)."""
        few = balanced(self.test, min(VIEWS_OF, _usable(self.test)))
        return embed_views(
            self.encoder, few, self.recipe.policy, seed=self.seed, device=self.device
        )

    def embed(self, images: ImageSet) -> Embedded:
        return embed(self.encoder, images, size=self.recipe.size, device=self.device)

    def labels(self, images: ImageSet) -> Int[Tensor, " N"]:
        if images.label is None:
            raise UserError(f"{images.name} ({images.split}) has no labels; leave that measure out")
        return images.label.to(self.device)


Measure = Callable[[Trained], dict[str, Any]]


TAU = 0.1  # S2: everywhere; S3 table 5: the best, and that of the default [P]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What differs between the protocol of a paper and a run that two cores finish."""

    data: str
    size: int | None = None  # px
    images: int | None = None  # training images; None: all
    tested: int | None = None  # test images; None: all
    width: int | None = None  # of small_conv; None: ResNet-50
    epochs: float
    taus: Mapping[str, float] = field(default_factory=dict)  # by method, where not the paper's
    changes: Mapping[str, Any] = field(default_factory=dict)  # fields of the recipe

    def tau(self, method: str) -> float:
        """The temperature of a method."""
        return self.taus.get(method, TAU)


# fields of the recipe of a small network, whose rates are not scaled by the batch
ADAMW = {"optimizer": partial(optim.adamw, weight_decay=1e-4), "scaling": optim.no_scaling}


def trained(
    folder: Path,
    *,
    images: ImagesOrName,
    measures: Sequence[Measure],
    recipe: str | Path | Recipe | Callable[..., Recipe] = "simclr",
    changes: Sequence[str] = (),
    encoder: str | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
    subset: int | None = None,
    test_subset: int | None = None,
    labels: int | None = None,
    size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, Any]:
    """The measures of an encoder trained in `folder`/run, the time of training and its images.

    images: a name or path as for `contrapose train`, or a function (split="train" or "test") ->
        ImageSet; without a test split a fifth is held out.
    subset, test_subset: numbers of images, balanced over classes, the same for every seed.
    labels: how many training images keep their label for training; measures have all labels.
    recipe: as for `contrapose train`, or a function (size, channels) -> Recipe, with the number of
        channels that are a picture. changes, encoder, epochs, batch_size and temperature change it
        as there; epochs=0 does not train.
    Checkpoints are removed when everything is measured.
    """
    train, test = both_splits(images, size, subset, test_subset)
    chosen = _chosen(recipe, train)
    chosen = adapt.changed(
        chosen, train, encoder, epochs or None, batch_size, temperature, seed, changes
    )
    chosen = adapt.beside_constants(chosen, train)
    if epochs == 0:
        run, network = None, adapt.build(chosen, train)
    else:
        taught = train if labels is None else few_labels(train, labels)
        run = _train(folder, chosen, taught, device, precision)
        network = adapt.build(chosen, train)
        network.load_state_dict(read_weights(run.path)[0])
    seen = Trained(
        encoder=network.eval(), recipe=chosen, train=train, test=test,
        device=choose_device(device), seed=seed, run=run,
    )  # fmt: skip
    found: dict[str, Any] = {"n_train": len(train), "n_test": len(test)}
    if run is not None:
        found["train_seconds"] = run.status()["seconds"]
    measuring = time.monotonic()
    for measure in measures:
        new = measure(seen)
        if twice := sorted(found.keys() & new.keys()):
            raise UserError(f"{measure} gives {', '.join(twice)}, which was measured already")
        found |= new
    found["measure_seconds"] = round(time.monotonic() - measuring, 1)
    if run is not None:
        run.remove_checkpoints()
    return found


def taught(size: int, channels: int, *, of: str) -> Recipe:
    """The recipe named `of` with a classifier's loss: what labels teach (`supervised`)."""
    return supervised(recipes.recipe_for(of, size, channels))


def both_splits(
    images: ImagesOrName, size: int | None, subset: int | None, test_subset: int | None
) -> tuple[ImageSet, ImageSet]:
    """(train, test) of `Request.train_and_test`, each balanced to so many images.

    UserError where test images are of classes that training lacks.
    """
    train, test, which = Request(images, size=size).train_and_test(seed=0)
    if UNKNOWN_CLASSES in which:
        raise UserError(f"{train.name}: {which}; give a test split of the same classes")
    train = train if subset is None else balanced(train, subset)
    return train, test if test_subset is None else balanced(test, test_subset)


def _chosen(recipe: str | Path | Recipe | Callable[..., Recipe], images: ImageSet) -> Recipe:
    if isinstance(recipe, str | Path | Recipe):
        return recipes.recipe_for(recipe, images.size, images.shown)
    return recipe(size=images.size, channels=images.shown)


def _train(folder: Path, recipe: Recipe, images: ImageSet, device: str, precision: str) -> Run:
    """The finished run in `folder`/run, which is started or continued if necessary."""
    path = folder / "run"

    def watch(at: Progress) -> None:
        note_progress(folder, at.step / at.steps)

    if unfinished(path):
        return api.train(
            recipe, images, out=path, held_out=0.0, device=device, precision=precision, watch=watch
        )
    run = Run.open(path)
    if not _finished(run):
        api.resume(
            run, recipe=recipe, images=images, device=device, precision=precision, watch=watch
        )
    return run


def _finished(run: Run) -> bool:
    return run.status().get("state") == "finished" and (run.path / "encoder.safetensors").exists()


def _usable(images: ImageSet) -> int:
    """The number of images that `balanced` can choose from."""
    if images.label is None:
        return len(images)
    return int((images.label >= 0).sum()) or len(images)
