"""Many strings in one block of bytes: a million file names take tens of MB rather than hundreds."""

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64


class Packed(Sequence[str]):
    """A sequence of strings, made anew whenever one is asked for.

    block: the strings behind one another in UTF-8, bytes of file names that are not as Python has
    them. ends: where each one ends.
    """

    def __init__(self, block: bytes, ends: Int64[np.ndarray, " N"]) -> None:
        self.block, self.ends = block, ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> "Packed":
        packing = Packing()
        for string in strings:
            packing.append(string)
        return packing.packed()

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        start = int(self.ends[i - 1]) if i else 0
        return self.block[start : int(self.ends[i])].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self.ends.tolist():
            yield self.block[start:end].decode("utf-8", "surrogateescape")
            start = end


class Packing:
    """Strings on their way into a `Packed`."""

    def __init__(self) -> None:
        self._block, self._ends = bytearray(), array("q")

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, string: str) -> None:
        self._block += string.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._block))

    def packed(self) -> Packed:
        return Packed(bytes(self._block), np.array(self._ends, np.int64))


@dataclass(frozen=True)
class Below:
    """File names below a folder, as text: `cat/1.png` of /data/set/cat/1.png."""

    names: Sequence[str]
    folder: str

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> str:
        return printable(self.names[i][len(os.path.join(self.folder, "")) :])


def printable(name: str) -> str:
    """A file name as text to be printed and stored: bytes that are not UTF-8 become `\\xf1`."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    return name
