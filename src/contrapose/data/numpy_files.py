"""NumPy files from untrusted sources, `.npy` and `.npz`: never unpickled, checked before reading.

UserError with the names of file and array for a damaged file, for one with Python objects, and for
one whose arrays are said to be larger than the file or the memory.
"""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from contrapose.data.sizes import check_size
from contrapose.errors import UserError

OBJECTS = "Python objects, which are never unpickled; save plain numbers or strings"


def read_npy(path: Path, what: str | None = None) -> np.ndarray:
    """The array of a `.npy` file, memory-mapped.

    what: the beginning of messages, by default the file. Raises UserError if the file is damaged,
    holds Python objects or is no `.npy`.
    """
    what = str(path) if what is None else what
    try:
        with path.open("rb") as file:
            start = file.read(6)
        if start[:2] == b"PK":
            raise UserError("it is an .npz archive; call it so")
        if start != b"\x93NUMPY":
            raise UserError("it does not begin like one")
        with np.errstate(over="ignore"):  # in a shape that no file has
            found = np.load(path, mmap_mode="r", allow_pickle=False)
    except PermissionError:
        raise
    except Exception as error:
        if "pickle" in str(error) or "Python objects" in str(error):
            raise UserError(f"{what}: holds {OBJECTS}") from None
        raise UserError(f"{what}: not a whole NumPy file ({said(error)})") from None
    assert isinstance(found, np.ndarray)
    return found


@dataclass(frozen=True)
class Stored:
    """The header of an array in an `.npz`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored: int  # bytes in the archive, compressed
    whole: bool  # the archive holds as many bytes as the header asks for


@dataclass(frozen=True)
class Npz:
    """An open `.npz`: the headers of its arrays, which are read on access."""

    path: Path
    arrays: dict[str, Stored]
    archive: zipfile.ZipFile

    def read(self, key: str) -> np.ndarray:
        """The array; UserError with the names of file and array if it cannot be read."""
        told = self.arrays[key]
        what = f"{self.path}: {key!r}"
        if told.dtype.hasobject:
            raise UserError(f"{what} holds {OBJECTS}")
        size = int(np.prod(told.shape, dtype=object)) * told.dtype.itemsize
        if not told.whole:
            raise UserError(
                f"{what} is cut short: its header asks for {size:,} bytes; write the file again"
            )
        check_size(what, size, told.stored)
        try:
            with self.archive.open(f"{key}.npy") as member:
                return np.asarray(npy.read_array(member, allow_pickle=False))
        except Exception as error:  # a damaged archive has errors of zip, zlib and numpy
            why = said(error)
            raise UserError(f"{what} cannot be read ({why}); write the file again") from None


@contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """A context with an open `.npz`; UserError with the name of a damaged file."""
    try:
        archive = zipfile.ZipFile(path)
    except (PermissionError, FileNotFoundError):
        raise
    except Exception as error:
        raise UserError(f"{path}: not a whole NumPy file ({said(error)})") from None
    with archive:
        arrays = {}
        for info in archive.infolist():
            key = info.filename.removesuffix(".npy")
            if key == info.filename:
                continue
            if key in arrays:
                raise UserError(f"{path}: two arrays are called {key!r}; write the file again")
            try:
                with archive.open(info) as member:
                    shape, dtype = _header(member)
                    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
                    whole = dtype.hasobject or member.tell() + size <= info.file_size
            except Exception as error:
                raise UserError(f"{path}: {key!r} cannot be read ({said(error)})") from None
            arrays[key] = Stored(shape, dtype, info.compress_size, whole)
        yield Npz(path, arrays, archive)


def said(error: Exception) -> str:
    """The message of another library's error, as part of a sentence."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _header(member: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise UserError(f"version {version} of the format; only numbers and strings are read")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(member)
    return shape, dtype
