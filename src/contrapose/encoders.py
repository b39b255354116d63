"""Encoders: a backbone gives the representation h, a head gives the embedding z on the sphere.

Backbones and heads are plain functions that return modules, so that a recipe can hold them as
`functools.partial(resnet18, stem="cifar")` and `functools.partial(mlp, dim=128)`. Whitening
belongs to the network that needs it: the encoder holds `mean` and `std`, images stay in [0, 1].
"""

import difflib
import importlib
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

import safetensors
import torch
from jaxtyping import Float
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from contrapose.partials import describe, revive

Stem = Literal["imagenet", "cifar"]
M = TypeVar("M", bound=nn.Module)


class Encoder(nn.Module):
    """x -> h = backbone((x - mean) / std) -> z = head(h) / |head(h)|.

    `backbone` has an attribute `width`, the F of h [B F]; `head` maps [B F] to [B D]. `mean` and
    `std` have one number per channel of images in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, head: nn.Module, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ValueError(
                f"Encoder: mean {tuple(mean)} and std {tuple(std)} must have one number per "
                "channel each, and every std must be positive"
            )
        self.backbone, self.head = backbone, head
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

        self.architecture: dict[str, Any] | None = None

    @classmethod
    def build(
        cls,
        backbone: Callable[..., nn.Module],
        head: Callable[..., nn.Module],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> "Encoder":
        """backbone() and head(width) put together, and remembered so that a file can name them."""
        body = backbone()
        encoder = cls(body, head(body.width), mean, std)
        encoder.architecture = {"backbone": describe(backbone), "head": describe(head)}
        return encoder

    @classmethod
    def load(cls, path: Path | str, own: ModuleType | None = None) -> "Encoder":
        """The encoder of a run folder or of a .safetensors file, in evaluation mode.

        No code of the file is executed: it names functions of this library, or of `own`, the module
        of a recipe file that you trust. Raises FileNotFoundError or ValueError.
        """
        path = Path(path)
        file = path / "encoder.safetensors" if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist: nothing was saved there yet")
        try:
            with safetensors.safe_open(file, framework="pt") as opened:
                written = (opened.metadata() or {}).get("encoder")
                weights = {name: opened.get_tensor(name) for name in opened.keys()}
        except safetensors.SafetensorError as error:
            raise ValueError(f"{file} is damaged ({error})") from None
        if written is None:
            raise ValueError(f"{file} names no architecture; was it written by contrapose?")
        architecture = json.loads(written)
        mean, std = (weights[name].tolist() for name in ("mean", "std"))
        backbone, head = (revive(architecture[part], own) for part in ("backbone", "head"))
        encoder = cls.build(backbone, head, mean, std)
        encoder.load_state_dict(weights)
        return encoder.eval()

    def to_bytes(self) -> bytes:
        """The safetensors file that `load` reads: weights, and the names of their architecture."""
        weights = {name: x.detach().cpu().contiguous() for name, x in self.state_dict().items()}
        return safetensors_bytes(weights, metadata={"encoder": json.dumps(self.architecture)})

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def width(self) -> int:
        """F, the width of the representation h."""
        return int(self.backbone.width)  # type: ignore[arg-type]

    def represent(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        """h, the representation that is kept after training; x is float in [0, 1]."""
        if x.ndim != 4 or x.shape[1] != self.channels or not x.is_floating_point():
            raise ValueError(
                f"Encoder: got {x.dtype} of shape {tuple(x.shape)}; needs float images in [0, 1] "
                f"of shape [B {self.channels} H W]"
            )
        h: Tensor = self.backbone((x - self.mean[:, None, None]) / self.std[:, None, None])
        return h

    def forward(self, x: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B F"], Tensor]:
        """(h, z): z [B D] is float32 of unit length whatever the precision of the network."""
        h = self.represent(x)
        return h, unit(self.head(h))


def unit(x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """x / |x| in float32 at least; a row shorter than 1e-6 has no direction and stays as it is.

    Dividing such a row by its length would give a gradient of up to 1/|x|, and one dead row would
    outweigh the batch.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(length < 1e-6, 1.0, length)


