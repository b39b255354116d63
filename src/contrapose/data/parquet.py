"""Parquet shards in the format of the Hugging Face Hub: columns `image: {bytes, path}` and `label`.

The names of the classes are in the schema's metadata. Parquet has no random access: the smallest
part that can be read is a row group. So if the encoded images of the shards exceed `memory` they
are copied once into an uncompressed Arrow file in the cache folder, which is memory-mapped. Above
COPIED bytes, and where the cache has no room for them, nothing is copied: row groups are read when
one of their images is asked for, and the newest ROOM bytes of them are kept in memory. Shards of
small row groups (a few images) are then read much faster than those of large ones.
"""

import io
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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
from contrapose.files import cache_root

COPIED = 16 * 2**30  # bytes of encoded images up to which they are copied for random access
ROOM = 2**29  # bytes of row groups in memory
FEW_ROWS = 8  # of a row group, up to which reading it for one image is no great loss


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
        return _opened(self.bytes[chunk], self.path[chunk], i - int(self.start[chunk]), self.folder)

    def files(self) -> set[str]:
        """The files that are named by rows without bytes."""
        found = set()
        for data, names in zip(self.bytes, self.path, strict=True):
            if names is not None and data.null_count:
                where = pc.and_(data.is_null(), names.is_valid())
                found |= {self.folder / name for name in names.filter(where).to_pylist()}
        return {os.path.realpath(file) for file in found}


@dataclass(eq=False)
class _RowGroups:
    """As `_Column`, of which row groups are read when they are asked for."""

    shards: list[Path]
    column: str
    note: str = ""
    _kept: "OrderedDict[int, tuple[Any, Any, int]]" = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._footers = [open_shard(file).metadata for file in self.shards]
        self.groups = [  # (shard, its row group)
            (k, g) for k, meta in enumerate(self._footers) for g in range(meta.num_row_groups)
        ]
        rows = [self._footers[k].row_group(g).num_rows for k, g in self.groups]
        self.start = np.cumsum([0, *rows])
        self._reading = [threading.Lock() for _ in self.groups]  # each is read by one thread

    def told(self, size: int, why: str) -> str:
        """What reading an image costs, of `size` bytes in all, and what to do if that is much."""
        each, images = size / max(1, len(self.groups)), int(self.start[-1])
        rows = images / max(1, len(self.groups))
        said = f"read by row groups, {each / 1e6:,.3g} MB for one image, since {why}"
        if rows <= FEW_ROWS:
            return said
        return (
            f"{said}: in random order {rows:,.3g} times what is used; write the shards with "
            f"row_group_size={FEW_ROWS}, or as tar shards or files"
        )

    def open(self, i: int) -> BinaryFile:
        g = int(np.searchsorted(self.start, i, side="right")) - 1
        with self._reading[g]:
            data, names = self._group(g)
        return _opened(data, names, i - int(self.start[g]), self.shards[0].parent)

    def _group(self, g: int) -> tuple[Any, Any]:
        with self._lock:
            if g in self._kept:
                self._kept.move_to_end(g)
                return self._kept[g][:2]
        k, number = self.groups[g]
        file = self.shards[k]
        try:
            with pq.ParquetFile(file, metadata=self._footers[k]) as shard:
                read = shard.read_row_group(number, columns=[self.column], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise damaged(file, self.column, error) from None
        whole = read[self.column].combine_chunks()
        data, names = _fields(whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole)
        with self._lock:
            self._kept[g] = data, names, whole.nbytes
            while len(self._kept) > 1 and sum(kept[2] for kept in self._kept.values()) > ROOM:
                self._kept.popitem(last=False)
        return data, names


def _fields(chunk: Any) -> tuple[Any, Any]:
    """(the encoded images of a column, the names of files beside them or None)"""
    if not pa.types.is_struct(chunk.type):
        return chunk, None
    named = chunk.type.get_field_index("path") >= 0
    return pc.struct_field(chunk, "bytes"), pc.struct_field(chunk, "path") if named else None


def _opened(images: Any, names: Any, row: int, folder: Path) -> BinaryFile:
    data = images[row].as_py()
    if data is not None:
        return io.BytesIO(data)
    name = names[row].as_py() if names is not None else None
    if not name:
        raise UserError("the row holds no image")
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"its path {name!r} leads out of the folder")
    return open(folder / name, "rb")


@dataclass(frozen=True, eq=False)
class _Rows(Sequence[str]):
    """Names of the rows of shards: `shard.parquet:7`."""

    files: Sequence[str]
    start: np.ndarray  # the first row of each
    form: str = "{}:{}"

    def __len__(self) -> int:
        return int(self.start[-1])

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        k = int(np.searchsorted(self.start, i, side="right")) - 1
        return self.form.format(self.files[k], i - int(self.start[k]))


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
    start = np.cumsum([0, *(open_shard(file).metadata.num_rows for file in chosen)])
    column, stored = _read(chosen, columns.image, memory)
    names = _Rows([str(file) for file in chosen], start, "{}[{}]")
    source = Encoded(names, column.open, stamp(chosen), place=str(root.resolve()), stored=stored)
    above = root if root.is_dir() else root.parent
    shown = [printable(file.relative_to(above).as_posix()) for file in chosen]
    short = _Rows(shown, start)
    found = split if chosen is by_split.get(split) and len(by_split) > 1 else "all"
    notes = _notes(columns, len(names))
    if found != "all" and "all" in by_split:
        lost = by_split["all"]
        which = f"{printable(lost[0].name)}{' ...' if len(lost) > 1 else ''}"
        notes[f"rows not read: no split has the name of their shard ({which})"] = sum(
            open_shard(file).metadata.num_rows for file in lost
        )
    if isinstance(column, _RowGroups):
        notes[column.note] = len(names)
    elif root.is_dir() and (beside := _beside(root, column)):
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


def _beside(root: Path, column: _Column) -> int:
    """Number of image files in the folder of the shards that no row names."""
    files = {os.path.realpath(file) for file in walk(root).files}
    return len(files - column.files()) if files else 0


def _read(files: list[Path], column: str, memory: int) -> tuple[_Column | _RowGroups, int]:
    """(the column of images, its bytes)"""
    size = sum(_bytes(file, column) for file in files)
    if size > memory:
        room, why = _room(size)
        if not room:
            groups = _RowGroups(files, column)
            groups.note = groups.told(size, why)
            return groups, size
        chunks = _mapped(files, column, size)
    else:
        chunks = [chunk for file in files for chunk in read_column(file, column).chunks]
    fields = [_fields(chunk) for chunk in chunks]
    return _Column([data for data, _ in fields], [names for _, names in fields],
                   files[0].parent), size  # fmt: skip


def _room(size: int) -> tuple[bool, str]:
    """Whether a copy of so many bytes is made in the cache folder, or why not."""
    root = cache_root()
    if size > COPIED:
        return False, f"{size / 1e9:,.0f} GB are not copied for random access"
    if root is None:
        return False, "CONTRAPOSE_CACHE=off leaves no place for a copy"
    there = next((p for p in (root, *root.parents) if p.is_dir()), None)
    free = 0 if there is None else shutil.disk_usage(there).free
    if free < size:
        return False, f"{root} has room for {free / 1e9:,.3g} GB (CONTRAPOSE_CACHE names another)"
    return True, ""


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
    assert root is not None
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
