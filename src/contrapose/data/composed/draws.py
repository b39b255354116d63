"""Counter-based random numbers for each image: the same on every machine and in any order.

Number j of image i is a hash of (key, i, j) by the mixing function of splitmix64, so it depends
neither on the number of images nor on how many numbers each one draws. Random bits that are hashed
from pixels use the same function.
"""

import hashlib

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_PIECE = 1 << 22  # pixels hashed at a time


def key_of(*parts: str | int) -> int:
    """The key of a stream of random numbers, from its parts: a set, a split, a seed."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def uniform(key: int, n: int, columns: int) -> Float[Tensor, "n columns"]:
    """U[0, 1) in float64, one row for each image."""
    high = _bits(key, n, columns) >> np.uint64(11)
    return torch.from_numpy(high.astype(np.float64) * 2.0**-53)


def below(key: int, n: int, columns: int, count: int) -> Int[Tensor, "n columns"]:
    """Integers, uniform over 0 .. count-1, one row for each image."""
    return (uniform(key, n, columns) * count).long()


def distinct(key: int, n: int, columns: int, count: int) -> Int[Tensor, "n columns"]:
    """`columns` different numbers among 0 .. count-1, in random order, a row for each image."""
    return uniform(key, n, count).argsort(dim=1)[:, :columns]


def hashed(key: int, image: UInt8[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
    """A hash of 63 bits of each image's pixels: mix(sum_p r_p x_p mod 2^64) with odd random r_p.

    Images that differ in a single pixel never have the same hash; others have with probability of
    about 2^-63.
    """
    pixels = image.flatten(1).cpu().numpy()
    count = max(1, pixels.shape[1])
    weight = _bits(key, 1, count)[0] | np.uint64(1)
    step = max(1, _PIECE // count)
    parts = [
        _mixed(pixels[start : start + step].astype(np.uint64) @ weight)
        for start in range(0, len(pixels), step)
    ]
    total = np.concatenate([np.zeros(0, np.uint64), *parts])
    return torch.from_numpy((total >> np.uint64(1)).astype(np.int64))


def _bits(key: int, n: int, columns: int) -> NDArray[np.uint64]:
    row = np.arange(n, dtype=np.uint64)[:, None] * _GOLDEN + np.uint64(key)
    column = np.arange(columns, dtype=np.uint64)[None] * _GOLDEN
    return _mixed(_mixed(row) + column)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
