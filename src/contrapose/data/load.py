"""A listing (what a source holds, undecoded) -> an `ImageSet`.

Three passes: the headers of all images (what can be read? which side, grey or RGB?), the decision
(one tensor, or decode on access), the pixels. Everything left out or converted is counted.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from contrapose.data.decode import Fit, Header, read_header, read_square
from contrapose.data.images import (
    ImageSet,
    InMemory,
    OnAccess,
    Pixels,
    Skipped,
    Source,
    digest,
    reason,
)
from contrapose.data.threads import each

_USUAL_SIDE = 224  # px, for photographs of different sizes
_LARGEST_OWN_SIDE = 256  # px; a side that all images share is kept up to here
_CHUNK = 64  # images per task


@dataclass(frozen=True, eq=False)
class Listing:
    """What a source holds: images in order, their labels, and what was passed over to get here."""

    source: Source
    split: str
    label: Int[Tensor, " N"] | None = None
    classes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoded images, in files or in memory: `open(i)` gives the bytes of image i."""

    names: Sequence[str]
    open: Callable[[int], BinaryIO]
    stamp: Callable[[], bytes]  # digest of names, sizes and times

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return self.names[i]

    def header(self, i: int) -> Header:
        with self.open(i) as file:
            return read_header(file)

    def square(self, i: int, side: int, channels: int, fit: Fit) -> UInt8[np.ndarray, "C S S"]:
        with self.open(i) as file:
            return read_square(file, side, channels, fit)

    def identity(self) -> bytes:
        return self.stamp()


def load(
    listing: Listing,
    *,
    name: str,
    size: int | None,
    channels: int | None,
    fit: Fit,
    max_bad_share: float,
    memory: int,
) -> ImageSet:
    """Reads a listing. Raises ValueError when nothing, or too little, of it can be read."""
    source = listing.source
    total = len(source) + len(listing.skipped)
    with _quiet():
        headers, bad = _scan(source)
        _refuse(name, total, [*listing.skipped, *bad.values()], max_bad_share)
        good = [i for i in range(len(source)) if i not in bad]
        side = size or _side([headers[i].short for i in good])
        C = channels or (1 if all(headers[i].grey for i in good) else 3)

        pixels: Pixels
        if len(good) * C * side * side > memory:
            pixels = OnAccess(source, torch.tensor(good), side, C, fit)
        else:
            squares, failed = _decode(source, good, side, C, fit)
            if failed:
                bad |= failed
                _refuse(name, total, [*listing.skipped, *bad.values()], max_bad_share)
                squares = squares[[k for k, i in enumerate(good) if i not in failed]]
                good = [i for i in good if i not in failed]
            pixels = InMemory(torch.from_numpy(squares))

    label = None if listing.label is None else listing.label[good]
    if label is not None and not (label >= 0).any():
        label = None
    if isinstance(pixels, InMemory):
        content: bytes | memoryview = pixels.pixels.numpy().data
    else:
        content = source.identity() + repr((side, C, fit, sorted(bad))).encode()
    return ImageSet(
        name=name,
        split=listing.split,
        pixels=pixels,
        label=label,
        classes=() if label is None else listing.classes,
        channels=C,
        size=side,
        fingerprint=digest(
            content,
            b"" if label is None else label.numpy().tobytes(),
            "\n".join(listing.classes).encode(),
        ),
        skipped=(*listing.skipped, *(bad[i] for i in sorted(bad))),
        notes=dict(listing.notes) | _conversions([headers[i] for i in good], side, C, fit),
    )


def _scan(source: Source) -> tuple[list[Header], dict[int, Skipped]]:
    headers, bad = [Header(0, 0, "")] * len(source), dict[int, Skipped]()

    def some(chunk: range) -> None:
        for i in chunk:
            try:
                headers[i] = source.header(i)
            except Exception as error:
                bad[i] = Skipped(source.name(i), _said(error))

    each(some, _chunks(len(source)))
    return headers, bad


def _decode(
    source: Source, good: list[int], side: int, channels: int, fit: Fit
) -> tuple[UInt8[np.ndarray, "N C S S"], dict[int, Skipped]]:
    squares, bad = np.zeros((len(good), channels, side, side), np.uint8), dict[int, Skipped]()

    def some(chunk: range) -> None:
        for k in chunk:
            try:
                squares[k] = source.square(good[k], side, channels, fit)
            except Exception as error:
                bad[good[k]] = Skipped(source.name(good[k]), _said(error))

    each(some, _chunks(len(good)))
    return squares, bad


def _side(shorts: list[int]) -> int:
    # no image is enlarged for the sake of others, and none is resampled without need
    largest, smallest = max(shorts), min(shorts)
    own = largest == smallest and largest <= _LARGEST_OWN_SIDE
    return largest if own else min(largest, _USUAL_SIDE)


def _refuse(name: str, total: int, bad: list[Skipped], max_bad_share: float) -> None:
    if total and len(bad) <= max_bad_share * total and len(bad) < total:
        return
    first = "".join(f"\n  {skipped.path}: {skipped.reason}" for skipped in bad[:5])
    more = f"\n  and {len(bad) - 5:,} more" if len(bad) > 5 else ""
    if len(bad) == total:
        raise ValueError(f"{name}: none of its {total:,} images can be read{first}{more}")
    raise ValueError(
        f"{name}: {len(bad):,} of {total:,} images cannot be read, more than the"
        f" {max_bad_share:.0%} that max_bad_share allows; repair or remove them, or raise"
        f" max_bad_share{first}{more}"
    )


def _conversions(headers: list[Header], side: int, channels: int, fit: Fit) -> dict[str, int]:
    count: Counter[str] = Counter()
    for header in headers:
        count.update(header.notes)
        if channels == 3 and header.grey:
            count["from grey to RGB"] += 1
        if channels == 1 and not header.grey:
            count["from colour to grey"] += 1
        if header.width != header.height:
            count["cropped to a square" if fit == "crop" else "padded to a square"] += 1
        if header.short < side:
            count[f"enlarged to {side} px"] += 1
    return dict(count)


def _said(error: Exception) -> str:
    text = reason(error)
    if text.startswith("cannot identify image file"):
        return "not an image that Pillow can read"
    if "decompression bomb" in text:
        return f"{text}; raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
    return text


def _chunks(n: int) -> list[range]:
    return [range(start, min(start + _CHUNK, n)) for start in range(0, n, _CHUNK)]


@contextmanager
def _quiet() -> Iterator[None]:
    # Pillow warns of odd metadata and of images between 89 and 179 megapixels, which are decoded
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield
