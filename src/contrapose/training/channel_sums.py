"""Sums over each channel of a batch and linear maps of each channel, summed in float64.

With m the mean of a channel and a, b, c numbers of it:

    moments     m = sum x / n,  q = sum (x - m)^2
    scaled      y = (x - m) a + b
    products    sum g,  sum g (x - m)
    gradient    dx = g a - b - (x - m) c

channel_sums.c does it in one reading of each array whose channels lie side by side (channels last,
or [N, C]) on a CPU in float32 or float64. Its sums are of float64 numbers, in an order that the
number of threads does not change: the mean of float32 images is exact to 1e-15 of the spread.
Everything else is left to torch's operations, and so is all where there is no library.
"""

import ctypes
from ctypes import byref, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import batch_norm

from contrapose.compiler import Library
from contrapose.threads import SMALL, team

LIBRARY = Library(
    Path(__file__).with_name("channel_sums.c"),
    "torch",
    "batch norm is computed by torch's operations, which on a CPU are slower, and less exact for "
    "images stored channels last, than a library compiled for this processor",
)
TASKS = MOMENTS, PRODUCTS, SCALED, GRADIENT = range(4)


def moments(x: Float[Tensor, "N C ..."]) -> Float[Tensor, "2 C"]:
    """(mean, sum of squares about it) of each channel, in float64; zeros of an empty batch."""
    n = x.numel() // x.shape[1]
    if not n:
        return x.new_zeros(2, x.shape[1], dtype=torch.float64)
    if takes(x):
        shift = x[0].reshape(1, x.shape[1], -1)[..., 0].double()  # a value: near m beside its range
        off, squares = _run(MOMENTS, x, shift)
        off = off / n
        return torch.stack([shift[0] + off, (squares - n * off.square()).clamp(min=0)])
    wide, across = _wide(x), _across(x)
    mean = x.sum(dim=across, dtype=wide) / n
    squares = (x.to(wide) - _beside(mean, x)).square_().sum(dim=across)
    return torch.stack([mean, squares]).double()


def scaled(
    x: Float[Tensor, "N C ..."],
    mean: Float[Tensor, " C"],
    a: Float[Tensor, " C"],
    b: Float[Tensor, " C"],
) -> Float[Tensor, "N C ..."]:
    """(x - mean) a + b, in the precision of x."""
    if takes(x):
        near = mean.to(x.dtype).double()  # what it lacks of the mean is taken into b
        return _run(SCALED, x, torch.stack([near, a, b - (mean - near) * a]))
    wide = _wide(x)
    mean, a, b = (of.to(wide) for of in (mean, a, b))
    one = torch.ones_like(mean)
    return batch_norm(x.to(wide), mean, one, a, b, training=False, eps=0.0).to(x.dtype)


def products(
    g: Float[Tensor, "N C ..."], x: Float[Tensor, "N C ..."], mean: Float[Tensor, " C"]
) -> Float[Tensor, "2 C"]:
    """(sum g, sum g (x - mean)) of each channel, in float64."""
    if takes(x):
        return _run(PRODUCTS, x, mean[None], _stored_as(x, g))
    wide, across = _wide(x), _across(x)
    g, off = g.to(wide), x.to(wide) - _beside(mean, x)
    return torch.stack([g.sum(dim=across), (g * off).sum(dim=across)]).double()


def gradient(
    g: Float[Tensor, "N C ..."],
    x: Float[Tensor, "N C ..."],
    mean: Float[Tensor, " C"],
    a: Float[Tensor, " C"],
    b: Float[Tensor, " C"],
    c: Float[Tensor, " C"],
) -> Float[Tensor, "N C ..."]:
    """g a - b - (x - mean) c, in the precision of x."""
    if takes(x):
        near = mean.to(x.dtype).double()
        return _run(GRADIENT, x, torch.stack([near, a, b - (mean - near) * c, c]), _stored_as(x, g))
    wide = _wide(x)
    dx = (x.to(wide) - _beside(mean, x)).mul_(_beside(-c, x)).sub_(_beside(b, x))
    return dx.addcmul_(g.to(wide), _beside(a, x)).to(x.dtype)


def takes(x: Tensor) -> bool:
    """True if channel_sums.c works on x here."""
    return (
        x.dtype in (torch.float32, torch.float64)
        and x.device.type == "cpu"
        and type(x) is Tensor
        and not torch.compiler.is_compiling()
        and x.shape[1] > 0
        and x.movedim(1, -1).is_contiguous()
        and _library() is not None
    )


@cache
def _library() -> ctypes.CDLL | None:
    """The library, if there is one.

    No measurement decides here, as it does of other libraries: results would be torch's on one
    machine, or in one process, and exact on another.
    """
    loaded = LIBRARY.load()
    if loaded is not None:
        loaded.contrapose_channels.argtypes = [c_void_p, c_int32, c_int32, c_void_p]
    return loaded


class _Channels(ctypes.Structure):
    _fields_ = (
        ("x", c_void_p), ("g", c_void_p), ("y", c_void_p), ("rows", c_int64),
        ("channels", c_int64), ("of", c_void_p), ("sums", c_void_p), ("wide", c_int32),
    )  # fmt: skip


def _run(task: int, x: Tensor, of: Tensor, g: Tensor | None = None) -> Tensor:
    """The sums [2, C] or the array like x of a task; of: numbers of each channel [1 to 4, C]."""
    library = _library()
    assert library is not None
    of, wide = of.contiguous(), x.dtype == torch.float64
    maps = task in (SCALED, GRADIENT)
    out = torch.empty_like(x) if maps else of.new_empty(2, x.shape[1])
    y, sums = (out.data_ptr(), 0) if maps else (0, out.data_ptr())
    work = _Channels(
        x.data_ptr(), 0 if g is None else g.data_ptr(), y, x.numel() // x.shape[1], x.shape[1],
        of.data_ptr(), sums, wide,
    )  # fmt: skip
    threads = torch.get_num_threads() if x.numel() > SMALL else 1
    if library.contrapose_channels(byref(work), task, threads, team()):
        raise MemoryError(f"batch norm: not enough memory for {x.shape[1]} channels")
    return out


def _stored_as(x: Tensor, g: Tensor) -> Tensor:
    """g in the order and the precision in which x is stored."""
    if g.dtype == x.dtype and g.movedim(1, -1).is_contiguous():
        return g
    return torch.empty_like(x).copy_(g)


def _across(x: Tensor) -> list[int]:
    return [d for d in range(x.ndim) if d != 1]


def _beside(of: Tensor, x: Tensor) -> Tensor:
    """Numbers of each channel, as they are combined with x."""
    return of.to(_wide(x)).view(1, -1, *[1] * (x.ndim - 2))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
