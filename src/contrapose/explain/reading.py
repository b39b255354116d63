"""Reading embeddings [N, D] and labels from files of any origin: .npy, .npz, .csv, .parquet.

Nothing is unpickled, and sizes are checked before memory is allocated. For a damaged file or an
unreadable column UserError names it.
"""

import csv
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.data.label_table import FILE_HEADS
from contrapose.data.labels import encode, read_labels
from contrapose.data.numpy_files import open_npz, read_npy, said
from contrapose.data.parquet_columns import damaged, open_shard, read_column, values_of
from contrapose.data.sizes import check_size
from contrapose.data.text_files import read_text
from contrapose.errors import UserError
from contrapose.explain.columns import (
    NONE,
    Contents,
    choose_labels,
    choose_matrix,
    numbered,
    unnumbered,
)

SUFFIXES = (".npy", ".npz", ".csv", ".tsv", ".txt", ".parquet")
SAMPLE = 20  # lines from which the delimiter is told
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)


@dataclass(frozen=True)
class Embeddings:
    """Embeddings and labels, with the names of the arrays or columns that were read."""

    x: Float[Tensor, "N D"]  # float32
    label: Int[Tensor, " N"] | None  # -1: none
    taken: dict[str, str]  # "embeddings", "labels" -> name of the array or column
    left: tuple[str, ...]  # other matrices of the file


