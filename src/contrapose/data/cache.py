"""The folder of data sets, and a cache of decoded images that runs share.

Decoding CIFAR-10 takes seconds, reading the decoded images a fraction of a second. The key of a
cache entry is made of the folder, names, sizes and times of the files, so that a changed file makes
a new entry. CONTRAPOSE_CACHE=off turns the cache off.
"""

import json
import os
import tempfile
import warnings
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from contrapose.data.images import Skipped
from contrapose.data.values import ValueRange
from contrapose.files import cache_root

_KEPT = 8 * 2**30  # bytes of squares in the cache folder; the oldest copies go first


@dataclass(frozen=True, eq=False)
class Decoded:
    """The result of decoding all images of a source."""

    squares: UInt8[np.ndarray, "N C S S"]
    good: list[int]  # the position in the source of each square
    bad: dict[int, Skipped]  # position in the source -> why it has none
    notes: dict[str, int]
    over: ValueRange | None = None  # the range that their values were read by


def data_root(root: str | Path | None = None) -> Path:
    """The folder of data sets: `root`, else $CONTRAPOSE_DATA, else ~/.cache/contrapose."""
    return Path(root or os.environ.get("CONTRAPOSE_DATA") or "~/.cache/contrapose").expanduser()


def recall(key: str) -> Decoded | None:
    """The entry that `keep` stored under the key, or None if it is missing or damaged."""
    path = _path(key)
    if path is None:
        return None
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            said = json.loads(str(file["said"]))
            squares = file["squares"]
        bad = {int(i): Skipped(*both) for i, both in said["bad"].items()}
        over = None if said["over"] is None else ValueRange(*said["over"])
        if squares.dtype != np.uint8 or squares.shape[:1] != (len(said["good"]),):
            return None
    except Exception:  # none, or whatever a damaged copy raises: decode again, and overwrite it
        return None
    with suppress(OSError):  # a folder that may be read only
        os.utime(path)  # used last
    return Decoded(squares, said["good"], bad, said["notes"], over)


def keep(key: str, decoded: Decoded) -> None:
    """Store an entry atomically; if that is not possible, warn and continue."""
    path = _path(key)
    if path is None or decoded.squares.nbytes > _KEPT:
        return
    said = {
        "good": decoded.good,
        "bad": {i: (skipped.path, skipped.reason) for i, skipped in decoded.bad.items()},
        "notes": decoded.notes,
        "over": None if decoded.over is None else astuple(decoded.over),
    }
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(path.parent, _KEPT - decoded.squares.nbytes)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            part = file.name
            np.savez(file, squares=decoded.squares, said=np.array(json.dumps(said)))
        os.replace(part, path)
    except OSError as error:
        if part is not None:
            with suppress(OSError):
                os.unlink(part)
        warnings.warn(
            f"decoded images could not be kept in {path.parent} ({error}); they will be decoded"
            " again next time (CONTRAPOSE_CACHE names another folder, or `off`)",
            stacklevel=2,
        )


def _path(key: str) -> Path | None:
    try:
        root = cache_root()
    except RuntimeError:  # nobody's home: there is no ~
        return None
    return None if root is None else root / "squares" / f"{key}.npz"


def _make_room(folder: Path, room: int) -> None:
    copies = sorted(folder.glob("*.npz"), key=lambda p: p.stat().st_mtime, reverse=True)
    total = 0
    for copy in copies:
        total += copy.stat().st_size
        if total > room:
            copy.unlink(missing_ok=True)
