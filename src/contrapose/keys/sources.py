"""Sources of keys for a training run: the functions that a recipe's `keys` may name.

`bank(encoder, images, dim, momentum=0.5)` and the others are called once, when training begins,
with the encoder, the number of images and the width of z; a recipe sets the other arguments. In
every step a source chooses which views the trained encoder embeds, computes the keys of the batch
and returns what the loss compares the rows with. After the step it stores the keys of the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from contrapose.encoders import unit
from contrapose.errors import UserError
from contrapose.keys.contrast import Contrast, Grouped, Matched, Nearest
from contrapose.keys.momentum import MomentumEncoder
from contrapose.keys.stores import Bank, Queue
from contrapose.portions import portion_in_force
from contrapose.similarity import Pairs

Views = Float[Tensor, "V B C S S"]


@dataclass(frozen=True, eq=False)
class Entries:
    """The keys of one batch to be stored, without gradient, with their images and groups."""

    key: Float[Tensor, "N D"]
    index: Int[Tensor, " N"]  # which image
    group: Int[Tensor, " N"]  # means the same in every batch

    def of_all(self, gather: Callable[[Tensor], Tensor]) -> "Entries":
        """Those of all processes; gather: from the rows of this one."""
        return Entries(gather(self.key), gather(self.index), gather(self.group))


@runtime_checkable
class KeySource(Protocol):
    """A source of keys: an nn.Module, so that its state is part of every checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...

    def queries(self, view: Views) -> Float[Tensor, "Q B C S S"]:
        """The views that the trained encoder embeds."""

    def entries(
        self, view: Views, z: Tensor, index: Int[Tensor, " B"], group: Int[Tensor, " B"]
    ) -> Entries:
        """The keys of this batch; z: embeddings of `queries`, view by view."""

    def contrast(self, rows: int, entries: Entries) -> Contrast:
        """What the rows are compared with; called before the entries are stored."""

    def update(self, encoder: nn.Module, entries: Entries) -> None:
        """After the step: store the entries, and update what follows the encoder."""


def bank(encoder: nn.Module, images: int, dim: int, *, momentum: float = 0.5) -> "FromBank":
    """A memory bank with one key v_i for each image (Wu et al., CVPR 2018).

    The positive of image i is v_i, its negatives are all other keys. After each step v_i becomes
    m v_i + (1 - m) z_i, brought to unit length, with m = `momentum`. One view is enough; with
    several, each is compared with v_i, which moves towards their mean. Losses: `info_nce`,
    `hard_info_nce`, `simple_info_nce`, `hard_simple_info_nce`. Memory: images x dim numbers.
    """
    return FromBank(Bank(images, dim, momentum))


def queue(
    encoder: nn.Module,
    images: int,
    dim: int,
    *,
    size: int = 65536,
    momentum: float = 0.999,
    chunk: int | None = None,
) -> "FromQueue":
    """A queue of the last `size` keys of a momentum encoder (MoCo, arXiv 1911.05722, algorithm 1).

    The momentum encoder embeds the last view of each image as its key; the other views are queries.
    The negatives of a query are the keys in the queue, without older keys of its own image and
    without the other keys of the batch. The queue starts full of random directions, as in the
    authors' code. After each step the momentum encoder is updated with `momentum` and the keys of
    the batch enter the queue. Losses: as for `bank`.

    chunk: the momentum encoder embeds the batch in a random order, at most `chunk` images at a
    time, so that keys and queries have different BN statistics, as with shuffled BN on several
    devices. Raises UserError for a momentum outside [0, 1], and for a size or a chunk below 1.
    """
    if chunk is not None and chunk < 1:
        raise UserError(f"keys.queue: chunk={chunk}; use at least 1 image, or none")
    if not 0 <= momentum <= 1:
        raise UserError(f"keys.queue: momentum={momentum}; use 0 <= momentum <= 1")
    ring = Queue(size, dim)
    ring.push(unit(torch.randn(size, dim)), torch.full((size,), -1))
    return FromQueue(ring, MomentumEncoder(encoder), momentum, chunk)


def memory(encoder: nn.Module, images: int, dim: int, *, size: int = 8192) -> "FromMemory":
    """Cross-batch memory: the last `size` embeddings are keys beside the batch (XBM).

    Embeddings change slowly during training, so recent ones are good keys without a second encoder
    (arXiv 1912.06798). Positives are rows and keys of the anchor's class, or of its image if the
    recipe's positives are images. The memory starts empty. Loss: `supcon_memory`.
    """
    return FromMemory(Queue(size, dim))


