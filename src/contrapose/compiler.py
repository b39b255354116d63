"""A file of C as a library of this machine: compiled on first use, kept, and measured if asked.

The library lies in the cache folder under a name made of its source, the compiler, the processor
and the flags. Beside it lies the answer to one question, measured after the compilation: is it
quicker than what does the same without it? It is, wherever it was tried; a processor whose matrix
unit only torch's products use may say otherwise. Libraries that are there to be exact do not ask.

CONTRAPOSE_CC names the compiler (default: $CC, cc, gcc or clang); `none` stands for no library.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from contrapose.files import cache_root, replace_file
from contrapose.machine import instructions

FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread"]
FOR_THIS_PROCESSOR = (["-march=native"], ["-mcpu=native"])  # what compilers call it
PATIENCE = 60.0  # s for the compiler
REPEATS = 5  # of the measurement


class Unavailable(Exception):
    """There is no library here; the message says why."""


class NoCompiler(Unavailable):
    """Nor is there any other, since nothing here compiles one."""


WITHOUT = (  # what it costs to have none
    "losses, resizing and batch norm take up to four times as long, and float32 training is less "
    "exact, than with libraries compiled for this processor"
)


class Library:
    """The functions of one file of C, or what does the same without it.

    source: the file. instead: whose operations serve where there is no library. loss: what that
    costs, as a sentence up to its colon.
    """

    def __init__(self, source: Path, instead: str, loss: str) -> None:
        self.source, self.instead, self.loss = source, instead, loss
        self._lock, self._asked = threading.Lock(), False
        self._loaded: ctypes.CDLL | None = None

    def load(self) -> ctypes.CDLL | None:
        """The compiled library; None without a compiler that makes one, which is said once."""
        with self._lock:
            if not self._asked:
                self._loaded = self._found()
                self._asked = True
            return self._loaded

    def is_quicker(
        self, what: str, ours: Callable[[], object], without: Callable[[], object]
    ) -> bool:
        """True if `ours` is quicker than `without`, which does the same without the library.

        Both are called a few times in turn, on the threads in force; the least time decides, since
        whatever else runs only adds to it. what: the name under which the times are kept beside the
        library. Measured once for a library; once a process where nothing can be kept.
        """
        if what not in self._times:
            spent: dict[str, list[float]] = {"native": [], self.instead: []}
            for _ in range(REPEATS):
                for how, step in (("native", ours), (self.instead, without)):
                    start = time.perf_counter()
                    step()
                    spent[how].append(time.perf_counter() - start)
            self._times[what] = {how: min(took) for how, took in spent.items()}
            if (path := self._beside("json")) is not None:
                with contextlib.suppress(OSError):  # read only: measured again by the next process
                    replace_file(path, json.dumps(self._times).encode())
        return self._times[what]["native"] <= self._times[what][self.instead]

    def measured(self) -> dict[str, dict[str, float]]:
        """What was asked for: seconds by the library, "native", and without it."""
        return {} if self.load() is None else dict(self._times)

    @cached_property
    def _times(self) -> dict[str, dict[str, float]]:
        path = self._beside("json")
        try:
            return {} if path is None else dict(json.loads(path.read_text()))
        except (OSError, ValueError):
            return {}

    @cached_property
    def _name(self) -> str:
        compiler = _compiler()
        beside = sorted(self.source.parent.glob("*.h"))  # what it may include
        parts = [
            *(file.read_bytes() for file in (self.source, *beside)),
            *(x.encode() for x in (*FLAGS, compiler)),
        ]
        parts.append(instructions().encode())
        parts.append(f"{os.stat(compiler).st_mtime_ns} {platform.machine()}".encode())
        return f"{self.source.stem}-" + hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]

    def _beside(self, suffix: str) -> Path | None:
        folder = _folder()
        return None if folder is None else folder / f"{self._name}.{suffix}"

    def _found(self) -> ctypes.CDLL | None:
        if os.environ.get("CONTRAPOSE_CC") == "none":
            return None
        try:
            return self._made()
        except Unavailable as error:
            of_all = isinstance(error, NoCompiler)
            if _first_time("any" if of_all else self.source.stem, str(error)):
                loss = WITHOUT if of_all else self.loss
                instead = "torch and Pillow do" if of_all else f"{self.instead} does"
                warnings.warn(
                    f"{loss}: {error}. CONTRAPOSE_CC names a C compiler; `none` stands for what "
                    f"{instead}, without this sentence",
                    stacklevel=3,
                )
            return None

    def _made(self) -> ctypes.CDLL:
        """The library that is kept; a new one, kept if it can be, where there is none or a
        damaged."""
        kept = self._beside("so")
        if kept is not None and kept.exists():
            with contextlib.suppress(OSError):
                return ctypes.CDLL(str(kept))
        content = self._compile()
        if kept is not None:
            with contextlib.suppress(OSError):  # a cache that is read only, or full
                kept.parent.mkdir(parents=True, exist_ok=True)
                replace_file(kept, content)
        with tempfile.TemporaryDirectory() as beside:
            path = Path(beside) / f"{self._name}.so"
            path.write_bytes(content)
            try:
                return ctypes.CDLL(str(path))
            except OSError as error:
                raise Unavailable(f"it does not load ({error})") from None

    def _compile(self) -> bytes:
        said, compiler = "", _compiler()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "native.so"
            for flags in FOR_THIS_PROCESSOR:
                command = [compiler, *FLAGS, *flags, str(self.source), "-o", str(out), "-lm"]
                try:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
                except (OSError, subprocess.TimeoutExpired) as error:
                    raise Unavailable(f"{compiler} did not compile it ({error})") from None
                if done.returncode == 0:
                    return out.read_bytes()
                said = said or next(iter(done.stderr.strip().splitlines()), "without a word")
        raise Unavailable(f"{compiler} does not compile it ({said})")


def _first_time(of: str, reason: str) -> bool:
    """True if the reason why there is no such library was not given before, as far as this process
    and the cache know."""
    if (of, reason) in _given:
        return False
    _given.add((of, reason))
    folder = _folder()
    if folder is None:
        return True
    path = folder / f"why-no-{of}.txt"
    with contextlib.suppress(OSError):
        if path.read_text() == reason:
            return False
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, reason.encode())
    return True


_given = set[tuple[str, str]]()


def _folder() -> Path | None:
    """Where libraries are kept, or None: the cache is off, or nobody is at home."""
    try:
        root = cache_root()
    except RuntimeError:
        return None
    return None if root is None else root / "native"


def _compiler() -> str:
    said = os.environ.get("CONTRAPOSE_CC")
    for name in [said] if said else [os.environ.get("CC"), "cc", "gcc", "clang"]:
        if name and (found := shutil.which(name)):
            return found
    raise NoCompiler(
        f"CONTRAPOSE_CC={said} is no program" if said else "no C compiler (cc, gcc, clang) is here"
    )
