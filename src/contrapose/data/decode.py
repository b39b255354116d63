"""Decoding of one image to a uint8 square: rotated upright, values scaled, resized, cropped.

Pillow decodes, and releases the GIL meanwhile; tifffile reads the TIFFs that Pillow cannot. What
resizes is in `resize`.
"""

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps

from contrapose.data import quick_header, tiff
from contrapose.data.resize import resized
from contrapose.data.values import Scaled, ValueRange, is_deep, scaled
from contrapose.errors import UserError

Fit = Literal["crop", "pad"]
BinaryFile = io.BytesIO | io.BufferedReader

SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .tga"
    " .jp2 .avif".split()
)
_GREY = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: above 4 GB
_MARKS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n": "PNG",
    b"RIFF": "WEBP",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
# readers that decode by themselves: a file whose start says nothing never starts another program
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF"]
_ORIENTATION = 0x0112  # the EXIF tag
_DARK = 255 / 64  # an image without a larger value is nearly black

# what is said of images whose values needed a second look
OUTSIDE = "with values outside the range, clipped"
WITHOUT = "with pixels of no value (NaN, infinity or nodata), read as black"
_UPRIGHT = "turned upright (EXIF)"
_FRAMES = "of several frames, first one taken"
EMPTY = "none of its pixels has a value: all are NaN, infinity or nodata"
DARK = "nearly black: no value above 1/64 of the range"


@dataclass(frozen=True)
class Reading:
    """The settings by which the images of a set become squares."""

    fit: Fit = "crop"
    over: ValueRange | None = None  # of values of more than 8 bits; None: there are none
    max_pixels: int | None = None  # of an image; None: Pillow's limit


class Header(NamedTuple):
    """Size and format of an image, known before it is decoded."""

    width: int  # px
    height: int  # px
    channels: tuple[int, ...]  # numbers of channels it can be read with, the usual one first
    deep: bool = False  # values of more than 8 bits, which need a range
    notes: tuple[str, ...] = ()  # what decoding will convert

    @property
    def short(self) -> int:
        return min(self.width, self.height)


class _Values(NamedTuple):
    """The values of an image as its file stores them."""

    x: Shaped[np.ndarray, "H W C"]
    nodata: float | None = None
    orientation: int = 1
    alpha: bool = False  # the last channel is transparency


def look(file: BinaryFile, max_pixels: int | None = None) -> Header:
    """As `read_header`, without Pillow for a plain JPEG or PNG (`data/quick_header.py`)."""
    head = file.read(quick_header.HEAD)
    found = None
    if head.startswith(b"\x89PNG"):
        rest = file.read(quick_header.WHOLE)
        found = quick_header.of_png(head + rest, max_pixels)
    elif head.startswith(b"\xff\xd8"):
        found = quick_header.of_jpeg(head, _tail(file, quick_header.END), max_pixels)
    return read_header(file, max_pixels) if found is None else Header(*found)


def ends(file: BinaryFile) -> tuple[int, bytes, bytes]:
    """(length in bytes, first 4,096 bytes, last 64 bytes) of an encoded image."""
    head = file.read(4096)
    return file.seek(0, io.SEEK_END), head, _tail(file, 64)


def _tail(file: BinaryFile, count: int) -> bytes:
    file.seek(max(0, file.seek(0, io.SEEK_END) - count))
    return file.read()


