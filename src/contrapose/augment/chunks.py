"""Many images on a CPU: pieces that fit its cache, one thread a piece.

A step on eight images of 224 px takes some 0.1 ms, about what it costs to wake a second OpenMP
thread, so each piece runs all its steps on one thread, and the threads share the pieces.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier

import torch
from torch import Tensor

CHUNK = 8 * 224 * 224  # px in a piece


def in_chunks(work: Callable[[Tensor], None], rows: Tensor, pixels: int) -> None:
    """Calls `work` on all `rows` in pieces of some 8 x 224 x 224 / pixels images; on
    torch.get_num_threads() threads where that is more than 1. An error in one is raised here.
    """
    threads = torch.get_num_threads()
    length = max(1, min(CHUNK // pixels, -(-len(rows) // threads)))
    pieces = torch.split(rows, length)
    if threads == 1 or len(pieces) == 1:
        for piece in pieces:
            work(piece)
    else:
        list(_pool(threads, os.getpid()).map(torch.no_grad()(work), pieces))


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads on which torch runs serially; a forked process makes its own."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="contrapose-views")
    together = Barrier(threads)

    def settle(_: int) -> None:
        together.wait()  # holds each task on a thread of its own
        torch.set_num_threads(1)

    list(pool.map(settle, range(threads)))
    torch.set_num_threads(threads)  # the setting above is each thread's own, save for MKL's
    return pool
