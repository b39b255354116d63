"""Many images on a CPU: pieces that fit its cache, one thread a piece."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from contrapose.threads import share

PIECE = 8 * 224 * 224  # px


def in_pieces(work: Callable[[slice], None], count: int, pixels: int) -> None:
    """Calls `work` on slices of range(count), of some 8 images of 224 x 224 `pixels` each, on
    torch.get_num_threads() threads where that is more than 1. An error in one is raised here.
    """
    threads = torch.get_num_threads()
    length = max(1, min(PIECE // pixels, -(-count // threads)))
    pieces = [slice(start, min(start + length, count)) for start in range(0, count, length)]
    share(work, pieces, threads if len(pieces) > 1 else 1)


def empty(shape: tuple[int, ...], kind: type[np.float32] | type[np.uint8]) -> Tensor:
    """torch.empty, from numpy, which asks the kernel for huge pages: 64 views of 224 px then take
    700 page faults instead of 9,400, whose time is felt beside that of making the views.
    """
    return torch.from_numpy(np.empty(shape, kind))
