"""The range of pixel values: one range for a whole set, never one for each image.

With `value_range=(low, high)`, or `[(low, high), ...]` for channels with different units
(reflectance, height), low becomes 0 (black) and high 255; values outside are clipped and counted.
Without it the range follows from the type of the values, if there is a usual one:

| values | range |
|---|---|
| 8 bits | 0 to 255: stored as they are |
| bool | False to True |
| integers of more bits | 0 to 2^b - 1, b the least of 8, 10, 12, 14 and 16 that holds them |
| floats up to 1 | 0 to 1 |
| floats whose largest lies in 128..255 | 0 to 255 |
| others: negative, above 65535, floats up to 16 or 1000 | refused, with what to give |

The largest value is that of a sample of the set, without the RARE most extreme values and without
one odd image in fifty, so that a hot pixel or a broken image does not decide. NaN, infinity and the
nodata value of a TIFF file are not values; these pixels are black.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from contrapose.errors import UserError

RARE = 0.001  # share of the values of a sample that may lie outside a range that is found
SAMPLE = 128  # images whose values find the range of a set
_PIXELS = 2**14  # values of each of them, at most
ODD = 50  # of so many images one, at each end, that decides nothing either
MARK = 4  # spans of all others that a number lies away from them which is no measurement
LEAST = 16  # different values that there must be to say so
_DEPTHS = (8, 10, 12, 14, 16)  # bits

RGB = tuple[int, int, int]  # which channels are red, green and blue, counted from 0


@dataclass(frozen=True)
class ValueRange:
    """The values that become black (low) and white (high): one pair, or one for each channel.

    of_bytes: True if the range applies to 8-bit images too, False if they stay 0 to 255. None: it
    applies if no image of the set has more bits, which is decided when the set is opened.
    """

    low: float | Sequence[float]  # stored as a number or a tuple
    high: float | Sequence[float]
    of_bytes: bool | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):  # JSON has lists; a single channel has a number
            found = getattr(self, name)
            if isinstance(found, list | tuple):
                found = found[0] if len(found) == 1 else tuple(found)
                object.__setattr__(self, name, found)
        low, high = np.atleast_1d(self.low), np.atleast_1d(self.high)
        fits = len(low) == len(high) and bool(np.isfinite(low).all() and np.isfinite(high).all())
        if not (fits and bool((low < high).all())):
            raise UserError(
                f"value_range={self}: two numbers, the value of black and a larger one of white, "
                "or such a pair for each channel"
            )

    @property
    def channels(self) -> int | None:
        """The number of channels with a range of their own; None if one range is for all."""
        return len(self.low) if isinstance(self.low, tuple) else None

    def __str__(self) -> str:
        ends = [np.atleast_1d(np.asarray(x, float)).tolist() for x in (self.low, self.high)]
        pairs = zip(*ends, strict=False)
        return ",".join(f"{_short(low)}:{_short(high)}" for low, high in pairs)


class Scaled(NamedTuple):
    """Images in 8 bits, and which of them had values outside the range, or pixels without
    values."""

    pixels: UInt8[np.ndarray, "B ..."]
    outside: Bool[np.ndarray, " B"]  # some values beyond the range
    without: Bool[np.ndarray, " B"]  # some pixels without a value: NaN, infinity, nodata
    empty: Bool[np.ndarray, " B"]  # no value at all


def read_range(text: str) -> ValueRange:
    """`0:4095`, `-1024:3071`, or for each channel, `0:4095,0:255`, as on the command line."""
    try:
        pairs = [[float(number) for number in part.split(":")] for part in text.split(",")]
        low, high = zip(*pairs, strict=True)
    except ValueError:
        raise UserError(
            f"--range {text}: write the value of black and that of white, such as --range 0:4095, "
            "or such a pair for each channel, 0:4095,0:255"
        ) from None
    return ValueRange(low, high)


def as_range(value: object) -> ValueRange | None:
    """`(low, high)`, `[(low, high), ...]`, one a channel, `"low:high"` or a range as a
    `ValueRange`; None stays None."""
    if value is None or isinstance(value, ValueRange):
        return value
    if isinstance(value, str):
        return read_range(value)
    try:
        pairs = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        pairs = np.empty(0)
    if pairs.shape != (2,) and (pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs)):
        raise UserError(
            f"value_range={value!r}: two numbers, the value of black and that of white, or such a "
            "pair for each channel"
        )
    low, high = pairs.reshape(-1, 2).T.tolist()
    return ValueRange(tuple(low), tuple(high))


def as_rgb(value: object) -> RGB | None:
    """The channels of (3, 2, 1) or "3,2,1"; None for None. UserError unless three different
    ones."""
    if value is None:
        return None
    try:
        parts = value.split(",") if isinstance(value, str) else list(value)  # type: ignore[call-overload]
        red, green, blue = (int(part) for part in parts)
    except (TypeError, ValueError):
        red = green = blue = -1
    if min(red, green, blue) < 0 or len({red, green, blue}) != 3:
        raise UserError(
            f"rgb={value!r} (--rgb): name three different channels for red, green, blue, counted"
            " from 0, such as 3,2,1"
        )
    return red, green, blue


def is_deep(kind: np.dtype) -> bool:
    """True if values of this type need a range: all but 8 unsigned bits and bool."""
    return kind.kind != "b" and kind != np.uint8


def scaled(x: np.ndarray, over: ValueRange | None, nodata: float | None = None) -> Scaled:
    """Images [B, ...] of any type as round(255 (x - low) / (high - low)), clipped to 0..255.

    A range for each channel takes the last axis for channels, and raises UserError where there are
    not as many. over=None will do for 8 bits, which stay as they are. nodata: a value of deeper
    images that means "none".
    """
    axes = tuple(range(1, x.ndim))
    no = np.zeros(len(x), bool)
    if x.dtype == np.bool_:
        return Scaled(x.astype(np.uint8) * np.uint8(255), no, no, no)
    if x.dtype == np.uint8:
        if over is None or not over.of_bytes or (over.low, over.high) == (0, 255):
            return Scaled(x, no, no, no)
        nodata = None
    assert over is not None
    low, high = np.asarray(over.low), np.asarray(over.high)
    if over.channels not in (None, x.shape[-1] if x.ndim == 4 else 1):
        has = x.shape[-1] if x.ndim == 4 else 1
        raise UserError(f"it has {has} channels, and {over.channels} ranges of values are told")
    missing = None
    if x.dtype.kind == "f" and not (finite := np.isfinite(x)).all():
        missing = ~finite
    if nodata is not None and (none := x == nodata).any():
        missing = none if missing is None else missing | none
    wide: Any = np.float32 if x.dtype.kind == "f" and x.dtype.itemsize <= 4 else np.float64
    if missing is not None:
        x = np.where(missing, low.astype(wide), x.astype(wide))
    if over.channels is None:
        outside = (x.min(axis=axes) < low) | (x.max(axis=axes) > high)
    else:
        outside = ((x.min(axis=axes[:-1]) < low) | (x.max(axis=axes[:-1]) > high)).any(axis=1)
    if x.dtype in (np.uint8, np.uint16) and over.channels is None:
        pixels = _table(over, int(np.iinfo(x.dtype).max))[x]
    else:
        y = (x.astype(wide) - low.astype(wide)) * (255 / (high - low)).astype(wide)
        pixels = np.rint(y.clip(0, 255, out=y), out=y).astype(np.uint8)
    if missing is None:
        return Scaled(pixels, outside, no, no)
    return Scaled(pixels, outside, missing.any(axis=axes), missing.all(axis=axes))


def some_values(x: np.ndarray, nodata: float | None = None) -> np.ndarray:
    """Up to _PIXELS values of an image, evenly spread, without NaN, infinity and nodata."""
    flat = x.reshape(-1)
    # an odd stride, so that it does not stay in a few columns
    some = flat[:: (len(flat) // _PIXELS) | 1] if len(flat) > _PIXELS else flat
    if nodata is not None:
        some = some[some != nodata]
    return some[np.isfinite(some)] if some.dtype.kind == "f" else some


def found_range(name: str, samples: Iterable[np.ndarray]) -> ValueRange:
    """The range of a set from the values of some of its images, by the table above.

    Raises UserError with the values that were found if no usual range has them.
    """
    parts = [part for part in samples if part.size]
    kinds = {"float" if part.dtype.kind == "f" else "integer" for part in parts}
    if len(kinds) > 1:
        raise UserError(
            f"{name}: some of its images hold floats, others integers of more than 8 bits, and no"
            " range is usual for both; say which values are black and white with --range LOW:HIGH"
            " (value_range=(LOW, HIGH)), or open them apart"
        )
    if not parts:  # nothing has a value: each image will say so
        return ValueRange(0, 1, of_bytes=False)
    low, high = _common([part.astype(np.float64) for part in parts])
    floats = kinds == {"float"}
    usual = _usual(low, high, floats)
    if usual is not None:
        return ValueRange(0, usual, of_bytes=False)
    least, most = float(min(p.min() for p in parts)), float(max(p.max() for p in parts))
    seen = f"{_short(least)} to {_short(most)}"
    if (low, high) != (least, most):
        seen += f", nearly all of them from {_short(low)} to {_short(high)}"
    why = "neither in [0, 1] nor in [0, 255]" if floats else "not those of 8, 10, 12, 14 or 16 bits"
    if low == high:
        low, high = (0.0, high) if high > 0 else (low, low + 1)
    black, white = _short(low), _short(high)
    raise UserError(
        f"{name}: {'floats' if floats else 'integers'} with values from {seen}: {why}; say which"
        f" values are black and white, such as --range {black}:{white} (value_range=({black},"
        f" {white})), or undo the normalisation if it is one (the encoder has its own)"
    )


def learnt_range(x: Shaped[np.ndarray, "N ..."]) -> ValueRange:
    """The range from the least to the greatest value of some images, without the RARE most extreme.

    If all values are equal they become black.
    """
    low, high = _common(list(x.reshape(len(x), -1).astype(np.float64)))
    return ValueRange(low, high if low < high else low + 1, of_bytes=True)


def _common(parts: list[np.ndarray]) -> tuple[float, float]:
    """(lowest, highest) value of some images without the RARE most extreme of all values, half of
    them at each end (at least one of 100), and without one image of ODD at each end."""
    values = _without_marks(np.sort(np.concatenate(parts)))
    out = max(round(RARE * len(values) / 2), 1 if len(values) >= 100 else 0)
    odd = len(parts) // ODD
    low = np.sort([part.min() for part in parts])[odd]
    high = np.sort([part.max() for part in parts])[len(parts) - 1 - odd]
    return max(float(values[out]), float(low)), min(float(values[-1 - out]), float(high))


def _without_marks(values: np.ndarray) -> np.ndarray:
    """Sorted values without marks such as -9999 or 65535, which are no measurements.

    A lowest or highest value is a mark if it is MARK times the span of the others away from them.
    """
    for end in (0, -1):
        distinct = np.unique(values)
        mark, rest = distinct[end], distinct[1:] if end == 0 else distinct[:-1]
        if len(rest) >= LEAST:
            gap = min(abs(mark - rest[0]), abs(mark - rest[-1]))
            if gap > MARK * (rest[-1] - rest[0]):
                values = values[values != mark]
    return values


def _usual(low: float, high: float, floats: bool) -> float | None:
    """The value of white if black is 0; None if it is unknown."""
    if low < 0:
        return None
    if not floats:
        return next((2.0**b - 1 for b in _DEPTHS if high < 2**b), None)
    return 1.0 if high <= 1 else 255.0 if 128 <= high <= 255 else None


@lru_cache(maxsize=8)
def _table(over: ValueRange, largest: int) -> UInt8[np.ndarray, " V"]:
    """The 8-bit value of each of 0..largest, by one range."""
    assert isinstance(over.low, float | int) and isinstance(over.high, float | int)
    y = (np.arange(largest + 1) - over.low) * (255 / (over.high - over.low))
    table: np.ndarray = np.rint(y.clip(0, 255)).astype(np.uint8)
    return table


def _short(value: float) -> str:
    """A number in the usual notation."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.6g}"
