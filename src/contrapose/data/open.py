"""`open_images`: an `ImageSet` from a name, a path, an array or a composed set."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from contrapose.data import video, webdataset
from contrapose.data.arrays import from_array, from_npy, from_npz
from contrapose.data.cache import data_root
from contrapose.data.composed.spec import COMPOSED, is_call, open_call, usage
from contrapose.data.decode import SUFFIXES, Fit, Reading
from contrapose.data.folder import from_folder
from contrapose.data.images import ImageSet, NoSuchSplit, Numbered
from contrapose.data.labels import encode, given_labels
from contrapose.data.load import Encoded, Listing, load
from contrapose.data.named import NAMED, from_named
from contrapose.data.parquet import from_parquet, shards
from contrapose.data.parquet_columns import has_images
from contrapose.data.several import several
from contrapose.data.shards import is_pattern
from contrapose.data.values import ValueRange, as_range, as_rgb
from contrapose.data.walk import holds_images
from contrapose.data.webdataset import from_tars
from contrapose.errors import UserError

Split = Literal["train", "test", "unlabeled"]
MEMORY = 4 * 2**30  # bytes that the squares of a set may take; more are decoded on access
ImagesLike = str | PathLike[str] | np.ndarray | Tensor | tuple[object, object] | list[object]


def open_images(
    source: ImagesLike,
    split: str = "train",
    *,
    size: int | None = None,
    channels: int | None = None,
    root: str | Path | None = None,
    download: bool = False,
    labels: object = None,
    label_column: str | None = None,
    image_column: str | None = None,
    fit: Fit = "crop",
    value_range: ValueRange | Sequence[float | Sequence[float]] | str | None = None,
    rgb: Sequence[int] | str | None = None,
    max_pixels: int | None = None,
    max_bad_share: float = 0.05,
    memory: int = MEMORY,
    fps: float | None = None,
) -> ImageSet:
    """Open images as uint8 squares [C, size, size].

    source: a named set (`NAMED`; write ./name for a folder with such a name), a video file, a
        folder of images (frames have times where `fps` or fps.json tells it, `data/video.py`) or
        of Parquet or tar shards, a .parquet, .tar, .npz or .npy file, a pattern of tar shards,
        "train-{000..999}.tar" (WebDataset), an array or tensor, (array, labels), or a
        composed set written as a call, "random-bits(mnist, bits=8)" (`COMPOSED`).
    split: train, test or unlabeled. All images of a source without splits are `train`.
    size: in px. None keeps the short side that all images share (up to 256), otherwise it is the
        largest short side, at most 224.
    channels: None is 1 if every image is grey, 3 if some are in colour, otherwise the number that
        most images have (2, 4, 13 in arrays and TIFF). An image that cannot be read with this
        number is unreadable. A number decides between two readings: 4 keeps four bands of which the
        last might be transparency, 13 takes thirteen pages of a TIFF as channels.
    value_range: (low, high) or "low:high", the values of black and white in images of more than 8
        bits (of 8 bits, if there are no others); [(low, high), ...] or "low:high,low:high", one
        pair for each channel in order. None is decided by the type and a sample of the set:
        unsigned integers are 0 to 2^b - 1 with b = 8, 10, 12, 14 or 16, floats are 0 to 1 or 0 to
        255, other values need a range (see the table in `data/values.py`). Values outside are
        clipped and pixels without a value (NaN, nodata) are black; both are counted in `notes`.
    rgb: the channels that are red, green and blue, counted from 0. Colour augmentations change
        these, and pictures show them.
    max_pixels: of one image; None is 178,956,970, as in Pillow.
    root: the folder of named sets, by default $CONTRAPOSE_DATA or ~/.cache/contrapose.
    labels: an array, a .npy, or a .csv with one label a line or columns of files and labels.
    label_column, image_column: the columns of a .csv or of Parquet shards that have several; of
        tar shards the entry of each .json, and the part of a sample (jpg) that is the image.
    fit: "crop" cuts the central square out of an image, "pad" adds black bars.
    max_bad_share: share of unreadable images above which the set is refused.
    fps: frames a second of a folder of frames.
    memory: bytes above which images are decoded on access instead of kept as one tensor.

    Open a test split with the `size`, `channels` and `value_range` of its train split.
    Raises NoSuchSplit if the source does not have this split, FileNotFoundError, PermissionError,
    and UserError for anything that cannot be read or can be read in two ways.
    """
    _check(split, size, channels, fit, max_pixels, max_bad_share, memory)
    over, three = as_range(value_range), as_rgb(rgb)
    if isinstance(source, str) and is_call(source) and not _there(source, root):
        if labels is not None:
            raise UserError(f"{source}: a composed set has its own labels; choose with label=NAME")
        again = partial(
            open_images, root=root, download=download, fit=fit, max_pixels=max_pixels,
            max_bad_share=max_bad_share, memory=memory,
        )  # fmt: skip
        return open_call(
            source, split, again, size=size, channels=channels, rgb=three, value_range=over
        )
    columns = {
        "label_column": None if labels is not None else label_column,
        "image_column": image_column,
    }
    read = _Shards(memory, columns)
    place = _place(source, root)
    decoded = None
    if place is not None and video.is_video(place):
        decoded, listing = _video(place, split, size, fps)
        name = str(source)
    elif isinstance(source, str | PathLike):
        name, listing = _from_name(str(source), split, root, download, read, channels)
    else:
        name, listing = "array", _from_values(source, split, channels)
    for argument, column in columns.items():
        if column is not None and not read.some:
            raise UserError(
                f"{argument}={column!r}: {name} has no columns; it is for Parquet, for tar shards"
                f"{', and for labels in a .csv' if argument == 'label_column' else ''}"
            )
    if labels is not None:
        listing = _relabel(listing, labels, label_column)
    images = load(
        listing,
        name=name,
        size=size,
        channels=channels,
        reading=Reading(fit, over, max_pixels),
        rgb=three,
        max_bad_share=max_bad_share,
        memory=memory,
    )
    if decoded is not None:
        return replace(images, features={video.TIME: torch.from_numpy(decoded.time)})
    if place is not None and place.is_dir() and isinstance(listing.source, Encoded):
        return video.with_frame_times(images, place, fps)
    if fps is not None:
        raise UserError(f"--fps {fps:g} is for a folder of frames, which {name} is not")
    return images


def _place(source: object, root: str | Path | None) -> Path | None:
    """The file or folder that the source names, or None."""
    if not isinstance(source, str | PathLike) or not str(source) or str(source) in NAMED:
        return None
    path = Path(os.path.expanduser(str(source)))
    inside = data_root(root) / str(source)
    return path if path.exists() or not inside.exists() else inside


def _video(
    path: Path, split: str, size: int | None, fps: float | None
) -> tuple[video.Decoded, Listing]:
    """The frames of a video file, and their listing."""
    if split != "train":
        raise NoSuchSplit(f"{path}: a video has no {split!r} split; hold out a part of it")
    if fps is not None:
        raise UserError(f"--fps {fps:g}: {path} has times of its own; leave it out")
    decoded = video.decode_video(path, size)
    listing = from_array(decoded.frames, what=str(path))
    read = f"frames decoded by {decoded.reader}"
    if not decoded.announced:
        read += "; the file does not say how many it has, so that its end may be missing"
    notes = {read: len(decoded.frames)}
    lost = decoded.announced - len(decoded.frames)
    if lost > 1:  # one more or less is how some programs count
        notes["frames that the file announces are missing: it is cut off or damaged"] = lost
    elif not decoded.announced and (lost := video.skipped(decoded.time)):
        notes["frames are missing, by the steady rate of the others: the file is damaged"] = lost
    names = Numbered(path.name, len(decoded.frames))
    return decoded, replace(listing, names=names, notes={**listing.notes, **notes})


@dataclass
class _Shards:
    """The readers of sets in shards, with the columns that were asked for."""

    memory: int
    columns: dict[str, str | None]
    some: bool = False  # whether one was called

    def parquet(self, path: Path, split: str) -> Listing:
        self.some = True
        return from_parquet(path, split, self.memory, **self.columns)

    def tars(self, files: Sequence[Path], root: Path, split: str) -> Listing:
        self.some = True
        return from_tars(files, root, split, **self.columns)


def _from_name(
    source: str,
    split: str,
    root: str | Path | None,
    download: bool,
    read: "_Shards",
    channels: int | None,
) -> tuple[str, Listing]:
    if not source:
        raise UserError("images: an empty name; for the folder you are in, write .")
    where = data_root(root)
    if source in NAMED:
        return from_named(source, split, where, download, read.parquet)
    path = Path(os.path.expanduser(source))  # Path's own raises for a user that there is not
    if is_pattern(source) and source.endswith(".tar") and not path.exists():
        tars = webdataset.named(source, where)
        return source, read.tars(tars, Path(os.path.commonpath([t.parent for t in tars])), split)
    if not path.exists() and (where / source).exists():
        path = where / source
    if not path.exists():
        raise _unknown(source, path, where)
    return source, _from_path(path, split, read, channels)


def _from_path(path: Path, split: str, read: "_Shards", channels: int | None) -> Listing:
    if path.is_dir():
        found = shards(path)
        # a table of something else beside images is no set of shards
        if found and (has_images(found[0]) or not holds_images(path)):
            return read.parquet(path, split)
        if not holds_images(path) and (tars := webdataset.shards(path)):
            return read.tars(tars, path, split)
        return from_folder(path, split)
    if not path.is_file():
        raise UserError(f"{path}: neither a folder nor a plain file")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return from_npz(path, split, channels)
    if suffix == ".npy":
        return from_npy(path, split, channels)
    if suffix == ".parquet":
        return read.parquet(path, split)
    if suffix == ".tar":
        return read.tars([path], path, split)
    if suffix in SUFFIXES:
        raise UserError(f"{path}: one image; name the folder that holds it")
    raise UserError(
        f"{path}: not a set of images; use a folder, or a .npz, .npy, .parquet or .tar file"
    )


def _there(source: str, root: str | Path | None) -> bool:
    return Path(os.path.expanduser(source)).exists() or (data_root(root) / source).exists()


def _from_values(source: object, split: str, channels: int | None) -> Listing:
    if split != "train":
        raise NoSuchSplit(f"an array has no {split!r} split; hold out a part of it")
    if isinstance(source, tuple):
        if len(source) != 2:
            raise UserError(f"a tuple of {len(source)}; expected (images, labels)")
        return from_array(source[0], source[1], channels=channels)
    return from_array(source, channels=channels)


def _relabel(listing: Listing, labels: object, column: str | None) -> Listing:
    source = listing.source
    names = source.names if isinstance(source, Encoded) else None
    if names is None:
        names = [source.name(i) for i in range(len(source))]
    values, what, notes = given_labels(labels, names, column)
    if (more := several(values, len(names), what=what)) is not None:
        return replace(
            listing, label=None, labels=more[0], classes=more[1], notes={**listing.notes, **notes}
        )
    label, classes = encode(values, len(names), what=what)
    if without := int((label < 0).sum()):
        notes["without a label"] = without
    return replace(
        listing, label=label, labels=None, classes=classes, notes={**listing.notes, **notes}
    )


def _unknown(source: str, path: Path, where: Path) -> Exception:
    looks_like_path = len(path.parts) > 1 or path.suffix or source.startswith("~")
    parent = path.parent
    if looks_like_path:
        beside = [p.name for p in parent.iterdir()] if parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"; did you mean {parent / near[0]}?" if near else ""
        missing = "" if parent.is_dir() else f" (nor is there a folder {parent})"
        return FileNotFoundError(f"{source}: no such file or folder{missing}{hint}")
    if source.replace("_", "-") in COMPOSED:
        raise UserError(f"{source}: write the sets it is composed of, {usage(source)}")
    near = difflib.get_close_matches(source, NAMED, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return UserError(
        f"{source!r}: no set of that name, and no such file or folder here or in {where};"
        f"{hint} Named sets: {', '.join(NAMED)}"
    )


def _check(
    split: str,
    size: int | None,
    channels: int | None,
    fit: str,
    max_pixels: int | None,
    max_bad_share: float,
    memory: int,
) -> None:
    if split not in get_args(Split):
        raise UserError(f"split={split!r}: expected one of {', '.join(get_args(Split))}")
    if size is not None and size < 1:
        raise UserError(f"size={size}: the side of the stored square is at least 1 px")
    if channels is not None and channels < 1:
        raise UserError(
            f"channels={channels}: 1 (grey), 3 (RGB), the number of bands, or None to decide by the"
            " images"
        )
    if max_pixels is not None and max_pixels < 1:
        raise UserError(f"max_pixels={max_pixels}: the most pixels of an image, such as 500000000")
    if fit not in get_args(Fit):
        raise UserError(f"fit={fit!r}: expected one of {', '.join(get_args(Fit))}")
    if not 0 <= max_bad_share <= 1:
        raise UserError(f"max_bad_share={max_bad_share}: a share lies between 0 and 1")
    if memory < 0:
        raise UserError(f"memory={memory}: a number of bytes, 0 to decode everything on access")
