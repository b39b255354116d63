"""Pillow's bicubic resize of 8-bit images, by resize.c: the same values, bit for bit, sooner.

Pillow sums whole numbers: values of 8 bits times weights in units of 2^-22, rounded and clipped to
8 bits after one pass along the rows and one along the columns. So a sum may be taken in any order,
and the result is the same wherever the weights and the order of the passes are. The weights are
Pillow's own: an image of 32-bit integers is summed with them before they are rounded, and one value
of 2^22 among zeros comes back as the weight that it has.

Rows are first in every Pillow before 13. Since then columns are first where the height shrinks, and
by more than twice the pixels of the width. A process tries a few small images, to see which holds.
Pillow itself serves where neither does, where there is no library, and where it is slower.
"""

import ctypes
import math
from collections.abc import Callable
from ctypes import POINTER, byref, c_int32, c_int64, c_void_p
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from contrapose.compiler import Library

ONE = 1 << 22  # a weight of 1
AXES = 512  # of which the weights are kept
LIBRARY = Library(
    Path(__file__).with_name("resize.c"),
    "Pillow",
    "images are resized by Pillow, three to four times slower than by a library compiled for this "
    "processor",
)
Box = tuple[int, int, int, int]


def resized(
    image: Image.Image, size: tuple[int, int], box: Box | None = None
) -> UInt8[np.ndarray, "C _ _"]:
    """The part of an image in `box`, resized bicubically, as [C, height, width].

    Equal to Pillow's `image.resize(size, BICUBIC, box=box)` bit for bit. image: grey (L, C = 1) or
    colour (RGB, C = 3). size: (width, height) in px. box: (left, top, right, bottom) in px, the
    whole image if None; nothing is computed where it has that size already.
    """
    box = box or (0, 0, *image.size)
    if (box[2] - box[0], box[3] - box[1]) == size:
        return _planes(image if box == (0, 0, *image.size) else image.crop(box))
    found = library()
    return by_pillow(image, size, box) if found is None else by_library(found, image, size, box)


class Found(NamedTuple):
    """The library, and when its first pass is along the columns: (w, h, new w, new h) -> bool."""

    resize: Callable[..., int]
    columns: Callable[[int, int, int, int], bool]


@cache
def library() -> Found | None:
    """The library, if there is one that computes what Pillow computes here, and sooner."""
    loaded = LIBRARY.load()
    if loaded is None:
        return None
    resize = loaded.contrapose_resize
    resize.argtypes = [POINTER(_Picture), POINTER(_Axis), POINTER(_Axis), c_int32, c_void_p]
    found = next((f for f in (Found(resize, o) for o in ORDERS) if _equal(f)), None)
    if found is None:
        return None
    case = _noise(341, 256), (224, 224), (42, 0, 298, 256)
    steps = partial(by_library, found, *case), partial(by_pillow, *case)
    return found if LIBRARY.is_quicker("resize", *steps) else None


def _before_13(w: int, h: int, width: int, height: int) -> bool:
    return False


def _since_13(w: int, h: int, width: int, height: int) -> bool:
    return h > height and h - height > 2 * (w - width)


ORDERS = _since_13, _before_13


def _equal(found: Found) -> bool:
    """True if Pillow computes the same, in images on both sides of every order's bound."""
    for w, h, width, height, box in (
        (31, 29, 12, 7, None), (40, 39, 30, 19, None), (40, 40, 30, 19, None),
        (40, 41, 50, 40, None), (40, 40, 50, 41, None), (40, 61, 20, 20, (0, 10, 40, 50)),
        (40, 60, 20, 20, (0, 10, 40, 50)), (61, 40, 20, 20, (10, 0, 50, 40)),
    ):  # fmt: skip
        image, size = _noise(w, h), (width, height)
        for case in ((x, size, box or (0, 0, w, h)) for x in (image, image.getchannel(0))):
            if not np.array_equal(by_library(found, *case), by_pillow(*case)):
                return False
    return True


def _noise(w: int, h: int) -> Image.Image:
    draw = np.random.default_rng(0)
    return Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8))


