"""Arrays of images, in memory or in `.npy` and `.npz` files. Pickles are never read.

Layouts: [N, H, W] (grey), [N, C, H, W] or [N, H, W, C]. The axis of channels is the one with 1, 3
or 4 entries, else the one with at most MOST_CHANNELS entries that is shorter than the other two. If
no axis or two axes qualify, the layout is refused unless `channels` decides it. [N, H, W, 4] of
uint8 is RGBA, blended with white, unless channels=4 says that all four are measurements. How other
numbers of channels than 1 and 3 were read is written to the notes.

Values: real numbers of any type, in one range for the whole array (see `data/values.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from contrapose.data.decode import EMPTY, Header, Reading, from_values, said_of
from contrapose.data.images import NoSuchSplit, digest
from contrapose.data.labels import encode
from contrapose.data.load import Listing
from contrapose.data.numpy_files import open_npz, read_npy
from contrapose.data.several import several
from contrapose.data.values import is_deep, scaled
from contrapose.errors import UserError

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
_USUAL = (1, 3, 4)  # channels
MOST_CHANNELS = 32  # of an axis that is taken for channels without being told


@dataclass(frozen=True, eq=False)
class Rows:
    """A source of images that are the rows of an array [N, H, W, C]."""

    what: str  # what an error calls the array
    rows: np.ndarray
    alpha: bool = False  # the last channel is transparency
    notes: tuple[str, ...] = ()  # how the array was read
    stamp: tuple[object, ...] = ()  # name, size and time of the file behind the rows
    place: str = ""  # nothing worth keeping: an array is its own decoded copy
    stored: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def on_disk(self) -> bool:
        return bool(self.stamp)

    def name(self, i: int) -> str:
        return f"{self.what}[{i}]"

    def headers(self, index: Sequence[int], how: Reading) -> list[Header | Exception]:
        _, height, width, stored = self.rows.shape
        notes = (*self.notes, *(["with transparency, laid on white"] if self.alpha else []))
        if self.alpha:
            channels: tuple[int, ...] = (3, 1)
        else:
            channels = {1: (1, 3), 3: (3, 1)}.get(stored, (stored,))
        return [Header(width, height, channels, is_deep(self.rows.dtype), notes)] * len(index)

    def values(self, i: int, channels: int, how: Reading) -> tuple[np.ndarray, float | None]:
        return self.rows[i], None

    def encoded(self, i: int) -> bytes | None:
        return None

    def squares(
        self, index: Sequence[int], out: UInt8[np.ndarray, "B C S S"], how: Reading
    ) -> tuple[dict[int, Exception], dict[int, tuple[str, ...]]]:
        rows = self.rows[index]
        channels, side = out.shape[1:3]
        failed: dict[int, Exception] = {}
        notes: dict[int, tuple[str, ...]] = {}
        if rows.shape[1:] == (side, side, channels) and not self.alpha:
            made = scaled(rows, how.over)
            out[:] = made.pixels.transpose(0, 3, 1, 2)
            if is_deep(rows.dtype):
                notes = {k: said for k in range(len(rows)) if (said := said_of(made, k))}
                failed = {int(k): ValueError(EMPTY) for k in np.flatnonzero(made.empty)}
            return failed, notes
        for place, row in enumerate(rows):
            try:
                out[place], said = from_values(row, side, channels, how, alpha=self.alpha)
            except ValueError as error:
                failed[place] = error
            else:
                notes[place] = said
        return failed, notes

    def contents(self, index: Sequence[int], whole: bool = True) -> list[bytes]:
        shape = repr((self.rows.dtype.str, self.rows.shape[1:])).encode()
        return [
            digest(shape, np.ascontiguousarray(self.rows[i]).view(np.uint8).data).encode()
            for i in index
        ]

    def identity(self) -> bytes:
        parts = [np.ascontiguousarray(row).data for row in self.rows] if not self.stamp else []
        return digest(repr((self.rows.shape, self.stamp)).encode(), *parts).encode()


def from_array(
    x: object,
    y: object = None,
    *,
    what: str = "the array",
    split: str = "all",
    channels: int | None = None,
) -> Listing:
    """Images and labels from arrays, tensors or lists.

    channels: how many there are, for layouts that can be read in two ways; without it UserError.
    """
    y = None if y is None else _numpy(y, "labels")
    rows = _rows(_numpy(x, what), what, n=None if y is None else len(y), channels=channels)
    if y is not None and (more := several(y, len(rows))) is not None:
        return Listing(rows, split, None, more[1], labels=more[0])
    label, classes = (None, ()) if y is None else encode(y, len(rows))
    return Listing(rows, split, label, classes)


def from_npy(path: Path, split: str, channels: int | None = None) -> Listing:
    """Images of a `.npy` file, which is memory-mapped."""
    if split != "train":
        raise NoSuchSplit(f"{path}: a .npy file has no {split!r} split; hold out a part of it")
    x = read_npy(path)
    stat = path.stat()
    stamp = (path.name, stat.st_size, stat.st_mtime_ns)
    rows = _rows(x, str(path), stamp, channels=channels)
    return Listing(rows, "all")


def from_npz(path: Path, split: str, channels: int | None = None) -> Listing:
    """Images and labels of a `.npz` file, by the names of `IMAGE_KEYS` and `LABEL_KEYS`."""
    if split not in ("train", "test"):
        raise NoSuchSplit(f"{path}: a .npz file has no {split!r} split")
    with open_npz(path) as file:
        found = set(file.arrays)
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
            raise UserError(
                f"{path}: no images; expected an array named {names}, found {_listed(found)}"
            )
        rows = _rows(file.read(key), f"{path}:{key}", channels=channels)
        label_keys = {
            kind: _first(found, _labels_beside(keys[kind], names))
            for kind, names in LABEL_KEYS.items()
        }
        name = "train" if part == "all" and keys["test"] else part
        label_key = label_keys[part]
        beside = _not_read(found, {*keys.values(), *label_keys.values()})
        notes = {f"images read from {key!r}; not read: {beside}": len(rows)} if beside else {}
        if label_key is None:
            return Listing(rows, name, notes=notes)
        others = [file.read(k) for k in label_keys.values() if k and k != label_key]
        y = file.read(label_key)
        what = f"{path}:{label_key}"
        if (more := several(y, len(rows), also=others, what=what)) is not None:
            return Listing(rows, name, None, more[1], notes=notes, labels=more[0])
        label, classes = encode(y, len(rows), also=others, what=what)
    return Listing(rows, name, label, classes, notes=notes)


def _labels_beside(key: str | None, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of labels that belong to the same part as the images: y_val does not to x_test."""
    return tuple(name for name in names if ("val" in name) == ("val" in (key or "")))


