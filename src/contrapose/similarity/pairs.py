"""Which (row, column) pairs of a similarity matrix count, described in O(N) memory.

A mask over N rows and M columns is never stored. It is two vectors of integers per side: a
`group` (class, or image) and an `id` (the row itself). Every backend rebuilds the piece of
the mask it needs from them, and on several machines they travel with the columns.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from contrapose.similarity.sharded import current


@dataclass(frozen=True)
class Pairs:
    relation: Literal["all", "same", "different"] = "all"
    row_group: Int[Tensor, " N"] | None = None
    col_group: Int[Tensor, " M"] | None = None
    row_id: Int[Tensor, " N"] | None = None  # where row_id equals col_id, a row meets itself:
    col_id: Int[Tensor, " M"] | None = None  # that pair never counts

    def check(self, rows: int, cols: int) -> None:
        """Refuse ids of other rows or columns than the ones given (a forgotten `everyone`)."""
        for name, ids, n in [
            ("row", self.row_id, rows),
            ("row", self.row_group, rows),
            ("col", self.col_id, cols),
            ("col", self.col_group, cols),
        ]:
            if ids is not None and len(ids) != n:
                raise ValueError(f"pairs describe {len(ids)} {name}s, the similarity has {n}")

    def mask(
        self, rows: slice = slice(None), cols: slice = slice(None)
    ) -> Bool[Tensor, "n m"] | None:
        """The piece of the mask at `rows` x `cols`; None when every pair counts."""
        mask = None
        if self.row_group is not None and self.col_group is not None:
            same = self.row_group[rows, None] == self.col_group[None, cols]
            mask = same if self.relation == "same" else ~same
        if self.row_id is not None and self.col_id is not None:
            other = self.row_id[rows, None] != self.col_id[None, cols]
            mask = other if mask is None else mask & other
        return mask


EVERY = Pairs()


def others(n: int, device: torch.device | None = None) -> Pairs:
    """Every row against every other row."""
    mine, everyones = _ids(n, device)
    return Pairs(row_id=mine, col_id=everyones)


def positives(group: Int[Tensor, " N"]) -> Pairs:
    """Rows of the same group, never a row with itself."""
    mine, everyones = _ids(len(group), group.device)
    return Pairs("same", group, _all(group), mine, everyones)


def negatives(group: Int[Tensor, " N"]) -> Pairs:
    """Rows of different groups."""
    return Pairs("different", group, _all(group))


def _all(x: Tensor) -> Tensor:
    return x if (shards := current()) is None else shards.gather_ids(x)


def _ids(n: int, device: torch.device | None) -> tuple[Tensor, Tensor]:
    shards = current()
    mine = torch.arange(n, device=device) + (0 if shards is None else shards.offset(n))
    return mine, _all(mine)
