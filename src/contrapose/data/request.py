"""`Request`: one value that describes which images are opened and what is done with them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from contrapose.data.composed.spec import absolute
from contrapose.data.copies import as_places, copies, is_table, joined, named_groups
from contrapose.data.decode import DARK, OUTSIDE
from contrapose.data.images import ImageSet, NoSuchSplit
from contrapose.data.named import NAMED
from contrapose.data.open import MEMORY, open_images
from contrapose.data.split import balanced, few_labels, hold_out
from contrapose.data.values import ValueRange
from contrapose.errors import UserError

UNKNOWN_CLASSES = "images of classes unknown to training left out"  # in the words about test images
HELD_OUT = 0.2  # share of images for evaluation where there is no test split


@dataclass(frozen=True)
class Request:
    """A description of images: their source, how they are read, and which part is used.

    source: any source of `open_images`, an ImageSet, or a function (split=) -> ImageSet. The fields
    up to max_bad_share, and memory, are arguments of `open_images`. A request whose source is a
    name or a path can be written to JSON and read back, so that a run folder records its images.
    """

    source: Any
    size: int | None = None  # px
    channels: int | None = None
    labels: Any = None  # of the training split
    label_column: str | None = None
    image_column: str | None = None
    value_range: ValueRange | Sequence[float | Sequence[float]] | str | None = (
        None  # stored: (black, white)
    )
    rgb: Sequence[int] | str | None = None  # channels that are red, green and blue
    max_pixels: int | None = None  # of a file that is decoded
    download: bool = False
    max_bad_share: float = 0.05
    subset: int | None = None  # training images at most, as many of each class as of the others
    test_subset: int | None = None  # test images at most
    few_labels: int | None = None  # training images that keep their label
    held_out: float = 0.0  # share of each class kept from training
    groups: str | Path | None = None  # a table, or a pattern of names: what belongs together
    fps: float | None = None  # of a folder of frames of video
    copies_together: bool = True  # copies of an image stay on one side of what is held out
    memory: int = MEMORY  # bytes above which images are decoded on access; 0: all, when asked for

    def __post_init__(self) -> None:
        if isinstance(self.source, ImageSet):
            names = ("size", "labels", "value_range", "rgb", "max_pixels", "download")
            if given := [name for name in names if getattr(self, name)]:
                raise UserError(f"an ImageSet is open already; leave out {', '.join(given)}")
        for name in ("size", "channels", "subset", "test_subset", "few_labels"):
            if (most := getattr(self, name)) is not None and most < 1:
                raise UserError(f"{name}={most}: use a positive number")
        if not 0 <= self.held_out < 1:
            raise UserError(f"held_out={self.held_out}: a share below 1")

    @classmethod
    def of(cls, images: Any, **how: Any) -> "Request":
        """A request for these images, or `images` if it is one; UserError for an unknown
        keyword."""
        known = {field.name for field in fields(cls)} - {"source"}
        if wrong := sorted(set(how) - known):
            raise UserError(f"{wrong[0]}=: images are told by {', '.join(sorted(known))}")
        if not isinstance(images, Request):
            return cls(images, **how)
        if how:
            raise UserError(f"a Request says all of the images; leave out {', '.join(sorted(how))}")
        return images

    @property
    def named(self) -> bool:
        """True if the source is a name or a path, so that another process can open it too."""
        return isinstance(self.source, str | Path)

    def open(self, split: str = "train") -> ImageSet:
        """One split of the images; NoSuchSplit if the source does not have it."""
        found = self._whole(split)
        most = {"train": self.subset, "test": self.test_subset}.get(split)
        return found if most is None or most >= len(found) else balanced(found, most)

    def has_test(self, train: ImageSet) -> bool:
        """True if the source has a test split that can be used with these training images."""
        try:
            return serves(self.like(train).open("test"), train)
        except NoSuchSplit:
            return False

    def seen(self, seed: int, images: ImageSet | None = None) -> ImageSet:
        """The images for training: without those that are held out, with the labels that are kept.

        images: the training split, if it is open already. seed: of the choice of held-out images.
        """
        found = self.open("train") if images is None else images
        if self.held_out:
            found = self.divided(found, self.held_out, seed)[0]
        return found if self.few_labels is None else few_labels(found, self.few_labels)

    def train_and_test(self, seed: int) -> tuple[ImageSet, ImageSet, str]:
        """(train, test, what the test images are in words).

        Without a usable test split a share of train is held out. Test labels are numbers of the
        classes of training; labels of other classes are removed.
        """
        train, why = self.open("train"), ""
        try:
            test = self.like(train).open("test")
            if serves(test, train):
                known = of_same_classes(test, train)
                known = replace(known, group=self.together(known, train))
                lost = number_labelled(test) - number_labelled(known)
                left = f", {lost:,} {UNKNOWN_CLASSES}" if lost else ""
                return train, known, f"test{left}{of_other_values(test, train)}"
            why = f", since the {len(test):,} images of the test split have no labels"
        except NoSuchSplit:
            pass
        share = self.held_out or HELD_OUT  # what training held out, so that none of it was seen
        kept, held = self.divided(train, share, seed)
        return kept, held, f"held-out {share:.0%}{why}"

    def divided(self, train: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
        """(kept, held out); all copies of an image, and all images of a group, are in one part.

        Images that are all copies of one another are divided as if none was.
        """
        together = self.together(train)
        named = self.groups is not None or train.group is not None
        if together is not None and not named and len(np.unique(together.numpy())) == 1:
            together = None  # near copies all: a still camera; the diagnosis says how many copies
        return hold_out(replace(train, group=together), share, seed, together)

    def together(self, images: ImageSet, also: ImageSet | None = None) -> Int[Tensor, " N"] | None:
        """The group of each image, by copies, by `groups` and by the set's own groups; None if each
        image is alone.

        also: the images of another split, which a table of groups may list too.
        """
        group = np.arange(len(images))
        if self.copies_together:
            group = copies(images).group.numpy()
        known = [] if images.group is None else [as_places(images.group.numpy())]
        if self.groups is not None:
            known.append(as_places(named_groups(images, self.groups, also)))
        for told in known:
            group = joined(group, np.stack([np.arange(len(images)), told], axis=1))
        return None if len(np.unique(group)) == len(group) else torch.from_numpy(group)

    def check_groups(self, train: ImageSet) -> None:
        """UserError where `groups` cannot be read or leave nothing to hold out: before training,
        which does not need them.
        """
        if self.groups is None:
            return
        try:
            also = self.like(train).open("test")
        except NoSuchSplit:
            also = None
        found = np.unique(named_groups(train, self.groups, also))
        if also is None and len(found) == 1 and found[0] >= 0:
            raise UserError(
                f"--groups {self.groups}: all {len(train):,} images of {train.name} are in one "
                "group, so that none can be held out to judge what was learned; tell two groups at "
                "least, or leave --groups out"
            )

    def like(self, train: ImageSet) -> "Request":
        """This request with the size, channels and range of values of the images `train`."""
        if not self.named:
            return self
        return replace(
            self, size=train.size, channels=train.shown, value_range=train.value_range,
            rgb=train.rgb,
        )  # fmt: skip

    def asked(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as JSON values, for another process.

        Paths are absolute. UserError if the source or the labels have no name.
        """
        if not self.named or not isinstance(self.labels, str | Path | None):
            raise UserError("images in memory cannot be named; give a folder, a file or a set")
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        found = {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}
        for name in ("source", "labels"):
            if name in found:
                found[name] = absolute(str(found[name]), keep=NAMED)
        if "groups" in found:
            found["groups"] = _told(self.groups)
        return {name: str(v) if isinstance(v, ValueRange) else v for name, v in found.items()}

    def as_json(self, train: ImageSet) -> dict[str, Any]:
        """The record for recipe.json: how to open the images again, and their properties."""
        labelled_by_file = isinstance(self.labels, str | Path)
        again = self.named and (self.labels is None or labelled_by_file)
        return {
            "name": train.name,
            "source": absolute(str(self.source), keep=NAMED) if again else None,
            "labels": absolute(str(self.labels), keep=NAMED) if labelled_by_file else None,
            "groups": _told(self.groups),
            **{name: getattr(self, name) for name in _PLAIN},
            "split": train.split,
            "images": len(train),
            "size": train.size,
            "channels": train.shown,
            "value_range": None if train.value_range is None else asdict(train.value_range),
            "rgb": train.rgb,
            "classes": list(train.classes),
            "fingerprint": train.fingerprint,
            "skipped": [f"{s.path}: {s.reason}" for s in train.skipped],
            "notes": dict(train.notes),
        }

    @classmethod
    def from_json(cls, written: dict[str, Any]) -> "Request":
        """The request that `as_json` wrote; its source is None if it had no name."""
        known = (*_PLAIN, "source", "labels", "groups")
        again = {name: written[name] for name in known if name in written}
        again.setdefault("copies_together", False)  # runs begun before held out images otherwise
        over = written.get("value_range")  # None in runs that were begun before it was recorded
        return cls(
            **again, size=written["size"], channels=written["channels"],
            value_range=None if over is None else ValueRange(**over), rgb=written.get("rgb"),
        )  # fmt: skip

    def _whole(self, split: str) -> ImageSet:
        if isinstance(self.source, ImageSet):
            if split != "train":
                raise NoSuchSplit(f"an ImageSet has no {split!r} split")
            return self.source
        if callable(self.source):
            found: ImageSet = self.source(split=split)
            return found
        # labels that were given separately are those of train, and so is the column of their table
        elsewhere = self.labels is not None and split != "train"
        return open_images(
            self.source, split=split, size=self.size, channels=self.channels,
            labels=self.labels if split == "train" else None,
            label_column=None if elsewhere else self.label_column,
            image_column=self.image_column, value_range=self.value_range, rgb=self.rgb,
            max_pixels=self.max_pixels, download=self.download, max_bad_share=self.max_bad_share,
            fps=self.fps, memory=self.memory,
        )  # fmt: skip