def read_header(file: BinaryFile, max_pixels: int | None = None) -> Header:
    """Size and format without decoding; a file that seems to be truncated is decoded to be sure.

    Raises UserError for an image above `max_pixels`, and the error of the reader for a damaged
    file.
    """
    start = _start(file)
    if start.startswith(_TIFF) and not (seen := tiff.look(file)).pillow:
        check_size(seen.width, seen.height, max_pixels)
        said = [_FRAMES] * (seen.frames > 1) + [_UPRIGHT] * (seen.orientation != 1)
        return Header(seen.width, seen.height, seen.channels, seen.deep, tuple(said))
    with open_image(file, max_pixels) as image:
        channels = _channels_of(image)
        notes = _notes(image)
        frames = getattr(image, "n_frames", 1)
        if image.format == "TIFF" and channels[0] == 1 and frames not in (1, 2, 3):
            channels = (*channels, frames)
        deep = _is_deep(image) or _is_deep_png(start)
        header = Header(*image.size, channels, deep, notes)
        length = file.seek(0, io.SEEK_END)
        file.seek(max(0, length - 64))
        if not _has_end(start, file.read(), length):
            file.seek(0)
            with open_image(file, max_pixels) as whole:
                whole.load()
    return header


def decode(
    file: BinaryFile, side: int, channels: int, how: Reading
) -> tuple[UInt8[np.ndarray, "C side side"], tuple[str, ...]]:
    """The image as a square, and notes on its values. channels: one of `Header.channels`.

    Raises UserError for an image without any value, and the error of the reader for a damaged file.
    """
    values = _special(file, channels)
    if values is None:
        with open_image(file, how.max_pixels) as image:
            if not _is_deep(image) and channels in (1, 3):
                return to_square(image, side, channels, how)
            values = _values_of(image)
    return from_values(
        values.x, side, channels, how, values.nodata, values.alpha, values.orientation
    )


def values(
    file: BinaryFile, channels: int, how: Reading
) -> tuple[Shaped[np.ndarray, "H W C"], float | None]:
    """(the values of an image as its file stores them, without transparency; its nodata value)"""
    found = _special(file, channels)
    if found is None:
        with open_image(file, how.max_pixels) as image:
            found = _values_of(image)
    return found.x[..., :-1] if found.alpha else found.x, found.nodata


def open_image(file: BinaryFile, max_pixels: int | None = None) -> Image.Image:
    """Pillow's image, not yet decoded. Pillow is given the format, so that it does not try all of
    its readers, which takes half of the time for a small image."""
    start = _start(file)
    formats = [name for mark, name in _MARKS.items() if start.startswith(mark)] or FORMATS
    if max_pixels is None:
        try:
            return Image.open(file, formats=formats)
        except Image.DecompressionBombError as error:
            pixels = int((re.findall(r"\d+", str(error)) or [0])[0])
            raise _too_large(pixels, _usual_limit()) from None
    with _no_limit_of_pillow():
        image = Image.open(file, formats=formats)
    check_size(*image.size, max_pixels)
    return image


def check_size(width: int, height: int, max_pixels: int | None) -> None:
    """UserError for an image with more than `max_pixels`, or than Pillow allows by default."""
    most = max_pixels or _usual_limit()
    if most is not None and width * height > most:
        raise _too_large(width * height, most)


def _usual_limit() -> int | None:
    """Pillow's limit of pixels: it warns above its setting and refuses above twice that."""
    return None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def to_square(
    image: Image.Image, side: int, channels: int, how: Reading
) -> tuple[UInt8[np.ndarray, "C side side"], tuple[str, ...]]:
    """An image of 8 bits as [C side side], C = 1 (luma, ITU-R 601) or 3 (RGB), and notes.

    `how.fit`: "crop" resizes the short side to `side` (antialiased bicubic) and cuts out the
    centre; "pad" resizes the long side and fills the square with black bars. The EXIF orientation
    is applied; transparency is blended with white.
    """
    # a JPEG decodes at 1/2, 1/4 or 1/8 nearly for free; twice the side is left for the resampling
    image.draft(None, (2 * side, 2 * side))
    image.load()
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    wanted = "L" if channels == 1 else "RGB"
    if image.mode != wanted or image.has_transparency_data:
        image = _colour(image, wanted)
    notes: tuple[str, ...] = ()
    if how.over is not None and how.over.of_bytes:
        made = scaled(np.asarray(image)[None], how.over)
        image, notes = Image.fromarray(made.pixels[0]), (OUTSIDE,) if made.outside[0] else ()
    return _fitted(image, side, how.fit), notes


