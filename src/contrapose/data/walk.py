"""The files below a folder: images, by their suffix, and a count of all others."""

import errno
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from contrapose.data.decode import SUFFIXES
from contrapose.data.images import Skipped
from contrapose.data.packed import Packed, Packing, printable

_ROUND = "links that lead round in a circle, ignored"


@dataclass
class Found:
    """The images that a walk found, in the order of their folders and names, and what it left
    out."""

    files: Packed = field(default_factory=lambda: Packed.of(()))
    skipped: list[Skipped] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)  # suffix -> files
    size: "array[int]" = field(default_factory=lambda: array("q"))  # bytes of each, where asked for
    changed: "array[int]" = field(default_factory=lambda: array("q"))  # its time, in ns

    def notes(self) -> dict[str, int]:
        """The counts of files that are not images, by a description of each kind."""
        said = sorted(self.ignored.items())
        return {k if k == _ROUND else f"{k} files ignored": n for k, n in said}


def walk(folder: Path, *, deep: bool = True, stat: bool = False) -> Found:
    """The files of a folder and, if `deep`, of the folders below it. Links are followed, loops not.

    stat: whether to ask for size and time of each image too. Raises PermissionError for a folder
    that may not be read.
    """
    found, files = Found(), Packing()
    for entry, kind in _entries(str(folder), (), deep):
        path = entry if isinstance(entry, str) else entry.path
        suffix = os.path.splitext(path)[1].lower()
        if kind == "round":
            found.ignored[_ROUND] += 1
        elif suffix not in SUFFIXES:
            found.ignored[suffix or "suffixless"] += 1
        elif kind == "file":
            files.append(path)
            if stat and not isinstance(entry, str):
                status = entry.stat()
                found.size.append(status.st_size)
                found.changed.append(status.st_mtime_ns)
        else:
            found.skipped.append(
                Skipped(printable(path), "a link that leads nowhere, or not a plain file")
            )
    found.files = files.packed()
    return found


def holds_images(folder: Path) -> bool:
    """True if a file below the folder has the suffix of an image."""
    return any(
        kind == "file" and not isinstance(entry, str) and _suffix(entry) in SUFFIXES
        for entry, kind in _entries(str(folder), (), True)
    )


def files_with(folder: Path, suffix: str) -> list[Path]:
    """The regular files below the folder with this suffix, in order."""
    found = [
        Path(entry.path)
        for entry, kind in _entries(str(folder), (), True)
        if kind == "file" and not isinstance(entry, str) and _suffix(entry) == suffix
    ]
    return sorted(found)


def _suffix(entry: os.DirEntry[str]) -> str:
    return os.path.splitext(entry.name)[1].lower()


def subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not hidden(p.name))


def hidden(name: str) -> bool:
    """True if a name inside a set marks files that do not belong to it (.name, and the like)."""
    return name.startswith(".") or name == "__MACOSX"


def _entries(
    folder: str, above: tuple[tuple[int, int], ...], deep: bool
) -> Iterator[tuple[os.DirEntry[str] | str, str]]:
    """(entry, "file" | "other" | "round") of all below that are not hidden, in the order of their
    names; round: the path of a loop."""
    # `above` holds the folders on the way here: a link back to one of them is not followed again
    stat = os.stat(folder)
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        yield folder, "round"
        return
    with os.scandir(folder) as entries:
        inside = [entry for entry in entries if not hidden(entry.name)]
    for entry in sorted(inside, key=lambda entry: entry.name):
        kind = _kind(entry)
        if kind != "folder":
            yield entry, kind
        elif deep:
            yield from _entries(entry.path, (*above, here), deep)


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() else "other"
    except OSError as error:
        return "round" if error.errno == errno.ELOOP else "other"
