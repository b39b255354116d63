"""Estimation of the running statistics of batch normalisation after short training.

A running mean and variance start at 0 and 1 and move by `momentum` with each update, so that after
n updates the start still has the weight (1 - momentum)^n: 15 % after 18 updates of momentum 0.1.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from contrapose.augment import views
from contrapose.data import ImageSet
from contrapose.encoders import Encoder
from contrapose.progress import counted

LEFT = 0.01  # share of the first values above which running statistics are estimated
IMAGES = 4096  # at most, from which they are estimated


def fewest_updates(encoder: nn.Module) -> int | None:
    """The fewest updates of a layer whose initial statistics have a weight above LEFT, or None.

    Layers in evaluation mode, which training does not change, do not count.
    """
    counts = [
        updates
        for layer in _layers(encoder)
        if layer.momentum is not None
        and (1 - layer.momentum) ** (updates := _updates(layer)) > LEFT
    ]
    return min(counts, default=None)


@torch.no_grad()
def estimate_statistics(
    encoder: Encoder,
    images: ImageSet,
    policy: Callable[..., Tensor],
    *,
    seed: int = 0,
    number_of_views: int = 2,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> int:
    """Set the running statistics of layers in training mode to their means over training views.

    Uses `number_of_views` views of up to IMAGES images, drawn by the seed, and returns the number
    of images. Weights, modes and counts of updates stay as they are.
    """
    layers = _layers(encoder)
    if not layers:
        return 0
    kept = [(layer.momentum, _updates(layer)) for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
    draw = torch.Generator().manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    chosen = torch.randperm(len(images), generator=draw)[:IMAGES]
    encoder.to(device)
    batches = torch.tensor_split(chosen, max(1, round(len(chosen) / batch_size)))
    for index in counted(batches, "statistics of batch normalisation"):
        seen = views(policy, images.batch(index).to(device), generator, n=number_of_views)
        encoder(seen.flatten(0, 1))
    for layer, (momentum, updates) in zip(layers, kept, strict=True):
        layer.momentum = momentum
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(updates)
    return len(chosen)


def _layers(encoder: nn.Module) -> list[_BatchNorm]:
    return [
        module
        for module in encoder.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]


def _updates(layer: _BatchNorm) -> int:
    return 0 if layer.num_batches_tracked is None else int(layer.num_batches_tracked)
