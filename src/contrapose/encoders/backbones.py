"""Backbones: functions that return a module from images [B, C, H, W] to h [B, F].

The attribute `width` of the module is F.
"""

import difflib
import importlib
import itertools
import sys
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from contrapose.errors import UserError

Stem = Literal["imagenet", "cifar"]
M = TypeVar("M", bound=nn.Module)


def keras_defaults(module: M) -> M:
    """Initialise `module` in place as Keras does, weights and batch norms, and return it.

    Kernels U(-l, l) with l = sqrt(6 / (fan_in + fan_out)) (Glorot), biases 0; batch norms have
    eps 1e-3, and their running statistics keep a share of 0.99 in each step.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.momentum, layer.eps = 0.01, 1e-3
    return module


def resnet18(
    *, channels: int = 3, stem: Stem = "imagenet", width_multiple: int = 1, zero_init: bool = False
) -> nn.Module:
    """ResNet-18 (1512.03385), torchvision's, without its classifier: 11 M parameters, width 512.

    stem="cifar": 3x3 convolution of stride 1 and no max-pool (SimCLR B.9), for images of 32 px.
    width_multiple=2|4 multiplies every channel (SimCLR's 2x and 4x). zero_init starts every
    residual branch at zero, as SimCLR's code does.
    """
    return _resnet("basic", (2, 2, 2, 2), channels, stem, width_multiple, zero_init)


def resnet34(
    *, channels: int = 3, stem: Stem = "imagenet", width_multiple: int = 1, zero_init: bool = False
) -> nn.Module:
    """ResNet-34: 21 M parameters, width 512. Options as `resnet18`."""
    return _resnet("basic", (3, 4, 6, 3), channels, stem, width_multiple, zero_init)


def resnet50(
    *, channels: int = 3, stem: Stem = "imagenet", width_multiple: int = 1, zero_init: bool = False
) -> nn.Module:
    """ResNet-50: 24 M parameters (2x: 94 M, 4x: 375 M), width 2048. Options as `resnet18`."""
    return _resnet("bottleneck", (3, 4, 6, 3), channels, stem, width_multiple, zero_init)


def resnet101(
    *, channels: int = 3, stem: Stem = "imagenet", width_multiple: int = 1, zero_init: bool = False
) -> nn.Module:
    """ResNet-101: 43 M parameters, width 2048. Options as `resnet18`."""
    return _resnet("bottleneck", (3, 4, 23, 3), channels, stem, width_multiple, zero_init)


def resnet152(
    *, channels: int = 3, stem: Stem = "imagenet", width_multiple: int = 1, zero_init: bool = False
) -> nn.Module:
    """ResNet-152: 58 M parameters, width 2048. Options as `resnet18`."""
    return _resnet("bottleneck", (3, 8, 36, 3), channels, stem, width_multiple, zero_init)


def resnet200(
    *, channels: int = 3, stem: Stem = "imagenet", width_multiple: int = 1, zero_init: bool = False
) -> nn.Module:
    """ResNet-200 (SupCon's large model): 63 M parameters, width 2048. Options as `resnet18`."""
    return _resnet("bottleneck", (3, 24, 36, 3), channels, stem, width_multiple, zero_init)


def small_conv(*, channels: int = 1, width: int = 256, repeats: int = 1) -> nn.Module:
    """Four 3x3 convolutions with BN and ReLU, strides 1 2 2 2, then the mean over the image.

    For images of 4 to 64 px on a CPU: at 32 px about 1/40 of the operations of ResNet-18. `width`
    is F; the layers have width/8, width/4, width/2 and width channels. repeats: as many layers of
    each width, of which the first has the stride.
    """
    if width < 8 or width % 8 or repeats < 1:
        raise UserError(
            f"small_conv: width={width}, repeats={repeats}; use a positive multiple of 8, and 1 or "
            "more"
        )
    return _SmallConv(channels, width, repeats)


def notebook_conv(*, channels: int = 1) -> nn.Module:
    """Three unpadded 3x3 convolutions of stride 2 (32, 64, 64 channels) and a dense layer of 128.

    The network of the random-bits notebook of "Intriguing Properties" (2011.02803), initialised
    by `keras_defaults`, for images of 28 px only. Every layer has BN and ReLU and no bias.
    """
    return keras_defaults(_NotebookConv(channels))


def timm(*, name: str, channels: int = 3, **options: Any) -> nn.Module:
    """A network of the timm library by its name, without classifier; never downloads weights.

    options: arguments of `timm.create_model`, for example img_size=64; UserError for those that
    read files or change the output. Needs `pip install contrapose[timm]`.
    """
    refused = [
        o for o in options if o.startswith(("pretrained", "checkpoint", "features", "cache"))
    ]
    if refused or {"num_classes", "in_chans"} & options.keys():
        raise UserError(f"timm({name!r}): {', '.join(options)} cannot all be set here")
    try:
        library = importlib.import_module("timm")
    except ImportError as error:
        raise ImportError(
            f"timm({name!r}) needs the timm library: pip install 'contrapose[timm]'"
        ) from error
    names = library.list_models()
    if name.split(".")[0] not in names:
        near = ", ".join(difflib.get_close_matches(name, names, n=5)) or "see timm.list_models()"
        raise UserError(f"timm: no network is called {name!r}; nearest: {near}")
    network: Any = library.create_model(
        name, pretrained=False, num_classes=0, in_chans=channels, **options
    )
    width = getattr(network, "head_hidden_size", None) or network.num_features
    network.width = int(width)
    backbone: nn.Module = network
    return backbone


def last_stage(backbone: nn.Module, size: int) -> tuple[nn.Module | None, int]:
    """(the last stage of a ResNet, the side of its maps in px for images of `size` px).

    (None, 0) for other networks.
    """
    known = sys.modules.get("contrapose.encoders.resnet")  # without it no ResNet was built
    if known is None or not isinstance(backbone, known.ResNet):
        return None, 0
    return backbone.layer4, -(-size // backbone.reduced)


BACKBONES = (
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnet200,
    small_conv,
    notebook_conv,
    timm,
)


def _resnet(
    block: Literal["basic", "bottleneck"],
    layers: tuple[int, int, int, int],
    channels: int,
    stem: Stem,
    width_multiple: int,
    zero_init: bool,
) -> nn.Module:
    from contrapose.encoders.resnet import ResNet  # torchvision takes a second to import

    if stem not in ("imagenet", "cifar"):
        raise UserError(f"resnet: stem={stem!r}; use 'imagenet' or 'cifar'")
    if width_multiple < 1 or channels < 1:
        raise UserError(
            f"resnet: width_multiple={width_multiple}, channels={channels}; both must be at least 1"
        )
    return ResNet(block, layers, channels, stem, width_multiple, zero_init)


class _SmallConv(nn.Module):
    def __init__(self, channels: int, width: int, repeats: int) -> None:
        super().__init__()
        self.width = width
        layers: list[nn.Module] = []
        own = [width // 8, width // 4, width // 2, width]
        widths = [channels, *(w for w in own for _ in range(repeats))]
        strides = [s if k == 0 else 1 for s in (1, 2, 2, 2) for k in range(repeats)]
        for (fan_in, fan_out), stride in zip(itertools.pairwise(widths), strides, strict=True):
            conv = nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(fan_out), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < 4:
            raise UserError(f"small_conv: images of {tuple(x.shape[2:])} px; needs at least 4 px")
        features: Tensor = self.layers(x)
        return features.mean(dim=(2, 3))


class _NotebookConv(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = 128
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise((channels, 32, 64, 64)):
            layers += [nn.Conv2d(fan_in, fan_out, 3, stride=2, bias=False)]
            layers += [nn.BatchNorm2d(fan_out), nn.ReLU(inplace=True)]
        dense = nn.Linear(2 * 2 * 64, self.width, bias=False)  # 28 -> 13 -> 6 -> 2 px
        layers += [nn.Flatten(), dense, nn.BatchNorm1d(self.width), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (28, 28):
            raise UserError(f"notebook_conv: images of {tuple(x.shape[2:])} px; it takes 28 px")
        h: Tensor = self.layers(x)
        return h