def support(encoder: nn.Module, images: int, dim: int, *, size: int = 16384) -> "FromSupport":
    """A queue of the last `size` embeddings, for nearest neighbours (NNCLR, arXiv 2104.14548).

    Two views of an image: each is replaced by its nearest neighbour in the queue and compared with
    the other view, in both directions. The queue takes in the first view's embeddings after each
    step and starts full of random directions. The paper's prediction head is left out; its queue
    is said to hold 98,304. Loss: `nnclr`.
    """
    queue = Queue(size, dim)
    queue.push(unit(torch.randn(size, dim)), torch.full((size,), -1))
    return FromSupport(queue)


class FromSupport(nn.Module):
    def __init__(self, support: Queue) -> None:
        super().__init__()
        self.support = support

    def queries(self, view: Views) -> Float[Tensor, "Q B C S S"]:
        if len(view) != 2:
            raise UserError(f"keys.support: {len(view)} views; --set number_of_views=2")
        return view

    def entries(self, view: Views, z: Any, index: Tensor, group: Tensor) -> Entries:
        return Entries(z[: len(index)].detach(), index, group)

    def contrast(self, rows: int, entries: Entries) -> Nearest:
        return Nearest(entries.index.repeat(2), self.support.key)

    def update(self, encoder: nn.Module, entries: Entries) -> None:
        self.support.push(entries.key, entries.index, entries.group)


class FromBank(nn.Module):
    def __init__(self, bank: Bank) -> None:
        super().__init__()
        self.bank = bank

    def queries(self, view: Views) -> Float[Tensor, "Q B C S S"]:
        return view

    def entries(self, view: Views, z: Any, index: Tensor, group: Tensor) -> Entries:
        return Entries(z.detach(), index.repeat(len(view)), group.repeat(len(view)))

    def contrast(self, rows: int, entries: Entries) -> Matched:
        return Matched(self.bank.key, entries.index)

    def update(self, encoder: nn.Module, entries: Entries) -> None:
        self.bank.push(entries.key, entries.index)


class FromQueue(nn.Module):
    def __init__(
        self, queue: Queue, copy: MomentumEncoder, momentum: float, chunk: int | None = None
    ) -> None:
        super().__init__()
        self.queue, self.copy, self.momentum, self.chunk = queue, copy, momentum, chunk

    def queries(self, view: Views) -> Float[Tensor, "Q B C S S"]:
        if len(view) < 2:
            raise UserError(
                "keys.queue needs two views of an image, a query and a key: --set number_of_views=2"
            )
        return view[:-1]

    def entries(self, view: Views, z: Any, index: Tensor, group: Tensor) -> Entries:
        image = view[-1].contiguous(memory_format=torch.channels_last)
        portion = portion_in_force()
        place = torch.arange(len(image)) if portion is None else portion.place.cpu()
        whole = len(image) if portion is None else portion.whole
        if self.chunk is None or whole <= self.chunk:
            return Entries(self.copy(image)[1], index, group)
        # the order follows from the state of the queue, so that all processes draw the same
        order = torch.randperm(whole, generator=Generator().manual_seed(self.queue.pushed))
        parts = [
            torch.isin(place, chunk).nonzero()[:, 0].to(image.device)
            for chunk in order.tensor_split(-(-whole // self.chunk))
        ]
        key = torch.cat([self.copy(image[part])[1] for part in parts])
        return Entries(torch.empty_like(key).index_copy_(0, torch.cat(parts), key), index, group)

    def contrast(self, rows: int, entries: Entries) -> Matched:
        new, times = entries.index, rows // max(1, len(entries.index))
        key = torch.cat([entries.key, self.queue.key])
        older = torch.zeros(len(key), dtype=torch.long, device=key.device)
        older[len(new) :] = 1  # negatives are older: of another group than any row
        pairs = Pairs(
            "different",
            row_group=older.new_zeros(rows),
            col_group=older,
            row_id=new.repeat(times),
            col_id=torch.cat([new, self.queue.index]),
        )
        return Matched(key, torch.arange(len(new), device=key.device).repeat(times), pairs)

    def update(self, encoder: nn.Module, entries: Entries) -> None:
        self.queue.push(entries.key, entries.index, entries.group)
        self.copy.update(encoder, self.momentum)


class FromMemory(nn.Module):
    def __init__(self, queue: Queue) -> None:
        super().__init__()
        self.queue = queue

    def queries(self, view: Views) -> Float[Tensor, "Q B C S S"]:
        return view

    def entries(self, view: Views, z: Any, index: Tensor, group: Tensor) -> Entries:
        return Entries(z.detach(), index.repeat(len(view)), group.repeat(len(view)))

    def contrast(self, rows: int, entries: Entries) -> Grouped:
        return Grouped(entries.group, self.queue.key, self.queue.group)

    def update(self, encoder: nn.Module, entries: Entries) -> None:
        self.queue.push(entries.key, entries.index, entries.group)
