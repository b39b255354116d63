"""From a listing (the images of a source, not yet decoded) to an `ImageSet`.

There are three passes: the headers of all images (which can be read, their sides and channels); the
choice between one tensor and decoding on access; the pixels. Every image that is left out or
converted is counted.
"""

import hashlib
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int8, UInt8
from torch import Tensor

from contrapose.data import resize
from contrapose.data.cache import Decoded, keep, recall
from contrapose.data.decode import BinaryFile, Header, Reading, decode, ends, look, values
from contrapose.data.fingerprint import Content
from contrapose.data.headers import Headers, scan, why
from contrapose.data.images import (
    TINY,
    ImageSet,
    ImageSource,
    InMemory,
    Names,
    Numbered,
    OnAccess,
    Pixels,
    Skipped,
    digest,
)
from contrapose.data.packed import printable
from contrapose.data.split import evenly
from contrapose.data.threads import chunks, each
from contrapose.data.values import RGB, SAMPLE, ValueRange, found_range, some_values
from contrapose.errors import UserError
from contrapose.progress import counted

_USUAL_SIDE = 224  # px, for photographs of different sizes
_LARGEST_OWN_SIDE = 256  # px; a side that all images share is kept up to here
_CHUNK = 64  # images per task
_FORMAT = 2  # of the kept squares; another way of decoding is another number


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of a source in order, their labels, and notes on what was left out."""

    source: ImageSource
    split: str
    label: Int[Tensor, " N"] | None = None
    classes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)
    names: Names = ()  # of the images, for people; () = by number
    labels: Int8[Tensor, "N K"] | None = None  # several for each image: 1, 0, -1 = unknown


@dataclass(frozen=True, eq=False)
class Encoded:
    """A source of encoded images, in files or in memory: `open(i)` opens the bytes of image i."""

    names: Sequence[str]
    open: Callable[[int], BinaryFile]
    stamp: bytes  # digest of names, sizes and times
    place: str  # the folder that holds the files
    stored: int = 0  # bytes of all encoded images, where that is known

    def __len__(self) -> int:
        return len(self.names)

    @property
    def on_disk(self) -> bool:
        return True

    def name(self, i: int) -> str:
        return printable(self.names[i])

    def headers(self, index: Sequence[int], how: Reading) -> list[Header | Exception]:
        found: list[Header | Exception] = []
        for i in index:
            try:
                with self.open(i) as file:
                    found.append(look(file, how.max_pixels))
            except Exception as error:
                found.append(error)
        return found

    def values(self, i: int, channels: int, how: Reading) -> tuple[np.ndarray, float | None]:
        with self.open(i) as file:
            return values(file, channels, how)

    def encoded(self, i: int) -> bytes | None:
        with self.open(i) as file:
            return file.read()

    def squares(
        self, index: Sequence[int], out: UInt8[np.ndarray, "B C S S"], how: Reading
    ) -> tuple[dict[int, Exception], dict[int, tuple[str, ...]]]:
        failed, notes = {}, {}
        channels, side = out.shape[1:3]
        for place, i in enumerate(index):
            try:
                with self.open(i) as file:
                    out[place], notes[place] = decode(file, side, channels, how)
            except Exception as error:
                failed[place] = error
        return failed, notes

    def identity(self) -> bytes:
        return self.stamp

    def contents(self, index: Sequence[int], whole: bool = True) -> list[bytes]:
        found = []
        for i in index:
            with self.open(i) as file:
                content = file.read() if whole else repr(ends(file)).encode()
                found.append(hashlib.sha256(content).digest())
        return found


def load(
    listing: Listing,
    *,
    name: str,
    size: int | None,
    channels: int | None,
    reading: Reading,
    rgb: RGB | None,
    max_bad_share: float,
    memory: int,
) -> ImageSet:
    """The `ImageSet` of a listing. Raises UserError if none, or too few, of its images are
    readable."""
    source = listing.source

    def check(bad: Mapping[int, Skipped]) -> None:
        every = [*listing.skipped, *(bad[i] for i in sorted(bad))]
        _refuse(name, len(source) + len(listing.skipped), every, max_bad_share)

    pixels: Pixels
    key = ""
    if source.place:
        how = repr((_FORMAT, source.place, size, channels, reading))
        key = digest(source.identity(), how.encode())
    kept = recall(key) if key else None
    if kept is not None and kept.squares.nbytes <= memory:
        check(kept.bad)
        pixels = InMemory(torch.from_numpy(kept.squares))
        good, bad, notes, over = kept.good, kept.bad, kept.notes, kept.over
    else:
        with _quiet():
            found = _read(name, source, check, size, channels, reading, memory)
        pixels, good, bad, notes, over = found[:5]
        if found.slow and key and isinstance(pixels, InMemory):
            keep(key, Decoded(pixels.pixels.numpy(), good, bad, notes, over))

    label = None if listing.label is None else listing.label[good]
    if label is not None and not (label >= 0).any():
        label = None
    labels = None if listing.labels is None else listing.labels[good]
    if labels is not None and not (labels >= 0).any():
        labels = None
    classes = () if label is None and labels is None else listing.classes
    ranged = () if over is None else (str(over), over.of_bytes)
    again = source if source.on_disk or not isinstance(pixels, InMemory) else None
    content = Content(
        pixels, label if labels is None else labels, classes, again, good, (reading.fit, *ranged)
    )
    return ImageSet(
        name=printable(name),
        split=listing.split,
        pixels=pixels,
        label=label,
        labels=labels,
        classes=classes,
        channels=pixels.channels,
        size=pixels.side,
        fingerprint=content.fingerprint(),
        others=content.others,
        skipped=(*listing.skipped, *(bad[i] for i in sorted(bad))),
        notes={**listing.notes, **notes},
        names=listing.names or Numbered(Path(name).name, len(source)),
        origin=torch.tensor(good, dtype=torch.int64),
        value_range=over,
        rgb=_rgb(name, rgb, pixels.channels),
    )


class _Read(NamedTuple):
    """The result of reading a source: pixels, positions that were read, and those that failed."""

    pixels: Pixels
    good: list[int]  # positions in the source of the images
    bad: dict[int, Skipped]
    notes: dict[str, int]
    over: ValueRange | None
    slow: bool  # whether it took long


def _read(
    name: str,
    source: ImageSource,
    check: Callable[[Mapping[int, Skipped]], None],
    size: int | None,
    channels: int | None,
    how: Reading,
    memory: int,
) -> _Read:
    headers, bad = scan(source, how)
    check(bad)
    C = _channels(name, headers, channels)
    fits = headers.where(lambda kind: C in kind.channels)
    for i in np.flatnonzero((headers.kind >= 0) & ~fits).tolist():
        found = headers.kinds[headers.kind[i]].channels[0]
        bad[i] = Skipped(source.name(i), _of_channels(found, C))
    check(bad)
    good = np.flatnonzero(fits).tolist()
    side = size or _side(headers.short[fits])
    deep = np.flatnonzero(fits & headers.where(lambda kind: kind.deep)).tolist()
    how = replace(how, over=_range(name, source, deep, C, how))
    if good and any((sizes[good] != side).any() for sizes in (headers.width, headers.height)):
        resize.library()  # compiled by this thread, so that a warning is one, not a bad file
    pixels: Pixels
    if len(good) * C * side * side > memory:
        pixels = OnAccess(source, torch.tensor(good), side, C, how)
        squares, _, said = _decode(source, some := _some(deep), headers, side, C, how)
        notes = {f"{note} (of {len(some):,} looked at)": n for note, n in said.items()}
    else:
        squares, failed, notes = _decode(source, good, headers, side, C, how)
        if failed:
            bad |= failed
            check(bad)
            squares = squares[[k for k, i in enumerate(good) if i not in failed]]
            good = [i for i in good if i not in failed]
        pixels = InMemory(torch.from_numpy(squares))
    if deep and (flat := _flat_channels(squares)):
        notes[f"with nearly all of the range unused in channel {flat}"] = len(squares)
    notes = _conversions(headers.part(np.array(good, int)), side, C, how) | notes
    return _Read(pixels, good, bad, notes, how.over, _slow(headers))


def _channels(name: str, headers: Headers, asked: int | None) -> int:
    """Number of channels of the squares: 1 if every image is grey, 3 if some are in colour; another
    number if most images have it."""
    many = np.bincount(headers.kind[headers.kind >= 0], minlength=len(headers.kinds)).tolist()
    count: Counter[int] = Counter()
    for n, kind in zip(many, headers.kinds, strict=True):
        count[kind.channels[0]] += n
    if asked is not None:
        if not any(asked in kind.channels for kind in headers.kinds):
            found = " or ".join(map(str, sorted(count)))
            raise UserError(f"{name}: channels={asked}, but its images have {found}")
        return asked
    if count.keys() <= {1, 3}:
        return 3 if 3 in count else 1
    return max(count, key=lambda c: (count[c], -c))


def _of_channels(found: int, wanted: int) -> str:
    return f"it has {found} channel{'s' if found > 1 else ''}, not {wanted} as the set is read with"


def _range(
    name: str, source: ImageSource, deep: list[int], channels: int, how: Reading
) -> ValueRange | None:
    """The given range of values, or that of a sample of the images of more than 8 bits."""
    if how.over is None:
        if not deep:
            return None
        return found_range(name, _samples(source, _some(deep), channels, how))
    if how.over.channels not in (None, channels):
        raise UserError(
            f"{name}: value_range={how.over} (--range) tells {how.over.channels} ranges, and its "
            f"images have {channels} channel{'s' if channels > 1 else ''}; tell one for each, in "
            "their order, or one for all"
        )
    if how.over.of_bytes is not None:
        return how.over
    if not deep and np.max(how.over.high) > 255:
        raise UserError(
            f"{name}: value_range={how.over} (--range), but all images have 8 bits and end at 255;"
            " leave it out: they are read as 0:255"
        )
    return replace(how.over, of_bytes=not deep)


def _flat_channels(squares: UInt8[np.ndarray, "N C S S"]) -> str:
    """The channels, as `9, 10`, whose values differ by less than 1/64 of the range over the whole
    set, as when channels have different units; "" if there are none, or only one channel."""
    if squares.shape[1] == 1 or not len(squares):
        return ""
    span = squares.max(axis=(0, 2, 3)).astype(int) - squares.min(axis=(0, 2, 3))
    return ", ".join(str(c) for c in np.flatnonzero(span < 256 / 64))


def _samples(
    source: ImageSource, index: list[int], channels: int, how: Reading
) -> Iterator[np.ndarray]:
    """The values of those of these images that can be read; the others are reported by decoding."""
    for i in index:
        with suppress(Exception):
            yield some_values(*source.values(i, channels, how))


def _some(deep: list[int]) -> list[int]:
    return [deep[k] for k in evenly(len(deep), SAMPLE).tolist()]


def _decode(
    source: ImageSource,
    good: list[int],
    headers: Headers,
    side: int,
    channels: int,
    how: Reading,
) -> tuple[UInt8[np.ndarray, "N C S S"], dict[int, Skipped], dict[str, int]]:
    """(squares, positions that failed, numbers of images by note on their values)"""
    squares, bad = np.zeros((len(good), channels, side, side), np.uint8), dict[int, Skipped]()
    count: Counter[str] = Counter()
    lock = threading.Lock()

    def some(chunk: range) -> None:
        index = good[chunk.start : chunk.stop]
        failed, notes = source.squares(index, squares[chunk.start : chunk.stop], how)
        with lock:
            for place, error in failed.items():
                bad[index[place]] = Skipped(source.name(index[place]), why(error))
            for k, said in notes.items():
                count.update(() if k in failed else said)

    area = float(headers.area[good].mean()) if good else 0.0
    words = f"decoding {len(good):,} images"
    if area > TINY**2:
        each(some, chunks(len(good), _CHUNK), words)
    else:
        for chunk in counted(chunks(len(good), _CHUNK), words):
            some(chunk)
    return squares, bad, dict(count)


def _rgb(name: str, rgb: RGB | None, channels: int) -> RGB | None:
    if rgb is not None and channels == 1:
        raise UserError(f"{name}: rgb={rgb} (--rgb), but its images are grey; leave it out")
    if rgb is not None and max(rgb) >= channels:
        raise UserError(
            f"{name}: rgb={rgb} (--rgb), but its images have {channels} channels, counted from 0 to"
            f" {channels - 1}"
        )
    return rgb


def _slow(headers: Headers) -> bool:
    # about a second: 150 us an image and 10 ns a pixel
    return 150e-6 * len(headers.kind) + 10e-9 * float(headers.area.sum()) > 1


def _side(shorts: np.ndarray) -> int:
    # no image is enlarged for the sake of others, and none is resampled without need
    largest, smallest = int(shorts.max()), int(shorts.min())
    own = largest == smallest and largest <= _LARGEST_OWN_SIDE
    return largest if own else min(largest, _USUAL_SIDE)


def _refuse(name: str, total: int, bad: list[Skipped], max_bad_share: float) -> None:
    if total and len(bad) <= max_bad_share * total and len(bad) < total:
        return
    first = "".join(f"\n  {skipped.path}: {skipped.reason}" for skipped in bad[:5])
    more = f"\n  and {len(bad) - 5:,} more" if len(bad) > 5 else ""
    if len(bad) == total:
        raise UserError(f"{name}: none of its {total:,} images can be read{first}{more}")
    raise UserError(
        f"{name}: {len(bad):,} of {total:,} images cannot be read, more than the"
        f" {max_bad_share:.0%} that max_bad_share allows; repair or remove them, or raise"
        f" max_bad_share{first}{more}"
    )


def _conversions(headers: Headers, side: int, channels: int, how: Reading) -> dict[str, int]:
    """Notes on what decoding changes, of images that all can be read -> their number."""
    count: Counter[str] = Counter()
    many = np.bincount(headers.kind, minlength=len(headers.kinds)).tolist()
    deep = any(n and kind.deep for n, kind in zip(many, headers.kinds, strict=True))
    for n, kind in zip(many, headers.kinds, strict=True):
        for note in kind.notes:
            count[note] += n
        if kind.deep:
            count[f"of more than 8 bits, values {how.over} read as black to white"] += n
        elif deep:
            count["of 8 bits beside them, read as 0:255"] += n
        if channels == 3 and kind.channels[0] == 1:
            count["from grey to RGB"] += n
        if channels == 1 and kind.channels[0] == 3:
            count["from colour to grey"] += n
    square = "cropped to a square" if how.fit == "crop" else "padded to a square"
    count[square] = int((headers.width != headers.height).sum())
    count[f"enlarged to {side} px"] = int((headers.short < side).sum())
    return {note: n for note, n in count.items() if n}


@contextmanager
def _quiet() -> Iterator[None]:
    # Pillow warns of odd metadata and of images between 89 and 179 megapixels, which are decoded
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield
