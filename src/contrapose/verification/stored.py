"""Losses whose keys outlive the batch: three steps with a queue, a bank or a memory.

Keys are stored between the steps, so that the loss of a later step is right only if every process
has the same state as a single process.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from contrapose.keys.contrast import Grouped, Matched, fits
from contrapose.keys.momentum import MomentumEncoder
from contrapose.keys.sources import Entries, FromBank, FromMemory, FromQueue
from contrapose.keys.stores import Bank, Queue

STEPS = 3
CONTRASTS = {"queue": Matched, "bank": Matched, "memory": Grouped}


def sources_of(loss: Callable[..., Any]) -> list[str]:
    """The kinds of store whose keys the loss takes."""
    return [name for name, contrast in CONTRASTS.items() if fits(loss, contrast)]


def stored_data(z: Float[Tensor, "N D"], group: Int[Tensor, " N"]) -> dict[str, Tensor]:
    """Rows, keys, images and groups of all steps: images come again in a step and in later ones."""
    generator = torch.Generator().manual_seed(2)
    rows, dim = z.shape
    noise = torch.randn(2, rows, STEPS, dim, generator=generator).to(z)
    step = torch.arange(STEPS)
    return {
        "z": normalize(z[:, None] + noise[0] / 4, dim=2),
        "key": normalize(z[:, None] + noise[1] / 4, dim=2),
        "index": (torch.arange(rows)[:, None] * 2 // 3 + 5 * step) % rows,
        "group": group[:, None].expand(-1, STEPS).contiguous(),
    }


def stored_losses(
    name: str,
    loss: Callable[..., Tensor],
    images: int,
    *,
    z: Float[Tensor, "N S D"],
    key: Float[Tensor, "N S D"],
    index: Int[Tensor, "N S"],
    group: Int[Tensor, "N S"],
) -> Iterator[Float[Tensor, ""]]:
    """The loss of each step, whose gradient is to be taken before the next one is asked for."""
    wide = torch.promote_types(z.dtype, torch.float32)
    encoder = nn.Linear(1, 1).to(z.device, wide)  # keys are given: it embeds nothing
    source = _source(name, encoder, images, z.shape[2]).to(z.device, wide)
    for step in range(z.shape[1]):
        entries = Entries(key[:, step].detach(), index[:, step], group[:, step])
        yield source.contrast(len(z), entries).loss(loss, z[:, step])
        source.update(encoder, entries)


def _source(
    name: str, encoder: nn.Module, images: int, dim: int
) -> FromQueue | FromBank | FromMemory:
    """Queue and bank begin with random keys, the memory with none. No batch divides their size."""
    size = images + images // 3 + 1
    keys = normalize(torch.randn(size, dim, generator=torch.Generator().manual_seed(3)), dim=1)
    if name == "bank":
        bank = Bank(images, dim)
        bank.key.copy_(keys[:images])
        return FromBank(bank)
    queue = Queue(size, dim)
    if name == "memory":
        return FromMemory(queue)
    queue.push(keys, torch.full((size,), -1))
    return FromQueue(queue, MomentumEncoder(encoder), 0.9)
