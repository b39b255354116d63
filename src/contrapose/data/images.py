"""`ImageSet`: N square images with labels, indexed by position.

Small sets are one uint8 tensor (`InMemory`); large ones are decoded on access (`OnAccess`). In
both, `batch(index)` returns the images at `index`, in that order, on any device.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Int8, Shaped, UInt8
from torch import Tensor

from contrapose.data import device_jpeg
from contrapose.data.decode import Header, Reading
from contrapose.data.device_jpeg import DeviceJpeg
from contrapose.data.threads import chunks, each
from contrapose.data.values import RGB, ValueRange
from contrapose.errors import UserError
from contrapose.machine import on_device

CPU = torch.device("cpu")
TINY = 96  # px; smaller images spend their time in Python, where threads do not help


class NoSuchSplit(UserError):
    """The source does not have this split; hold out a part with `hold_out` instead."""


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and the reason."""

    path: str
    reason: str


@runtime_checkable
class Names(Protocol):
    """The names of the images of a source, by position."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> str: ...


@dataclass(frozen=True)
class Numbered:
    """Names of images that have none of their own: `digits[7]`."""

    what: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int, /) -> str:
        return f"{self.what}[{i}]"


@runtime_checkable
class ImageSource(Protocol):
    """N images before decoding: files, Parquet rows or array rows."""

    @property
    def place(self) -> str: ...  # the folder of its files; "" = not from files
    @property
    def on_disk(self) -> bool: ...  # whether holding the source holds no image in memory
    @property
    def stored(self) -> int: ...  # bytes of all encoded images; 0 = unknown

    def __len__(self) -> int: ...
    def name(self, i: int) -> str: ...
    def headers(self, index: Sequence[int], how: Reading) -> list[Header | Exception]: ...
    # what image i holds before it is scaled, [H W C], read with so many channels; and its nodata
    def values(self, i: int, channels: int, how: Reading) -> tuple[np.ndarray, float | None]: ...
    # fills `out`; (what failed, notes on values), by the place in `index`
    def squares(
        self, index: Sequence[int], out: UInt8[np.ndarray, "B C S S"], how: Reading
    ) -> tuple[dict[int, Exception], dict[int, tuple[str, ...]]]: ...
    def encoded(self, i: int) -> bytes | None: ...  # the file of image i; None: it is of no file
    def identity(self) -> bytes: ...  # digest of names, sizes and times: quick, to keep copies by
    # digest of each image, not decoded; of its length and ends alone where not of the whole
    def contents(self, index: Sequence[int], whole: bool = True) -> list[bytes]: ...


@runtime_checkable
class Pixels(Protocol):
    """The pixels of an `ImageSet`: in memory, decoded on access, or composed."""

    @property
    def device(self) -> torch.device: ...
    @property
    def channels(self) -> int: ...
    @property
    def side(self) -> int: ...
    def __len__(self) -> int: ...
    def batch(self, index: Int[Tensor, " B"]) -> UInt8[Tensor, "B C S S"]: ...
    def subset(self, index: Int[Tensor, " B"]) -> "Pixels": ...
    def to(self, device: torch.device) -> "Pixels": ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """All squares as one tensor."""

    pixels: UInt8[Tensor, "N C S S"]

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    @property
    def side(self) -> int:
        return self.pixels.shape[2]

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, index: Int[Tensor, " B"]) -> UInt8[Tensor, "B C S S"]:
        return self.pixels.index_select(0, on_device(index, self.device))

    def subset(self, index: Int[Tensor, " B"]) -> "InMemory":
        return InMemory(self.batch(index))

    def to(self, device: torch.device) -> "InMemory":
        return InMemory(self.pixels.to(device))


@dataclass(frozen=True, eq=False)
class OnAccess:
    """Squares decoded when asked for, by a pool of threads, or by the device (`device_jpeg`)."""

    source: ImageSource
    position: Int[Tensor, " N"]  # where each image lies in the source
    side: int
    channels: int
    how: Reading
    device: torch.device = CPU
    jpeg: DeviceJpeg | None = None  # what decodes on the device

    def __len__(self) -> int:
        return len(self.position)

    def batch(self, index: Int[Tensor, " B"]) -> UInt8[Tensor, "B C S S"]:
        wanted = self.position[index.cpu()].tolist()
        if self.jpeg is None:
            return self._by_threads(wanted)
        shape = (len(wanted), self.channels, self.side, self.side)
        image = torch.empty(shape, dtype=torch.uint8, device=self.device)
        left = self.jpeg.fill(each(self._file, wanted), image, self.how)
        if left:
            others = self._by_threads([wanted[k] for k in left])
            image.index_copy_(0, on_device(torch.tensor(left), self.device), others)
        return image

    def _file(self, position: int) -> bytes | None:
        try:
            return self.source.encoded(position)
        except Exception:  # as a file that is gone: the threads say so
            return None

    def _by_threads(self, wanted: Sequence[int]) -> UInt8[Tensor, "B C S S"]:
        pinned = self.device.type == "cuda"  # so that the copy does not wait for the device
        shape = (len(wanted), self.channels, self.side, self.side)
        image = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        out = image.numpy()

        order = sorted(range(len(wanted)), key=wanted.__getitem__)  # neighbours read together

        def some(chunk: range) -> None:
            places = order[chunk.start : chunk.stop]
            one = len(places) == 1
            part = out[places[0] : places[0] + 1] if one else np.empty_like(out[: len(places)])
            failed, _ = self.source.squares([wanted[k] for k in places], part, self.how)
            for k, error in failed.items():
                name = self.source.name(wanted[places[k]])
                raise UserError(
                    f"{name}: its header was readable but decoding failed ({reason(error)});"
                    " repair or remove the file and open the set again"
                ) from error
            if not one:
                out[places] = part

        each(some, chunks(len(wanted), at_most=1 if self.side > TINY else 32))
        return image.to(self.device, non_blocking=pinned)

    def subset(self, index: Int[Tensor, " B"]) -> "OnAccess":
        return replace(self, position=self.position[index.cpu()])

    def to(self, device: torch.device) -> "OnAccess":
        return replace(self, device=device, jpeg=device_jpeg.on(device))


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Square images [C, S, S] in uint8, with or without labels. Made by `open_images`.

    fingerprint: the start of a sha256 of pixels, order and labels; for a set that decodes on access
    of the encoded bytes instead of the pixels. others: returns the fingerprints that the same
    images have when they are stored in the other way.
    """

    name: str  # the set's name, or the path, as asked for
    split: str  # "train", "test", "unlabeled", or "all" where the source has only one
    pixels: Pixels
    label: Int[Tensor, " N"] | None  # on the CPU; -1 = an image without a label
    classes: tuple[str, ...]  # () when unlabelled
    channels: int  # 1, 3, or as many as the images have
    size: int  # px, side of the stored square
    fingerprint: str
    skipped: tuple[Skipped, ...] = ()  # files left out
    notes: Mapping[str, int] = field(default_factory=dict)  # what was converted -> images
    labels: Int8[Tensor, "N K"] | None = None  # several for each, in place of `label`: 1, 0, -1 = ?
    features: Mapping[str, Int[Tensor, " N"]] = field(default_factory=dict)  # composed: all labels
    constant: int = 0  # of the channels, the last ones that hold one value per image: no picture
    names: Names = ()  # of all images of the source, those that were left out too
    group: Int[Tensor, " N"] | None = None  # what belongs together; None = each alone
    origin: Int[Tensor, " N"] | None = None  # position of each image in the source; None = in order
    value_range: ValueRange | None = None  # of values of more than 8 bits: what became black, white
    rgb: RGB | None = None  # the channels that are red, green, blue, as told
    others: Callable[[], Iterable[str]] = tuple  # fingerprints, costly: reads or decodes all images

    def __post_init__(self) -> None:
        labels = [*self.features.values(), *([] if self.label is None else [self.label])]
        labels += [] if self.labels is None else [self.labels]
        assert all(len(label) == len(self.pixels) for label in labels)

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        shape = f"{self.channels} x {self.size} x {self.size}"
        labels = f"{len(self.classes)} classes" if self.classes else "no labels"
        labels += ", several for each image" if self.labels is not None else ""
        made = "decoded" if isinstance(self.pixels, OnAccess) else "composed"
        where = "in memory" if self.in_memory else f"{made} on access"
        parts = [f"{self.name} ({self.split})", f"{len(self):,} images {shape}", labels, where]
        parts += [f"{count:,} {note}" for note, count in self.notes.items()]
        parts += [f"{len(self.skipped):,} skipped"] if self.skipped else []
        return f"ImageSet({', '.join(parts)})"

    @property
    def device(self) -> torch.device:
        """The device of the images that `batch` returns."""
        return self.pixels.device

    @property
    def shown(self) -> int:
        """Number of channels that show a picture: all but the constant ones."""
        return self.channels - self.constant

    @property
    def pictured(self) -> tuple[int, ...]:
        """The channels to show, one or three: those of `rgb`; else all of a grey or colour image;
        else the first three, or the first of two."""
        return self.rgb or tuple(range(3 if self.shown >= 3 else 1))

    def picture(self, x: Shaped[Tensor, "*B C H W"]) -> Shaped[Tensor, "*B c H W"]:
        """The channels of a batch to show, multiplied by `brighter`."""
        if self.rgb is not None:
            x = x[..., list(self.rgb), :, :]
        else:
            x = x[..., : len(self.pictured), :, :]
        if self.brighter == 1:
            return x
        if x.is_floating_point():
            return x.mul(self.brighter).clamp_(0, 1)
        return x.float().mul_(self.brighter).round_().clamp_(0, 255).to(x.dtype)

    @cached_property
    def brighter(self) -> float:
        """A factor for showing sets that use only the darker half of their range: it makes 1 % of
        the shown pixels of a sample white. It is 1 for images of 8 bits."""
        if self.value_range is None or not len(self):
            return 1.0
        some = torch.linspace(0, len(self) - 1, min(len(self), 64)).long()
        x = self.batch(some)[:, list(self.pictured)].cpu().numpy()
        white = float(np.quantile(x, 0.99))
        return 255 / white if 0 < white < 128 else 1.0

    @property
    def in_memory(self) -> bool:
        return isinstance(self.pixels, InMemory)

    @property
    def index(self) -> Int[Tensor, " N"]:
        """Position of each image in the source, counted before anything was left out."""
        return torch.arange(len(self)) if self.origin is None else self.origin

    @property
    def files(self) -> list[str]:
        """Name of each image: its path below the folder, `shard.parquet:row`, or `array[row]`."""
        names = self.names or Numbered(self.name, len(self))
        return [names[i] for i in self.index.tolist()]

    def batch(self, index: Int[Tensor, " B"]) -> UInt8[Tensor, "B C S S"]:
        """The images at `index`, in that order, on `device`.

        Raises UserError for a file that cannot be decoded, IndexError for a position outside the
        set.
        """
        self._check(index)
        return self.pixels.batch(index)

    def holds(self, fingerprint: str) -> bool:
        """True if the fingerprint is that of these images, in memory or decoded on access."""
        return fingerprint == self.fingerprint or fingerprint in self.others()

    def subset(self, index: Int[Tensor, " B"]) -> "ImageSet":
        """A new set of the images at `index`, in that order."""
        self._check(index)
        place = index.cpu().long()
        positions = place.numpy().tobytes()
        whole = self.others
        return replace(
            self,
            pixels=self.pixels.subset(place),
            label=None if self.label is None else self.label[place],
            labels=None if self.labels is None else self.labels[place],
            group=None if self.group is None else self.group[place],
            origin=self.index[place],
            features={name: label[place] for name, label in self.features.items()},
            fingerprint=digest(self.fingerprint.encode(), positions),
            others=lambda: (digest(other.encode(), positions) for other in whole()),
        )

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set whose pixels (in memory) or batches (on access) are on `device`."""
        return replace(self, pixels=self.pixels.to(torch.device(device)))

    def _check(self, index: Int[Tensor, " B"]) -> None:
        if len(index) and not (0 <= int(index.min()) and int(index.max()) < len(self)):
            raise IndexError(
                f"{self.name}: asked for images {int(index.min())} to {int(index.max())}"
                f" of {len(self)}; positions go from 0 to {len(self) - 1}"
            )


def digest(*parts: bytes | memoryview) -> str:
    """The start of a sha256 of the parts and their lengths."""
    total = hashlib.sha256()
    for part in parts:
        size = part.nbytes if isinstance(part, memoryview) else len(part)
        total.update(size.to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()[:16]


def reason(error: Exception) -> str:
    """The message of an error, as part of a sentence."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