def by_pillow(image: Image.Image, size: tuple[int, int], box: Box) -> UInt8[np.ndarray, "C _ _"]:
    """What `resized` returns, by Pillow."""
    return _planes(image.resize(size, Image.Resampling.BICUBIC, box=box))


def by_library(
    found: Found, image: Image.Image, size: tuple[int, int], box: Box
) -> UInt8[np.ndarray, "C _ _"]:
    """What `resized` returns, by the library."""
    pixels = _pixels(image)
    out = np.empty((len(image.getbands()), size[1], size[0]), np.uint8)
    across = _axis(image.width, box[0], box[2], size[0])
    down = _axis(image.height, box[1], box[3], size[1])
    picture = byref(_Picture(pixels.address, pixels.pixel * image.width, pixels.pixel))
    columns = found.columns(*image.size, *size)
    if found.resize(picture, byref(across.c), byref(down.c), columns, out.ctypes.data):
        raise MemoryError(f"not enough memory to resize an image of {image.width} x {image.height}")
    return out


def _planes(image: Image.Image) -> UInt8[np.ndarray, "C H W"]:
    x = np.asarray(image)
    return x[None] if x.ndim == 2 else x.transpose(2, 0, 1)


class _Axis(ctypes.Structure):
    _fields_ = (
        ("length", c_int32), ("taps", c_int32), ("first", c_void_p), ("count", c_void_p),
        ("weight", c_void_p),
    )  # fmt: skip


class _Picture(ctypes.Structure):
    _fields_ = (("pixels", c_void_p), ("row", c_int64), ("pixel", c_int32))


class _Weights(NamedTuple):
    """The weights of one axis in C, and the arrays to which they point."""

    c: _Axis
    arrays: tuple[np.ndarray, ...]


@lru_cache(maxsize=AXES)
def _axis(length: int, low: int, high: int, out: int) -> _Weights:
    """Pillow's weights that resize the pixels `low` to `high` of `length` to `out` pixels."""
    scale = (high - low) / out
    support = 2 * max(scale, 1)  # a result sums `apart` pixels at most: each is in a row alone
    apart = 2 * math.ceil(support) + 1
    i = np.arange(length)
    ones = np.zeros((apart, length), np.int32)
    ones[i % apart, i] = ONE
    box = (low, 0, high, apart)
    answer = Image.fromarray(ones).resize((out, apart), Image.Resampling.BICUBIC, box=box)
    o = np.arange(out)
    centre = low + (o + 0.5) * scale
    first = np.maximum(centre - support + 0.5, 0).astype(np.int32)
    count = np.minimum(centre + support + 0.5, length).astype(np.int32) - first
    tap = first[:, None] + np.arange(apart, dtype=np.int32)  # those beyond the count are not read
    weight = np.ascontiguousarray(np.asarray(answer)[tap % apart, o[:, None]], np.int32)
    arrays = first, count, weight
    return _Weights(_Axis(out, apart, *(x.ctypes.data for x in arrays)), arrays)


class _Pixels(NamedTuple):
    """Rows of an image in memory without gaps."""

    address: int
    pixel: int  # bytes of one
    owner: Any  # keeps the memory


class _Arrow(ctypes.Structure):
    """ArrowArray of Arrow's C data interface, as far as it is read here."""


_Arrow._fields_ = (
    ("length", c_int64), ("null_count", c_int64), ("offset", c_int64), ("n_buffers", c_int64),
    ("n_children", c_int64), ("buffers", POINTER(c_void_p)),
    ("children", POINTER(POINTER(_Arrow))),
)  # fmt: skip
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _pixels(image: Image.Image) -> _Pixels:
    """Pillow's own memory, 4 bytes for a pixel of colour; a copy, with 3 bytes, where it does not
    give it (before version 11.2, or in several pieces)."""
    try:
        _, capsule = image.__arrow_c_array__()
    except (AttributeError, ValueError):
        x = np.ascontiguousarray(image)
        return _Pixels(x.ctypes.data, 1 if x.ndim == 2 else 3, x)
    array = _Arrow.from_address(_pointer(capsule, b"arrow_array"))
    values = array.children[0].contents if array.n_children else array
    return _Pixels(values.buffers[1] + values.offset, values.length // array.length, capsule)
