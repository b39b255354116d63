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

from contrapose.similarity.sharded import everyone, row_ids


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of one group ("same"), of different groups ("different") or "all", never id with id."""

    relation: Literal["all", "same", "different"] = "all"
    row_group: Int[Tensor, " N"] | None = None
    col_group: Int[Tensor, " M"] | None = None
    row_id: Int[Tensor, " N"] | None = None  # where row_id equals col_id, a row meets itself:
    col_id: Int[Tensor, " M"] | None = None  # that pair never counts

    def __post_init__(self) -> None:
        if (self.relation == "all") != (self.row_group is None or self.col_group is None):
            raise ValueError(
                f"pairs: relation {self.relation!r} needs "
                + ("no groups" if self.relation == "all" else "a row_group and a col_group")
            )

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

    @property
    def symmetric(self) -> bool:
        """Rows and columns are described by the same vectors: (i, j) counts where (j, i) does."""
        return self.row_group is self.col_group and self.row_id is self.col_id

    @property
    def diagonal_is_self(self) -> bool:
        """Exactly the pairs (i, i) are excluded by identity (symmetric pairs only)."""
        if self.row_id is None:
            return self.relation == "different"  # a row is never of another group than itself
        increasing = self.row_id.diff() > 0
        return bool(increasing.all()) or bool((self.row_id.sort().values.diff() > 0).all())

    def by_group(self, order: Int[Tensor, " N"] | None) -> "Pairs":
        """Without ids, and with rows and columns in another order (symmetric pairs only)."""
        if self.row_group is None:
            return EVERY
        group = self.row_group if order is None else self.row_group[order]
        return Pairs(self.relation, group, group)


EVERY = Pairs()


def others(n: int, device: torch.device | None = None) -> Pairs:
    """Each of my n rows against every other row."""
    mine, everyones = row_ids(n, device)
    return Pairs(row_id=mine, col_id=everyones)


def positives(group: Int[Tensor, " N"]) -> Pairs:
    """Rows of the same group, never a row with itself."""
    mine, everyones = row_ids(len(group), group.device)
    return Pairs("same", group, everyone(group), mine, everyones)


def negatives(group: Int[Tensor, " N"]) -> Pairs:
    """Rows of different groups."""
    return Pairs("different", group, everyone(group))


class Blocks:
    """The mask of `pairs`, block by block: a tensor, or one bool for the whole block.

    Blocks whose ids (or groups) cannot meet, by their least and greatest, need no comparison.
    """

    def __init__(self, pairs: Pairs, rows: list[slice], cols: list[slice]) -> None:
        self.pairs, self.rows, self.cols = pairs, rows, cols
        self.groups_meet = _meet(pairs.row_group, pairs.col_group, rows, cols)
        self.ids_meet = _meet(pairs.row_id, pairs.col_id, rows, cols)

    def __call__(self, i: int, j: int) -> Bool[Tensor, "n m"] | bool:
        grouped, identified = self.groups_meet[i][j], self.ids_meet[i][j]
        if self.pairs.relation == "same" and not grouped:
            return False
        if not grouped and not identified:
            return True
        mask = self.pairs.mask(self.rows[i], self.cols[j])
        assert mask is not None
        return mask


def _meet(
    row: Tensor | None, col: Tensor | None, rows: list[slice], cols: list[slice]
) -> list[list[bool]]:
    """Whether the values of row block i and of column block j can have a common one."""
    if row is None or col is None:
        return [[False] * len(cols) for _ in rows]
    if row.device.type != "cpu":  # reading values would stall the device
        return [[True] * len(cols) for _ in rows]
    down, right = _extents(row, rows), _extents(col, cols)
    return [[a <= d and c <= b for c, d in right] for a, b in down]


def _extents(ids: Tensor, blocks: list[slice]) -> list[tuple[int, int]]:
    return [(int(low), int(high)) for low, high in (ids[b].aminmax() for b in blocks)]
