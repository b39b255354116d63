"""native.c as a library of this machine: compiled on first use, kept, and measured once.

The library lies in the cache folder under a name made of its source, the compiler, the processor
and the flags. Beside it lies the answer to one question, measured after the compilation: is it
quicker than the same reduction in torch's operations? It is, wherever it was tried; a processor
whose matrix unit only torch's products use may say otherwise.

CONTRAPOSE_CC names the compiler (default: $CC, cc, gcc or clang); `none` leaves native.c alone.
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
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from contrapose.files import cache_root, replace_file
from contrapose.machine import instructions

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread"]
FOR_THIS_PROCESSOR = (["-march=native"], ["-mcpu=native"])  # what compilers call it
PATIENCE = 60.0  # s for the compiler
ROWS, WIDTH, REPEATS = 2048, 128, 5  # of the measurement


class Unavailable(Exception):
    """There is no library here; the message says why."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library; None without a compiler that makes one, which is said once."""
    if os.environ.get("CONTRAPOSE_CC") == "none":
        return None
    try:
        return _loaded()
    except Unavailable as error:
        if _first_time(str(error)):
            warnings.warn(
                f"similarities are computed by torch's operations, two to four times slower than "
                f"by a library compiled for this processor: {error}. CONTRAPOSE_CC names a C "
                "compiler; `none` stands for torch's operations, without this sentence",
                stacklevel=2,
            )
        return None


def is_quicker(
    precision: torch.dtype, ours: Callable[[torch.Tensor], None], by_torch: Callable[..., None]
) -> bool:
    """True if `ours` is quicker than `by_torch` on this processor, in products of this precision.

    Both take a step on unit-length rows, on the threads in force; the least of a few times decides,
    since whatever else runs only adds to them. Measured once for a library and kept beside it;
    measured once a process where nothing can be kept.
    """
    name = str(precision).removeprefix("torch.")
    kept = _kept()
    if name not in kept:
        z = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
        z = torch.nn.functional.normalize(z, dim=1).to(precision)
        spent: dict[str, list[float]] = {"native": [], "torch": []}
        for _ in range(REPEATS):
            for how, step in (("native", ours), ("torch", by_torch)):
                start = time.perf_counter()
                step(z)
                spent[how].append(time.perf_counter() - start)
        kept[name] = {how: min(took) for how, took in spent.items()}
        _keep(kept)
    return kept[name]["native"] <= kept[name]["torch"]


def measured() -> dict[str, dict[str, float]]:
    """For each precision that was asked for: seconds of a step by the library and by torch."""
    return {} if library() is None else dict(_kept())


@cache
def _kept() -> dict[str, dict[str, float]]:
    path = _beside()
    try:
        return {} if path is None else dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _keep(found: dict[str, dict[str, float]]) -> None:
    if (path := _beside()) is not None:
        with contextlib.suppress(OSError):  # read only: measured again by the next process
            replace_file(path, json.dumps(found).encode())


def _beside() -> Path | None:
    folder = _folder()
    return None if folder is None else folder / f"{_name()}.json"


def _folder() -> Path | None:
    """Where libraries are kept, or None: the cache is off, or nobody is at home."""
    try:
        root = cache_root()
    except RuntimeError:
        return None
    return None if root is None else root / "native"


@cache
def _compiler() -> str:
    said = os.environ.get("CONTRAPOSE_CC")
    for name in [said] if said else [os.environ.get("CC"), "cc", "gcc", "clang"]:
        if name and (found := shutil.which(name)):
            return found
    raise Unavailable(
        f"CONTRAPOSE_CC={said} is no program" if said else "no C compiler (cc, gcc, clang) is here"
    )


@cache
def _name() -> str:
    parts = [SOURCE.read_bytes(), *(x.encode() for x in (*FLAGS, _compiler(), instructions()))]
    parts.append(f"{os.stat(_compiler()).st_mtime_ns} {platform.machine()}".encode())
    return "native-" + hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _loaded() -> ctypes.CDLL:
    """The library that is kept; a new one, kept if it can be, where there is none or a damaged."""
    folder, name = _folder(), f"{_name()}.so"
    if folder is not None and (folder / name).exists():
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(folder / name))
    content = _compile()
    if folder is not None:
        with contextlib.suppress(OSError):  # a cache that is read only, or full
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / name, content)
    with tempfile.TemporaryDirectory() as beside:
        path = Path(beside) / name
        path.write_bytes(content)
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            raise Unavailable(f"it does not load ({error})") from None


def _compile() -> bytes:
    said = ""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "native.so"
        for flags in FOR_THIS_PROCESSOR:
            command = [_compiler(), *FLAGS, *flags, str(SOURCE), "-o", str(out), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise Unavailable(f"{_compiler()} did not compile it ({error})") from None
            if done.returncode == 0:
                return out.read_bytes()
            said = said or next(iter(done.stderr.strip().splitlines()), "without a word")
    raise Unavailable(f"{_compiler()} does not compile it ({said})")


def _first_time(reason: str) -> bool:
    """True if this reason was not given before, as far as the cache knows."""
    folder = _folder()
    if folder is None:
        return True
    path = folder / "why-not.txt"
    with contextlib.suppress(OSError):
        if path.read_text() == reason:
            return False
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, reason.encode())
    return True