def from_values(
    x: Shaped[np.ndarray, "H W c"],
    side: int,
    channels: int,
    how: Reading,
    nodata: float | None = None,
    alpha: bool = False,
    orientation: int = 1,
) -> tuple[UInt8[np.ndarray, "C side side"], tuple[str, ...]]:
    """As `to_square`, for an image given by its values, of any type and number of channels.

    With other channels than grey or colour each one is resized separately. alpha: the last channel
    is transparency, 0 to the largest value of its type, and is blended with white. Raises UserError
    if no pixel has a value.
    """
    if alpha and channels == x.shape[2]:
        alpha = False
    made = scaled((x[..., :-1] if alpha else x)[None], how.over, nodata)
    if made.empty[0]:
        raise UserError(EMPTY)
    pixels = upright(made.pixels[0], orientation)
    notes = said_of(made, 0) if is_deep(x.dtype) else ()
    if channels not in (1, 3) or pixels.shape[2] not in (1, 3):
        planes = [Image.fromarray(np.ascontiguousarray(p)) for p in np.moveaxis(pixels, 2, 0)]
        if len(planes) < channels:
            raise UserError(f"it has {len(planes)} channels, not {channels}")
        return np.concatenate([_fitted(p, side, how.fit) for p in planes[:channels]]), notes
    if alpha:
        opaque = _eight_bit(upright(x[..., -1:], orientation))
        pixels = np.concatenate([np.broadcast_to(pixels, (*pixels.shape[:2], 3)), opaque], axis=2)
    image = Image.fromarray(
        np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    )
    square, _ = to_square(image, side, channels, Reading(how.fit))
    return square, notes


def said_of(made: Scaled, i: int) -> tuple[str, ...]:
    """Notes on the values of image i of the scaled ones."""
    notes = []
    if made.outside[i]:
        notes.append(OUTSIDE)
    if made.without[i]:
        notes.append(WITHOUT)
    if made.pixels[i].max() <= _DARK:
        notes.append(DARK)
    return tuple(notes)


def upright(x: Shaped[np.ndarray, "H W C"], orientation: int) -> Shaped[np.ndarray, "_ _ C"]:
    """The array rotated and mirrored by EXIF's orientation 1 to 8."""
    if orientation in (5, 6, 7, 8):
        x = x.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        x = x[::-1]
    if orientation in (2, 3, 6, 7):
        x = x[:, ::-1]
    return x


def _start(file: BinaryFile) -> bytes:
    file.seek(0)
    start = file.read(32)
    if not start:
        raise UserError("the file is empty")
    file.seek(0)
    return start


def _too_large(pixels: int, most: int | None) -> UserError:
    return UserError(
        f"its {pixels:,} pixels are more than the {most or 0:,} that are read without being told;"
        f" --max-pixels {pixels} (max_pixels={pixels}) reads it"
    )


_lock = threading.Lock()
_within = 0
_limit: int | None = None


@contextmanager
def _no_limit_of_pillow() -> Iterator[None]:
    """A context without Pillow's limit of pixels, which is global: lifted while any thread is in
    it."""
    global _within, _limit
    with _lock:
        if _within == 0:
            _limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if _within == 0:
                Image.MAX_IMAGE_PIXELS = _limit


def _special(file: BinaryFile, channels: int) -> _Values | None:
    """The values of a file that Pillow cannot read, or not completely; None for other files."""
    start = _start(file)
    if start.startswith(_TIFF):
        seen = tiff.look(file)
        if seen.pillow and (channels in (1, 3) or seen.frames != channels):
            return None
        file.seek(0)
        return _Values(tiff.read(file, channels), seen.nodata, seen.orientation, seen.alpha)
    if _is_deep_png(start) and start[25] in (2, 4, 6):  # colour, grey and alpha, colour and alpha
        return _deep_png(file, alpha=start[25] != 2)
    return None


