"""Stored keys: a queue of recent ones (first in, first out) and a bank with one for each image.

Both are modules with buffers only, so `state_dict` saves them. The image of each key is stored with
it: an older key of the anchor's own image is then never used as its negative. Inside `across` every
process stores the keys of all processes, in rank order, so that all have the same state, even if
some processes hold fewer rows or none.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from contrapose.encoders import unit
from contrapose.errors import UserError
from contrapose.similarity import gather_rows, whole_numbers


class Queue(nn.Module):
    """The last `size` keys, first in first out (MoCo, arXiv 1911.05722; XBM, arXiv 1912.06798).

    It starts empty. Batches may have any size; of one that is larger than the queue only the last
    rows are kept. Raises UserError for a size or width below 1.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise UserError(f"Queue: size={size}, dim={dim}; both must be at least 1")
        self._key: Tensor
        self._index: Tensor
        self._group: Tensor
        self.register_buffer("_key", torch.zeros(size, dim))
        self.register_buffer("_index", torch.full((size,), -1))
        self.register_buffer("_group", torch.full((size,), -1))
        self.pushed = 0  # since the beginning: the next key goes to slot pushed % size

    def __len__(self) -> int:
        return min(self.pushed, len(self._key))

    @property
    def key(self) -> Float[Tensor, "M D"]:
        """The stored keys, without gradient: a view, in the order of their slots."""
        return self._key[: len(self)]

    @property
    def index(self) -> Int[Tensor, " M"]:
        """The image of each key."""
        return self._index[: len(self)]

    @property
    def group(self) -> Int[Tensor, " M"]:
        """The group of each key, for a supervised loss; the image, if no groups were given.

        Groups must mean the same in every batch: class numbers, not positions in a batch. A
        negative group means that the key has no label: it is a positive of no row.
        """
        return self._group[: len(self)]

    @torch.no_grad()
    def push(
        self,
        key: Float[Tensor, "N D"],
        index: Int[Tensor, "..."],
        group: Int[Tensor, "..."] | None = None,
    ) -> None:
        """Store N keys of the images `index`; inside `across`, those of all processes.

        Raises UserError for keys of another width and for ids of another length.
        """
        group = index if group is None else group
        index, group = _checked("Queue.push", key, self._key.shape[1], index, group)
        key, index, group = (gather_rows(x.detach()) for x in (key, index, group))
        size, added = len(self._key), len(key)
        place = (self.pushed + torch.arange(added, device=self._key.device)[-size:]) % size
        for held, new in ((self._key, key), (self._index, index), (self._group, group)):
            held[place] = new[-size:].to(held)
        self.pushed += added

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.pushed)

    def set_extra_state(self, state: Tensor) -> None:
        self.pushed = int(state)


class Bank(nn.Module):
    """One key per image: v_i <- u / |u| with u = m v_i + (1 - m) z_i (Wu et al., CVPR 2018).

    momentum: m, 0.5 in the paper. Keys start uniform in +-sqrt(3 / D), as in the authors' code:
    their mean square length is 1. If an image has several rows in one push, their mean is used.
    Raises UserError for n or dim below 1 and for a momentum outside [0, 1).
    """

    def __init__(self, n: int, dim: int, momentum: float = 0.5) -> None:
        super().__init__()
        if n < 1 or dim < 1 or not 0 <= momentum < 1:
            raise UserError(
                f"Bank: n={n}, dim={dim}, momentum={momentum}; give at least one image and one "
                "dimension, and 0 <= momentum < 1"
            )
        self.momentum = momentum
        self.key: Tensor
        most = math.sqrt(3 / dim)
        self.register_buffer("key", torch.empty(n, dim).uniform_(-most, most))

    def __len__(self) -> int:
        return len(self.key)

    @torch.no_grad()
    def push(self, key: Float[Tensor, "N D"], index: Int[Tensor, "..."]) -> None:
        """Move v_i of the images `index` towards `key`; inside `across`, for all processes. O(N D).

        Raises UserError for keys of another width, ids of another length or outside the bank.
        """
        (index,) = _checked("Bank.push", key, self.key.shape[1], index)
        key, index = gather_rows(key.detach()).to(self.key), gather_rows(index)
        if index.device.type == "cpu" and len(index):
            low, high = (int(x) for x in index.aminmax())
            if low < 0 or high >= len(self):
                raise UserError(
                    f"Bank.push: images {low} to {high} in a bank of {len(self)}; use 0 to "
                    f"{len(self) - 1}"
                )
        mean = _mean_of_each(key, index)
        self.key[index] = unit(torch.lerp(mean, self.key[index], self.momentum))


def _mean_of_each(key: Float[Tensor, "N D"], index: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
    """For every row the mean of the rows with its index, without reading the device."""
    order = index.argsort(stable=True)
    ordered = index[order]
    first = torch.zeros_like(ordered)
    first[1:] = ordered[1:] != ordered[:-1]
    number = torch.empty_like(first).index_copy(0, order, first.cumsum(0))
    total = torch.zeros_like(key).index_add_(0, number, key)
    count = key.new_zeros(len(key)).index_add_(0, number, key.new_ones(len(key)))
    return (total / count.clamp(min=1)[:, None])[number]


def _checked(name: str, key: Tensor, dim: int, *ids: Tensor) -> list[Tensor]:
    """The ids as int64; UserError for keys of another width, ids of another length or type."""
    if key.ndim != 2 or key.shape[1] != dim or any(i.shape != key.shape[:1] for i in ids):
        shapes = ", ".join(str(tuple(i.shape)) for i in ids)
        raise UserError(
            f"{name}: keys of shape {tuple(key.shape)} with ids of shape {shapes}; give keys "
            f"[N {dim}] and N ids"
        )
    return [whole_numbers(name, "ids", i) for i in ids]
