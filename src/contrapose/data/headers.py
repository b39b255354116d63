"""The headers of all images of a source, as columns; kept in the cache where they took long.

The entry's key is made of the names, sizes and times of the files, as that of decoded images is
(`data/cache.py`): a file that is added, removed or changed makes another one, and all are looked at
again. So a folder is listed anew each time, about five microseconds a file, and what costs more,
a look into each file, is done once.
"""

import json
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int16, Int32, Int64

from contrapose.data.decode import Header, Reading
from contrapose.data.images import ImageSource, Skipped, digest, reason
from contrapose.data.threads import chunks, each
from contrapose.files import cache_root

_CHUNK = 256  # images a task
_SLOW = 2.0  # s of looking after which the result is kept
_FORMAT = 1  # of what is kept


class Kind(NamedTuple):
    """What many images have in common: `Header` without the sides."""

    channels: tuple[int, ...]
    deep: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Headers:
    """The `Header` of each image."""

    width: Int32[np.ndarray, " N"]  # px
    height: Int32[np.ndarray, " N"]  # px
    kind: Int16[np.ndarray, " N"]  # which of `kinds`; -1 for an image that cannot be read
    kinds: tuple[Kind, ...]

    @property
    def short(self) -> Int32[np.ndarray, " N"]:
        short: np.ndarray = np.minimum(self.width, self.height)
        return short

    @property
    def area(self) -> Int64[np.ndarray, " N"]:
        """In px."""
        area: np.ndarray = self.width.astype(np.int64) * self.height
        return area

    def where(self, true: Callable[[Kind], bool]) -> Bool[np.ndarray, " N"]:
        """Of which images it is true; of none that cannot be read."""
        found: np.ndarray = np.array([*map(true, self.kinds), False])[self.kind]
        return found

    def part(self, index: np.ndarray) -> "Headers":
        return Headers(self.width[index], self.height[index], self.kind[index], self.kinds)


def scan(source: ImageSource, how: Reading) -> tuple[Headers, dict[int, Skipped]]:
    """(headers, position -> why it cannot be read), from the cache where they are in it."""
    kept = _place(source, how)
    if kept is not None and (known := _recall(kept, len(source))) is not None:
        return known
    start = time.monotonic()
    found = _scan(source, how)
    if kept is not None and time.monotonic() - start > _SLOW:
        _keep(kept, *found)
    return found


def _scan(source: ImageSource, how: Reading) -> tuple[Headers, dict[int, Skipped]]:
    sides = np.zeros((2, len(source)), np.int32)
    kind = np.full(len(source), -1, np.int16)
    number: dict[Kind, int] = {}
    bad: dict[int, Skipped] = {}
    lock = threading.Lock()

    def some(chunk: range) -> None:
        found = source.headers(chunk, how)
        with lock:
            for i, header in zip(chunk, found, strict=True):
                if isinstance(header, Header):
                    sides[:, i] = header.width, header.height
                    kind[i] = number.setdefault(Kind(*header[2:]), len(number))
                else:
                    bad[i] = Skipped(source.name(i), why(header))

    each(some, chunks(len(source), _CHUNK), words=f"looking at {len(source):,} images")
    return Headers(sides[0], sides[1], kind, tuple(number)), bad


def why(error: Exception) -> str:
    """Why an image cannot be read, in words."""
    text = reason(error)
    if text.startswith("cannot identify image file"):
        return "not an image that Pillow can read"
    return text


def _place(source: ImageSource, how: Reading) -> Path | None:
    """The file that the headers are kept in; None for arrays, and without a cache."""
    try:
        root = cache_root()
    except RuntimeError:  # nobody's home: there is no ~
        return None
    if root is None or not source.place:
        return None
    place = source.place.encode("utf-8", "surrogateescape")
    key = digest(source.identity(), place, repr((_FORMAT, how.max_pixels)).encode())
    return root / "headers" / f"{key}.npz"


def _recall(path: Path, n: int) -> tuple[Headers, dict[int, Skipped]] | None:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            said = json.loads(str(file["said"]))
            width, height, kind = (file[name] for name in ("width", "height", "kind"))
        kinds = tuple(Kind(tuple(c), deep, tuple(notes)) for c, deep, notes in said["kinds"])
        bad = {int(i): Skipped(*both) for i, both in said["bad"].items()}
        if not len(width) == len(height) == len(kind) == n:
            return None
        return Headers(width, height, kind, kinds), bad
    except Exception:  # none, or whatever a damaged one raises: look again, and overwrite it
        return None


def _keep(path: Path, headers: Headers, bad: dict[int, Skipped]) -> None:
    said = {"kinds": headers.kinds, "bad": {i: (s.path, s.reason) for i, s in bad.items()}}
    with suppress(OSError):  # as before: looked at again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            np.savez(
                file, width=headers.width, height=headers.height, kind=headers.kind,
                said=np.array(json.dumps(said)),
            )  # fmt: skip
        Path(file.name).replace(path)
