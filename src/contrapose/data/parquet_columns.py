"""The columns of images and of labels in Parquet shards, and the values of the labels."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contrapose.data.labels import plain
from contrapose.errors import UserError

IMAGE = ("image", "img", "images")
LABEL = ("label", "labels", "fine_label", "class", "target")


@dataclass(frozen=True)
class Columns:
    """The chosen columns, and the candidates that were not chosen."""

    image: str
    label: str | None
    classes: tuple[str, ...] | None  # None = not named in the schema
    left: tuple[str, ...]  # other columns that could be labels or images


def open_shard(file: Path) -> Any:
    """The open Parquet file; UserError with its name if it is damaged."""
    try:
        status = file.stat()
        return pq.ParquetFile(file, metadata=_footer(file, status.st_size, status.st_mtime_ns))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, PermissionError | FileNotFoundError):
            raise
        with file.open("rb") as start:
            pointer = start.read(7) == b"version"
        why = "a Git LFS pointer; fetch the file itself" if pointer else str(error)
        raise UserError(f"{file}: not a whole Parquet file ({why})") from None


@lru_cache(maxsize=1024)
def _footer(file: Path, size: int, changed: int) -> Any:
    """The footer of a shard, which is read once however often the shard is opened, as long as its
    size and time of change stay."""
    return pq.read_metadata(file)


def read_column(file: Path, column: str) -> Any:
    """One column of a shard; UserError with file and column if it is damaged."""
    shard = open_shard(file)
    _once(file, shard.schema_arrow, column)
    try:
        return shard.read(columns=[column])[column]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise damaged(file, column, error) from None


def damaged(file: Path, column: str, error: Exception) -> UserError:
    return UserError(f"{file}: column {column!r} cannot be read ({error}); fetch the file again")


def has_images(file: Path) -> bool:
    """True if a column of the shard could hold images."""
    return any(holds_bytes(field.type) for field in open_shard(file).schema_arrow)


def choose(files: list[Path], *, image: str | None = None, label: str | None = None) -> Columns:
    """The columns of all shards: those asked for, or the only ones with a usual name.

    Raises UserError if there are several candidates, and, with the name of the shard, if its
    columns differ from those of the first shard.
    """
    first = open_shard(files[0]).schema_arrow
    features = _features(first)
    kinds = {name: f.get("_type") for name, f in features.items() if isinstance(f, dict)}
    names = list(dict.fromkeys(first.names))
    could = [n for n in names if any(f.name == n and holds_bytes(f.type) for f in first)]
    marked = [n for n in could if kinds.get(n) == "Image"]
    chosen = _one(files[0], first, "image", image, [n for n in IMAGE if n in could], marked, could)
    if chosen is None or chosen not in could:
        listed = ", ".join(f"{f.name} ({short(f.type)})" for f in first)
        asked = f"image_column={image!r}: " if image else ""
        raise UserError(
            f"{files[0]}: {asked}no column of images; expected `image` as bytes or {{bytes, path}},"
            f" found {listed}"
        )
    classes = [n for n in names if kinds.get(n) == "ClassLabel" and n != chosen]
    usual = [n for n in LABEL if n in names and n != chosen]
    named = _one(files[0], first, "label", label, usual, classes, [])
    for file in files[1:]:
        schema = open_shard(file).schema_arrow
        for column in (chosen, *([named] if named else [])):
            _once(file, schema, column)
        if named and _class_names(_features(schema), named) != _class_names(features, named):
            raise UserError(
                f"{file}: column {named!r} names other classes than in {files[0].name}; write the"
                " shards with one list of classes"
            )
    left = {n for n in (*could, *usual, *classes) if n not in (chosen, named)}
    return Columns(chosen, named, _class_names(features, named), tuple(sorted(left)))


def labels_of(files: list[Path], column: str) -> np.ndarray:
    """The labels of the shards, int64 with -1 or strings with "" (see `labels.plain`)."""
    parts: list[np.ndarray] = []
    told: dict[str, Path] = {}  # kind of the labels -> the first file that has it
    for file in files:
        values = read_column(file, column)
        found = plain(values_of(file, column, values), f"{file}: column {column!r} ({values.type})")
        if np.any(found != ("" if found.dtype.kind == "U" else -1)):
            told.setdefault("words" if found.dtype.kind == "U" else "numbers", file)
        parts.append(found)
    if len(told) > 1:
        raise UserError(
            f"column {column!r} holds words in {told['words']} and numbers in {told['numbers']};"
            " write the shards with one type"
        )
    if "words" in told:
        parts = [p if p.dtype.kind == "U" else np.full(len(p), "") for p in parts]
    else:
        parts = [np.full(len(p), -1) if p.dtype.kind == "U" else p for p in parts]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def lists_of(files: list[Path], column: str) -> list[Any] | None:
    """A list of labels for each row, None for a row without; None if the column has one label
    each."""
    rows: list[Any] = []
    for file in files:
        values = read_column(file, column)
        kind = values.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            if not pa.types.is_fixed_size_list(kind):
                return None
        rows += values.to_pylist()
    return rows or None


def holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(f.name == "bytes" and holds_bytes(f.type) for f in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def short(kind: Any) -> str:
    return "struct" if pa.types.is_struct(kind) else str(kind)


def _one(
    file: Path,
    schema: Any,
    what: str,
    asked: str | None,
    usual: list[str],
    marked: list[str],
    others: list[str],
) -> str | None:
    """The column asked for, else the only column of the first nonempty of these lists."""
    if asked is not None:
        _once(file, schema, asked)
        return asked
    found = next((names for names in (usual, marked, others) if names), [])
    if len(found) > 1:
        raise UserError(
            f"{file}: which of the columns {', '.join(found)} holds the {what}s? Say so with"
            f" --{what}-column NAME ({what}_column=)"
        )
    if found:
        _once(file, schema, found[0])
    return found[0] if found else None


def _once(file: Path, schema: Any, column: str) -> None:
    count = schema.names.count(column)
    if count == 0:
        raise UserError(f"{file}: no column {column!r}; it has {', '.join(schema.names)}")
    if count > 1:
        raise UserError(f"{file}: {count} columns are called {column!r}; rename or drop one")


def values_of(file: Path, column: str, values: Any) -> Any:
    """An Arrow column as an array or a list for `labels.plain`."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return values_of(file, column, values.cast(kind.value_type))
    if pa.types.is_run_end_encoded(kind):
        return values_of(file, column, pc.run_end_decode(values))
    plain_kinds = (
        pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating,
        pa.types.is_decimal, pa.types.is_string, pa.types.is_large_string, pa.types.is_binary,
        pa.types.is_large_binary, pa.types.is_fixed_size_binary,
    )  # fmt: skip
    view = str(kind) in ("string_view", "binary_view")
    if not view and not any(is_kind(kind) for is_kind in plain_kinds):
        raise UserError(
            f"{file}: column {column!r} is of type {kind}, which names no classes; write whole"
            " numbers or strings, or choose another column with --label-column NAME"
        )
    if pa.types.is_integer(kind) and values.null_count == 0:
        return values.to_numpy()
    found = np.empty(len(values), object)
    found[:] = values.to_pylist()
    return found


def _features(schema: Any) -> dict[str, Any]:
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = said.get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(features: dict[str, Any], column: str | None) -> tuple[str, ...] | None:
    said = features.get(column or "")
    said = said.get("feature", said) if isinstance(said, dict) else said  # of a list of classes
    names = said.get("names") if isinstance(said, dict) else None
    return tuple(map(str, names)) if names else None