_PLAIN = (  # fields that JSON holds as they are
    "label_column", "image_column", "max_pixels", "max_bad_share", "subset", "test_subset",
    "few_labels", "held_out", "copies_together", "fps",
)  # fmt: skip


def _told(groups: str | Path | None) -> str | None:
    """Groups for another process: a pattern as it is, a table as an absolute path."""
    if groups is None or not is_table(groups):
        return None if groups is None else str(groups)
    return absolute(str(groups), keep=())


def serves(test: ImageSet, train: ImageSet) -> bool:
    """False if train has labels and test has none, as in competitions: nothing can be scored
    then."""
    told = [images.label is not None or images.labels is not None for images in (test, train)]
    return told[0] or not told[1]


def of_other_values(test: ImageSet, train: ImageSet) -> str:
    """A note if the values of the test images do not fit the range of the training images."""
    words = ""
    for note in (OUTSIDE, DARK):
        share = test.notes.get(note, 0) / len(test)
        if share > max(0.05, 2 * train.notes.get(note, 0) / len(train)):
            words += f", {test.notes[note]:,} of {len(test):,} {note}"
    return words


def number_labelled(images: ImageSet) -> int:
    """Number of images that have a label."""
    return 0 if images.label is None else int((images.label >= 0).sum())


def of_same_classes(test: ImageSet, train: ImageSet) -> ImageSet:
    """`test` with the class numbers of `train`; images of other classes lose their label."""
    if test.label is None or test.classes == train.classes:
        return test
    number = {name: i for i, name in enumerate(train.classes)}
    known = torch.tensor([*(number.get(name, -1) for name in test.classes), -1])
    return replace(test, label=known[test.label], classes=train.classes)
