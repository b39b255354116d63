"""Labels in the form of this library: int64 [N], 0..C-1 in the order of `classes`, -1 for none.

An image has no label if its label is -1, NaN, None, null, a masked value, a missing line or one of
the words in `NO_LABEL`. This is the same for every way to give labels.
"""

import decimal
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from contrapose.data.label_table import read_table
from contrapose.data.numpy_files import read_npy
from contrapose.errors import UserError

UNLABELLED = -1
TABLES = (".csv", ".tsv", ".txt")
NO_LABEL = frozenset(
    {"", "-1", "-1.0", "nan", "NaN", "NAN", "null", "NULL", "None", "<NA>", "NaT"}
)  # not `none` and `NA`, which are classes somewhere (no defect; Namibia)

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.0+)?")


def encode(
    y: object,
    n: int,
    *,
    names: Sequence[str] | None = None,
    also: Sequence[object] = (),
    what: str = "labels",
) -> tuple[Int[Tensor, " N"], tuple[str, ...]]:
    """(label [N], classes) from integers, whole floats, bools, strings or bytes.

    names: integer k is then class `names[k]`. Without names the classes are the sorted values in
    `y` and in `also` (the labels of the other splits); bools are the classes False and True.
    Raises UserError for another length, shape, type or range.
    """
    found = plain(y, what)
    if len(found) != n:
        raise UserError(f"{what}: {len(found):,} labels for {n:,} images; expected one for each")
    others = [plain(other, what) for other in also]
    if any(part.dtype.kind == "U" for part in (found, *others) if len(part)):
        found, *others = (_as_words(part) for part in (found, *others))
        classes = sorted({*np.unique(np.concatenate([found, *others])).tolist()} - {""})
        place = {word: k for k, word in enumerate(classes)}
        label = torch.tensor([place.get(word, UNLABELLED) for word in found.tolist()])
        return label.long(), tuple(classes)
    if names is not None:
        if len(found) and found.max() >= len(names):
            raise UserError(
                f"{what}: class {int(found.max())} at position {int(found.argmax())}, but only"
                f" {len(names)} class names (0 to {len(names) - 1})"
            )
        return torch.from_numpy(found), tuple(names)
    values = np.unique(np.concatenate([found, *others]))
    values = values[values >= 0]
    number = np.where(found < 0, UNLABELLED, np.searchsorted(values, found))
    return torch.from_numpy(number), tuple(str(value) for value in values)


def plain(y: object, what: str) -> np.ndarray:
    """Labels of any type as int64 or strings; -1 or "" is an image without a label.

    Raises UserError with `what` and the type for values that cannot be classes.
    """
    return _plain(_one_axis(y, what), what)


def read_labels(
    labels: object, names: Sequence[str], column: str | None = None
) -> tuple[Int[Tensor, " N"], tuple[str, ...], dict[str, int]]:
    """(label, classes, notes) from the user's `labels`: an array, or a .npy, .csv or .tsv file.

    names: of the images. A table has one label a line in the order of the images, or a column of
    files and one of labels (`column`); see `label_table`. Notes say how many images have no label.
    """
    values, what, notes = given_labels(labels, names, column)
    label, classes = encode(values, len(names), what=what)
    if without := int((label < 0).sum()):
        notes["without a label"] = without
    return label, classes, notes


def given_labels(
    labels: object, names: Sequence[str], column: str | None = None
) -> tuple[Any, str, dict[str, int]]:
    """(the labels as given, or as the file has them; what to call them in errors; notes)."""
    table = isinstance(labels, str | Path) and Path(labels).suffix.lower() in TABLES
    if column is not None and not table:
        raise UserError(f"label_column={column!r}: these labels have no columns; it is for a .csv")
    if not isinstance(labels, str | Path):
        return labels, "labels", {}
    path = Path(os.path.expanduser(labels))
    what = f"labels={str(path)!r}"
    if not path.exists():
        raise FileNotFoundError(f"labels={str(labels)!r}: no such file; use a .npy or a .csv")
    if not path.is_file():
        raise UserError(f"{what}: not a plain file; save the labels as a .npy or a .csv")
    if table:
        words, notes = read_table(path, names, column)
        return numbers(words), what, notes
    if path.suffix.lower() == ".npy":
        return read_npy(path, what), what, {}
    raise UserError(f"{what}: expected a .npy, .csv or .tsv file")


