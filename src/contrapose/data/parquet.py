"""Parquet shards in the format of the Hugging Face Hub: columns `image: {bytes, path}` and `label`.

The names of the classes are in the schema's metadata. If the encoded images of the shards exceed
`memory` they are copied once into an uncompressed Arrow file in the cache folder, which is
memory-mapped, since Parquet itself has no random access.
"""

import io
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contrapose.data.cache import cache_root
from contrapose.data.decode import BinaryFile
from contrapose.data.images import digest
from contrapose.data.labels import encode
from contrapose.data.load import Encoded, Listing
from contrapose.data.packed import printable
from contrapose.data.parquet_columns import (
    Columns,
    choose,
    damaged,
    labels_of,
    lists_of,
    open_shard,
    read_column,
)
from contrapose.data.several import several
from contrapose.data.shards import of_split, stamp
from contrapose.data.walk import files_with, walk
from contrapose.errors import UserError


@dataclass(frozen=True, eq=False)
class _Column:
    """A column of encoded images in chunks, in memory or memory-mapped; `open(i)` opens row i."""

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
            raise UserError("the row holds no image")
        if not (self.folder / name).resolve().is_relative_to(self.folder.resolve()):
            raise UserError(f"its path {name!r} leads out of the folder")
        return open(self.folder / name, "rb")

    def files(self) -> set[str]:
        """The files that are named by rows without bytes."""
        found = set()
        for data, names in zip(self.bytes, self.path, strict=True):
            if names is not None and data.null_count:
                where = pc.and_(data.is_null(), names.is_valid())
                found |= {self.folder / name for name in names.filter(where).to_pylist()}
        return {os.path.realpath(file) for file in found}


def shards(root: Path) -> list[Path]:
    """The Parquet files below a folder, in order, without hidden ones."""
    return files_with(root, ".parquet")


def from_parquet(
    root: Path,
    split: str,
    memory: int,
    *,
    label_column: str | None = None,
    image_column: str | None = None,
) -> Listing:
    """The images of `split` in a folder of shards, or in one `.parquet` file.

    label_column, image_column: by default the column with a usual name; if several have one, the
    column must be given.
    """
    files = shards(root) if root.is_dir() else [root]
    by_split = of_split(files, root, split)
    chosen = by_split.get(split) or by_split["all"]
    columns = choose(chosen, image=image_column, label=label_column)
    rows = [open_shard(file).metadata.num_rows for file in chosen]
    column = _read(chosen, columns.image, memory)
    names = [f"{file}[{row}]" for file, n in zip(chosen, rows, strict=True) for row in range(n)]
    source = Encoded(names, column.open, stamp(chosen), place=str(root.resolve()))
    above = root if root.is_dir() else root.parent
    shown = [printable(file.relative_to(above).as_posix()) for file in chosen]
    short = [f"{file}:{row}" for file, n in zip(shown, rows, strict=True) for row in range(n)]
    found = split if chosen is by_split.get(split) and len(by_split) > 1 else "all"
    notes = _notes(columns, len(names))
    if found != "all" and "all" in by_split:
        lost = by_split["all"]
        which = f"{printable(lost[0].name)}{' ...' if len(lost) > 1 else ''}"
        notes[f"rows not read: no split has the name of their shard ({which})"] = sum(
            open_shard(file).metadata.num_rows for file in lost
        )
    if root.is_dir() and (beside := _beside(root, column)):
        notes["image files beside the shards, not read"] = beside
    if columns.label is None:
        return Listing(source, found, notes=notes, names=short)
    others = [file for part in by_split.values() if part is not chosen for file in part]
    what = f"{root}: column {columns.label!r}"
    read = lists_of if (lists := lists_of(chosen, columns.label)) is not None else labels_of
    told = labels_of(chosen, columns.label) if lists is None else lists
    also = [] if columns.classes is not None else [read(others, columns.label)]
    more = several(told, len(names), names=columns.classes, also=also, what=what)
    if more is not None:
        return Listing(source, found, None, more[1], notes=notes, names=short, labels=more[0])
    label, classes = encode(told, len(names), names=columns.classes, also=also, what=what)
    return Listing(source, found, label, classes, notes=notes, names=short)


def _notes(columns: Columns, images: int) -> dict[str, int]:
    """Notes on the choice of columns, if there was one."""
    if not columns.left:
        return {}
    chosen = f"images from column {columns.image!r}"
    if columns.label is not None:
        chosen = f"labels from column {columns.label!r}, {chosen}"
    return {f"{chosen}; not read: {', '.join(columns.left)}": images}


def _beside(root: Path, column: "_Column") -> int:
    """Number of image files in the folder of the shards that no row names."""
    files = {os.path.realpath(file) for file in walk(root).files}
    return len(files - column.files()) if files else 0


def _read(files: list[Path], column: str, memory: int) -> _Column:
    size = sum(_bytes(file, column) for file in files)
    if size > memory:
        chunks = _mapped(files, column, size)
    else:
        chunks = [chunk for file in files for chunk in read_column(file, column).chunks]
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
    meta = open_shard(file).metadata
    parts = [
        meta.row_group(g).column(k)
        for g in range(meta.num_row_groups)
        for k in range(meta.num_columns)
    ]
    mine = [part for part in parts if part.path_in_schema.split(".")[0] == column]
    return sum(part.total_uncompressed_size for part in mine)


def _mapped(files: list[Path], column: str, size: int) -> list[Any]:
    """The column as a memory-mapped Arrow file in the cache folder."""
    root = cache_root()
    if root is None:
        raise UserError(
            f"{files[0].parent}: its images take {size / 2**30:.1f} GiB, more than `memory`, and"
            " CONTRAPOSE_CACHE=off leaves no place to map them from; raise one or the other"
        )
    copy = root / "arrow" / f"{digest(stamp(files), str(files[0].resolve()).encode())}.arrow"
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
        schema = pa.schema([open_shard(files[0]).schema_arrow.field(column)])
        with pa.ipc.new_file(part, schema) as writer:
            for file in files:
                batches = open_shard(file).iter_batches(batch_size=256, columns=[column])
                while (batch := _next(batches, file, column)) is not None:
                    writer.write_batch(batch.cast(schema))
    except BaseException:
        os.unlink(part.name)
        raise


def _next(batches: Any, file: Path, column: str) -> Any:
    try:
        return next(batches, None)
    except (pa.ArrowException, OSError) as error:
        raise damaged(file, column, error) from None
