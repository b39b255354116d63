"""A port of S0's random-bits notebook: its network, data and training loop.

All details are those of the notebook: TensorFlow's crops, Keras's layers and Adam, the order of
TensorFlow Datasets with the same batches in every epoch, one forward pass for each view. `Details`
lists those that a port can easily miss.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor, nn

from contrapose.augment import draw_box_tf, resized_crop
from contrapose.data import ImageSet, open_images
from contrapose.data.composed import features_of, random_bits
from contrapose.encoders import keras_defaults, notebook_conv, unit
from contrapose.errors import UserError
from contrapose.evaluation import probes
from contrapose.evaluation.ridge import Ridge
from contrapose.experiments.running.folders import note_progress
from contrapose.losses import clip
from contrapose.machine import freed_memory_kept
from contrapose.training.optim import adam, linear

SIZE = 28  # px
PROBED = 10_000  # training images from which what h shows is read afterwards
Loss = Callable[..., Float[Tensor, ""]]  # (z_a, z_b, temperature=)


def cross_view(
    a: Float[Tensor, "B D"], b: Float[Tensor, "B D"], *, temperature: float
) -> Float[Tensor, ""]:
    """InfoNCE of view a among views b, plus that of b among a, with B - 1 negatives each."""
    return 2 * clip(a, b, scale=1 / temperature)


@dataclass(frozen=True, kw_only=True)
class Details:
    """The details of the notebook, many of them defaults of its library."""

    network: Callable[..., nn.Module] = notebook_conv  # (channels=) -> image to h
    start: Callable[[nn.Module], nn.Module] = keras_defaults
    boxes: Callable[..., Int[Tensor, "B 4"]] = draw_box_tf
    order: str = "notebook"  # of the images: "notebook", "file" or "shuffled" every epoch
    loss: Loss = cross_view
    eps: float = 1e-7  # Adam's, beside the root before its bias is corrected
    penalty: float = 1e-4  # times the squares of all kernels but the classifier's
    together: bool = False  # both views in one pass, with common batch statistics


NOTEBOOK = Details()


class Network(nn.Module):
    """The network from image and bits to h, z and the logits of the classifier."""

    def __init__(self, bits: int, classes: int, details: Details = NOTEBOOK) -> None:
        super().__init__()
        self.backbone = details.start(details.network(channels=1 + bits))
        width = 128
        self.head = nn.Sequential(
            nn.Linear(width, 2 * width, bias=False),
            nn.BatchNorm1d(2 * width),
            nn.ReLU(inplace=True),
            nn.Linear(2 * width, width // 2, bias=False),
        )
        self.classifier = keras_defaults(nn.Linear(width, classes))
        details.start(self.head)
        self.to(memory_format=torch.channels_last)

    def represent(
        self, view: Float[Tensor, "B 28 28"], bits: Float[Tensor, "B b"]
    ) -> Float[Tensor, "B 128"]:
        layers = getattr(self.backbone, "layers", None)
        if layers is None:  # another network
            flat = bits[:, :, None, None].expand(-1, -1, *view.shape[1:])
            h: Tensor = self.backbone(torch.cat([view[:, None], flat], dim=1))
            return h
        x = folded_layer(view, bits, layers[0].weight, layers[1])
        for layer in layers[3:]:
            x = layer(x)
        return x

    def embed(self, h: Float[Tensor, "B 128"]) -> Float[Tensor, "B 64"]:
        return unit(self.head(h))


def folded_layer(
    view: Float[Tensor, "B H W"],
    bits: Float[Tensor, "B b"],
    kernel: Float[Tensor, "C 1+b 3 3"],
    norm: nn.BatchNorm2d,
) -> Float[Tensor, "B C h w"]:
    """relu(norm(conv([view, bits]))), stride 2, unpadded, in one product and one pass.

    Without padding a constant channel adds a constant: c = bits . (sum of its nine weights). The
    layer is y = P K + c, with P the patches of nine pixels, so that its batch statistics follow
    from those of P:   mean = mean(P) K + mean(c),   var = K' cov(P) K + 2 cov(mean_b(P) K, c) +
    var(c), where mean_b is that over the patches of image b. Batch norm then scales K and shifts c.
    """
    count, height, width = view.shape
    tall, wide = (height - 3) // 2 + 1, (width - 3) // 2 + 1
    strides = (height * width, 2 * width, 2, width, 1)
    patch = view.contiguous().as_strided((count, tall, wide, 3, 3), strides).reshape(-1, 9)
    K = kernel[:, 0].flatten(1).T
    c = bits @ kernel[:, 1:].sum(dim=(2, 3)).T
    if norm.training:
        average = patch.view(count, -1, 9).mean(dim=1)
        centre = average.mean(dim=0)
        covariance = patch.T @ patch / len(patch) - torch.outer(centre, centre)
        own, shift = (average - centre) @ K, c - c.mean(dim=0)
        mean = centre @ K + c.mean(dim=0)
        var = (K * (covariance @ K)).sum(dim=0) + (2 * own * shift + shift * shift).mean(dim=0)
        _follow(norm, mean.detach(), var.detach() * len(patch) / (len(patch) - 1))
    else:
        assert norm.running_mean is not None and norm.running_var is not None
        mean, var = norm.running_mean, norm.running_var
    scale = norm.weight * (var + norm.eps).rsqrt()
    y: Tensor = _ReluOfSum.apply(patch, K * scale, (c - mean) * scale + norm.bias)
    return y.view(count, tall, wide, -1).permute(0, 3, 1, 2)


def _follow(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None and norm.momentum
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(var, norm.momentum)


class _ReluOfSum(torch.autograd.Function):
    """relu(P K + c) with a row of c for each image, [B, n, C]; P takes no gradient."""

    @staticmethod
    def forward(ctx, patch, kernel, offset):  # type: ignore[no-untyped-def]
        y = (patch @ kernel).view(len(offset), -1, kernel.shape[1]).add_(offset[:, None]).relu_()
        ctx.save_for_backward(patch, y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        patch, y = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, y, 0)
        return None, patch.T @ grad.view(len(patch), -1), grad.sum(dim=1)


@freed_memory_kept()
def cell(
    folder: Path,
    *,
    bits: int,
    temperature: float,
    seed: int,
    images: str = "mnist",
    epochs: int = 10,
    batch_size: int = 1000,
    details: Details = NOTEBOOK,
) -> dict[str, float]:
    """Train and test one cell of the table.

    The seed determines weights and crops. Bits are hashed from pixels, the same for all seeds.
    """
    train, test = (with_bits(images, split, bits) for split in ("train", "test"))
    torch.manual_seed(seed)
    network = Network(bits, len(train.classes), details)
    generator = Generator().manual_seed(seed)
    optimizers = optimizers_of(network, details)
    batches = _batches(details.order, len(train.pixel), batch_size, generator)
    steps = epochs * (len(train.pixel) // batch_size)
    loss = math.nan
    for step, index in zip(range(steps - 1), batches, strict=False):  # the last is never taken
        rate = 1e-3 * linear(step, steps)
        loss = _step(network, optimizers, train, index, rate, step, temperature, details, generator)
        note_progress(folder, step / steps)
    return read_out(network, train, test, seed) | {"loss": loss}


def read_out(network: Network, train: "Digits", test: "Digits", seed: int) -> dict[str, float]:
    """Accuracies from h: of the jointly trained classifier, of logistic regression, of the bits."""
    network.eval()
    some = Digits(train.pixel[:PROBED], train.bits[:PROBED], train.label[:PROBED], train.classes)
    h, h_test = (represented(network, part) for part in (some, test))
    named = network.classifier(h_test).argmax(dim=1)
    solved = probes.linear_probe(h, some.label, l2=1.0, seed=seed)
    return {
        "accuracy": _share(named, test.label),
        "readable": _share(solved.predict(h_test), test.label),
        "bits_readable": _bits_readable(h, some.bits, h_test, test.bits),
    }


def _step(
    network: Network,
    optimizers: Sequence[torch.optim.Optimizer],
    train: "Digits",
    index: Int[Tensor, " B"],
    rate: float,
    step: int,
    temperature: float,
    details: Details,
    generator: Generator,
) -> float:
    pixel, bits, label = train.pixel[index], train.bits[index], train.label[index]
    views = [cropped(pixel, details, generator) for _ in range(2)]
    if details.together:
        both = network.represent(torch.cat(views), bits.repeat(2, 1))
        h, (a, b) = both[: len(index)], network.embed(both).chunk(2)
    else:
        h, other = (network.represent(view, bits) for view in views)
        a, b = network.embed(h), network.embed(other)
    contrast = details.loss(a, b, temperature=temperature)
    named = F.cross_entropy(network.classifier(h.detach()), label)
    update(optimizers, contrast + named, rate, step, details)
    return float(contrast.detach())


def update(
    optimizers: Sequence[torch.optim.Optimizer],
    loss: Float[Tensor, ""],
    rate: float,
    step: int,
    details: Details = NOTEBOOK,
) -> None:
    """One step of Keras's Adam down the loss."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = rate
            # Keras adds eps to the root of the moment that is not yet corrected for its start
            group["eps"] = details.eps / math.sqrt(1 - 0.999 ** (step + 1))
    loss.backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()


