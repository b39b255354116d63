"""Parquet shards as the Hugging Face Hub serves them: `image: {bytes, path}`, `label`, and the
names of the classes in the schema's metadata.

Shards whose encoded images exceed `memory` are copied once into one uncompressed Arrow file in the
cache folder and mapped from there: Parquet itself has no random access.
"""

import io
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contrapose.data.cache import cache_root
from contrapose.data.decode import BinaryFile
from contrapose.data.folder import SPLITS, hidden
from contrapose.data.images import NoSuchSplit, digest
from contrapose.data.labels import UNLABELLED, encode
from contrapose.data.load import Encoded, Listing

_IMAGE = ("image", "img", "images")
_LABEL = ("label", "labels", "fine_label", "class", "target")


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str | None
    classes: tuple[str, ...] | None  # None = not named in the schema


@dataclass(frozen=True, eq=False)
class _Column:
    """The encoded images: row i of a column that lies in chunks, in memory or in a mapped file."""

    bytes: list[Any]  # Arrow arrays
    path: list[Any]  # likewise, or None
    folder: Path
    start: np.ndarray = field(init=False)  # the first row of each chunk

    def __post_init__(self) -> None:
        start = np.cumsum([0, *(len(chunk) for chunk in self.bytes)])
        object.__setattr__(self, "start", start)

    def open(self, i: int) -> BinaryFile:
        chunk = int(np.searchsorted(self.start, i, side="right")) - 1
        row = i - int(self.start[chunk])
        data = self.bytes[chunk][row].as_py()
        if data is not None:
            return io.BytesIO(data)
        names = self.path[chunk]
        name = names[row].as_py() if names is not None else None
        if not name:
            raise ValueError("the row holds no image")
        if not (self.folder / name).resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"its path {name!r} leads out of the folder")
        return open(self.folder / name, "rb")


def shards(root: Path) -> list[Path]:
    """The Parquet files of a folder, in order, also in `data/` and one level deeper."""
    found = {
        p for pattern in ("*.parquet", "*/*.parquet", "*/*/*.parquet") for p in root.glob(pattern)
    }
    return sorted(p for p in found if not any(map(hidden, p.relative_to(root).parts)))


def from_parquet(root: Path, split: str, memory: int) -> Listing:
    """The images of `split` in a folder of shards, or in one `.parquet` file."""
    files = shards(root) if root.is_dir() else [root]
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split(file, root), []).append(file)
    chosen = by_split.get(split) or (by_split.get("all") if split == "train" else None)
    if chosen is None:
        raise NoSuchSplit(
            f"{root}: no {split!r} split; its shards are of {', '.join(sorted(by_split))}"
        )
    columns = _columns(chosen[0])
    column = _read(chosen, columns.image, memory)
    names = [f"{file}[{row}]" for file in chosen for row in range(_open(file).metadata.num_rows)]
    source = Encoded(names, column.open, lambda: _stamp(chosen), place=str(root.resolve()))
    found = split if chosen is by_split.get(split) and len(by_split) > 1 else "all"
    if columns.label is None:
        return Listing(source, found)
    others = [file for part in by_split.values() if part is not chosen for file in part]
    label, classes = encode(
        _labels(chosen, columns.label),
        len(names),
        names=columns.classes,
        also=[] if columns.classes is not None else [_labels(others, columns.label)],
        what=f"{root}: column {columns.label!r}",
    )
    return Listing(source, found, label, classes)


def _split(file: Path, root: Path) -> str:
    """train-00000-of-00001.parquet, data/train-*.parquet, train/0000.parquet -> train"""
    known = {name: split for split, names in SPLITS.items() for name in names}
    words = [file.stem.replace("_", "-").split("-")[0].lower()]
    words += [part.lower() for part in file.parent.parts[len(root.parts) :]]
    return next((known[word] for word in words if word in known), "all")


def _open(file: Path) -> Any:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, PermissionError | FileNotFoundError):
            raise
        with file.open("rb") as start:
            pointer = start.read(7) == b"version"
        why = "a Git LFS pointer; fetch the file itself" if pointer else str(error)
        raise ValueError(f"{file}: not a whole Parquet file ({why})") from None