def numbers(words: list[Any]) -> np.ndarray | list[Any]:
    """The words as integers, if every word is one: 1, or 1.0 as pandas writes it beside a gap. 007
    is a word."""
    number: dict[str, int] = {}
    for word in {word for word in words if word not in NO_LABEL}:
        if not isinstance(word, str) or not _WHOLE.fullmatch(word):
            return words
        number[word] = int(word.partition(".")[0])
    return np.array([number.get(word, UNLABELLED) for word in words], np.int64)


def _plain(y: np.ndarray, what: str) -> np.ndarray:
    if isinstance(y, np.ma.MaskedArray):
        mask, y = np.ma.getmaskarray(y), np.ma.getdata(y).astype(object)
        y[mask] = None
    if y.dtype.kind == "O":
        y = _of_objects(y, what)
    if y.dtype.kind == "b":
        return y.astype(str)
    if y.dtype.kind == "S":
        y = np.array([_word(word) for word in y.tolist()], str)
    if y.dtype.kind == "U":
        return np.array(["" if word in NO_LABEL else word for word in y.tolist()], str)
    if y.dtype.kind == "f":
        y = _of_floats(y, what)
    if y.dtype.kind not in "iu":
        raise UserError(f"{what}: values of type {y.dtype}; expected integers or strings")
    if len(y) and y.min() < UNLABELLED:
        raise UserError(
            f"{what}: value {int(y.min())} at position {int(y.argmin())}; classes count from 0,"
            " and -1 means no label"
        )
    if len(y) and int(y.max()) > np.iinfo(np.int64).max:
        return y.astype(str)
    return y.astype(np.int64)


def _one_axis(y: object, what: str) -> np.ndarray:
    if isinstance(y, Tensor):
        y = y.detach().cpu()
        y = (y.float() if y.dtype == torch.bfloat16 else y).numpy()
    try:
        array = y if isinstance(y, np.ndarray) else np.asarray(y)
    except ValueError:
        raise UserError(f"{what}: rows of different lengths; expected one label each") from None
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise UserError(f"{what}: shape {list(array.shape)}; expected one label for each, [N]")
    return array


def _of_objects(y: np.ndarray, what: str) -> np.ndarray:
    """Python objects, as pandas and Arrow give them, as integers or strings."""
    values = [None if _missing(value) else value for value in y.tolist()]
    kinds = {_kind(value, what, i) for i, value in enumerate(values) if value is not None}
    if len(kinds) > 1:
        raise UserError(f"{what}: {' and '.join(sorted(kinds))} mixed; use one of them")
    if kinds == {"strings"}:
        return np.array(["" if v is None else _word(v) for v in values], str)
    if kinds == {"bools"}:
        return np.array(["" if v is None else str(bool(v)) for v in values], str)
    whole = [UNLABELLED if v is None else int(v) for v in values]
    large = any(abs(v) > np.iinfo(np.int64).max for v in whole)
    return np.array([str(v) for v in whole], str) if large else np.array(whole, np.int64)


def _word(value: str | bytes) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas
        return True
    if isinstance(value, decimal.Decimal):
        return value.is_nan()
    return isinstance(value, float | np.floating) and math.isnan(value)


def _kind(value: Any, what: str, i: int) -> str:
    if isinstance(value, bool | np.bool_):
        return "bools"
    if isinstance(value, str | bytes):
        return "strings"
    if isinstance(value, int | np.integer):
        return "numbers"
    if isinstance(value, float | np.floating | decimal.Decimal) and _whole(value):
        return "numbers"
    raise UserError(
        f"{what}: {value!r} at position {i} is of type {type(value).__name__}; expected whole"
        " numbers or strings"
    )


def _whole(value: Any) -> bool:
    return math.isfinite(value) and value == int(value)


def _of_floats(y: np.ndarray, what: str) -> np.ndarray:
    kind, y = y.dtype, y.astype(np.float64)
    known = ~np.isnan(y)
    wrong = known & ~((np.abs(y) < 2**53) & (y == np.rint(y)))
    if wrong.any():
        first = int(wrong.argmax())
        raise UserError(
            f"{what}: values of type {kind} such as {y[first]:g} at position {first}; expected"
            " whole numbers or strings"
        )
    return np.where(known, y, UNLABELLED).astype(np.int64)


def _as_words(y: np.ndarray) -> np.ndarray:
    if y.dtype.kind == "U":
        return y
    return np.where(y < 0, "", y.astype(str))
