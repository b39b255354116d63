"""Time and memory of a run on this machine, measured on a few steps before it begins."""

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from contrapose.data import ImageSet, batches_ahead
from contrapose.encoders import Encoder, fastest_layout
from contrapose.machine import freed_memory_kept
from contrapose.progress import duration
from contrapose.training.batches import shuffled
from contrapose.training.global_batchnorm import exactly
from contrapose.training.recipe import Recipe
from contrapose.training.trials import timed_step, try_step

FEW = 2  # images of the first measured step
ENOUGH = 0.1  # s: a measured step that takes as long is not repeated with more images
OPTIMIZER = 3  # copies of the weights that gradients and optimiser state take, at most (Adam)
FORWARD = 1 / 3  # of the time of a view in a step: a second stage has no backward pass but the last
BESIDE = 1.1  # memory of a step over what its backward pass keeps: gradients on the way, buffers


@dataclass(frozen=True)
class Cost:
    """Time and memory of training by a recipe, extrapolated from a few steps."""

    images_per_second: float
    seconds: float  # of all epochs; evaluation comes on top
    memory: float  # bytes, at the peak of a step, the images included, and those read ahead
    parameters: int

    def words(self) -> str:
        """The cost in words: `about 12 min at 700 images/s, 1.1 GB`."""
        speed = self.images_per_second
        return (
            f"about {duration(self.seconds)} at {speed:,.{0 if speed >= 10 else 1}f} images/s, "
            f"{max(self.memory / 1e9, 0.1):.1f} GB"
        )


def cost(
    recipe: Recipe, images: ImageSet, network: Encoder, device: str = "cpu", *, bf16: bool = False
) -> Cost:
    """Train a copy of the network on a few images, and scale to the recipe's batch and epochs.

    Memory is that of the tensors which the backward pass keeps, counted by
    `torch.autograd.graph.saved_tensors_hooks` (every storage once) and proportional to the rows,
    times BESIDE; weights, their gradients and the optimiser's state; and the images. Measured
    against the peak of a whole step: ResNet-18 at 32 px, batch 128, 1.5 for 1.3 GB; at 224 px,
    batch 64, 3.3 for 3.1 GB; ResNet-50 at 224 px, batch 32, 6.4 for 5.2 GB (an EPYC with AVX-512).
    The loss, which is small beside it, is left out. The random state is left as it was.
    """
    own = [torch.device(device)] if device.startswith("cuda") else []
    with (
        torch.random.fork_rng(devices=own),
        warnings.catch_warnings(action="ignore"),
        freed_memory_kept(),
    ):
        trial = copy.deepcopy(network).to(device).train()
        trial = exactly(fastest_layout(trial, recipe.size, bf16=bf16))
        count, kept = min(FEW, recipe.batch_size), 0.0
        while True:
            index = shuffled(len(images), recipe.seed, 0, recipe.batch_size)[0][:count]
            picture = images.batch(index).to(device)
            if not kept:  # the first step also warms up
                kept = _kept(trial, recipe, picture, bf16) / count
            took = min(timed_step(trial, recipe, picture, bf16) for _ in range(2))
            if took > ENOUGH or count == recipe.batch_size:
                break
            count = min(recipe.batch_size, count * 8)
    speed = count / took
    steps = max(1, int(len(images) // recipe.batch_size * recipe.epochs))
    seconds = steps * recipe.batch_size / speed
    if recipe.second_stage is not None:
        second = recipe.second_stage(recipe)
        seen = max(1, int(len(images) // second.batch_size * second.epochs)) * second.batch_size
        seconds += seen * FORWARD * second.number_of_views / recipe.number_of_views / speed
    rows = recipe.batch_size * recipe.number_of_views
    at_once = recipe.batch_size * min(1.0, (recipe.chunk or rows) / rows)
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    stored = len(images) * images.channels * images.size**2 if images.in_memory else 0
    stored += batches_ahead(images, recipe.batch_size)[1]
    return Cost(
        images_per_second=speed,
        seconds=seconds,
        memory=BESIDE * kept * at_once + (1 + OPTIMIZER) * weights + stored,
        parameters=sum(p.numel() for p in network.parameters()),
    )


def _kept(trial: Encoder, recipe: Recipe, picture: Tensor, bf16: bool) -> float:
    """Bytes of the tensors that one step keeps for its backward pass, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in trial.parameters()}
    seen: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        try_step(trial, recipe, picture, bf16)
    return float(sum(seen.values()))
