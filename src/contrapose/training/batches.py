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

from contrapose.augment import center, views
from contrapose.data import ImageSet
from contrapose.encoders import Encoder, mlp, modes_kept, small_conv
from contrapose.errors import UserError
from contrapose.portions import seed_of_step
from contrapose.processes import Rank
from contrapose.training.conditional import (
    ASKED,
    SIZES,
    group_size,
    neighbour_groups,
    shared_information,
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
        """The sizes of parts that may come. Raises UserError for a recipe that does not fit."""

    def begin(
        self, epoch: int, encoder: Encoder, images: ImageSet, recipe: "Recipe", me: Rank
    ) -> None:
        """Called before the first batch of an epoch; does not change the encoder.

        me: this process among those that train together, each of which calls this.
        """

    def order(self, epoch: int, seed: int) -> Int[Tensor, "n B"]:
        """The images of an epoch, one row for each batch, from (seed, epoch) and the state only."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def drawn(images: int, batch_size: int) -> "Drawn":
    """Batches drawn in every epoch, without replacement."""
    return Drawn(images, batch_size)


class Drawn:
    size: int | None = None

    def __init__(self, images: int, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size

    def possible_sizes(self, recipe: "Recipe") -> list[int]:
        return []

    def begin(
        self, epoch: int, encoder: Encoder, images: ImageSet, recipe: "Recipe", me: Rank
    ) -> None: ...

    def order(self, epoch: int, seed: int) -> Int[Tensor, "n B"]:
        return shuffled(self.images, seed, epoch, self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def conditional(
    images: int, batch_size: int, *, after: int | None = None, sizes: Sequence[int] = SIZES
) -> "Conditional":
    """Batches of groups of images that an early encoder confuses: against random bits on glyphs.

    The encoder after `after` epochs, the finder, embeds every image and two of its views; by
    default at the end of the warm-up, but after one epoch at least. If an untrained encoder
    identifies images by an easy feature that their views share, and the finder represents little
    of the content of neighbours beside it, training continues with groups of neighbours: with the
    largest of `sizes` for which this holds, as many whole groups as fit into a batch, and the mean
    of the losses within groups. Otherwise it continues without groups. Neither condition depends on
    the loss, the batch or the length of training. `contrapose.training.conditional` has the
    formulas, and what is not found: a frame, a colour cast, a watermark, a level of grey;
    photographs with bits gain nothing. Positives must be images. It costs the forward passes of one
    epoch, and of two views of at most UNTRAINED images. Raises UserError for sizes that are no
    group or do not fit into a batch.
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

    def begin(
        self, epoch: int, encoder: Encoder, images: ImageSet, recipe: "Recipe", me: Rank
    ) -> None:
        if self.asked or epoch < self._due(recipe):
            return
        (z,) = embedded(encoder, images, recipe, me)
        a, b = embedded(encoder, images, recipe, me, n=2)
        on_host = Generator().manual_seed(recipe.seed)
        easy = untrained_information(encoder, images, recipe, me)
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
    """The batches of an epoch, from (seed, epoch) only, without an incomplete last batch."""
    order = torch.randperm(n, generator=Generator().manual_seed(seed * 1_000_003 + epoch))
    return order[: n // batch_size * batch_size].view(-1, batch_size)


def untrained_information(
    encoder: Encoder, images: ImageSet, recipe: "Recipe", me: Rank | None = None
) -> float:
    """`shared_information` of two of the recipe's views under a small untrained network.

    The network does not depend on the recipe: four convolutions of width 128 and a head of 64
    outputs, in batches of 256. So the number is one of images and views only. At most UNTRAINED
    images are used, drawn from all. encoder: its mean, std and device are used. me: as `embedded`.
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
    alike = replace(recipe, batch_size=256, chunk=None)
    a, b = embedded(fresh, few, alike, me, n=2)
    return shared_information(a, b, size=min(SIZES[0], len(few)))


@torch.no_grad()
def embedded(
    encoder: Encoder,
    images: ImageSet,
    recipe: "Recipe",
    me: Rank | None = None,
    *,
    n: int = 0,
) -> Float[Tensor, "V N D"]:
    """z of n views of each image, or of its centre where n is 0 (V = 1), on the CPU.

    Batch norm uses the statistics of batches, since running ones are late in the first epochs.
    Batches are drawn from all images, because a folder has them class by class, and are always the
    same; the views of a batch, and dropout, follow from the seed and the number of the batch.
    Running statistics, modes and the random state of torch are not changed. me: this process among
    those that share the images, each of which calls this: whole batches, so that z is that of one
    process.
    """
    device = next(encoder.parameters()).device
    kept = {name: x.clone() for name, x in encoder.named_buffers()}
    drawn_order = torch.randperm(len(images), generator=Generator().manual_seed(recipe.seed))
    at_once = min(recipe.batch_size, recipe.chunk or recipe.batch_size)
    generator = Generator(images.device)

    def rows(batches: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        found = []
        for number, index in batches:
            image, seed = images.batch(index), seed_of_step(recipe.seed, number)
            torch.manual_seed(seed)
            generator.manual_seed(seed)
            seen = views(recipe.policy, image, generator, n) if n else [center(image, recipe.size)]
            there = (view.to(device, memory_format=torch.channels_last) for view in seen)
            found.append(torch.stack([encoder(view)[1].float().cpu() for view in there], dim=1))
        return [torch.cat(found)]

    own = [device] if device.type == "cuda" else []
    with modes_kept(encoder), torch.random.fork_rng(devices=own):  # a network with dropout draws
        encoder.train()
        batches = drawn_order.tensor_split(-(-len(images) // at_once))
        (z,) = (me or Rank()).rows_of([*enumerate(batches)], rows)
    for name, x in encoder.named_buffers():
        x.copy_(kept[name])
    return z[drawn_order.argsort()].transpose(0, 1)
