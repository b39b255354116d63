"""Reading a folder of image files.

There are three layouts: subfolders for classes (`cat/1.png`, possibly with deeper folders);
`train/` and `test/` (or `val/`, `validation/` ...) with such subfolders; and images without labels
at any depth. Classes are the sorted names of the subfolders of all splits, so that a class that is
missing in one split does not change the numbers of the others. If there is only one subfolder its
images have no label. A subfolder without images is not a class.

Hidden files are ignored. Everything else that is not read is counted: files without the suffix of
an image, and images in folders that belong to no split.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from contrapose.data.decode import SUFFIXES
from contrapose.data.images import NoSuchSplit, digest
from contrapose.data.labels import UNLABELLED
from contrapose.data.load import Encoded, Listing
from contrapose.data.packed import Below, printable
from contrapose.data.walk import Found, holds_images, subfolders, walk
from contrapose.errors import UserError

SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "validation", "valid", "dev", "eval"),
    "unlabeled": ("unlabeled", "unlabelled"),
}
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}


@dataclass(frozen=True)
class _Layout:
    """The folders that are read, their classes, and notes."""

    parts: dict[str, Path]  # split -> its folder; "all" -> the root itself
    classes: tuple[str, ...]  # as the folders are called
    notes: dict[str, int] = field(default_factory=dict)  # what no split reads


def from_folder(root: Path, split: str) -> Listing:
    """The images of `split`. Raises NoSuchSplit, PermissionError, or UserError for no image."""
    layout = _layout(root)
    if "all" in layout.parts:
        if split != "train":
            raise NoSuchSplit(
                f"{root}: no {split!r} split; name a subfolder {split}/ beside train/, or hold out"
                " a part of the images"
            )
        return _listing(root, root, "all", layout)
    if split not in layout.parts:
        there = ", ".join(printable(part.name) for part in layout.parts.values())
        raise NoSuchSplit(f"{root}: no {split!r} split; its subfolders are {there}")
    return _listing(root, layout.parts[split], split, layout)


def _listing(root: Path, part: Path, split: str, layout: _Layout) -> Listing:
    found = walk(part, stat=True)
    _report_nothing(part, found)
    notes = layout.notes | found.notes()
    if part.name.lower() not in (split, "train") and split != "all":
        notes[f"read from {printable(part.name)}/"] = len(found.files)
    source = Encoded(
        found.files,
        open=lambda i: open(found.files[i], "rb"),
        stamp=_stamp(found, part),
        place=str(part.resolve()),
        stored=sum(found.size),
    )
    names = Below(found.files, str(root))
    skipped = tuple(found.skipped)
    if not layout.classes:
        return Listing(source, split, skipped=skipped, notes=notes, names=names)
    place = {name: k for k, name in enumerate(layout.classes)}
    start = len(os.path.join(str(part), ""))
    below = (name[start:].partition(os.sep) for name in found.files)
    first = [place.get(name, UNLABELLED) if deeper else UNLABELLED for name, deeper, _ in below]
    label = torch.tensor(first, dtype=torch.int64)
    if outside := int((label < 0).sum()):
        notes["outside the class subfolders, without label"] = outside
    classes = tuple(printable(name) for name in layout.classes)
    return Listing(source, split, label, classes, skipped, notes, names)


def _layout(root: Path) -> _Layout:
    """The layout of a folder: splits if there is a train/, or nothing but splits; else one set.

    If train/ has no classes and stands beside other folders of images, none of them a split, it is
    a class: bus/ car/ train/.
    """
    folders = [folder for folder in subfolders(root) if holds_images(folder)]
    named = [folder for folder in folders if folder.name.lower() in _SPLIT_OF]
    others = [folder for folder in folders if folder not in named]
    training = [f for f in named if _SPLIT_OF[f.name.lower()] == "train"]
    if not named or (others and not training):
        return _Layout({"all": root}, *_classes([root]))
    if others and named == training and len(named) == 1 and not _classes(training)[0]:
        classes, notes = _classes([root])
        said = f"in {named[0].name}/, a class like the folders beside it and not a split"
        return _Layout({"all": root}, classes, notes | {said: len(walk(named[0]).files)})
    classes, notes = _classes(named)
    parts: dict[str, Path] = {}
    for split, names in SPLITS.items():
        wanted = [f for name in names for f in named if f.name.lower() == name]
        # the first that has classes: a test/ without labels serves less than a val/ with them
        has_classes = (p for p in wanted if set(classes) & {f.name for f in subfolders(p)})
        if wanted:
            parts[split] = next(has_classes, wanted[0])
    return _Layout(parts, classes, notes | _beside(root, parts, folders))


def _classes(parts: list[Path]) -> tuple[tuple[str, ...], dict[str, int]]:
    """(the subfolders with images, of splits that have two or more; notes on those without)."""
    every = [subfolders(part) for part in parts]
    full = [[folder.name for folder in found if holds_images(folder)] for found in every]
    classes = {name for found in full for name in found if len(found) > 1}
    empty = {f.name for found in every for f in found} - {name for found in full for name in found}
    notes = {"folders without images, no classes": len(empty)} if empty and classes else {}
    return tuple(sorted(classes)), notes


def _beside(root: Path, parts: dict[str, Path], folders: list[Path]) -> dict[str, int]:
    """Notes on images beside the folders of the splits, which are not read."""
    notes = {}
    for folder in folders:
        if folder in parts.values():
            continue
        other = parts.get(_SPLIT_OF.get(folder.name.lower(), ""))
        why = f"{printable(other.name)}/ is" if other else "no split has that name"
        notes[f"in {printable(folder.name)}/, not read: {why}"] = len(walk(folder).files)
    loose = walk(root, deep=False)
    if loose.files:
        notes["beside the folders of the splits, not read"] = len(loose.files)
    return notes | loose.notes()


def _report_nothing(part: Path, found: Found) -> None:
    if found.files:
        return
    if found.skipped:
        first = found.skipped[0]
        raise UserError(f"{part}: no readable image; {first.path} is {first.reason}")
    if not found.ignored:
        raise UserError(f"{part}: the folder is empty; put images in it, or name another")
    listed = ", ".join(f"{n:,} {suffix}" for suffix, n in found.ignored.most_common(5))
    raise UserError(
        f"{part}: no image in the folder or below, only {listed};"
        f" readable are {' '.join(sorted(SUFFIXES))}"
    )


def _stamp(found: Found, part: Path) -> bytes:
    """A digest of the names below the folder, sizes and times."""
    start = len(os.path.join(str(part), ""))
    parts = (
        f"{name[start:]}\0{size}\0{changed}"
        for name, size, changed in zip(found.files, found.size, found.changed, strict=True)
    )
    return digest("\n".join(parts).encode("utf-8", "surrogateescape")).encode()
