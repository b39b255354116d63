"""Where downloads and converted copies lie."""

import os
from pathlib import Path


def data_root(root: str | Path | None = None) -> Path:
    """The argument, else $CONTRAPOSE_DATA, else ~/.cache/contrapose."""
    return Path(root or os.environ.get("CONTRAPOSE_DATA") or "~/.cache/contrapose").expanduser()


def cache_root() -> Path:
    """$CONTRAPOSE_CACHE, else ~/.cache/contrapose."""
    return Path(os.environ.get("CONTRAPOSE_CACHE") or "~/.cache/contrapose").expanduser()
