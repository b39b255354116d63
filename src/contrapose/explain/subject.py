"""A run opened for evaluation: its encoder, its images, and their embeddings."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from contrapose import adapt, api, recipes
from contrapose.data import ImageSet, evenly
from contrapose.encoders import Encoder, read_weights
from contrapose.evaluation.embed import Embedded
from contrapose.evaluation.embed import embed as embed_images
from contrapose.machine import choose_device
from contrapose.processes import Rank, launched, rank_in_force
from contrapose.training.parallel import check_same
from contrapose.training.recipe import Recipe
from contrapose.training.run import START_FILE, Run


@dataclass(frozen=True)
class Subject:
    """A run with its encoder and images, opened once for evaluation and diagnosis."""

    run: Run
    recipe: Recipe
    encoder: Encoder
    train: ImageSet
    test: ImageSet
    split: str
    device: str
    other: str = ""  # name of the images, where they are another set than the run's own
    me: Rank = field(default_factory=Rank)  # this process among those that share the work

    @classmethod
    def open(
        cls,
        run: "Subject | Run | Path | str",
        images: Any = None,
        device: str = "auto",
        recipe: Any = None,
    ) -> "Subject":
        """The subject of a run; a subject is returned as it is.

        Within `launched` all ranks call this, and share the work from here on. Raises UserError
        where they see different images or weights.
        """
        if isinstance(run, Subject):
            return run
        me = rank_in_force()
        device = me.device if me.world > 1 else choose_device(device)
        found = me.all_do(lambda: cls._opened(run, images, device, recipe, me))
        check_same(me, found.train, found.test, encoder=found.encoder)
        return found

    @classmethod
    def _opened(
        cls, run: Run | Path | str, images: Any, device: str, recipe: Any, me: Rank
    ) -> "Subject":
        run = run if isinstance(run, Run) else Run.open(run)
        code = None if recipe is None else recipes.module(recipe)
        encoder = Encoder.load(run.path, code)
        train, test, split = api.train_and_test(run, images)
        chosen = run.recipe(code)
        own = images is None or not split.startswith(f"{train.name}, ")
        other = "" if own else train.name
        return cls(run, chosen, encoder, train, test, split, device, other, me)

    def file(self, kind: str) -> str:
        """The file name: KIND.json for the run's own images, KIND-NAME.json for others."""
        name = re.sub(r"[^\w.]+", "-", self.other).strip("-.")
        return f"{kind}-{name}.json" if self.other else f"{kind}.json"

    def embed(self, images: ImageSet, *, untrained: bool = False) -> Embedded:
        """h and z of the images, by the run's encoder or by the encoder before training."""
        encoder = self.untrained if untrained else self.encoder
        return embed_images(encoder, images, size=self.recipe.size, device=self.device, me=self.me)

    @cached_property
    def untrained(self) -> Encoder:
        """The encoder before training, a control: what its h shows was not learned.

        Its statistics of batch normalisation are those of training images, as the run's are; but
        where training did not start from weights that were drawn, it is that start as it was.
        """
        encoder = adapt.untrained(self.recipe, self.train, self.device, like=self.encoder)
        if self.recipe.start is not None:
            encoder.load_state_dict(read_weights(self.run.path / START_FILE)[0])
        return encoder


@contextmanager
def written_about(
    run: Subject | Run | Path | str, images: Any, device: str, recipe: Any
) -> Iterator[Subject]:
    """A context with the subject of a run, whose folder is locked for writing results into it.

    All ranks of `launched` enter it; the first one holds the lock, and is to write.
    """
    with launched(device) as me:
        folder = run.run if isinstance(run, Subject) else run
        found = folder if isinstance(folder, Run) else me.all_do(lambda: Run.open(folder))
        with me.first_holds(found.locked()):
            yield Subject.open(run, images, device, recipe)


def with_labels(images: ImageSet) -> ImageSet | None:
    """The images that have a label; None if they are of fewer than two classes."""
    if images.label is None:
        return None
    known = torch.nonzero(images.label >= 0).flatten()
    if len(torch.unique(images.label[known])) < 2:
        return None
    return images if len(known) == len(images) else images.subset(known)


def of_known_classes(test: ImageSet, train: ImageSet) -> tuple[ImageSet | None, int]:
    """(test images of a class that has training images, or None; the number of all others)."""
    assert test.label is not None and train.label is not None
    known = torch.nonzero(torch.isin(test.label, train.label)).flatten()
    if len(known) == len(test):
        return test, 0
    return test.subset(known) if len(known) else None, len(test) - len(known)


def sample(images: ImageSet, n: int) -> ImageSet:
    """At most n of the images, evenly spaced from the first to the last."""
    return images if len(images) <= n else images.subset(evenly(len(images), n))