def optimizers_of(network: Network, details: Details) -> list[torch.optim.Optimizer]:
    decayed = nn.ModuleList([network.backbone, network.head])
    return [
        adam(decayed, 1e-3, weight_decay=2 * details.penalty),
        adam(network.classifier, 1e-3),
    ]


def cropped(
    pixel: UInt8[Tensor, "B 28 28"], details: Details, generator: Generator
) -> Float[Tensor, "B 28 28"]:
    box = details.boxes(len(pixel), SIZE, SIZE, generator, area=(0.5, 1.0))
    return resized_crop(pixel[:, None], box, SIZE)[:, 0]


@dataclass(frozen=True)
class Digits:
    """A split of the set: images, the bits hashed from each, and its class."""

    pixel: UInt8[Tensor, "N 28 28"]
    bits: Float[Tensor, "N b"]
    label: Int[Tensor, " N"]
    classes: tuple[str, ...]


def with_bits(name: str, split: str, bits: int) -> Digits:
    """Images in the order of TensorFlow Datasets, and their bits."""
    images = open_images(name, split=split, size=SIZE)
    assert images.label is not None
    if images.split != "all":
        images = images.subset(tfds_order(len(images), split))
    column = _bits_of(images, bits)
    pixel = images.batch(torch.arange(len(images)))[:, 0]
    assert images.label is not None
    return Digits(pixel, column, images.label, images.classes)