def read_embeddings(
    path: Path,
    labels: Path | str | None = None,
    *,
    key: str | None = None,
    label_key: str | None = None,
) -> Embeddings:
    """The embeddings of a file, and its labels or those of another file, `labels`.

    key, label_key: names of arrays or columns; by default they are chosen as in `columns.py`.
    Raises UserError for another kind of file, for another shape, for numbers that are not finite
    (with their count), and for labels of another length.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'no plain file' if path.exists() else 'no such file'}")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: embeddings are read from {', '.join(SUFFIXES)}")
    if labels is not None and label_key is not None:
        raise UserError(f"--labels {labels} and --label-column {label_key}: give one of them")
    with _opened(path, label_key) as contents:
        chosen = choose_matrix(contents, key)
        x = _rows(f"{path}: {chosen!r}", contents.matrix(chosen))
        left = tuple(name for name in contents.matrices if name != chosen)
        taken = {"embeddings": chosen}
        if labels is not None:
            taken["labels"] = str(labels)
            label, _, _ = read_labels(labels, _names(contents, len(x)))
        elif (told := choose_labels(contents, chosen, label_key)) is not None:
            taken["labels"] = told
            label = _labels(contents, told, len(x), chosen)
        else:
            return Embeddings(x, None, taken, left)
    return Embeddings(x, None if bool((label < 0).all()) else label, taken, left)


def _rows(what: str, x: np.ndarray) -> Float[Tensor, "N D"]:
    """An array as rows [N, D] in float32; further axes with a single entry are removed."""
    if x.ndim > 2 and sum(n > 1 for n in x.shape[1:]) <= 1:
        x = x.reshape(len(x), -1)
    if x.ndim != 2 or x.dtype.kind not in "fiu" or len(x) < 2 or x.shape[1] < 1:
        raise UserError(
            f"{what} holds {x.dtype} of shape {x.shape}; embeddings are real numbers [N, D], N > 1"
        )
    check_size(what, 4.0 * x.size, x.nbytes)
    with np.errstate(over="ignore", invalid="ignore"):
        rows = torch.from_numpy(x.astype(np.float32))
    bad = (~rows.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if bad:
        raise UserError(
            f"{what}: {len(bad)} of {len(x)} rows hold NaN, infinity or numbers beyond float32 "
            f"(row {bad[0]} is the first, from 0); remove them"
        )
    return rows


def _labels(contents: Contents, name: str, rows: int, chosen: str) -> Int[Tensor, " N"]:
    what = f"{contents.file}: {name!r}"
    try:
        found = contents.labels(name)
        if len(found) != rows:
            raise UserError(f"{what} holds {len(found):,} labels for {rows:,} rows of {chosen!r}")
        return encode(found, rows, what=what)[0]
    except ValueError as error:
        raise UserError(
            f"{error}. --label-column NAME or --labels FILE tells other labels, --label-column "
            f"{NONE} leaves them out"
        ) from None


def _names(contents: Contents, rows: int) -> list[str]:
    """The names that a label file may use: those in a column of files, else row numbers."""
    for name in contents.vectors:
        if name.lower() in FILE_HEADS:
            found = [str(value) for value in contents.labels(name)]
            if len(set(found)) == len(found) == rows:
                return found
    return [str(i) for i in range(rows)]


@contextmanager
def _opened(path: Path, label_key: str | None) -> Iterator[Contents]:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        with _npz(path) as contents:
            yield contents
    elif suffix == ".npy":
        x = read_npy(path)
        name = path.stem
        yield Contents(str(path), "array", {name: _shape(x.shape)}, {}, lambda _: x, lambda _: None)
    elif suffix == ".parquet":
        schema = open_shard(path).schema_arrow
        yield _table(path, schema, label_key, lambda name: _parquet_column(path, name))
    else:
        table = _csv(path)
        yield _table(path, table.schema, label_key, lambda name: table[name])


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{' x '.join(map(str, shape))}]"


@contextmanager
def _npz(path: Path) -> Iterator[Contents]:
    with open_npz(path) as file:
        matrices, vectors = {}, {}
        for name, told in file.arrays.items():
            long = [n for n in told.shape[1:] if n > 1]
            if told.dtype.kind in "fiu" and len(told.shape) > 1 and len(long) == 1:
                matrices[name] = _shape(told.shape)
            else:
                kind = "objects" if told.dtype.hasobject else str(told.dtype)
                vectors[name] = f"{kind} {_shape(told.shape)}"
        yield Contents(str(path), "array", matrices, vectors, file.read, file.read)


def _table(
    path: Path, schema: Any, label_key: str | None, column: Callable[[str], Any]
) -> Contents:
    """The columns of a table that can be embeddings (lists, lists as text, numbered columns) or
    labels (the others)."""
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise UserError(f"{path}: two columns are called {name!r}; rename one of them")
    lists = {f.name: str(f.type) for f in schema if any(is_kind(f.type) for is_kind in _LISTS)}
    texts = {
        f.name: "lists as text"
        for f in schema
        if path.suffix != ".parquet" and pa.types.is_string(f.type) and _is_list(column(f.name))
    }
    singles = [f.name for f in schema if any(is_kind(f.type) for is_kind in _NUMBERS)]
    singles = [name for name in singles if name != label_key]
    groups = numbered(singles)
    if not (groups or lists or texts):
        groups = unnumbered(singles)
    inside = {name for names in groups.values() for name in names}
    vectors = {
        f.name: str(f.type) for f in schema if f.name not in inside and f.name not in lists | texts
    }
    matrices = lists | texts | {stem: f"{len(names)} columns" for stem, names in groups.items()}

    def matrix(name: str) -> np.ndarray:
        what = f"{path}: column {name!r}"
        if name in groups:
            parts = [column(n) for n in groups[name]]
            return np.stack([np.asarray(p.cast(pa.float64()).to_numpy()) for p in parts], axis=1)
        if name in texts:
            return _from_text(what, column(name))
        if name in lists:
            return _from_lists(what, column(name))
        return np.asarray(column(name).to_numpy(zero_copy_only=False))

    def labels(name: str) -> Any:
        return values_of(path, name, column(name))

    return Contents(str(path), "column", matrices, vectors, matrix, labels)


def _from_lists(what: str, column: Any) -> np.ndarray:
    """The matrix of a column of lists of numbers, which must have one length and none missing."""
    if column.null_count:
        raise UserError(f"{what}: {column.null_count} of {len(column)} rows are null; remove them")
    lengths = pc.list_value_length(column)
    widths = pc.unique(lengths).to_pylist()
    if len(widths) > 1:
        row = pc.index(pc.equal(lengths, widths[1]), True).as_py()
        raise UserError(
            f"{what}: lists of different lengths, {widths[0]} in row 0 and {widths[1]} in row {row}"
        )
    flat = column.combine_chunks().flatten()
    if not any(is_kind(flat.type) for is_kind in _NUMBERS):
        raise UserError(f"{what} holds lists of {flat.type}; embeddings are real numbers")
    if pa.types.is_decimal(flat.type) or flat.null_count:
        flat = flat.cast(pa.float64())
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(
        len(column), widths[0] if widths else 0
    )


def _from_text(what: str, column: Any) -> np.ndarray:
    """The matrix of lists written as text, "[0.1, 0.2]" or "[0.1 0.2]", as pandas writes them."""
    rows = [str(text).strip()[1:-1].replace(",", " ").split() for text in column.to_pylist()]
    width = len(rows[0]) if rows else 0
    for number, row in enumerate(rows):
        if len(row) != width:
            lengths = f"{width} in row 0 and {len(row)} in row {number}"
            raise UserError(f"{what}: lists of different lengths, {lengths}")
    try:
        return np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise UserError(f"{what}: a list holds what is no number ({said(error)})") from None


def _is_list(column: Any) -> bool:
    first = next((str(text).strip() for text in column.to_pylist() if text), "")
    return first[:1] == "[" and first[-1:] == "]"


def _parquet_column(path: Path, name: str) -> Any:
    """One column, after a check that its values fit into memory."""
    meta = open_shard(path).metadata
    size = stored = 0
    for group in range(meta.num_row_groups):
        for k in range(meta.num_columns):
            part = meta.row_group(group).column(k)
            if part.path_in_schema.split(".")[0] == name:
                size += 8 * part.num_values
                stored += part.total_compressed_size
    check_size(f"{path}: column {name!r}", size, stored)
    try:
        return read_column(path, name)
    except (pa.ArrowException, MemoryError) as error:
        raise damaged(path, name, error) from None


def _csv(path: Path) -> Any:
    """A text table as Arrow columns; delimiter, heading and decimal comma are recognised.

    Lines at its beginning that start with #, as NumPy writes them, are skipped.
    """
    text, _ = read_text(path, str(path))
    lines = text.splitlines()
    top = next((k for k, line in enumerate(lines) if line and not line.startswith("#")), len(lines))
    sample = [line for line in itertools.islice(lines[top:], SAMPLE) if line.strip()]
    if not sample:
        raise UserError(f"{path}: the file is empty")
    delimiter = _delimiter(sample)
    first = next(csv.reader(sample, delimiter=delimiter, skipinitialspace=True))
    headed = any(cell and not _is_number(cell) for cell in first)
    wrong: list[Any] = []

    def ragged(row: Any) -> str:
        wrong.append(row)
        return "error"

    def read(point: str) -> Any:
        names = None if headed else [f"column {k}" for k in range(len(first))]
        return pa.csv.read_csv(
            pa.py_buffer(text.encode()),
            read_options=pa.csv.ReadOptions(use_threads=False, skip_rows=top, column_names=names),
            parse_options=pa.csv.ParseOptions(
                delimiter=delimiter, invalid_row_handler=ragged, newlines_in_values=True
            ),
            convert_options=pa.csv.ConvertOptions(decimal_point=point),
        )

    try:
        table = read(".")
        if delimiter != "," and not any(pa.types.is_floating(kind) for kind in table.schema.types):
            table = read(",")
    except (pa.ArrowException, MemoryError) as error:
        if wrong:
            row = wrong[0]
            raise UserError(
                f"{path}, line {row.number + top}: {row.actual_columns} columns, but "
                f"{row.expected_columns} before it; mend the line"
            ) from None
        raise UserError(f"{path} cannot be read as a table ({said(error)})") from None
    return table


def _delimiter(sample: list[str]) -> str:
    """The delimiter by which most lines have the same number of cells, and the most cells."""
    best, most = ",", (0, 0)
    for delimiter in ",;\t| ":
        try:
            widths = [len(row) for row in csv.reader(sample, delimiter=delimiter, strict=True)]
        except csv.Error:
            continue
        usual = max(set(widths), key=widths.count)
        found = widths.count(usual), usual
        if usual > 1 and found > most:  # not only equal: a line may be damaged
            best, most = delimiter, found
    return best


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True
