"""Which (row, column) pairs of a similarity matrix count, described in O(N) memory.

A mask over N rows and M columns is never stored. It is two vectors of integers per side: a
`group` (class, or image) and an `id` (the row itself). Every backend rebuilds the piece of
the mask it needs from them, and on several machines they travel with the columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrapose.errors import UserError
from contrapose.similarity.sharded import gather_rows, row_ids

EXACT = 2**24  # whole numbers below it are float32 numbers

Sides = tuple[Tensor | None, Tensor | None]  # what describes the rows, and the columns


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of one group ("same"), of different groups ("different") or "all", never id with id."""

    relation: Literal["all", "same", "different"] = "all"
    row_group: Int[Tensor, " N"] | None = None
    col_group: Int[Tensor, " M"] | None = None
    row_id: Int[Tensor, " N"] | None = None  # where row_id equals col_id, a row meets itself:
    col_id: Int[Tensor, " M"] | None = None  # that pair never counts
    distinct: bool = False  # each id is known to stand once on either side

    def __post_init__(self) -> None:
        if (self.relation == "all") != (self.row_group is None or self.col_group is None):
            raise UserError(
                f"pairs: relation {self.relation!r} needs "
                + ("no groups" if self.relation == "all" else "a row_group and a col_group")
            )

    def check(self, rows: int, cols: int) -> None:
        """Refuse ids of other rows or columns than the ones given (a forgotten `gather_rows`)."""
        for name, ids, n in [
            ("row", self.row_id, rows),
            ("row", self.row_group, rows),
            ("col", self.col_id, cols),
            ("col", self.col_group, cols),
        ]:
            if ids is not None and ids.shape[0] != n:
                raise UserError(f"pairs describe {len(ids)} {name}s, the similarity has {n}")

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
        if self.distinct:
            return True
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
    mine, all_ids = row_ids(n, device)
    return Pairs(row_id=mine, col_id=all_ids, distinct=True)


def positives(group: Int[Tensor, " N"]) -> Pairs:
    """Rows of the same group, never a row with itself."""
    mine, all_ids = row_ids(len(group), group.device)
    return Pairs("same", group, gather_rows(group), mine, all_ids, distinct=True)


def negatives(group: Int[Tensor, " N"]) -> Pairs:
    """Rows of different groups."""
    return Pairs("different", group, gather_rows(group))


class Blocks:
    """The mask of `pairs`, block by block: a tensor of 0 and 1, or one bool for the whole block.

    A block whose groups and ids, by their least and greatest, agree everywhere or nowhere needs
    no comparison.
    """

    def __init__(
        self,
        pairs: Pairs,
        rows: list[slice],
        cols: list[slice],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.relation, self.rows, self.cols, self.dtype = pairs.relation, rows, cols, dtype
        self.group = _comparable(pairs.row_group, pairs.col_group, dtype)
        self.id = _comparable(pairs.row_id, pairs.col_id, dtype)
        self.all = self.relation == "all" and self.id == (None, None)
        self.same_group = _agreement(self.group, rows, cols)
        self.same_id = _agreement(self.id, rows, cols)

    def __call__(
        self, i: int, j: int, out: Callable[[], Tensor] | None = None
    ) -> Float[Tensor, "n m"] | bool:
        """`out` gives scratch of the block's shape and of `dtype`."""
        if self.all:
            return True
        same, itself = self.same_group[i][j], self.same_id[i][j]
        related = True if self.relation == "all" else same
        if self.relation == "different" and same is not None:
            related = not same
        if related is False or itself is True:
            return False
        if related is True:
            return True if itself is False else self._compare(torch.ne, self.id, i, j, out)
        mask = self._compare(
            torch.eq if self.relation == "same" else torch.ne, self.group, i, j, out
        )
        return mask if itself is False else mask.mul_(self._compare(torch.ne, self.id, i, j))

    def _compare(
        self,
        how: Callable[..., Tensor],
        sides: Sides,
        i: int,
        j: int,
        out: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        row, col = sides
        assert row is not None and col is not None
        a, b = row[self.rows[i], None], col[None, self.cols[j]]
        # numbers written as numbers: several times as fast on a CPU as bools
        empty = a.new_empty(a.shape[0], b.shape[1], dtype=self.dtype) if out is None else out()
        return how(a, b, out=empty)


def _comparable(row: Tensor | None, col: Tensor | None, dtype: torch.dtype) -> Sides:
    """Whole numbers as `dtype`; where that is not exact, others that are equal where they were."""
    if row is None or col is None or row.device.type != "cpu":
        return row, col
    if all(not len(x) or int(x.abs().max()) <= EXACT for x in (row, col)):
        return row.to(dtype), col.to(dtype)
    names = torch.cat([row, col]).unique(return_inverse=True)[1].to(dtype)  # type: ignore[no-untyped-call]
    return names[: len(row)], names[len(row) :]


def _agreement(sides: Sides, rows: list[slice], cols: list[slice]) -> list[list[bool | None]]:
    """Whether the values of row block i and column block j are equal: all, none, or some (None)."""
    row, col = sides
    if row is None or col is None:
        return [[False] * len(cols) for _ in rows]
    if row.device.type != "cpu":  # reading values would stall the device
        return [[None] * len(cols) for _ in rows]
    down, right = _extents(row, rows), _extents(col, cols)
    return [
        [True if a == b == c == d else None if a <= d and c <= b else False for c, d in right]
        for a, b in down
    ]


def _extents(x: Tensor, blocks: list[slice]) -> list[tuple[float, float]]:
    return [(float(low), float(high)) for low, high in (x[b].aminmax() for b in blocks)]
