"""Which images share a batch, and which of them repel each other: what a recipe's `batches` makes.

`conditional(images, batch_size, sizes=...)` and its like are called once, when training begins; a
recipe binds the other arguments. Without one it is `drawn`: every epoch draws its images anew and
all images of a batch repel each other.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from contrapose.augment import center
from contrapose.data import ImageSet
from contrapose.encoders import Encoder, mlp, modes_kept, small_conv
from contrapose.errors import UserError
from contrapose.training.conditional import (
    ASKED,
    SIZES,
    group_size,
    neighbour_groups,
    told_apart,
)

if TYPE_CHECKING:
    from contrapose.training.recipe import Recipe


UNTRAINED = ASKED * SIZES[0]  # images that an untrained encoder is asked about


@runtime_checkable
class Batches(Protocol):
    """What a recipe's `batches` makes; its state is part of every checkpoint."""

    @property
    def size(self) -> int | None:
        """Images of a part, of which a batch has whole ones; None: the batch is one part."""

    def possible_sizes(self, recipe: "Recipe") -> list[int]:
        """The sizes of parts that may come. Raises ValueError for a recipe that does not fit."""

    def begin(self, epoch: int, encoder: Encoder, images: ImageSet, recipe: "Recipe") -> None:
        """Before the first batch of an epoch. The encoder is left as it was."""

    def order(self, epoch: int, seed: int) -> Int[Tensor, "n B"]:
        """The images of an epoch, a row for each batch, from (seed, epoch) and the state alone."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def drawn(images: int, batch_size: int) -> "Drawn":
    """Every epoch anew, without replacement."""
    return Drawn(images, batch_size)


class Drawn:
    size: int | None = None

    def __init__(self, images: int, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size

    def possible_sizes(self, recipe: "Recipe") -> list[int]:
        return []

    def begin(self, epoch: int, encoder: Encoder, images: ImageSet, recipe: "Recipe") -> None: ...

    def order(self, epoch: int, seed: int) -> Int[Tensor, "n B"]:
        return shuffled(self.images, seed, epoch, self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def conditional(
    images: int, batch_size: int, *, after: int | None = None, sizes: Sequence[int] = SIZES
) -> "Conditional":
    """Groups of images that an early encoder confuses repel each other: for random bits on glyphs.

    The encoder as it is after `after` epochs, the finder, embeds every image and two of its views;
    by default at the end of the warm-up, after one epoch at least. Training goes on with groups of
    its neighbours, where an untrained encoder tells images apart by something easy that their
    views share, and the finder keeps the content of neighbours small beside it: the largest of
    `sizes` in which that is so, a batch of as many whole groups as fit, the loss the mean of each
    group's own. Else it goes on plainly. Neither question depends on the loss, the batch or the
    length of training. `contrapose.training.conditional` has the formulas, and what is not found:
    a frame, a colour cast, a watermark, a level of grey; photographs with bits gain nothing.
    Needs positives that are images. Cost: the passes of one epoch without gradients, and of two
    views of at most UNTRAINED images. Raises ValueError for sizes that are no group or do not fit
    into a batch.
    """
    fitting = [size for size in sizes if size <= batch_size]
    if (after is not None and after < 1) or not fitting or min(fitting) < 2:
        raise UserError(
            f"conditional: after={after}, sizes={tuple(sizes)} in batches of {batch_size}; use at "
            "least 1 epoch, and groups of 2 images up to a batch"
        )
    if images < batch_size:
        raise UserError(f"conditional: {images} images are fewer than a batch of {batch_size}")
    return Conditional(images, batch_size, after, fitting)


class Conditional:
    def __init__(
        self, images: int, batch_size: int, after: int | None, sizes: Sequence[int]
    ) -> None:
        self.images, self.batch_size, self.after, self.sizes = images, batch_size, after, sizes
        self.asked = False
        self.groups: Int[Tensor, "G s"] | None = None

    @property
    def size(self) -> int | None:
        return None if self.groups is None else self.groups.shape[1]

    def possible_sizes(self, recipe: "Recipe") -> list[int]:
        if recipe.epochs <= self._due(recipe):
            raise UserError(
                f"conditional asks after epoch {self._due(recipe)}, and training ends with epoch "
                f"{recipe.epochs:g}; use more epochs, or --set batches.after=... below them"
            )
        return list(self.sizes)

    def begin(self, epoch: int, encoder: Encoder, images: ImageSet, recipe: "Recipe") -> None:
        if self.asked or epoch < self._due(recipe):
            return
        draw = Generator(next(encoder.parameters()).device).manual_seed(recipe.seed)
        z = embedded(encoder, images, recipe, None)
        a, b = (embedded(encoder, images, recipe, draw) for _ in range(2))
        on_host = Generator().manual_seed(recipe.seed)
        easy = told_apart_untrained(encoder, images, recipe)
        found = group_size(z, a, b, on_host, untrained=easy, sizes=self.sizes)
        if found is not None:
            self.groups = neighbour_groups(z, found, on_host)
        self.asked = True

    def _due(self, recipe: "Recipe") -> int:
        return max(1, math.ceil(recipe.warmup)) if self.after is None else self.after

    def order(self, epoch: int, seed: int) -> Int[Tensor, "n B"]:
        if self.groups is None:
            return shuffled(self.images, seed, epoch, self.batch_size)
        mixed = shuffled(len(self.groups), seed, epoch, self.batch_size // self.groups.shape[1])
        return self.groups[mixed].flatten(1)

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked, "groups": self.groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.asked, self.groups = state["asked"], state["groups"]


def shuffled(n: int, seed: int, epoch: int, batch_size: int) -> Int[Tensor, "m B"]:
    """The batches of an epoch, from (seed, epoch) alone; the rest waits for the next epoch."""
    order = torch.randperm(n, generator=Generator().manual_seed(seed * 1_000_003 + epoch))
    return order[: n // batch_size * batch_size].view(-1, batch_size)


def told_apart_untrained(encoder: Encoder, images: ImageSet, recipe: "Recipe") -> float:
    """`told_apart` of two of the recipe's views under a small network with new weights.

    The network is the same whatever the recipe's own, four convolutions of width 128 and a head of
    64 outputs, in batches of 256: one number for images and views. On at most UNTRAINED images,
    drawn from all. `encoder` says how images are whitened, and where.
    """
    device = next(encoder.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        small = partial(small_conv, channels=encoder.channels, width=128)
        head = partial(mlp, dim=64, layers=2)
        fresh = Encoder.build(small, head, encoder.mean.tolist(), encoder.std.tolist())
    fresh.to(device).to(memory_format=torch.channels_last)
    drawn_order = torch.randperm(len(images), generator=Generator().manual_seed(recipe.seed))
    few = images.subset(drawn_order[:UNTRAINED])
    draw = Generator(device).manual_seed(recipe.seed)
    alike = replace(recipe, batch_size=256, chunk=None)
    a, b = (embedded(fresh, few, alike, draw) for _ in range(2))
    return told_apart(a, b, size=min(SIZES[0], len(few)))


@torch.no_grad()
def embedded(
    encoder: Encoder, images: ImageSet, recipe: "Recipe", generator: Generator | None
) -> Float[Tensor, "N D"]:
    """z of every image as it is, or of a view drawn by `generator`, on the CPU.

    Batch norm takes the statistics of the batch, since its running ones follow slowly in the first
    epochs: of images drawn from all, for a folder comes class by class, and always of the same. The
    running statistics, the mode of every module and the state of torch stay as they were.
    """
    device = next(encoder.parameters()).device
    kept = {name: x.clone() for name, x in encoder.named_buffers()}
    drawn_order = torch.randperm(len(images), generator=Generator().manual_seed(recipe.seed))
    at_once = min(recipe.batch_size, recipe.chunk or recipe.batch_size)
    z = []
    own = [device] if device.type == "cuda" else []
    with modes_kept(encoder), torch.random.fork_rng(devices=own):  # a network with dropout draws
        encoder.train()
        for index in drawn_order.tensor_split(-(-len(images) // at_once)):
            image = images.batch(index)
            view = (
                center(image, recipe.size) if generator is None else recipe.policy(image, generator)
            )
            z.append(encoder(view.to(device, memory_format=torch.channels_last))[1].float().cpu())
    for name, x in encoder.named_buffers():
        x.copy_(kept[name])
    return torch.cat(z)[drawn_order.argsort()]