def _bits_of(images: ImageSet, bits: int) -> Float[Tensor, "N b"]:
    if not bits:
        return torch.zeros(len(images), 0)
    features = features_of(random_bits(images, bits=bits))
    return torch.stack([features[f"bit {j}"] for j in range(bits)], dim=1).float()


def tfds_order(n: int, split: str) -> Int[Tensor, " n"]:
    """The order of images in TensorFlow Datasets, for a set that it stores in one shard.

    It sorts them by the md5 of the split's name and the position as text.
    """
    keys = [hashlib.md5(f"{split}{i}".encode(), usedforsecurity=False).digest() for i in range(n)]
    return torch.tensor(sorted(range(n), key=keys.__getitem__))


def _batches(
    order: str, n: int, batch_size: int, generator: Generator
) -> Iterator[Int[Tensor, " B"]]:
    """An endless iterator of batches; the images are already in the notebook's order."""
    if order not in ("notebook", "file", "shuffled"):
        raise UserError(f"order {order!r}; use 'notebook', 'file' or 'shuffled'")
    index = torch.arange(n)
    if order == "file":
        index = tfds_order(n, "train").argsort()
    while True:
        if order == "shuffled":
            index = torch.randperm(n, generator=generator)
        yield from torch.split(index[: n // batch_size * batch_size], batch_size)


@torch.no_grad()
def represented(network: Network, images: Digits) -> Float[Tensor, "N 128"]:
    """h of the images without augmentation."""
    pieces = torch.split(torch.arange(len(images.pixel)), 1000)
    return torch.cat([network.represent(images.pixel[p] / 255, images.bits[p]) for p in pieces])


def _share(named: Int[Tensor, " N"], label: Int[Tensor, " N"]) -> float:
    return float((named == label).double().mean())


def _bits_readable(h: Tensor, bits: Tensor, h_test: Tensor, bits_test: Tensor) -> float:
    """Share of the test images' bits that least squares on h predicts; 0.5 is chance."""
    if not bits.shape[1]:
        return math.nan
    one = torch.ones(1)
    x, x_test = (torch.cat([a, one.expand(len(a), 1)], dim=1).double() for a in (h, h_test))
    weight = Ridge(x, bits - 0.5).weight(1e-3 * len(x))
    return float((((x_test @ weight) > 0) == (bits_test > 0.5)).double().mean())
