"""Many images on a CPU: pieces that fit its cache, one thread a piece.

A step on eight images of 224 px takes some 0.1 ms, about what it costs to wake a second OpenMP
thread, so each piece runs all its steps on one thread, and the threads share the pieces.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier

import numpy as np
import torch
from torch import Tensor

PIECE = 8 * 224 * 224  # px


def in_pieces(work: Callable[[slice], None], count: int, pixels: int) -> None:
    """Calls `work` on slices of range(count), of some 8 images of 224 x 224 `pixels` each, on
    torch.get_num_threads() threads where that is more than 1. An error in one is raised here.
    """
    threads = torch.get_num_threads()
    length = max(1, min(PIECE // pixels, -(-count // threads)))
    pieces = [slice(start, min(start + length, count)) for start in range(0, count, length)]
    if threads == 1 or len(pieces) == 1:
        for piece in pieces:
            work(piece)
    else:
        list(_pool(threads, os.getpid()).map(work, pieces))


def room(shape: tuple[int, ...], kind: type[np.float32] | type[np.uint8]) -> Tensor:
    """torch.empty, from numpy, which asks the kernel for huge pages: 64 views of 224 px then take
    700 page faults instead of 9,400, whose time is felt beside that of making the views.
    """
    return torch.from_numpy(np.empty(shape, kind))


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads on which torch runs serially; a forked process makes its own."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="contrapose-views")
    together = Barrier(threads)

    def settle(_: int) -> None:
        together.wait()  # holds each task on a thread of its own
        torch.set_num_threads(1)
        torch.get_num_threads()  # torch reads the setting once a thread: now, not after the next

    list(pool.map(settle, range(threads)))
    torch.set_num_threads(threads)  # the setting above is each thread's own, save for MKL's
    return pool
