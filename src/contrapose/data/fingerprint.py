"""The fingerprint of a set of images: 16 hexadecimal digits, the start of a sha256.

For a set in memory it is computed from the decoded squares; for a set that decodes on access, from
the encoded bytes of its images, since decoding all of them takes long: of all bytes up to WHOLE,
and beyond that of the length, the first 4,096 and the last 64 bytes of each image, since reading
150 GB takes long too. Names, folders and times do not enter, so that a copy of the files has the
same fingerprint. A set that came from files can compute all kinds: `ImageSet.holds`.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from contrapose.data.images import ImageSource, InMemory, Pixels, digest
from contrapose.data.threads import chunks, each
from contrapose.files import cache_root

WHOLE = 4 * 2**30  # bytes of encoded images that are read for a fingerprint
_SLOW = 2.0  # seconds of reading after which the result is kept
_CHUNK = 64  # images at a time


@dataclass(frozen=True, eq=False)
class Content:
    """The content of a fingerprint, and the source from which the other kind is computed."""

    pixels: Pixels
    label: Int[Tensor, "N *K"] | None  # one or several of each image
    classes: tuple[str, ...]
    source: ImageSource | None  # None = arrays, which have no other kind
    good: Sequence[int]  # positions of the images in the source
    how: tuple[object, ...]  # how they become squares: the fit, the range of values

    def fingerprint(self) -> str:
        if isinstance(self.pixels, InMemory):
            return self._digest(self.pixels.pixels.numpy().data)
        return self._of_encoded()

    def others(self) -> Iterator[str]:
        """Fingerprints of the same images stored in the other way, or by older versions."""
        if self.source is None:
            return
        if isinstance(self.pixels, InMemory):
            yield self._of_encoded()
            yield self._of_encoded(not _whole(self.source))
            return
        yield self._of_encoded(not _whole(self.source))
        bad = sorted({*range(len(self.source))} - {*self.good})
        yield self._digest(
            self.source.identity() + repr((self.how[0], bad, *self.how[1:])).encode()
        )
        yield self._of_squares()

    def _of_encoded(self, whole: bool | None = None) -> str:
        assert self.source is not None
        whole = _whole(self.source) if whole is None else whole
        return self._digest(_encoded(self.source, self.good, whole), repr(self.how).encode())

    def _of_squares(self) -> str:
        """As `_digest` of one tensor, of which only one piece is in memory at a time."""
        n, channels, side = len(self.pixels), self.pixels.channels, self.pixels.side
        total = hashlib.sha256()
        shape, labels, classes = self._rest()
        total.update(_length(len(shape)) + shape)
        total.update(_length(n * channels * side * side))
        for index in torch.split(torch.arange(n), 256):
            total.update(self.pixels.batch(index).cpu().numpy().data)
        for part in (labels, classes):
            total.update(_length(len(part)) + part)
        return total.hexdigest()[:16]

    def _digest(self, *content: bytes | memoryview) -> str:
        shape, labels, classes = self._rest()
        return digest(shape, *content, labels, classes)

    def _rest(self) -> tuple[bytes, bytes, bytes]:
        shape = repr((len(self.pixels), self.pixels.channels, self.pixels.side))
        labels = b"" if self.label is None else self.label.numpy().tobytes()
        return shape.encode(), labels, "\n".join(self.classes).encode()


def _length(n: int) -> bytes:
    return n.to_bytes(8, "little")


def _whole(source: ImageSource) -> bool:
    return source.stored <= WHOLE


def _encoded(source: ImageSource, good: Sequence[int], whole: bool) -> bytes:
    """A digest of the encoded images in order; cached if reading them takes long."""
    root = cache_root()
    key = digest(source.identity(), source.place.encode("utf-8", "surrogateescape"))
    kept = (
        None
        if root is None or not source.place
        else root / "contents" / f"{key}-{len(good)}{'' if whole else '-ends'}"
    )
    if kept is not None and kept.is_file():
        return kept.read_bytes()
    start = time.monotonic()
    parts = each(
        lambda chunk: source.contents([good[k] for k in chunk], whole),
        chunks(len(good), _CHUNK), words=f"fingerprint of {len(good):,} images",
    )  # fmt: skip
    found = digest(*(one for part in parts for one in part)).encode()
    if kept is not None and time.monotonic() - start > _SLOW:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(found)
        except OSError:  # as before: read again next time
            pass
    return found
