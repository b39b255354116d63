"""Arrays of images, in memory or in `.npy` and `.npz` files.

Layouts: [N H W] grey, [N C H W] or [N H W C] with C = 1, 3 or 4 (RGBA); what could be read in two
ways is an error. Values: uint8 as it is, bool as black and white, uint16 divided by 257, other
integers in 0..255, floats in [0, 1] or in [0, 255]; anything else is an error. Never pickles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from contrapose.data.decode import BinaryFile, Fit, Header, to_square
from contrapose.data.images import NoSuchSplit, digest
from contrapose.data.labels import encode
from contrapose.data.load import Listing

# the names under which the parts of an .npz are looked for, best first
IMAGE_KEYS = {
    "train": ("x_train", "X_train", "train_images", "train_x"),
    "test": ("x_test", "X_test", "test_images", "test_x", "x_val", "X_val", "val_images"),
    "all": ("images", "image", "x", "X", "data", "arr_0"),
}
LABEL_KEYS = {
    "train": ("y_train", "Y_train", "train_labels", "train_y"),
    "test": ("y_test", "Y_test", "test_labels", "test_y", "y_val", "Y_val", "val_labels"),
    "all": ("labels", "label", "y", "Y", "targets", "target", "arr_1"),
}
_MODE = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, eq=False)
class Rows:
    """Images that are rows of an array [N H W C], C = 1, 3 or 4. Values are converted per image."""

    what: str  # what an error calls the array
    rows: np.ndarray
    scale: float | None = 1.0  # to 0..255; None = uint8 already
    stamp: tuple[object, ...] = ()  # name, size and time of the file behind the rows
    place: str = ""  # nothing worth keeping: an array is its own decoded copy

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        return f"{self.what}[{i}]"

    def headers(self, index: Sequence[int]) -> list[Header | Exception]:
        _, height, width, channels = self.rows.shape
        notes = ("with transparency, laid on white",) if channels == 4 else ()
        return [Header(width, height, _MODE[channels], notes)] * len(index)

    def squares(
        self, index: Sequence[int], out: UInt8[np.ndarray, "B C S S"], fit: Fit
    ) -> dict[int, Exception]:
        rows = self.rows[index]
        if self.scale is not None:
            rows = np.rint(rows * self.scale).astype(np.uint8)
        channels, side = out.shape[1:3]
        if rows.shape[1:] == (side, side, channels):
            out[:] = rows.transpose(0, 3, 1, 2)
            return {}
        for place, row in enumerate(rows):
            image = Image.fromarray(np.ascontiguousarray(row[..., 0] if row.shape[2] == 1 else row))
            out[place] = to_square(image, side, channels, fit)
        return {}

    def identity(self) -> bytes:
        parts = [np.ascontiguousarray(row).data for row in self.rows] if not self.stamp else []
        return digest(repr((self.rows.shape, self.stamp)).encode(), *parts).encode()


def from_array(
    x: object, y: object = None, *, what: str = "the array", split: str = "all"
) -> Listing:
    """Images and labels from arrays, tensors or lists. Raises ValueError for a layout, type or
    range of values that could mean two things."""
    y = None if y is None else _numpy(y, "labels")
    rows = _rows(_numpy(x, what), what, n=None if y is None else len(y))
    label, classes = (None, ()) if y is None else encode(y, len(rows))
    return Listing(rows, split, label, classes)


def from_npy(path: Path, split: str) -> Listing:
    """Images of a `.npy` file, mapped into memory rather than read."""
    if split != "train":
        raise NoSuchSplit(f"{path}: a .npy file has no {split!r} split; hold out a part of it")
    x = _load(path)
    assert isinstance(x, np.ndarray)
    stat = path.stat()
    rows = _rows(x, str(path), stamp=(path.name, stat.st_size, stat.st_mtime_ns))
    return Listing(rows, "all")


def from_npz(path: Path, split: str) -> Listing:
    """Images and labels of a `.npz` file, by the names of `IMAGE_KEYS` and `LABEL_KEYS`."""
    if split not in ("train", "test"):
        raise NoSuchSplit(f"{path}: a .npz file has no {split!r} split")
    with path.open("rb") as raw, _load(path, raw) as file:
        found = set(file.files)
        keys = {kind: _first(found, names) for kind, names in IMAGE_KEYS.items()}
        part = "all" if split == "train" and keys["train"] is None else split
        key = keys[part]
        if key is None and any(keys.values()):
            raise NoSuchSplit(
                f"{path}: no {split!r} split among its arrays {_listed(found)};"
                f" name one {IMAGE_KEYS[split][0]}, or hold out a part of the other"
            )
        if key is None:
            names = " | ".join((*IMAGE_KEYS["all"][:4], IMAGE_KEYS["train"][0]))
            raise ValueError(
                f"{path}: no images; expected an array named {names}, found {_listed(found)}"
            )
        rows = _rows(_member(file, path, key), f"{path}:{key}")
        label_keys = {kind: _first(found, names) for kind, names in LABEL_KEYS.items()}
        name = "train" if part == "all" and keys["test"] else part
        label_key = label_keys[part]
        if label_key is None:
            return Listing(rows, name)
        others = [_member(file, path, k) for k in label_keys.values() if k and k != label_key]
        y = _member(file, path, label_key)
        label, classes = encode(y, len(rows), also=others, what=f"{path}:{label_key}")
    return Listing(rows, name, label, classes)


def _numpy(x: object, what: str) -> np.ndarray:
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()
    try:
        array = np.asarray(x)
    except ValueError as error:  # rows of different shapes
        raise ValueError(f"{what}: not one array ({error}); images must share one shape") from None
    if array.dtype.hasobject:
        raise ValueError(f"{what}: an array of Python objects; give numbers of one shape")
    return array


def _rows(x: np.ndarray, what: str, stamp: tuple[object, ...] = (), n: int | None = None) -> Rows:
    if x.dtype.hasobject or x.dtype.kind not in "buif":
        raise ValueError(f"{what}: values of type {x.dtype} are not pixels; use uint8 or float32")
    if x.size == 0:
        raise ValueError(f"{what}: shape {list(x.shape)} holds no image")
    rows = _last(x, what, n)
    scale = _scale(x, what)
    return Rows(what, rows, scale, stamp)


def _last(x: np.ndarray, what: str, n: int | None) -> np.ndarray:
    """The array as [N H W C]. `n`, the number of labels, tells n grey images from one image."""
    shape = list(x.shape)
    if x.ndim == 3 and shape[0] == n:
        return x[..., None]
    if x.ndim == 3:
        if shape[2] in (3, 4) and shape[1] > 4 and shape[0] > 4:
            raise ValueError(
                f"{what}: shape {shape} could be one image [H W C] or many grey ones [N H W];"
                " add an axis: [1 H W C] or [N H W 1]"
            )
        if shape[0] in (3, 4) and shape[1] > 4 and shape[2] > 4:
            raise ValueError(
                f"{what}: shape {shape} could be one image [C H W] or {shape[0]} grey ones"
                " [N H W]; add an axis: [1 C H W] or [N 1 H W]"
            )
        return x[..., None]
    if x.ndim != 4:
        raise ValueError(
            f"{what}: shape {shape} is not a set of images; use [N H W], [N C H W] or [N H W C]"
        )
    first, last = shape[1] in _MODE, shape[3] in _MODE
    if first and last and shape[1:] != [1, 1, 1]:
        raise ValueError(
            f"{what}: shape {shape} could be [N C H W] or [N H W C]; leave out the axis of"
            " channels if the images are grey, or resize them"
        )
    if not (first or last):
        raise ValueError(f"{what}: shape {shape} has no axis of 1, 3 or 4 channels")
    return x if last else x.transpose(0, 2, 3, 1)


def _scale(x: np.ndarray, what: str) -> float | None:
    """What takes the values to 0..255."""
    if x.dtype == np.uint8:
        return None
    if x.dtype == np.bool_:
        return 255.0
    if x.dtype == np.uint16:
        return 1 / 257
    # a piece at a time: the array may be a file larger than memory
    low, high = np.inf, -np.inf
    for start in range(0, len(x), 1024):
        piece = x[start : start + 1024]
        if piece.dtype.kind == "f" and not np.isfinite(piece).all():
            bad = ~np.isfinite(piece.reshape(len(piece), -1)).all(axis=1)
            raise ValueError(
                f"{what}: NaN or infinity in image {start + int(bad.argmax())}"
                " (the first of them); clean the array"
            )
        low, high = min(low, float(piece.min())), max(high, float(piece.max()))
    if low < 0:
        raise ValueError(
            f"{what}: values from {low:g} to {high:g}; undo the normalisation, so that they lie in"
            " [0, 1] or [0, 255] (the encoder normalises by itself)"
        )
    if high > 255:
        raise ValueError(f"{what}: values up to {high:g}; scale them to [0, 1] or to 0..255")
    if x.dtype.kind in "iu":
        return 1.0
    if 1 < high < 2:
        raise ValueError(
            f"{what}: values up to {high:g} are neither in [0, 1] nor in [0, 255]; clip or scale"
        )
    return 255.0 if high <= 1 else 1.0


def _load(path: Path, file: BinaryFile | None = None) -> Any:
    try:
        if file is None:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        return np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise ValueError(
                f"{path}: holds Python objects, which are never unpickled; save plain numbers"
            ) from None
        raise ValueError(f"{path}: not a whole NumPy file ({error})") from None
    except Exception as error:  # a damaged zip has its own errors
        raise ValueError(f"{path}: not a whole NumPy file ({error})") from None


def _member(file: Any, path: Path, key: str) -> np.ndarray:
    try:
        return np.asarray(file[key])
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path}: {key!r} holds Python objects, which are never unpickled; save plain"
                " numbers (a list of images of different shapes cannot be one array)"
            ) from None
        raise ValueError(f"{path}: {key!r} cannot be read ({error})") from None
    except Exception as error:
        raise ValueError(f"{path}: {key!r} cannot be read ({error})") from None


def _first(found: set[str], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in found), None)


def _listed(found: set[str]) -> str:
    return ", ".join(sorted(found)) or "none"
