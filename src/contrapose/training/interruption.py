"""Ctrl-C and SIGTERM while training: the first ends it after the step, a further Ctrl-C at once.

A further SIGTERM changes nothing: where Slurm or torchrun ends a job, several senders send it.

Python runs signal handlers between two bytecodes, and one call into torch (the backward pass of a
large batch) can take a minute. So a thread reads signals from Python's wake-up pipe, to which they
are written at once, and prints an answer meanwhile.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FIRST = "stopping after this step, which is then saved; Ctrl-C again stops at once"
GRACE = 1.0  # s from the second signal until the process ends by itself, where torch holds it


@contextmanager
def signals_deferred(
    last_words: Callable[[], str],
    *,
    aloud: Callable[[], bool] = lambda: True,
    after: float = 0.0,
) -> Iterator[Callable[[], bool]]:
    """A context with a function that returns True after a signal; a Ctrl-C after it raises
    KeyboardInterrupt.

    If it cannot be raised within GRACE seconds, the process prints what `last_words` returns and
    ends with exit status 130; an interactive session does not end. In other threads than the main
    one, which cannot handle signals, nothing changes. aloud: whether a first signal is
    answered, asked so many seconds after it: a launcher sends one to ranks that fail with another.
    """
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1 and number == signal.SIGINT:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    ended = threading.Event()
    answering = threading.Thread(
        target=_answer, args=(reader, ended, last_words, aloud, after), daemon=True
    )
    answering.start()
    before = [signal.signal(kind, remember) for kind in SIGNALS]
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield lambda: bool(came)
    finally:
        ended.set()
        signal.set_wakeup_fd(woken)
        for kind, handler in zip(SIGNALS, before, strict=True):
            signal.signal(kind, handler)
        os.write(writer, b"\0")  # no signal has this number: the thread ends
        answering.join()
        os.close(reader)
        os.close(writer)


def _answer(
    reader: int,
    ended: threading.Event,
    last_words: Callable[[], str],
    aloud: Callable[[], bool],
    after: float,
) -> None:
    """Print the effect of a signal at once; after a second one, end a process that hangs."""
    count = 0
    while number := os.read(reader, 1)[0]:
        if number not in SIGNALS or (count and number != signal.SIGINT):
            continue
        count += 1
        if count == 1:
            if not ended.wait(after) and aloud():
                _print(FIRST)
        elif not ended.wait(GRACE) and not hasattr(sys, "ps1"):
            _print(last_words())
            os._exit(130)


def _print(words: str) -> None:
    """Print without Python's buffers and locks, which the main thread may hold."""
    os.write(2, f"\n{words}\n".encode(errors="replace"))