def keras_defaults(module: M) -> M:
    """Draw the weights and set the batch norms of `module` as Keras's layers begin; returns it.

    Kernels U(-l, l) with l = sqrt(6 / (fan_in + fan_out)) (Glorot), biases 0; running statistics
    keep 0.99 of themselves a step, and batch norm's eps is 1e-3.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.momentum, layer.eps = 0.01, 1e-3
    return module


# ---- backbones: a module with `width` ------------------------------------------------------------


def resnet18(
    *, channels: int = 3, stem: Stem = "imagenet", width_multiple: int = 1, zero_init: bool = False
) -> nn.Module:
    """ResNet-18 (1512.03385), torchvision's, without its classifier: 11 M parameters, width 512.

    stem="cifar": 3x3 convolution of stride 1 and no max-pool (SimCLR B.9), for images of 32 px.
    width_multiple=2|4 multiplies every channel (SimCLR's 2x and 4x). zero_init starts every
    residual branch at zero, as SimCLR's code does.
    """
    return _ResNet(BasicBlock, (2, 2, 2, 2), channels, stem, width_multiple, zero_init)


def resnet34(
    *, channels: int = 3, stem: Stem = "imagenet", width_multiple: int = 1, zero_init: bool = False
) -> nn.Module:
    """ResNet-34: 21 M parameters, width 512. Options as `resnet18`."""
    return _ResNet(BasicBlock, (3, 4, 6, 3), channels, stem, width_multiple, zero_init)


def resnet50(
    *, channels: int = 3, stem: Stem = "imagenet", width_multiple: int = 1, zero_init: bool = False
) -> nn.Module:
    """ResNet-50: 24 M parameters (2x: 94 M, 4x: 375 M), width 2048. Options as `resnet18`."""
    return _ResNet(Bottleneck, (3, 4, 6, 3), channels, stem, width_multiple, zero_init)


def resnet101(
    *, channels: int = 3, stem: Stem = "imagenet", width_multiple: int = 1, zero_init: bool = False
) -> nn.Module:
    """ResNet-101: 43 M parameters, width 2048. Options as `resnet18`."""
    return _ResNet(Bottleneck, (3, 4, 23, 3), channels, stem, width_multiple, zero_init)


def resnet152(
    *, channels: int = 3, stem: Stem = "imagenet", width_multiple: int = 1, zero_init: bool = False
) -> nn.Module:
    """ResNet-152: 58 M parameters, width 2048. Options as `resnet18`."""
    return _ResNet(Bottleneck, (3, 8, 36, 3), channels, stem, width_multiple, zero_init)


def resnet200(
    *, channels: int = 3, stem: Stem = "imagenet", width_multiple: int = 1, zero_init: bool = False
) -> nn.Module:
    """ResNet-200 (SupCon's large model): 63 M parameters, width 2048. Options as `resnet18`."""
    return _ResNet(Bottleneck, (3, 24, 36, 3), channels, stem, width_multiple, zero_init)


def small_conv(*, channels: int = 1, width: int = 256) -> nn.Module:
    """Four 3x3 convolutions with BN and ReLU, strides 1 2 2 2, then the mean over the image.

    For 4 to 64 px and work on a CPU: at 32 px about 1/40 of the arithmetic of ResNet-18. `width`
    is F; the layers have width/8, width/4, width/2 and width channels.
    """
    if width < 8 or width % 8:
        raise ValueError(f"small_conv: width={width}; use a positive multiple of 8")
    return _SmallConv(channels, width)


def notebook_conv(*, channels: int = 1) -> nn.Module:
    """Three unpadded 3x3 convolutions of stride 2 (32, 64, 64 channels) and a dense layer of 128.

    The network of the random-bits notebook of "Intriguing Properties" (2011.02803) with its
    `keras_defaults`, for images of 28 px only; no layer has a bias, each has BN and ReLU.
    """
    return keras_defaults(_NotebookConv(channels))


def timm(*, name: str, channels: int = 3, **options: Any) -> nn.Module:
    """Any network of the timm library by its name, without classifier; never downloads weights.

    `options` go to `timm.create_model`, e.g. img_size=64; those that read files or change
    what comes out are refused. Needs `pip install contrapose[timm]`.
    """
    refused = [
        o for o in options if o.startswith(("pretrained", "checkpoint", "features", "cache"))
    ]
    if refused or {"num_classes", "in_chans"} & options.keys():
        raise ValueError(f"timm({name!r}): {', '.join(options)} cannot all be set here")
    try:
        library = importlib.import_module("timm")
    except ImportError as error:
        raise ImportError(
            f"timm({name!r}) needs the timm library: pip install 'contrapose[timm]'"
        ) from error
    names = library.list_models()
    if name.split(".")[0] not in names:
        near = ", ".join(difflib.get_close_matches(name, names, n=5)) or "see timm.list_models()"
        raise ValueError(f"timm: no network is called {name!r}; nearest: {near}")
    network: Any = library.create_model(
        name, pretrained=False, num_classes=0, in_chans=channels, **options
    )
    width = getattr(network, "head_hidden_size", None) or network.num_features
    network.width = int(width)
    backbone: nn.Module = network
    return backbone


# ---- heads: from the width of h to the embedding, before normalisation ---------------------------


def none(width: int) -> nn.Module:
    """z is h itself."""
    return nn.Identity()


def linear(width: int, *, dim: int = 128, batch_norm: bool = True) -> nn.Module:
    """One dense layer: bias-free with BN (SimCLR's code), or with a bias and no BN (MoCo v1)."""
    return mlp(width, dim=dim, layers=1, batch_norm=batch_norm)


def mlp(
    width: int,
    *,
    dim: int = 128,
    layers: int = 2,
    hidden: int | None = None,
    batch_norm: bool | Literal["hidden"] = True,
) -> nn.Module:
    """z = W2 relu(W1 h), or deeper: `layers` counts the dense layers.

    batch_norm=True puts BN after every dense layer, the last one without offset (SimCLR's code);
    "hidden" leaves the last layer plain; False is the paper's formula. A dense layer without BN
    has a bias. `hidden` is the width of the hidden layers, by default that of h.
    """
    if layers < 1 or dim < 1:
        raise ValueError(f"mlp: layers={layers}, dim={dim}; both must be at least 1")
    if batch_norm not in (True, False, "hidden"):
        raise ValueError(f"mlp: batch_norm={batch_norm!r}; use True, False or 'hidden'")
    widths = [width, *[hidden or width] * (layers - 1), dim]
    modules: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), start=1):
        last = i == layers
        normed = batch_norm is True or (batch_norm == "hidden" and not last)
        modules.append(nn.Linear(fan_in, fan_out, bias=not normed))
        if normed:
            modules.append(nn.BatchNorm1d(fan_out))
            if last:
                modules[-1].register_parameter("bias", None)
        if not last:
            modules.append(nn.ReLU(inplace=True))
    return nn.Sequential(*modules)


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
HEADS = (none, linear, mlp)


