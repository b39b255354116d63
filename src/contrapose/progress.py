"""Progress messages of long work for a listener, and durations in words.

    with listening(show):                            # the command line
        with stage("raw pixels"):                    # whatever takes long, anywhere below
            for batch in counted(batches, "embedding"):
                ...                                  # show("raw pixels: embedding, 37 %")

Without a listener, and in threads that another thread started, there are no messages.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("_listener", default=None)
_stages: ContextVar[tuple[str, ...]] = ContextVar("_stages", default=())


@contextmanager
def listening(show: Callable[[str], None]) -> Iterator[None]:
    """A context in which `show` is called with the current activity in words ("" for none)."""
    token = _listener.set(show)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def stage(words: str) -> Iterator[None]:
    """A context whose activity has this name, as a part of the stage around it."""
    token = _stages.set((*_stages.get(), words))
    _say()
    try:
        yield
    finally:
        _stages.reset(token)
        _say()


def counted(items: Sequence[T], words: str) -> Iterator[T]:
    """Iterate over the items, with a message before each about the share that is done."""
    for done, item in enumerate(items):
        _say(f"{words}, {done / len(items):.0%}")
        yield item
    _say()


def _say(*more: str) -> None:
    show = _listener.get()
    if show is not None:
        show(": ".join((*_stages.get(), *more)))


def duration(seconds: float) -> str:
    """A duration in words: `0.4 s`, `40 s`, `12 min`, `2.5 h`, `41 days`."""
    for unit, name in ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= 2 * unit or unit == 1:
            amount = seconds / unit
            return f"{amount:.2g} {name}" if amount < 10 else f"{amount:,.0f} {name}"
    raise AssertionError
