"""Labels as the rest of the library wants them: int64 [N], 0..C-1 in the order of `classes`, and
-1 for an image without a label."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

UNLABELLED = -1


def encode(
    y: np.ndarray,
    n: int,
    *,
    names: Sequence[str] | None = None,
    also: Sequence[np.ndarray] = (),
    what: str = "labels",
) -> tuple[Int[Tensor, " N"], tuple[str, ...]]:
    """Integers, bools or strings -> (label [N], classes).

    With `names`, integer k is class `names[k]`. Without, the classes are the sorted values found in
    `y` and in `also` (the labels of the other splits). -1 and "" mean: no label.
    Raises ValueError for another length, shape, type or range.
    """
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(f"{what}: shape {list(y.shape)}; expected one label for each image, [N]")
    if len(y) != n:
        raise ValueError(f"{what}: {len(y):,} labels for {n:,} images; expected one for each")
    if y.dtype.kind == "f" and np.isfinite(y).all() and (y == np.rint(y)).all():
        y = y.astype(np.int64)
    if y.dtype.kind == "b":
        y = y.astype(np.int64)
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8")
    if y.dtype.kind == "U":
        return _words(y, [str(word) for other in also for word in np.asarray(other).ravel()])
    if y.dtype.kind not in "iu":
        raise ValueError(f"{what}: values of type {y.dtype}; expected integers or strings")
    y = y.astype(np.int64)
    if len(y) and y.min() < UNLABELLED:
        raise ValueError(
            f"{what}: value {int(y.min())} at position {int(y.argmin())}; classes count from 0,"
            " and -1 means no label"
        )
    if names is not None:
        if len(y) and y.max() >= len(names):
            raise ValueError(
                f"{what}: class {int(y.max())} at position {int(y.argmax())}, but only"
                f" {len(names)} class names (0 to {len(names) - 1})"
            )
        return torch.from_numpy(y), tuple(names)
    values = np.unique(np.concatenate([y, *(np.asarray(o).ravel().astype(np.int64) for o in also)]))
    values = values[values >= 0]
    label = np.where(y < 0, UNLABELLED, np.searchsorted(values, y))
    return torch.from_numpy(label), tuple(str(value) for value in values)


def read_labels(
    labels: object, names: Sequence[str]
) -> tuple[Int[Tensor, " N"], tuple[str, ...], int]:
    """The `labels` of the user for the images called `names`: an array, or a .npy or .csv file.

    A .csv holds one label a line in the order of the images, or `file,label`; a first line `label`
    or `file,label` is a heading. Also returns how many images got no label.
    """
    if isinstance(labels, str | Path):
        path = Path(labels).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"labels={str(labels)!r}: no such file; use a .npy or a .csv")
        if path.suffix == ".csv":
            y = _csv(path, names)
        elif path.suffix == ".npy":
            try:
                y = np.load(path, allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise ValueError(f"labels={str(path)!r}: {error}") from None
        else:
            raise ValueError(f"labels={str(path)!r}: expected a .npy or a .csv file")
        what = str(path)
    else:
        y = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
        what = "labels"
    label, classes = encode(y, len(names), what=what)
    return label, classes, int((label < 0).sum())


def _words(y: np.ndarray, also: list[str]) -> tuple[Int[Tensor, " N"], tuple[str, ...]]:
    classes = sorted({*(str(word) for word in y), *also} - {""})
    place = {word: k for k, word in enumerate(classes)}
    label = torch.tensor([place.get(str(word), UNLABELLED) for word in y], dtype=torch.int64)
    return label, tuple(classes)


def _csv(path: Path, names: Sequence[str]) -> np.ndarray:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if line]
    if not lines:
        raise ValueError(f"labels={str(path)!r}: the file is empty")
    if lines[0][-1].strip().lower() in ("label", "labels", "class"):
        lines = lines[1:]
    if all(len(line) == 1 for line in lines):
        return _numbers([line[0].strip() for line in lines])
    if not all(len(line) == 2 for line in lines):
        raise ValueError(f"labels={str(path)!r}: expected one column (label) or two (file,label)")
    place = {tail: k for k, name in enumerate(names) for tail in _tails(name)}
    count = Counter(tail for name in names for tail in _tails(name))
    words = [""] * len(names)
    for file_name, word in lines:
        if count[file_name.strip()] != 1:
            problem = "no image" if count[file_name.strip()] == 0 else "several images"
            raise ValueError(
                f"labels={str(path)!r}: {file_name!r} names {problem} of the set"
                f" (whose first is {names[0]!r})"
            )
        words[place[file_name.strip()]] = word.strip()
    return _numbers(words)


def _numbers(words: list[str]) -> np.ndarray:
    try:
        return np.array([int(word) if word else UNLABELLED for word in words])
    except ValueError:
        return np.array(words)


def _tails(name: str) -> list[str]:
    """a/b/c.png -> a/b/c.png, b/c.png, c.png"""
    parts = Path(name).parts
    return [name, *("/".join(parts[k:]) for k in range(1, len(parts)))]
