"""One encoded image -> one uint8 square: upright, grey or RGB, resized, cropped.

Pillow decodes; its C code releases the GIL.
"""

import io
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

Fit = Literal["crop", "pad"]
BinaryFile = io.BytesIO | io.BufferedReader

SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .tga"
    " .jp2 .avif".split()
)
GREY = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
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


class Header(NamedTuple):
    """What is known of an image before it is decoded."""

    width: int  # px
    height: int  # px
    mode: str  # Pillow's: L, RGB, P, CMYK, I;16 ...
    notes: tuple[str, ...] = ()  # what decoding will convert

    @property
    def grey(self) -> bool:
        return self.mode in GREY

    @property
    def short(self) -> int:
        return min(self.width, self.height)


def read_header(file: BinaryFile) -> Header:
    """Size and mode without decoding; a file whose end looks cut off is decoded to be sure.

    Raises whatever Pillow raises for a file that it cannot read.
    """
    start = file.read(16)
    if not start:
        raise ValueError("the file is empty")
    file.seek(0)
    with open_image(file) as image:
        header = Header(*image.size, image.mode, _notes(image))
        length = file.seek(0, io.SEEK_END)
        file.seek(max(0, length - 64))
        if not _has_end(start, file.read(), length):
            file.seek(0)
            with open_image(file) as whole:
                whole.load()
    return header


def open_image(file: BinaryFile) -> Image.Image:
    """Pillow's lazy image. Told the format, Pillow need not try all of its readers: half the time
    of a small image."""
    start = file.read(16)
    file.seek(0)
    formats = [name for mark, name in _MARKS.items() if start.startswith(mark)]
    return Image.open(file, formats=formats or FORMATS)


def to_square(
    image: Image.Image, side: int, channels: int, fit: Fit
) -> UInt8[np.ndarray, "C side side"]:
    """An image as [C side side], C = 1 (luma, ITU-R 601) or 3 (RGB).

    `fit="crop"`: the short side becomes `side` (antialiased bicubic) and the centre is cut out.
    `fit="pad"`: the long side becomes `side` and black bars fill the square.
    The EXIF orientation is applied; transparency is laid on white; 16 bits are divided by 257.
    """
    # a JPEG decodes at 1/2, 1/4 or 1/8 nearly for free; twice the side is left for the resampling
    image.draft(None, (2 * side, 2 * side))
    image.load()
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    wanted = "L" if channels == 1 else "RGB"
    if image.mode != wanted or image.has_transparency_data:
        image = _colour(image, wanted)
    if image.size != (side, side):
        image = _crop(image, side) if fit == "crop" else _pad(image, side)
    x = np.asarray(image)
    return x[None] if channels == 1 else x.transpose(2, 0, 1)


def _crop(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    box = (left, top, left + short, top + short)
    if short == side:
        return image.crop(box)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def _pad(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    square = Image.new(image.mode, (side, side))
    small = image.resize((width, height), Image.Resampling.BICUBIC)
    square.paste(small, ((side - width) // 2, (side - height) // 2))
    return square


def _colour(image: Image.Image, wanted: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_eight_bit(np.asarray(image)))
    elif image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba).convert("RGB")
    elif image.mode == "P":
        image = image.convert("RGB")
    return image.convert(wanted)


def _eight_bit(x: np.ndarray) -> UInt8[np.ndarray, "H W"]:
    """16-bit, 32-bit and float greys: their full range becomes 0..255, nothing is clipped."""
    if not np.isfinite(x).all():
        raise ValueError("it holds NaN or infinity")
    low, high = float(x.min()), float(x.max())
    if x.dtype.kind == "f" and low >= 0 and high <= 255:
        y = x * 255.0 if high <= 1 else x
    elif x.dtype.kind in "iu" and low >= 0 and high <= 65535:
        y = x / 257.0
    else:  # no range to rely on: the image's own
        y = (x.astype(np.float64) - low) * (255.0 / max(high - low, 1e-300))
    return np.rint(y).astype(np.uint8)


def _notes(image: Image.Image) -> tuple[str, ...]:
    notes = []
    if image.mode == "F" or image.mode.startswith("I"):
        notes.append("from 16 or more bits to 8")
    elif image.mode not in ("1", "L", "RGB") and not image.mode.startswith(("LA", "La", "RGB")):
        notes.append(f"from {'palette' if image.mode in ('P', 'PA') else image.mode} to RGB")
    if image.has_transparency_data:
        notes.append("with transparency, laid on white")
    if image.getexif().get(_ORIENTATION, 1) != 1:
        notes.append("turned upright (EXIF)")
    if getattr(image, "is_animated", False):
        notes.append("of several frames, first one taken")
    return tuple(notes)


def _has_end(start: bytes, end: bytes, length: int) -> bool:
    """Whether the format's end mark is where it belongs; True for formats without one."""
    if start.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in end
    if start.startswith(b"\x89PNG"):
        return b"IEND" in end
    if start.startswith(b"GIF8"):
        return b"\x3b" in end[-4:]
    if start.startswith(b"RIFF"):
        return length >= int.from_bytes(start[4:8], "little") + 8
    return True
