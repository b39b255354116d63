"""Several labels for each image (multi-label): a matrix [N, K] of 1, 0 and -1 (unknown).

They are given as a matrix of 0 and 1 (multi-hot; -1 or NaN is unknown), as a list of classes for
each image (Parquet, Python), or as words such as `cat|dog` (CSV). In any other form each image has
one label, which `labels.encode` reads.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int8
from torch import Tensor

from contrapose.data.labels import NO_LABEL, UNLABELLED, numbers, plain
from contrapose.errors import UserError

SEPARATOR = "|"
Matrix = Int8[Tensor, "N K"]


def several(
    y: object,
    n: int,
    *,
    names: Sequence[str] | None = None,
    also: Sequence[object] = (),
    what: str = "labels",
) -> tuple[Matrix, tuple[str, ...]] | None:
    """(the matrix of labels, the names of its columns); None if each image has one label.

    An image without known labels (null, "", -1 or NaN in all columns) has a row of -1, one with an
    empty list a row of 0. names: of the classes; by default columns are called by their number, and
    classes of lists and words are sorted, including those in `also` (the other splits).
    Raises UserError for a matrix of other values, and for another number of rows.
    """
    matrix = _matrix(y, what)
    if matrix is not None:
        _same_length(len(matrix), n, what)
        classes = tuple(names or map(str, range(matrix.shape[1])))
        if len(classes) != matrix.shape[1]:
            raise UserError(f"{what}: {matrix.shape[1]} columns but {len(classes)} class names")
        return torch.from_numpy(matrix), classes
    rows = _lists(y)
    if rows is None:
        return None
    _same_length(len(rows), n, what)
    others = [found for other in also if (found := _lists(other, True)) is not None]
    every = [item for part in (rows, *others) for row in part for item in row or ()]
    known: list[Any] = sorted({*plain(numbers(every), what).tolist()} - {UNLABELLED, ""})
    if names is not None and all(isinstance(k, int) for k in known):
        if known and known[-1] >= len(names):
            raise UserError(f"{what}: class {known[-1]}, but only {len(names)} class names")
        place, classes = {k: k for k in range(len(names))}, tuple(names)
    else:
        place, classes = {k: i for i, k in enumerate(known)}, tuple(map(str, known))
    labels = np.zeros((n, len(classes)), np.int8)
    flat = iter(plain(numbers(every), what).tolist())
    for i, row in enumerate(rows):
        if row is None:
            labels[i] = UNLABELLED
        for _ in row or ():
            if (k := next(flat)) in place:
                labels[i, place[k]] = 1
    return torch.from_numpy(labels), classes


def _matrix(y: object, what: str) -> np.ndarray | None:
    """The matrix as int8; None for anything else, and for a matrix of one column."""
    array = y.detach().cpu().numpy() if isinstance(y, Tensor) else y
    if isinstance(array, list) and array and all(isinstance(row, list | tuple) for row in array):
        same = len({len(row) for row in array}) == 1
        array = np.asarray(array) if same else array
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.shape[1] < 2:
        return None
    if array.dtype.kind not in "biuf":
        raise UserError(f"{what}: shape {list(array.shape)} of type {array.dtype}; give 0 and 1")
    values = np.nan_to_num(array.astype(np.float64), nan=UNLABELLED)
    if not np.isin(values, (0, 1, UNLABELLED)).all():
        raise UserError(
            f"{what}: shape {list(array.shape)} with values from {values.min():g} to"
            f" {values.max():g}; expected one label for each, [N], or 0 and 1 for several, [N, K]"
        )
    return values.astype(np.int8)


def _lists(y: object, always: bool = False) -> list[list[Any] | None] | None:
    """The classes of each image, None for an image without; None if each image has one label."""
    values = y.tolist() if isinstance(y, np.ndarray) and y.ndim == 1 else y
    if not isinstance(values, list) or not values:
        return None
    if any(isinstance(v, list | tuple | set) for v in values):
        return [[*v] if isinstance(v, list | tuple | set) else None for v in values]
    words = [v for v in values if isinstance(v, str)]
    if not words or not (always or any(SEPARATOR in word for word in words)):
        return None
    return [
        None
        if not isinstance(v, str) or v.strip() in NO_LABEL
        else [part.strip() for part in v.split(SEPARATOR) if part.strip()]
        for v in values
    ]


def _same_length(found: int, n: int, what: str) -> None:
    if found != n:
        raise UserError(f"{what}: labels of {found:,} images for {n:,}; expected one row for each")