def _columns(file: Path) -> _Columns:
    schema = _open(file).schema_arrow
    features = _features(schema)
    kinds = {name: f.get("_type") for name, f in features.items() if isinstance(f, dict)}
    images = [name for name in schema.names if kinds.get(name) == "Image"]
    image = next((name for name in (*_IMAGE, *images) if name in schema.names), None)
    if image is None or not _holds_bytes(schema.field(image).type):
        listed = ", ".join(f"{f.name} ({_short(f.type)})" for f in schema)
        raise ValueError(
            f"{file}: no column of images; expected `image` as bytes or {{bytes, path}},"
            f" found {listed}"
        )
    labels = [name for name in schema.names if kinds.get(name) == "ClassLabel"]
    label = next((name for name in (*_LABEL, *labels) if name in schema.names), None)
    said = features.get(label or "")
    names = said.get("names") if isinstance(said, dict) else None
    return _Columns(image, label, tuple(map(str, names)) if names else None)


def _features(schema: Any) -> dict[str, Any]:
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = said.get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}
    return features if isinstance(features, dict) else {}


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(f.name == "bytes" and _holds_bytes(f.type) for f in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _short(kind: Any) -> str:
    return "struct" if pa.types.is_struct(kind) else str(kind)


def _labels(files: list[Path], column: str) -> np.ndarray:
    parts = []
    for file in files:
        table = _open(file)
        if column not in table.schema_arrow.names:
            raise ValueError(f"{file}: no column {column!r}, which the other shards have")
        values = table.read(columns=[column])[column]
        text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
        parts.append(values.fill_null("" if text else UNLABELLED).to_numpy())
    array = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return array.astype(str) if array.dtype.hasobject else array


def _read(files: list[Path], column: str, memory: int) -> _Column:
    size = sum(_bytes(file, column) for file in files)
    if size > memory:
        chunks = _mapped(files, column, size)
    else:
        chunks = [c for file in files for c in _open(file).read(columns=[column])[column].chunks]
    inner = [pa.types.is_struct(chunk.type) for chunk in chunks]
    data = [
        pc.struct_field(c, "bytes") if nested else c
        for c, nested in zip(chunks, inner, strict=True)
    ]
    paths = [
        pc.struct_field(c, "path") if nested and c.type.get_field_index("path") >= 0 else None
        for c, nested in zip(chunks, inner, strict=True)
    ]
    return _Column(data, paths, files[0].parent)


def _bytes(file: Path, column: str) -> int:
    meta = _open(file).metadata
    parts = [
        meta.row_group(g).column(k)
        for g in range(meta.num_row_groups)
        for k in range(meta.num_columns)
    ]
    mine = [part for part in parts if part.path_in_schema.split(".")[0] == column]
    return sum(part.total_uncompressed_size for part in mine)


def _mapped(files: list[Path], column: str, size: int) -> list[Any]:
    """The column as an Arrow file in the cache folder, mapped into memory."""
    root = cache_root()
    if root is None:
        raise ValueError(
            f"{files[0].parent}: its images take {size / 2**30:.1f} GiB, more than `memory`, and"
            " CONTRAPOSE_CACHE=off leaves no place to map them from; raise one or the other"
        )
    copy = root / "arrow" / f"{digest(_stamp(files), str(files[0].resolve()).encode())}.arrow"
    if not copy.exists():
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=copy.parent, suffix=".part", delete=False) as part:
                _copy(files, column, part)
            os.replace(part.name, copy)
        except OSError as error:
            raise OSError(
                f"{files[0].parent}: its images take {size / 2**30:.1f} GiB, more than `memory`,"
                f" and could not be copied to {copy.parent} for random access ({error}); set"
                " CONTRAPOSE_CACHE to a folder with room, or raise `memory`"
            ) from error
    reader = pa.ipc.open_file(pa.memory_map(str(copy)))
    return [reader.get_batch(k).column(0) for k in range(reader.num_record_batches)]


def _copy(files: list[Path], column: str, part: Any) -> None:
    try:
        schema = pa.schema([_open(files[0]).schema_arrow.field(column)])
        with pa.ipc.new_file(part, schema) as writer:
            for file in files:
                for batch in _open(file).iter_batches(batch_size=256, columns=[column]):
                    writer.write_batch(batch)
    except BaseException:
        os.unlink(part.name)
        raise


def _stamp(files: list[Path]) -> bytes:
    stats = [(file.name, (s := file.stat()).st_size, s.st_mtime_ns) for file in files]
    return digest(repr(stats).encode()).encode()