class _ResNet(ResNet):  # type: ignore[misc]
    """torchvision's ResNet (same parameter names) with a stem, a width and no classifier."""

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: tuple[int, int, int, int],
        channels: int,
        stem: Stem,
        width_multiple: int,
        zero_init: bool,
    ) -> None:
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"resnet: stem={stem!r}; use 'imagenet' or 'cifar'")
        if width_multiple < 1 or channels < 1:
            raise ValueError(
                f"resnet: width_multiple={width_multiple}, channels={channels}; "
                "both must be at least 1"
            )
        self.width_multiple = width_multiple  # read by _make_layer while ResNet builds itself
        super().__init__(block, list(layers), num_classes=1, zero_init_residual=zero_init)
        first = 64 * width_multiple
        if stem == "cifar":
            self.conv1 = nn.Conv2d(channels, first, 3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, first, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(first)
        self.fc = nn.Identity()
        self.width = self.inplanes

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == 64:  # the first stage: its input comes from the widened stem
            self.inplanes *= self.width_multiple
        stage: nn.Sequential = super()._make_layer(
            block, planes * self.width_multiple, *args, **kwargs
        )
        return stage


class _SmallConv(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.width = width
        layers: list[nn.Module] = []
        widths = [channels, width // 8, width // 4, width // 2, width]
        for (fan_in, fan_out), stride in zip(itertools.pairwise(widths), (1, 2, 2, 2), strict=True):
            conv = nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(fan_out), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < 4:
            raise ValueError(f"small_conv: images of {tuple(x.shape[2:])} px; needs at least 4 px")
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
            raise ValueError(f"notebook_conv: images of {tuple(x.shape[2:])} px; it takes 28 px")
        h: Tensor = self.layers(x)
        return h