def _not_read(found: set[str], read: set[str | None]) -> str:
    """A note of arrays that are named like images or labels but belong to no split."""
    usual = [
        name for table in (IMAGE_KEYS, LABEL_KEYS) for names in table.values() for name in names
    ]
    return ", ".join(name for name in usual if name in found and name not in read)


def _numpy(x: object, what: str) -> np.ndarray:
    if isinstance(x, np.ma.MaskedArray):
        raise UserError(f"{what}: a masked array; fill what is masked, with NaN or a number")
    try:
        if isinstance(x, torch.Tensor):
            x = x.detach().cpu()
            return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()
        array = np.asarray(x)
    except TypeError as error:  # sparse tensors, types that NumPy lacks
        raise UserError(f"{what}: no array of pixels ({error})") from None
    except ValueError as error:  # rows of different shapes
        raise UserError(f"{what}: not one array ({error}); images must share one shape") from None
    if array.dtype.hasobject:
        raise UserError(f"{what}: an array of Python objects; give numbers of one shape")
    return array


def _rows(
    x: np.ndarray,
    what: str,
    stamp: tuple[object, ...] = (),
    n: int | None = None,
    channels: int | None = None,
) -> Rows:
    if x.dtype.hasobject or x.dtype.kind not in "buif":
        raise UserError(f"{what}: values of type {x.dtype} are not pixels; use uint8 or float32")
    if x.size == 0:
        raise UserError(f"{what}: shape {list(x.shape)} holds no image")
    rows, layout = _last(x, what, n, channels)
    C = rows.shape[3]
    alpha = C == 4 and x.dtype == np.uint8 and layout == "[N H W C]" and channels != 4
    if alpha:
        notes: tuple[str, ...] = (f"read as {layout}, RGBA; channels=4 keeps four measurements",)
    else:
        notes = () if C in (1, 3) else (f"read as {layout} with {C} channels",)
    return Rows(what, rows, alpha, notes, stamp)


def _last(x: np.ndarray, what: str, n: int | None, channels: int | None) -> tuple[np.ndarray, str]:
    """(the array as [N, H, W, C], its layout). n: the number of labels, which distinguishes n grey
    images from one image."""
    shape = list(x.shape)
    grey = "[N H W]"
    if x.ndim == 3 and (shape[0] == n or channels not in (None, shape[0], shape[2])):
        return x[..., None], grey
    if x.ndim == 3:
        square = shape[0] == shape[1] > shape[2] and 1 < shape[2] <= MOST_CHANNELS / 2
        if (shape[2] in (3, 4) and shape[1] > 4 and shape[0] > 4) or square:
            raise UserError(
                f"{what}: shape {shape} could be one image [H W C] or many grey ones [N H W];"
                " add an axis: [1 H W C] or [N H W 1]"
            )
        if shape[0] in (3, 4) and shape[1] > 4 and shape[2] > 4:
            raise UserError(
                f"{what}: shape {shape} could be one image [C H W] or {shape[0]} grey ones"
                " [N H W]; add an axis: [1 C H W] or [N 1 H W]"
            )
        return x[..., None], grey
    if x.ndim != 4:
        raise UserError(
            f"{what}: shape {shape} is not a set of images; use [N H W], [N C H W] or [N H W C]"
        )
    first, last = _axis_of_channels(shape, channels)
    if first and last and shape[1:] != [1, 1, 1]:
        raise UserError(
            f"{what}: shape {shape} could be [N C H W] or [N H W C]; leave out the axis of"
            " channels if the images are grey, or resize them"
        )
    if not (first or last):
        if channels is not None and channels not in _USUAL:
            raise UserError(
                f"{what}: channels={channels}: no axis of shape {shape} has as many, neither the"
                " second nor the last"
            )
        raise UserError(
            f"{what}: shape {shape} has no axis of channels; expected 1, 3, 4, or at most"
            f" {MOST_CHANNELS} on the shortest of its last three axes, the first or last of them"
        )
    return (x, "[N H W C]") if last else (x.transpose(0, 2, 3, 1), "[N C H W]")


def _axis_of_channels(shape: list[int], channels: int | None) -> tuple[bool, bool]:
    """(True if the second of four axes can be the channels, True if the last can)."""
    ends = (shape[1], shape[3])
    if channels is not None and channels not in _USUAL:
        return ends[0] == channels, ends[1] == channels
    if any(end in _USUAL for end in ends):
        return ends[0] in _USUAL, ends[1] in _USUAL
    return (
        ends[0] <= MOST_CHANNELS and ends[0] < min(shape[2:]),
        ends[1] <= MOST_CHANNELS and ends[1] < min(shape[1:3]),
    )


def _first(found: set[str], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in found), None)


def _listed(found: set[str]) -> str:
    return ", ".join(sorted(found)) or "none"
