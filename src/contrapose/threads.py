"""Threads for work in pieces; within a thread torch uses no further threads.

An operation on a small tensor takes less time than waking a second OpenMP thread (up to 0.1 ms). So
all operations of a piece run on one thread, and the pieces are shared by the threads.
"""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, lru_cache, wraps
from threading import Barrier
from typing import Any, TypeVar

import torch

SMALL = 2**17  # numbers that one thread works off sooner than it wakes another

Piece = TypeVar("Piece")
Function = TypeVar("Function", bound=Callable[..., Any])


def share(work: Callable[[Piece], None], pieces: Iterable[Piece], threads: int) -> None:
    """Call `work` on every piece, started in the order given, and wait for all of them.

    On several threads gradients are not recorded. An error in one of them is raised here.
    """
    if threads > 1:
        list(_pool(threads, os.getpid()).map(torch.no_grad()(work), pieces))
    else:
        for piece in pieces:
            work(piece)


@contextmanager
def serial() -> Iterator[None]:
    """A context in which torch operations use only the calling thread."""
    if (threads := torch.get_num_threads()) == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def serial_if_small(x: torch.Tensor) -> AbstractContextManager[None]:
    """`serial`, if operations on x are too short for a second thread to help."""
    return serial() if x.numel() <= SMALL else nullcontext()


def alone(f: Function) -> Function:
    """The function with its torch operations on the calling thread only: a decorator."""

    @wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        with serial():
            return f(*args, **kwargs)

    return run  # type: ignore[return-value]


@cache
def team() -> int | None:
    """The address of GOMP_parallel in the OpenMP library that torch has loaded; None for another.

    Code of C that works on torch's own threads does not wait for a core on which one of them still
    spins, as it does for some milliseconds after an operation.
    """
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):  # torch has another, or this is no Linux
        return None


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """A forked process makes its own."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="contrapose")
    together, before = Barrier(threads), torch.get_num_threads()

    def settle(_: int) -> None:
        together.wait()  # holds each task on a thread of its own
        torch.set_num_threads(1)
        torch.get_num_threads()  # torch reads the setting once a thread: now, not after the next

    list(pool.map(settle, range(threads)))
    torch.set_num_threads(before)  # the setting above is each thread's own, but also the default
    return pool
