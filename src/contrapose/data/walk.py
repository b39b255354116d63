"""The files below a folder: images, by their suffix, and a count of all others."""

import errno
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from contrapose.data.decode import SUFFIXES
from contrapose.data.images import Skipped

_ROUND = "links that lead round in a circle, ignored"


@dataclass
class Found:
    """The images that a walk found, and what it left out."""

    files: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)  # suffix -> files

    def notes(self) -> dict[str, int]:
        """The counts of files that are not images, by a description of each kind."""
        said = sorted(self.ignored.items())
        return {k if k == _ROUND else f"{k} files ignored": n for k, n in said}


def walk(folder: Path, *, deep: bool = True) -> Found:
    """The files of a folder and, if `deep`, of the folders below it. Links are followed, loops not.

    Raises PermissionError for a folder that may not be read.
    """
    found = Found()
    for path, kind in _entries(str(folder), (), deep):
        suffix = os.path.splitext(path)[1].lower()
        if kind == "round":
            found.ignored[_ROUND] += 1
        elif suffix not in SUFFIXES:
            found.ignored[suffix or "suffixless"] += 1
        elif kind == "file":
            found.files.append(path)
        else:
            found.skipped.append(
                Skipped(printable(path), "a link that leads nowhere, or not a plain file")
            )
    # by parts of the path, so that the order is that of the folders whatever their names
    found.files.sort(key=lambda name: Path(name).parts)
    return found


def holds_images(folder: Path) -> bool:
    """True if a file below the folder has the suffix of an image."""
    return any(
        kind == "file" and os.path.splitext(path)[1].lower() in SUFFIXES
        for path, kind in _entries(str(folder), (), True)
    )


def files_with(folder: Path, suffix: str) -> list[Path]:
    """The regular files below the folder with this suffix, in order."""
    found = [
        Path(path)
        for path, kind in _entries(str(folder), (), True)
        if kind == "file" and path.lower().endswith(suffix)
    ]
    return sorted(found)


def subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not hidden(p.name))


def hidden(name: str) -> bool:
    """True if a name inside a set marks files that do not belong to it (.name, and the like)."""
    return name.startswith(".") or name == "__MACOSX"


def printable(name: str) -> str:
    """A file name as text to be printed and stored: bytes that are not UTF-8 become `\\xf1`."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    return name


def _entries(
    folder: str, above: tuple[tuple[int, int], ...], deep: bool
) -> Iterator[tuple[str, str]]:
    """(path, "file" | "other" | "round") of all entries below that are not hidden; round: a
    loop."""
    # `above` holds the folders on the way here: a link back to one of them is not followed again
    stat = os.stat(folder)
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        yield folder, "round"
        return
    with os.scandir(folder) as entries:
        inside = [entry for entry in entries if not hidden(entry.name)]
    for entry in inside:
        kind = _kind(entry)
        if kind != "folder":
            yield entry.path, kind
        elif deep:
            yield from _entries(entry.path, (*above, here), deep)


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() else "other"
    except OSError as error:
        return "round" if error.errno == errno.ELOOP else "other"
