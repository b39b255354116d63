"""TIFF files that Pillow cannot read completely: several bands, more bits, other number types.

tifffile reads them. Images of 8 bits, and grey ones of 16 bits or float32, are left to Pillow,
which needs no further library for compressed files.
"""

import io
import logging
from typing import Any, NamedTuple

import numpy as np
import tifffile

from contrapose.data.values import is_deep
from contrapose.errors import UserError

# what tifffile logs of a damaged file is no line on the terminal: the file is refused by name
logging.getLogger("tifffile").addHandler(logging.NullHandler())

NODATA = 42113  # GDAL's tag
_ORIENTATION = 274
_ALPHA = (1, 2)  # EXTRASAMPLES: associated and unassociated
_RGB, _CMYK = 2, 5  # PHOTOMETRIC


class Look(NamedTuple):
    """The properties of the first image of a TIFF file."""

    width: int  # px
    height: int  # px
    channels: tuple[int, ...]  # that it can be read with, the usual number first
    frames: int  # images in the file that are no channels of one
    deep: bool
    alpha: bool  # its last band is transparency
    pillow: bool  # Pillow reads it as well
    nodata: float | None
    orientation: int


def look(file: Any) -> Look:
    """The properties of the first image, without decoding it.

    Raises UserError for a file that is truncated or has no pixels, and the error of tifffile for a
    damaged one.
    """
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    with tifffile.TiffFile(file) as opened:
        page = opened.pages.first
        kind = np.dtype(page.dtype or np.uint8)
        if kind.kind not in "buif":
            raise UserError(f"values of type {kind} are not pixels")
        ends = zip(page.dataoffsets, page.databytecounts, strict=False)
        if any(offset + count > length for offset, count in ends):
            raise UserError("the file is cut off")
        samples = int(page.samplesperpixel)
        extra = tuple(int(e) for e in page.extrasamples)
        alpha = len(extra) == 1 and extra[0] in _ALPHA
        colour = samples - alpha
        photometric = int(page.photometric)
        stacked, frames = 1, 1
        if len(opened.pages) > 1:
            series = opened.series[0]
            sizes = dict(zip(series.axes, series.shape, strict=True))
            stacked = sizes.get("C", 1) if samples == 1 else 1
            frames = len(opened.pages) // stacked
        pillow = stacked == 1 and _is_pillows(kind, colour, photometric, page, len(extra) - alpha)
        return Look(
            width=int(page.imagewidth),
            height=int(page.imagelength),
            channels=_channels(colour, alpha, photometric, stacked, frames),
            frames=frames,
            deep=is_deep(kind),
            alpha=alpha,
            pillow=pillow,
            nodata=number_of_tag(_tag(page, NODATA)),
            orientation=int(_tag(page, _ORIENTATION) or 1),
        )


def read(file: Any, channels: int) -> np.ndarray:
    """The values [H, W, C'] of the first image: C' stored bands, or `channels` frames as bands.

    Raises UserError with the name of the library that a compression needs, if it is missing.
    """
    try:
        with tifffile.TiffFile(file) as opened:
            page = opened.pages.first
            if len(opened.pages) > 1 and channels > 1 and int(page.samplesperpixel) == 1:
                series = opened.series[0]
                x, axes = series.asarray(), series.axes
                if channels not in [n for n, a in zip(x.shape, axes, strict=True) if a not in "YX"]:
                    x, axes = page.asarray(), page.axes
            else:
                x, axes = page.asarray(), page.axes
    except ValueError as error:
        if "imagecodecs" in str(error):
            raise UserError(f"{error}; pip install 'contrapose[tiff]'") from None
        raise
    return _last(x, axes, channels)


def _last(x: np.ndarray, axes: str, channels: int) -> np.ndarray:
    """The array as [H, W, C]; C is its axis of bands, else the axis with `channels` entries."""
    bands = next((k for k, a in enumerate(axes) if a == "S" or (a == "C" and x.shape[k] > 1)), None)
    if bands is None:
        others = [k for k, a in enumerate(axes) if a not in "YX"]
        bands = next((k for k in others if x.shape[k] == channels), None)
    kept = {axes.index("Y"), axes.index("X"), bands}
    x = x[tuple(slice(None) if k in kept else 0 for k in range(x.ndim))]
    left = "".join(a for k, a in enumerate(axes) if k in kept)
    if bands is None:
        return x[..., None]
    return np.moveaxis(x, left.index(axes[bands]), -1)


def _is_pillows(kind: np.dtype, colour: int, photometric: int, page: Any, unknown: int) -> bool:
    if unknown:
        return False
    if colour == 1:
        return kind in (np.bool_, np.uint8, np.uint16, np.int16, np.float32)
    ordinary = kind == np.uint8 and int(page.bitspersample) == 8
    return ordinary and (colour == 3 or (colour == 4 and photometric == _CMYK))


def _channels(
    colour: int, alpha: bool, photometric: int, stacked: int, frames: int
) -> tuple[int, ...]:
    if stacked > 1:
        return (3, 1) if stacked == 3 else (stacked,)
    if photometric == _CMYK:
        return (3, 1)
    if colour == 1:
        more = (frames,) if frames not in (1, 3) else ()
        return (1, 3, 2) if alpha else (1, 3, *more)
    if colour == 3:
        return (3, 1, 4) if alpha else (3, 1)
    return (colour + alpha, 3) if photometric == _RGB else (colour + alpha,)


def _tag(page: Any, number: int) -> Any:
    tag = page.tags.get(number)
    return None if tag is None else tag.value


def number_of_tag(tag: object) -> float | None:
    """The value of a tag that has a number as text; None for another tag."""
    try:
        return float(str(tag).strip("\0 "))
    except ValueError:
        return None
