"""A listing (what a source holds, undecoded) -> an `ImageSet`.

Three passes: the headers of all images (what can be read? which side, grey or RGB?), the decision
(one tensor, or decode on access), the pixels. Everything left out or converted is counted.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from contrapose.data.cache import Decoded, keep, recall
from contrapose.data.decode import BinaryFile, Fit, Header, open_image, read_header, to_square
from contrapose.data.images import (
    TINY,
    ImageSet,
    InMemory,
    Names,
    Numbered,
    OnAccess,
    Pixels,
    Skipped,
    Source,
    digest,
    reason,
)
from contrapose.data.threads import chunks, each
from contrapose.data.walk import readable

_USUAL_SIDE = 224  # px, for photographs of different sizes
_LARGEST_OWN_SIDE = 256  # px; a side that all images share is kept up to here
_CHUNK = 64  # images per task
_FORMAT = 1  # of the kept squares; another way of decoding is another number


@dataclass(frozen=True, eq=False)
class Listing:
    """What a source holds: images in order, their labels, and what was passed over to get here."""

    source: Source
    split: str
    label: Int[Tensor, " N"] | None = None
    classes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)
    names: Names = ()  # of the images, for people; () = by number


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoded images, in files or in memory: `open(i)` gives the bytes of image i."""

    names: Sequence[str]
    open: Callable[[int], BinaryFile]
    stamp: Callable[[], bytes]  # digest of names, sizes and times
    place: str  # the folder that holds the files

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return readable(self.names[i])

    def headers(self, index: Sequence[int]) -> list[Header | Exception]:
        found: list[Header | Exception] = []
        for i in index:
            try:
                with self.open(i) as file:
                    found.append(read_header(file))
            except Exception as error:
                found.append(error)
        return found

    def squares(
        self, index: Sequence[int], out: UInt8[np.ndarray, "B C S S"], fit: Fit
    ) -> dict[int, Exception]:
        failed = {}
        channels, side = out.shape[1:3]
        for place, i in enumerate(index):
            try:
                with self.open(i) as file, open_image(file) as image:
                    out[place] = to_square(image, side, channels, fit)
            except Exception as error:
                failed[place] = error
        return failed

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

    def check(bad: Mapping[int, Skipped]) -> None:
        every = [*listing.skipped, *(bad[i] for i in sorted(bad))]
        _refuse(name, len(source) + len(listing.skipped), every, max_bad_share)

    pixels: Pixels
    key = ""
    if source.place:
        how = repr((_FORMAT, source.place, size, channels, fit))
        key = digest(source.identity(), how.encode())
    kept = recall(key) if key else None
    if kept is not None and kept.squares.nbytes <= memory:
        check(kept.bad)
        pixels = InMemory(torch.from_numpy(kept.squares))
        good, bad, notes = kept.good, kept.bad, kept.notes
    else:
        with _quiet():
            pixels, good, bad, notes, slow = _read(source, check, size, channels, fit, memory)
        if slow and key and isinstance(pixels, InMemory):
            keep(key, Decoded(pixels.pixels.numpy(), good, bad, notes))

    label = None if listing.label is None else listing.label[good]
    if label is not None and not (label >= 0).any():
        label = None
    classes = () if label is None else listing.classes
    if isinstance(pixels, InMemory):
        content: bytes | memoryview = pixels.pixels.numpy().data
    else:
        content = source.identity() + repr((fit, sorted(bad))).encode()
    shape = repr((len(pixels), pixels.channels, pixels.side)).encode()
    labels = b"" if label is None else label.numpy().tobytes()
    return ImageSet(
        name=readable(name),
        split=listing.split,
        pixels=pixels,
        label=label,
        classes=classes,
        channels=pixels.channels,
        size=pixels.side,
        fingerprint=digest(shape, content, labels, "\n".join(classes).encode()),
        skipped=(*listing.skipped, *(bad[i] for i in sorted(bad))),
        notes={**listing.notes, **notes},
        names=listing.names or Numbered(Path(name).name, len(source)),
        origin=torch.tensor(good, dtype=torch.int64),
    )


def _read(
    source: Source,
    check: Callable[[Mapping[int, Skipped]], None],
    size: int | None,
    channels: int | None,
    fit: Fit,
    memory: int,
) -> tuple[Pixels, list[int], dict[int, Skipped], dict[str, int], bool]:
    """(pixels, positions read, positions skipped, conversions, whether it took long)"""
    headers, bad = _scan(source)
    check(bad)
    good = [i for i in range(len(source)) if i not in bad]
    side = size or _side([headers[i].short for i in good])
    C = channels or (1 if all(headers[i].grey for i in good) else 3)
    pixels: Pixels
    if len(good) * C * side * side > memory:
        pixels = OnAccess(source, torch.tensor(good), side, C, fit)
    else:
        squares, failed = _decode(source, good, headers, side, C, fit)
        if failed:
            bad |= failed
            check(bad)
            squares = squares[[k for k, i in enumerate(good) if i not in failed]]
            good = [i for i in good if i not in failed]
        pixels = InMemory(torch.from_numpy(squares))
    notes = _conversions([headers[i] for i in good], side, C, fit)
    return pixels, good, bad, notes, _slow(headers)


def _scan(source: Source) -> tuple[list[Header], dict[int, Skipped]]:
    found = [h for part in each(source.headers, chunks(len(source), _CHUNK)) for h in part]
    bad = {
        i: Skipped(source.name(i), _said(h))
        for i, h in enumerate(found)
        if isinstance(h, Exception)
    }
    return [Header(0, 0, "") if isinstance(h, Exception) else h for h in found], bad


def _decode(
    source: Source, good: list[int], headers: list[Header], side: int, channels: int, fit: Fit
) -> tuple[UInt8[np.ndarray, "N C S S"], dict[int, Skipped]]:
    squares, bad = np.zeros((len(good), channels, side, side), np.uint8), dict[int, Skipped]()

    def some(chunk: range) -> None:
        index = good[chunk.start : chunk.stop]
        failed = source.squares(index, squares[chunk.start : chunk.stop], fit)
        for place, error in failed.items():
            bad[index[place]] = Skipped(source.name(index[place]), _said(error))

    area = sum(headers[i].width * headers[i].height for i in good) / len(good)
    if area > TINY**2:
        each(some, chunks(len(good), _CHUNK))
    else:
        for chunk in chunks(len(good), _CHUNK):
            some(chunk)
    return squares, bad


def _slow(headers: list[Header]) -> bool:
    # about a second: 150 us an image and 10 ns a pixel
    return 150e-6 * len(headers) + 10e-9 * sum(h.width * h.height for h in headers) > 1


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


@contextmanager
def _quiet() -> Iterator[None]:
    # Pillow warns of odd metadata and of images between 89 and 179 megapixels, which are decoded
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield
