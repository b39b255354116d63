"""Supervision of the processes that were started here: whether all live and make progress.

A process that waits in a collective cannot be interrupted, but fails at once when one that it waits
for has ended. So if anything is wrong all processes are ended, and the reason is kept.
"""

import os
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

SILENCE = 15.0  # seconds in which no process gets on or uses the CPU, before all are ended
BUSY = 0.05  # CPU time over seconds above which the processes are slow rather than stuck
STARTING = 120.0  # seconds for all to start, where their CPU time cannot be read
GRACE = 1.0  # seconds for the others to say themselves what they know of a death
POLL = 0.2  # seconds


class Watch:
    """Starts `others`, the processes of rank 1 and above, and ends them together with this one.

    beats: shared doubles, one for each rank: the time of its last progress, in seconds of
    `time.monotonic`; 0 until it has started.
    """

    def __init__(self, others: Sequence[BaseProcess], beats: Any) -> None:
        self._others, self._beats = others, beats
        self._reason: str | None = None
        self._since, self._used = 0.0, 0.0  # when they last got on, and their CPU time then
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        for process in self._others:
            process.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        well = kind is None and self._reason is None
        for process in self._others:
            process.join(timeout=10 if well else 0)
        self._end()

    def gets_on(self, rank: int = 0) -> None:
        """Record that a rank has made progress."""
        self._beats[rank] = time.monotonic()

    def wait_for_start(self) -> None:
        """Wait until every process has started; supervision begins then.

        Raises ChildProcessError if one dies before, or uses no CPU time for `SILENCE`.
        """
        begun = time.monotonic()
        used = {rank: (0.0, begun) for rank in range(1, len(self._beats))}  # CPU time, since when
        while waiting := [rank for rank in used if not self._beats[rank]]:
            for rank in waiting:
                now, cpu = time.monotonic(), _cpu_seconds(self._others[rank - 1].pid)
                if cpu is not None and cpu > used[rank][0]:
                    used[rank] = cpu, now
                still = now - used[rank][1] > SILENCE if cpu is not None else now - begun > STARTING
                if death := self._death():
                    raise ChildProcessError(f"verify: {death} while it started")
                if still:
                    raise ChildProcessError(
                        f"verify: rank {rank} {self._state(rank)} while it started; run it again"
                    )
            time.sleep(POLL)
        self.gets_on()
        self._thread.start()

    def lost(self) -> str | None:
        """The reason for which the processes were ended, or None; waits briefly for one."""
        until = time.monotonic() + 3 * GRACE
        while self._reason is None and time.monotonic() < until:
            time.sleep(POLL)
        return self._reason

    def _watch(self) -> None:
        while not self._over.wait(POLL):
            if death := self._death():
                self._reason = death
                self._over.wait(GRACE)
                return self._end()
            if self._silent():
                states = [f"rank {r} {self._state(r)}" for r in range(1, len(self._beats))]
                self._reason = f"no process got on for {SILENCE:.0f} s: {', '.join(states)}"
                return self._end()

    def _silent(self) -> bool:
        """True if no process, including this one, made progress or used CPU time for `SILENCE`."""
        now, last = time.monotonic(), max(self._beats)
        pids = os.getpid(), *(process.pid for process in self._others)
        used = sum(_cpu_seconds(pid) or 0.0 for pid in pids)
        if last > self._since or used - self._used > BUSY * SILENCE:
            self._since, self._used = max(last, now - POLL), used
        return now - self._since > SILENCE

    def _death(self) -> str | None:
        for rank, process in enumerate(self._others, 1):
            code = process.exitcode
            if code is not None and code < 0:
                return f"rank {rank} was killed by {signal.Signals(-code).name}"
            if code:
                return f"rank {rank} ended with status {code}"
        return None

    def _state(self, rank: int) -> str:
        """The state of a process in words: stopped by a signal, or giving no answer."""
        stat = _stat(self._others[rank - 1].pid)
        return "is stopped by a signal" if stat and stat[0] in "Tt" else "gives no answer"

    def _end(self) -> None:
        for process in self._others:
            process.kill()  # a stopped process does not hear anything milder
        for process in self._others:
            process.join()


def _stat(pid: int | None) -> list[str]:
    """The fields of Linux's /proc/PID/stat from the state on; empty on other systems."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_seconds(pid: int | None) -> float | None:
    """User and system time of a process, in units of 1/100 s; None if it cannot be read."""
    fields = _stat(pid)
    return sum(map(int, fields[11:13])) / 100 if fields else None
