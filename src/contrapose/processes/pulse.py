"""Signs of life of the ranks of a run, so that the loss of one is said by name and ends all.

Every rank counts up a number in torch.distributed's key-value store; rank 0 watches the others, and
the others watch rank 0 and its verdict. A rank that waits in a collective cannot be interrupted.
Gloo fails when the connection breaks; NCCL does not, so a rank that hangs is ended here.
"""

import datetime
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

BEAT = 1.0  # seconds between two signs of life
SILENCE = 12.0  # seconds without one, after which a rank is gone
GRACE = 4.0  # seconds for a rank that knows of a loss to end by itself


class Pulse:
    """The signs of life of this rank, and the watch over others: a context."""

    def __init__(self, rank: int, world: int, prefix: str) -> None:
        self._rank, self._world, self._prefix = rank, world, prefix
        self._store = _store()
        self._over = threading.Event()
        self._known = threading.Event()
        self._reason: str | None = None
        self._seen: dict[int, tuple[bytes, float]] = {}
        self.last_words: Callable[[], None] = lambda: None  # before a rank that hangs is ended
        self._thread = threading.Thread(target=self._live, name="pulse", daemon=True)

    def __enter__(self) -> "Pulse":
        self._beat(0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=2 * BEAT)

    def say(self, reason: str) -> None:
        """Tell the others why this rank ends; the first reason counts."""
        try:
            key = f"{self._prefix}/verdict"
            if not self._store.check([key]):
                self._store.set(key, reason)
        except RuntimeError:  # the store is gone with the rank that held it
            return

    def note(self, name: str, value: str) -> None:
        """Keep a value for the processes that torchrun starts in place of these."""
        self._store.set(f"contrapose/{name}", value)

    def noted(self, name: str) -> str | None:
        """The value that was kept, maybe by processes before these."""
        key = f"contrapose/{name}"
        return self._store.get(key).decode() if self._store.check([key]) else None

    def lost(self) -> str | None:
        """Why the ranks end, or None; waits as long as it takes to be known."""
        self._known.wait(SILENCE + 2 * BEAT)
        return self._reason

    def _live(self) -> None:
        count, since = 0, time.monotonic()
        while not self._over.wait(BEAT):
            count += 1
            try:
                self._beat(count)
                self._reason = self._verdict()
                since = time.monotonic()
            except RuntimeError:  # a slow store is tried again, one that is gone stays so
                if time.monotonic() - since > SILENCE / 2:
                    self._reason = "the rank, or the torchrun, that holds the store is gone"
            if self._reason is not None:
                self._known.set()
                if not self._over.wait(GRACE):
                    self.last_words()
                    os._exit(1)
                return

    def _beat(self, count: int) -> None:
        mine = {"count": count, "pid": os.getpid(), "host": socket.gethostname()}
        self._store.set(f"{self._prefix}/{self._rank}", json.dumps(mine))

    def _verdict(self) -> str | None:
        key = f"{self._prefix}/verdict"
        if self._store.check([key]):
            return str(self._store.get(key).decode())
        watched = range(1, self._world) if self._rank == 0 else [0]
        gone = [words for rank in watched if (words := self._gone(rank))]
        if not gone:
            return None
        self.say("; ".join(gone))
        return "; ".join(gone)

    def _gone(self, rank: int) -> str | None:
        """What happened to a rank that gives no sign of life, in words."""
        key = f"{self._prefix}/{rank}"
        found = self._store.get(key) if self._store.check([key]) else b""
        now = time.monotonic()
        if rank not in self._seen or self._seen[rank][0] != found:
            self._seen[rank] = found, now
        if not found:
            return None  # it joined, so it will beat
        of = json.loads(found)
        who = f"rank {rank} (process {of['pid']} on {of['host']})"
        if of["host"] == socket.gethostname() and not _exists(of["pid"]):
            return f"{who} was killed, or ran out of memory"
        if now - self._seen[rank][1] > SILENCE:
            return f"{who} has given no sign of life for {SILENCE:.0f} s"
        return None


def _store() -> Any:
    return dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=datetime.timedelta(seconds=SILENCE / 2),
    )


def _exists(pid: int) -> bool:
    """True if a process of this machine runs: a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return not Path("/proc/self/stat").exists()
