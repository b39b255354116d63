"""The image that a file name means, in any of its spellings.

`a/1.png`, `./a/1.png`, `a\\1.png`, `/home/me/set/a/1.png` are the same file, and so are `1.png` and
`1` if no other file has this name. Composed and decomposed letters (NFC, NFD) are equal; so are
capital and small letters, unless files differ in nothing else. The exact name is tried first.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import PurePosixPath

from contrapose.data.decode import SUFFIXES
from contrapose.data.packed import printable

_ABSOLUTE = re.compile(r"/|[A-Za-z]:[\\/]|\\\\")
Parts = tuple[str, ...]


class FileNames:
    """The names of the images of a set, with a search for other spellings of them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._index: dict[int, dict[str, list[tuple[Parts, int]]]] = {}

    @property
    def first(self) -> str:
        return printable(self.names[0]) if len(self.names) else "none"

    def known(self, written: str) -> bool:
        return bool(self.find(written))

    def score(self, written: str) -> int:
        """How much a cell of a table resembles the name of an image.

        3: the name of an image of the set; 2: a name with the suffix of images; 1: the name of an
        image of the set without its suffix, which a label such as `7` can be by coincidence; else
        0.
        """
        if self._found(written, range(_STEM)):
            return 3
        if PurePosixPath(written.replace("\\", "/")).suffix.lower() in SUFFIXES:
            return 2
        return int(self.known(written))

    def find(self, written: str) -> list[int]:
        """Positions of the images that the name may mean: one, none, or several."""
        return self._found(written, range(len(_FORMS)))

    def moved(self, written: Sequence[str]) -> list[int] | None:
        """Positions for absolute names from another machine or folder, without the folders that all
        of them begin with. None unless each then names exactly one image."""
        every = [_split(_plain(name)) for name in written]
        if not all(_ABSOLUTE.match(name) for name in written):
            return None
        for dropped in range(1, min(len(parts) for parts in every)):
            found = [self._ending(parts[dropped:], form=1) for parts in every]
            if all(len(matches) == 1 for matches in found):
                return [matches[0] for matches in found]
        return None

    def _found(self, written: str, forms: range) -> list[int]:
        for form in forms:
            for parts in self._wanted(written, form):
                found = self._ending(parts, form)
                if found:
                    return found
        return []

    def _wanted(self, written: str, form: int) -> Iterator[Parts]:
        said = _FORMS[form](written)
        if not _ABSOLUTE.match(written):
            yield _split(said)
            return
        # of an absolute name all folders count, those above the set too
        for here, folder in self._above:
            above = f"{_FORMS[form](folder)}/"
            if said.startswith(above):
                yield _split(f"{_FORMS[form](here)}/{said[len(above) :]}")

    @cached_property
    def _above(self) -> list[tuple[str, str]]:
        """(the folder of all images as the set spells it, the same as an absolute path)"""
        folders = [os.path.dirname(name) for name in self.names]
        common = os.path.commonpath(folders) if len(set(map(os.path.isabs, folders))) == 1 else ""
        spelt = {os.path.abspath(common or "."), os.path.realpath(common or ".")}
        return [(common, folder.rstrip("/")) for folder in sorted(spelt)]

    def _ending(self, parts: Parts, form: int) -> list[int]:
        """The images whose path ends in these parts."""
        if not parts:
            return []
        found = self._by_last(form).get(parts[-1], [])
        exact = {i for own, i in found if own == parts}
        return sorted(exact or {i for own, i in found if own[-len(parts) :] == parts})

    def _by_last(self, form: int) -> dict[str, list[tuple[Parts, int]]]:
        if form not in self._index:
            index: dict[str, list[tuple[Parts, int]]] = {}
            for i, name in enumerate(self.names):
                for spelling in _spellings(name):
                    said = _FORMS[form](spelling) if form else spelling
                    own = _split(os.path.splitext(said)[0] if form == _STEM else said)
                    index.setdefault(own[-1] if own else "", []).append((own, i))
            self._index[form] = index
        return self._index[form]


def _plain(name: str) -> str:
    """Forward slashes, no `.` or `..`, composed letters."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    root = "/" if name.startswith("/") else ""
    return root + "/".join(part for part in name.split("/") if part not in ("", ".", ".."))


_FORMS: tuple[Callable[[str], str], ...] = (
    str,
    _plain,
    lambda name: _plain(name).casefold(),
    _plain,  # beside names of images without their suffix
)
_STEM = 3


def _split(name: str) -> Parts:
    return tuple(part for part in name.split("/") if part)


def _spellings(name: str) -> set[str]:
    """The name; if it is not valid UTF-8, also as other programs show it."""
    if (said := printable(name)) == name:
        return {name}
    return {name, said, os.fsencode(name).decode("latin-1")}
