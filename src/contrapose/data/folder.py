"""A folder of image files.

Three layouts: class subfolders (`cat/1.png`; the class is the first level, deeper ones may follow),
`train/` and `test/` (or `val/`, `validation/` ...) each holding such subfolders, or images without
labels in any depth. Classes are the sorted subfolder names of all splits together, so that a class
that one split lacks moves no other. One subfolder alone says nothing: its images have no label.

Hidden files are passed over; files that are no images by their suffix are counted.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from contrapose.data.decode import SUFFIXES
from contrapose.data.images import NoSuchSplit, Skipped, digest
from contrapose.data.labels import UNLABELLED
from contrapose.data.load import Encoded, Listing

SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "validation", "valid", "dev", "eval"),
    "unlabeled": ("unlabeled", "unlabelled"),
}


@dataclass
class _Tree:
    """What a walk found."""

    files: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)  # suffix -> files


def from_folder(root: Path, split: str) -> Listing:
    """The images of `split`. Raises NoSuchSplit, PermissionError, or ValueError for no image."""
    parts = _splits(root)
    if not parts:
        if split != "train":
            raise NoSuchSplit(
                f"{root}: no {split!r} split; name a subfolder {split}/ beside train/, or hold out"
                " a part of the images"
            )
        return _listing(root, "all", _classes([root]))
    classes = _classes(list(parts.values()))
    wanted = [parts[name] for name in SPLITS[split] if name in parts]
    if not wanted:
        raise NoSuchSplit(f"{root}: no {split!r} split; its subfolders are {', '.join(parts)}")
    # the first that has classes: a test/ without labels serves less than a val/ with them
    part = next((p for p in wanted if classes & {f.name for f in _subfolders(p)}), wanted[0])
    return _listing(part, split, classes)


def _listing(part: Path, split: str, classes: set[str]) -> Listing:
    names = sorted(classes)
    tree = _Tree()
    _walk(part, tree, ())
    _report_nothing(part, tree)
    # by parts of the path, so that the order is that of the classes whatever their names
    tree.files.sort(key=lambda name: Path(name).parts)
    place = {name: k for k, name in enumerate(names)}
    depth = len(part.parts)
    first = [parts[depth] if len(parts := Path(f).parts) > depth + 1 else "" for f in tree.files]
    notes = {f"{suffix} files ignored": n for suffix, n in sorted(tree.ignored.items())}
    if part.name.lower() not in (split, "train") and split != "all":
        notes[f"read from {part.name}/"] = len(tree.files)
    source = Encoded(
        tree.files,
        open=lambda i: open(tree.files[i], "rb"),
        stamp=lambda: _stamp(tree, part),
        place=str(part.resolve()),
    )
    if not names:
        return Listing(source, split, skipped=tuple(tree.skipped), notes=notes)
    label = torch.tensor([place.get(name, UNLABELLED) for name in first], dtype=torch.int64)
    if outside := int((label < 0).sum()):
        notes["outside the class subfolders, without label"] = outside
    return Listing(source, split, label, tuple(names), tuple(tree.skipped), notes)


def _splits(root: Path) -> dict[str, Path]:
    """The split subfolders by lower-case name; none unless there is a train/ or nothing else."""
    known = {name for names in SPLITS.values() for name in names}
    folders = _subfolders(root)
    found = {folder.name.lower(): folder for folder in folders if folder.name.lower() in known}
    training = any(name in found for name in SPLITS["train"])
    return found if training or len(found) == len(folders) else {}


def _classes(parts: list[Path]) -> set[str]:
    """The subfolder names of the splits that have two or more: one folder is no distinction."""
    names = [[folder.name for folder in _subfolders(part)] for part in parts]
    return {name for found in names if len(found) > 1 for name in found}


def _subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not hidden(p.name))


def _walk(folder: Path, tree: _Tree, above: tuple[tuple[int, int], ...]) -> None:
    # `above` holds the folders on the way here: a link back to one of them is not followed again
    stat = os.stat(folder)
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        tree.ignored["link to a folder above;"] += 1
        return
    for entry in os.scandir(folder):
        if hidden(entry.name):
            continue
        if entry.is_dir():
            _walk(Path(entry.path), tree, (*above, here))
        elif (suffix := os.path.splitext(entry.name)[1].lower()) not in SUFFIXES:
            tree.ignored[suffix or "suffixless"] += 1
        elif entry.is_file():
            tree.files.append(entry.path)
        else:
            tree.skipped.append(Skipped(entry.path, "a broken link, or not a plain file"))


def hidden(name: str) -> bool:
    """Whether a name *inside* a set says "not part of it"; names above the set say nothing."""
    return name.startswith(".") or name == "__MACOSX"


def _report_nothing(part: Path, tree: _Tree) -> None:
    if tree.files:
        return
    if tree.skipped:
        raise ValueError(f"{part}: no readable image; {tree.skipped[0].path} is a broken link")
    if not tree.ignored:
        raise ValueError(f"{part}: the folder is empty; put images in it, or name another")
    found = ", ".join(f"{n:,} {suffix}" for suffix, n in tree.ignored.most_common(5))
    raise ValueError(
        f"{part}: no image in the folder or below, only {found};"
        f" readable are {' '.join(sorted(SUFFIXES))}"
    )


def _stamp(tree: _Tree, part: Path) -> bytes:
    parts = []
    for name in tree.files:
        stat = os.stat(name)
        parts.append(f"{os.path.relpath(name, part)}\0{stat.st_size}\0{stat.st_mtime_ns}")
    return digest("\n".join(parts).encode("utf-8", "surrogateescape")).encode()
