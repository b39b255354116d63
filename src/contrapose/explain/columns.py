"""The choice of the arrays or columns of a file that hold embeddings and labels.

They are those whose names are given, else those with a usual name, else the only ones there are. If
there are several candidates, UserError lists their names.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from contrapose.data.label_table import FILE_HEADS, LABEL_HEADS
from contrapose.errors import UserError

# names of embeddings, best first, in lower case: ours, then those of other tools
EMBEDDINGS = (
    "h", "z", "embedding", "embeddings", "emb", "embeds", "image_embeds", "image_embeddings",
    "features", "feature", "feats", "feat", "representation", "representations", "vectors",
    "vector", "latents", "latent", "x", "x_train", "data", "arr_0", "test_embeddings",
)  # fmt: skip
NONE = "none"  # told in place of the labels' name: there are none
_NUMBERED = re.compile(r"(.*?)[\s_.:(\[-]*(\d+)[)\]]*")
_NO_FEATURES = FILE_HEADS | {"", "index", "unnamed: 0", "split", "fold"}


@dataclass(frozen=True)
class Contents:
    """The arrays or columns of a file that could be embeddings [N, D] or labels [N]."""

    file: str  # as an error names it
    word: str  # what it holds: "array" or "column"
    matrices: dict[str, str]  # name -> shape in words
    vectors: dict[str, str]  # the others: name -> type or shape in words
    matrix: Callable[[str], np.ndarray]
    labels: Callable[[str], Any]  # as `data.labels` takes them


def choose_matrix(contents: Contents, key: str | None) -> str:
    """The name of the embeddings: `key`, or the best of EMBEDDINGS, or the only one there is.

    Raises UserError that lists what the file holds.
    """
    there = contents.matrices
    listed = ", ".join(f"{name} ({shape})" for name, shape in (there | contents.vectors).items())
    if key is not None:
        if key not in there | contents.vectors:
            raise UserError(
                f"{contents.file}: --key {key}: no such {contents.word}; it has {listed}"
            )
        return key
    by_name = {name.lower(): name for name in reversed(there)}
    usual = [by_name[name] for name in EMBEDDINGS if name in by_name]
    if usual or len(there) == 1:
        return usual[0] if usual else next(iter(there))
    if there:
        raise UserError(
            f"{contents.file}: which {contents.word} holds the embeddings? Say so with --key NAME: "
            f"{', '.join(there)}"
        )
    raise UserError(
        f"{contents.file}: no {contents.word} of embeddings, which are numbers [N x D]; it has "
        f"{listed or 'nothing'}"
    )


def choose_labels(contents: Contents, chosen: str, key: str | None) -> str | None:
    """The name of the labels: `key`, or the only usual name; None if there is none, or for NONE.

    Labels of the same part are preferred: y_train for x_train. Raises UserError if there are
    several candidates, or none has the name `key`.
    """
    there = contents.vectors
    if key == NONE and NONE not in there:
        return None
    if key is not None:
        if key not in there:
            raise UserError(
                f"{contents.file}: --label-column {key}: no such {contents.word} of labels; it has "
                f"{', '.join(there) or 'none'}"
            )
        return key
    usual = [name for name in there if name.lower() in LABEL_HEADS]
    part = re.match(r"(train|test|val)_|.*_(train|test|val)$", chosen.lower())
    if part:
        which = part[1] or part[2]
        own = [n for n in there if _without(n.lower(), which) in LABEL_HEADS and which in n.lower()]
        usual = own or usual
    if len(usual) > 1:  # the names of the classes are labels of no row
        rows = _length(contents.matrices.get(chosen, ""))
        usual = [n for n in usual if _length(there[n]) in (rows, None)] or usual
    if len(usual) > 1:
        raise UserError(
            f"{contents.file}: which {contents.word} holds the labels? Say so with --label-column "
            f"NAME: {', '.join(usual)}"
        )
    return usual[0] if usual else None


def _length(shape: str) -> int | None:
    """The number of rows of a shape such as `[359 x 64]`; None for a column of a table."""
    found = re.search(r"\[(\d+)", shape)
    return None if found is None else int(found[1])


def numbered(names: Sequence[str]) -> dict[str, list[str]]:
    """Columns of numbers that form a matrix, by their stem: embedding_0, embedding_1 ..."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        if (found := _NUMBERED.fullmatch(name)) is not None:
            groups.setdefault(found[1], []).append((int(found[2]), name))
    several = {stem: [name for _, name in sorted(g)] for stem, g in groups.items() if len(g) > 1}
    return {stem or f"{g[0]} to {g[-1]}": g for stem, g in several.items()}


def unnumbered(names: Sequence[str]) -> dict[str, list[str]]:
    """All columns of numbers except labels and indices, as one matrix named `first to last`."""
    rest = [n for n in names if n.lower() not in _NO_FEATURES | LABEL_HEADS]
    return {f"{rest[0]} to {rest[-1]}": rest} if len(rest) > 1 else {}


def _without(name: str, part: str) -> str:
    return name.replace(part, "").strip("_")
