"""Files written whole (beside, then renamed, so that a kill loses nothing), and strict JSON."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def replace_file(path: Path, content: bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never half of one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with said_of(path), open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def said_of(path: Path) -> Iterator[None]:
    """An error of writing that names the file and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path} could not be written ({error.strerror or error}); free some space or give "
            "another place. What was saved before is kept"
        ) from error


def as_json_bytes(value: Any) -> bytes:
    text = json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False)
    # a path may hold bytes that are no text: as \udcff, which JSON reads back to the same path
    return text.encode("utf-8", "backslashreplace")


def finite(value: Any) -> Any:
    """NaN and infinity as null: they are not JSON."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