def _deep_png(file: BinaryFile, alpha: bool) -> _Values:
    """A PNG with colours of 16 bits. Pillow keeps one byte of each value, so the file is read
    twice: for the upper bytes, and, as if it were little-endian, for the lower ones."""
    planes = []
    for suffix in ("16B", "16L"):
        with open_image(file) as image:
            if image.tile[0].args != f"{image.mode};16B":  # type: ignore[attr-defined]
                raise UserError("grey of 16 bits with transparency; save it without transparency")
            image.tile = [t._replace(args=f"{image.mode};{suffix}") for t in image.tile]  # type: ignore[attr-defined]
            orientation = image.getexif().get(_ORIENTATION, 1)
            planes.append(np.asarray(image).astype(np.uint16))
    upper, lower = planes
    return _Values(upper * np.uint16(256) + lower, None, orientation, alpha)


def _values_of(image: Image.Image) -> _Values:
    """The values of Pillow's image, with all its channels."""
    orientation = image.getexif().get(_ORIENTATION, 1)
    nodata = None
    if image.format == "TIFF" and (tag := image.tag_v2.get(tiff.NODATA)) is not None:  # type: ignore[attr-defined]
        nodata = tiff.number_of_tag(tag)
    x = np.asarray(image)
    return _Values(x[..., None] if x.ndim == 2 else x, nodata, orientation)


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _is_deep_png(start: bytes) -> bool:
    return start.startswith(b"\x89PNG") and start[24:25] == b"\x10"


def _channels_of(image: Image.Image) -> tuple[int, ...]:
    usual = (1, 3) if image.mode in _GREY else (3, 1)
    bands = len(image.getbands())
    return (*usual, bands) if bands in (2, 4) and image.mode != "CMYK" else usual


def _fitted(image: Image.Image, side: int, fit: Fit) -> UInt8[np.ndarray, "c side side"]:
    width, height = image.size
    if fit == "crop":
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        return resized(image, (side, side), (left, top, left + short, top + short))
    scale = side / max(width, height)
    width, height = (max(1, round(length * scale)) for length in (width, height))
    small = resized(image, (width, height))
    if width == height:
        return small
    square = np.zeros((len(small), side, side), np.uint8)
    left, top = (side - width) // 2, (side - height) // 2
    square[:, top : top + height, left : left + width] = small
    return square


def _colour(image: Image.Image, wanted: str) -> Image.Image:
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba).convert("RGB")
    elif image.mode == "P":
        image = image.convert("RGB")
    return image.convert(wanted)


def _eight_bit(alpha: np.ndarray) -> UInt8[np.ndarray, "H W 1"]:
    """Transparency, 0 to the largest value of its type (1 for floats), as 0..255."""
    largest = 1.0 if alpha.dtype.kind == "f" else float(np.iinfo(alpha.dtype).max)
    return np.rint(alpha.astype(np.float64).clip(0, largest) * (255 / largest)).astype(np.uint8)


def _notes(image: Image.Image) -> tuple[str, ...]:
    notes = []
    if image.mode not in _GREY and image.mode != "RGB" and not image.mode.startswith("RGB"):
        notes.append(f"from {'palette' if image.mode in ('P', 'PA') else image.mode} to RGB")
    if image.has_transparency_data:
        notes.append("with transparency, laid on white")
    if image.getexif().get(_ORIENTATION, 1) != 1:
        notes.append(_UPRIGHT)
    if getattr(image, "is_animated", False):
        notes.append(_FRAMES)
    return tuple(notes)


def _has_end(start: bytes, end: bytes, length: int) -> bool:
    """True if the file ends with the end mark of its format, or the format has none."""
    if start.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in end
    if start.startswith(b"\x89PNG"):
        return b"IEND" in end
    if start.startswith(b"GIF8"):
        return b"\x3b" in end[-4:]
    if start.startswith(b"RIFF"):
        return length >= int.from_bytes(start[4:8], "little") + 8
    return True
