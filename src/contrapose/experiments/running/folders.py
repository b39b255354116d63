"""The folder of a job: its lock, its call, its progress and its result.

    .lock           held (flock) by the process that runs the job, so that no other does
    job.json        the call that was begun here, and its fingerprint
    running.json    who runs it since when; stale after a kill
    progress.json   the share that is done
    log.txt         what the job printed
    error.json      the traceback, where it failed
    result.json     what it measured

Files are written atomically: a kill at any moment leaves the old file or the new one.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from contrapose.errors import UserError
from contrapose.experiments.form import Job
from contrapose.files import (
    as_json_bytes,
    held,
    read_object,
    replace_file,
    said_of,
    this_process,
)
from contrapose.partials import describe, up_to_date
from contrapose.version import __version__

FORMAT = 1
State = Literal["waiting", "finished", "failed", "changed"]


SHAPES: dict[str, dict[str, Any]] = {  # what readers of these files rely on
    "job.json": {"call": dict, "fingerprint": str},
    "running.json": {"pid": int, "host": str, "invocation": str},
    "progress.json": {"share": float},
    "error.json": {"error": str, "invocation?": str, "traceback?": str},
    "result.json": {
        "call": dict, "fingerprint": str, "measures": dict, "seconds": float, "environment": dict,
        "environment_digest": str, "contrapose": str,
    },
}  # fmt: skip


class ChangedCallError(UserError):
    """A folder has the result of another call."""


@dataclass(frozen=True)
class JobFolder:
    """A job and its folder, which may not exist yet."""

    job: Job
    path: Path

    @cached_property
    def fingerprint(self) -> str:
        """The start of a sha256 of the function's name and its keywords."""
        text = json.dumps(described(self.job), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """A context that makes and locks the folder; HeldElsewhere if another process has it."""
        with said_of(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with held(self.path):
            yield

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON object of the folder, or None without the file; UserError if it is damaged."""
        try:
            return read_object(self.path / name, SHAPES[name], remedy="delete it")
        except FileNotFoundError:
            return None

    def write(self, name: str, value: dict[str, Any]) -> None:
        replace_file(self.path / name, as_json_bytes(value))

    def forget(self, *names: str) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    @property
    def state(self) -> State:
        """The state of the job; "changed" if the folder is of another call."""
        begun = self.read("result.json") or self.read("job.json")
        if begun is not None and begun.get("fingerprint") != self.fingerprint:
            if up_to_date(begun.get("call")) != up_to_date(described(self.job)):
                return "changed"  # and not only where its functions are defined
        if (self.path / "result.json").exists():
            return "finished"
        return "failed" if (self.path / "error.json").exists() else "waiting"

    def difference(self) -> str:
        """The keywords in which the call in the folder differs from the job's, in words."""
        begun = self.read("result.json") or self.read("job.json") or {}
        before, now = begun.get("call", {}), described(self.job)
        words = [
            f"{name} was {_brief(before.get(name))}, is {_brief(now.get(name))}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        return "; ".join(words)

    def set_aside(self) -> Path:
        """Rename the folder, so that the job starts again; returns its new path."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.before-{number}")).exists():
            number += 1
        return self.path.rename(aside)


def described(job: Job) -> dict[str, Any]:
    """The call as a JSON value; UserError if an argument cannot be described."""
    try:
        text = json.dumps(describe(job.call), default=_path, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"job {job.name}: its call cannot be written down ({error}); give numbers, strings, "
            "lists, functions of a module, and partials of them"
        ) from None
    found: dict[str, Any] = json.loads(text)
    return found


def begin(folder: JobFolder, invocation: str) -> None:
    """Record in a locked folder that this process runs the job now."""
    folder.forget("error.json", "progress.json")
    call = {"call": described(folder.job), "fingerprint": folder.fingerprint}
    folder.write("job.json", call | {"contrapose": __version__})
    folder.write("running.json", _who() | {"invocation": invocation})


def finish(folder: JobFolder, measured: Any, seconds: float, environment: dict[str, Any]) -> None:
    """Write the result; UserError if it is not a dictionary of numbers, lists and the like."""
    if not isinstance(measured, dict) or not all(isinstance(name, str) for name in measured):
        raise UserError(f"the job gave {type(measured).__name__}; give a dict by measure")
    if known := sorted(measured.keys() & folder.job.coordinates.keys()):
        raise UserError(f"the job measured {', '.join(known)}, which is one of its facts")
    result = {
        "format": FORMAT,
        "job": folder.job.name,
        "facts": dict(folder.job.facts),
        "seed": folder.job.seed,
        "measures": measured,
        "seconds": round(seconds, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "contrapose": __version__,
        "environment": environment,
        "environment_digest": digest(environment),
        "call": described(folder.job),
        "fingerprint": folder.fingerprint,
    }
    try:
        folder.write("result.json", result)
    except TypeError as error:
        raise UserError(f"the job's result cannot be written as JSON ({error})") from None
    folder.forget("running.json", "progress.json", "error.json")


def fail(folder: JobFolder, invocation: str, error: str, traceback: str) -> None:
    folder.write(
        "error.json", _who() | {"invocation": invocation, "error": error, "traceback": traceback}
    )
    folder.forget("running.json", "progress.json")


def note_progress(folder: Path, share: float) -> None:
    """Write the share of the job that is done, at most once a second; not if the disk is full."""
    path = folder / "progress.json"
    with contextlib.suppress(OSError):
        if not path.exists() or time.time() - path.stat().st_mtime > 1:
            replace_file(path, as_json_bytes({"share": share}))


def digest(environment: dict[str, Any]) -> str:
    """The start of a sha256 of all that can change results: versions, machine, threads,
    precision."""
    kept = {k: v for k, v in environment.items() if k not in ("started", "commit")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def _who() -> dict[str, Any]:
    return this_process() | {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def _path(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} is of type {type(value).__name__}")


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
