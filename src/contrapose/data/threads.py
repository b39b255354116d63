"""A parallel map over threads, for decoding."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from threading import Event
from typing import TypeVar

from contrapose.machine import cores
from contrapose.progress import counted

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")

_stop: ContextVar[Event | None] = ContextVar("_stop", default=None)


@contextmanager
def stopped_by(event: Event) -> Iterator[None]:
    """A context in which `each` ends early, with CancelledError, once the event is set."""
    token = _stop.set(event)
    try:
        yield
    finally:
        _stop.reset(token)


def each(function: Callable[[T], R], items: Sequence[T], words: str = "") -> list[R]:
    """`[function(item) for item in items]` on all cores; an error or Ctrl-C cancels the rest.

    words: the name of the work for progress messages; without it there are none.
    """

    def counted_items(of: Sequence[S]) -> Iterable[S]:
        return counted(of, words) if words else of

    stop = _stop.get()

    def one(item: T) -> R:
        if stop is not None and stop.is_set():
            raise CancelledError
        return function(item)

    if len(items) < 2 or cores() < 2:
        return [one(item) for item in counted_items(items)]
    waiting = [_threads(os.getpid()).submit(one, item) for item in items]
    try:
        return [future.result() for future in counted_items(waiting)]
    except BaseException:
        for future in waiting:
            future.cancel()
        raise


def chunks(n: int, at_most: int) -> list[range]:
    """0..n-1 in runs of `at_most`."""
    return [range(start, min(start + at_most, n)) for start in range(0, n, at_most)]


@lru_cache(maxsize=1)
def _threads(process: int) -> ThreadPoolExecutor:
    # keyed by the process, since threads do not survive a fork
    return ThreadPoolExecutor(cores(), thread_name_prefix="contrapose-decode")
