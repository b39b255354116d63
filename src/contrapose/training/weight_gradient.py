"""The gradient of the first convolution's weights, summed in float64.

    dL/dw[o, c, k] = sum over images n and positions p of  g[n, o, p] x[n, c, s p - padding + k]

At a background of one value it adds up the same product at nearly every position: in float32 each
addition rounds to the same side. On MNIST the sum is off by 1e-3 of the gradient, and on other
numbers of ranks by another 1e-3. Layers behind it, whose inputs differ, are off by 1e-5.

weight_gradient.c computes it for images of up to CHANNELS channels in float32 on a CPU. All else is
torch's, and so is all where there is no library.
"""

import ctypes
from ctypes import byref, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from contrapose.compiler import Library
from contrapose.threads import team

CHANNELS = 4  # of images; the work grows with them
LIBRARY = Library(
    Path(__file__).with_name("weight_gradient.c"),
    "torch",
    "the gradient of the first convolution is computed by torch, less exactly than by a library "
    "compiled for this processor",
)


class FirstConvolution(nn.Conv2d):
    """torch's Conv2d, of images: the gradient of its weights is summed in float64."""

    def forward(self, input: Tensor) -> Tensor:
        takes = (
            self.training
            and self.weight.requires_grad
            and torch.is_grad_enabled()
            and not input.requires_grad
            and type(input) is Tensor
            and input.ndim == 4
            and input.device.type == "cpu"
            and input.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and _library() is not None
        )
        if not takes:
            return super().forward(input)
        how = self.stride, self.padding, self.dilation
        return _Convolved.apply(input, self.weight, *how)  # type: ignore[no-any-return]


def sum_first_exactly(encoder: nn.Module) -> None:
    """Make torch's own convolutions of images, without a bias, FirstConvolution, in place."""
    for layer in encoder.modules():
        if (
            type(layer) is nn.Conv2d
            and layer.in_channels <= CHANNELS
            and layer.groups == 1
            and layer.bias is None
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        ):
            layer.__class__ = FirstConvolution


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, *how):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return torch.nn.functional.conv2d(x, weight, None, *how)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        dw = weight_gradient(x, g, weight.shape[2:], *ctx.how)
        return None, torch.empty_like(weight).copy_(dw), None, None, None  # stored as the weights


def weight_gradient(
    x: Tensor,
    g: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """dL/dw [O, C, *kernel] in float64 of a convolution of x [N, C, H, W], whose output has the
    gradient g [N, O, ...], both in float32."""
    library = _library()
    assert library is not None
    (images, channels, *size), (_, out, *reached) = x.shape, g.shape
    dw = torch.empty(channels, *kernel, out, dtype=torch.float64)
    work = _Convolution(
        x.data_ptr(), g.data_ptr(), dw.data_ptr(), _four(*x.stride()), _four(*g.stride()),
        images, channels, *size, out, *reached,
        *(_two(*of) for of in (kernel, stride, padding, dilation)),
    )  # fmt: skip
    if library.contrapose_weight_gradient(byref(work), torch.get_num_threads(), team()):
        raise MemoryError(f"not enough memory for the gradient of {out} x {channels} kernels")
    return dw.permute(3, 0, 1, 2)


_two, _four = c_int64 * 2, c_int64 * 4


class _Convolution(ctypes.Structure):
    _fields_ = (
        ("x", c_void_p), ("g", c_void_p), ("dw", c_void_p), ("x_stride", _four),
        ("g_stride", _four), ("images", c_int64), ("channels", c_int64), ("height", c_int64),
        ("width", c_int64), ("out", c_int64), ("high", c_int64), ("wide", c_int64),
        ("kernel", _two), ("stride", _two), ("padding", _two), ("dilation", _two),
    )  # fmt: skip


@cache
def _library() -> ctypes.CDLL | None:
    loaded = LIBRARY.load()
    if loaded is not None:
        loaded.contrapose_weight_gradient.argtypes = [c_void_p, c_int32, c_void_p]
    return loaded
