"""Atomic replacement of files, locks of folders, and strict JSON.

A file is first written as `.NAME.PID.new` in the same folder and then renamed, so that a kill at
any moment leaves the old file or the new one. A process that writes into a folder holds a lock
(flock) on its file `.lock`; the operating system releases it when the process ends in any way.
"""

import contextlib
import errno
import json
import math
import os
import shlex
import shutil
import socket
import sys
import time
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from contrapose.errors import UserError, check_platform

RUNS = Path("runs")  # where folders are made that have no other place
LOCK = ".lock"
UNDERWAY = (".new", ".old")  # endings of hidden names that are being written or removed


class HeldElsewhere(UserError):
    """The folder is locked by another process, which writes into it."""


def cache_root() -> Path | None:
    """The folder of the cache: $CONTRAPOSE_CACHE, else ~/.cache/contrapose; None if it is `off`."""
    said = os.environ.get("CONTRAPOSE_CACHE") or "~/.cache/contrapose"
    return None if said == "off" else Path(said).expanduser()


def replace_file(path: Path, content: bytes) -> None:
    """Replace the file atomically: a reader sees the old content or the new, never half of it."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A context with an open file that replaces `path` at its end; on errors `path` stays as it is.

    Raises OSError that names the file, for example if the disk is full.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with said_of(path):
            with open(beside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


@contextmanager
def said_of(path: Path) -> Iterator[None]:
    """A context in which an OSError is given the name of the file and what to do about it."""
    try:
        yield
    except OSError as error:
        closed = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        remedy = "change its permissions" if closed else "free some space"
        raise OSError(
            f"{path} could not be written ({error.strerror or error}); {remedy} or give another "
            "place. What was saved before is kept"
        ) from error


def check_writable(path: Path) -> None:
    """Raise the OSError that writing to a file or into a folder would end in, before the work.

    Of a path that does not exist yet the nearest folder above it is looked at.
    """
    near = path.absolute()
    while not near.exists() and near != near.parent:
        near = near.parent
    with said_of(path):
        if near != path.absolute() and not near.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{near} is a file")
        if not os.access(near, os.W_OK | (os.X_OK if near.is_dir() else 0)):
            raise PermissionError(errno.EACCES, f"{near} is read-only for you")


def as_file_name(path: str) -> str:
    """A file name from the last part of a path: letters, digits and - _ . only."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(path).name) or "images"


def as_json_bytes(value: Any) -> bytes:
    text = json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False)
    # a path may hold bytes that are no text: as \udcff, which JSON reads back to the same path
    return text.encode("utf-8", "backslashreplace")


def finite(value: Any) -> Any:
    """The value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, *, remedy: str = "restore it") -> Any:
    """The JSON value of a file; if it is damaged, UserError with its name and the remedy."""
    try:
        return json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from None


def read_object(
    path: Path, shape: Mapping[str, Any] | None = None, *, remedy: str = "restore it"
) -> dict[str, Any]:
    """The JSON object of a file; UserError with file and field if it has not this shape."""
    found: dict[str, Any] = conform(read_json(path, remedy=remedy), shape or {}, str(path), remedy)
    return found


def conform(value: Any, shape: Any, where: str, remedy: str = "restore it") -> Any:
    """The value itself if it has this shape; else UserError with the place and the remedy.

    shape: one of
        a type or a union of types, where float means a finite number;
        {field: shape}, an object with these fields and possibly others; "field?" may be missing;
        {str: shape}, an object with any fields;
        [shape], a list;
        a frozenset of the words that are allowed;
        (shape, ..., None), any one of these shapes; None: it may be null.
    """
    if isinstance(shape, frozenset):
        if not isinstance(value, str) or value not in shape:
            wanted = " or ".join(sorted(shape))
            raise UserError(f"{where} is {_shown(value)}, not {wanted}; {remedy}")
        return value
    if isinstance(shape, tuple):
        if value is None and None in shape:
            return value
        *others, last = (s for s in shape if s is not None)
        for other in others:
            with contextlib.suppress(UserError):
                return conform(value, other, where, remedy)
        return conform(value, last, where, remedy)
    if isinstance(shape, list):
        for k, item in enumerate(_of_kind(value, list, where, remedy)):
            conform(item, shape[0], f"{where}[{k}]", remedy)
        return value
    if not isinstance(shape, Mapping):
        return _of_kind(value, shape, where, remedy)
    _of_kind(value, dict, where, remedy)
    for field, kind in shape.items():
        optional = isinstance(field, str) and field.endswith("?")
        for name in value if field is str else [field.removesuffix("?")]:
            if optional and name not in value:
                continue
            if name not in value:
                raise UserError(f"{where} lacks {name}; {remedy}")
            inner = f"{where}.{name}" if ": " in where else f"{where}: {name}"
            conform(value[name], kind, inner, remedy)
    return value


def _of_kind(value: Any, kind: Any, where: str, remedy: str) -> Any:
    """The value if it is of the type, or of one of the union; else UserError."""
    kinds = typing.get_args(kind) or (kind,)
    if float in kinds and isinstance(value, int | float) and not isinstance(value, bool):
        fits = math.isfinite(value)
    else:
        fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if not fits:
        wanted = " or ".join(_WORDS[k] for k in kinds)
        raise UserError(f"{where} is {_shown(value)}, not {wanted}; {remedy}")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else f"{text[:37]}..."


_WORDS = {
    str: "text", int: "a whole number", float: "a finite number", list: "a list",
    dict: "an object", bool: "true or false", type(None): "null",
}  # fmt: skip


# ---- folders -------------------------------------------------------------------------------------


RENAMED_SIGNALS = {"chance": "loss_at_chance"}  # name in rows of version 0.1 -> present name


def present_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl with the present names of its signals."""
    return {RENAMED_SIGNALS.get(name, name): value for name, value in row.items()}


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """A context that locks an existing folder, after removing what a killed process left half done.

    Raises HeldElsewhere, which names the other process, if the folder is locked.
    """
    with said_of(folder):
        lock = open(folder / LOCK, "a+", encoding="utf-8")
    with lock:
        if not _flock(lock.fileno(), shared=False):
            raise HeldElsewhere(
                f"{folder} is being written by another process{_named(_written_in(folder))}; wait "
                "for it, or stop it"
            )
        with contextlib.suppress(OSError):  # who holds it is a courtesy; a full disk may lose it
            command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
            lock.truncate(0)
            lock.write(json.dumps(this_process() | {"command": command}))
            lock.flush()
        clear(folder)
        yield


def holder(folder: Path) -> dict[str, Any] | None:
    """The process that holds the lock of the folder, as {"pid", "host"}; None if there is none."""
    try:
        with open(folder / LOCK, encoding="utf-8") as lock:
            if _flock(lock.fileno(), shared=True):
                return None
    except OSError:
        return None
    return _written_in(folder)


def clear(folder: Path) -> None:
    """Remove half-written and half-removed files of processes that no longer exist."""
    for path in folder.glob(".*"):
        if path.suffix in UNDERWAY and not _underway(path):
            remove(path)


def remove(path: Path) -> None:
    """Delete a file or a folder with its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Delete a folder; if the process is killed meanwhile, nothing is left under its name."""
    aside = path.with_name(f".{path.name}.old")
    remove(aside)
    with contextlib.suppress(OSError):
        path.rename(aside)
    remove(aside)


def unfinished(folder: Path) -> bool:
    """True if the folder does not exist, is empty, or holds only what a killed start left."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    hidden = (path.name for path in folder.iterdir())
    return all(name == LOCK or (name.startswith(".") and name.endswith(".new")) for name in hidden)


# ---- processes -----------------------------------------------------------------------------------


def this_process() -> dict[str, Any]:
    """The identity of this process: {"pid", "host"}."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def was_killed(folder: Path, status: Mapping[str, Any]) -> bool | None:
    """True if the process that wrote the status "running" into the folder no longer exists.

    A process that is alive holds the lock of the folder. None if this is unknown: there never was a
    lock, or the process ran on another machine, whose locks may not be visible here.
    """
    if status.get("state") != "running":
        return False
    if not (folder / LOCK).is_file():
        return None
    by = holder(folder)
    who = {name: status.get(name) for name in ("pid", "host")}
    if by is not None:
        same = {name: by.get(name) for name in who} == who
        return not same and who["pid"] is not None
    return True if who["host"] in (None, socket.gethostname()) else None


def _flock(file: int, *, shared: bool) -> bool:
    """Take the lock without waiting, except for readers, which hold it only for a moment.

    Raises ImportError on Windows, which has no such locks.
    """
    check_platform()
    import fcntl

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    for wait in (0.0, 0.02, 0.1):
        time.sleep(wait)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
    return False


def _written_in(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / LOCK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _named(by: Mapping[str, Any]) -> str:
    if "pid" not in by:
        return ""
    return f" ({by.get('command')}: process {by['pid']} on {by.get('host')})"


def _underway(path: Path) -> bool:
    """True if the process whose number is in `.NAME.PID.new` exists and is not this one."""
    number = path.name.split(".")[-2]
    if not number.isdecimal() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
