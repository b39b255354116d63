"""Which (row, column) pairs of a similarity matrix count, described in O(N) memory.

The mask over N rows and M columns is never stored. Rows and columns each have two vectors of
integers: `group` (the class or the image) and `id` (the row itself). Every implementation computes
the piece of the mask that it needs from them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrapose.errors import UserError
from contrapose.similarity.sharded import gather_rows, row_ids

RELATIONS = {"all": 0, "same": 1, "different": 2}  # their numbers in kernels
EXACT = 2**24  # whole numbers below it are float32 numbers

Sides = tuple[Tensor | None, Tensor | None]  # what describes the rows, and the columns


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of the same group, of different groups, or all; a row is never paired with itself."""

    relation: Literal["all", "same", "different"] = "all"
    row_group: Int[Tensor, " N"] | None = None
    col_group: Int[Tensor, " M"] | None = None
    row_id: Int[Tensor, " N"] | None = None  # a pair with row_id equal to col_id never counts:
    col_id: Int[Tensor, " M"] | None = None  # it is a row with itself
    distinct: bool = False  # no id occurs twice among the rows, nor among the columns

    def __post_init__(self) -> None:
        if (self.relation == "all") != (self.row_group is None or self.col_group is None):
            raise UserError(
                f"pairs: relation {self.relation!r} needs "
                + ("no groups" if self.relation == "all" else "a row_group and a col_group")
            )

    def check(self, rows: int, cols: int) -> None:
        """UserError if there are other numbers of rows or columns (a forgotten `gather_rows`)."""
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
        """The mask at `rows` x `cols`, True where a pair counts; None if every pair does."""
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
        """True if rows and columns have the same vectors: (i, j) then counts if (j, i) does."""
        return self.row_group is self.col_group and self.row_id is self.col_id

    @property
    def diagonal_is_self(self) -> bool:
        """True if ids exclude exactly the pairs (i, i) (for symmetric pairs only)."""
        if self.row_id is None:
            return self.relation == "different"  # a row is never of another group than itself
        if self.distinct:
            return True
        increasing = self.row_id.diff() > 0
        return bool(increasing.all()) or bool((self.row_id.sort().values.diff() > 0).all())

    def without(self, match: Int[Tensor, " N"], columns: int) -> "Pairs | None":
        """These pairs less (i, match_i), as groups or ids; None if both are in use."""
        every = torch.arange(columns, device=match.device)
        if self.row_id is None:
            return Pairs(self.relation, self.row_group, self.col_group, match, every)
        if self.relation == "all":
            return Pairs("different", match, every, self.row_id, self.col_id)
        return None

    def by_group(self, order: Int[Tensor, " N"] | None) -> "Pairs":
        """These pairs without ids, with rows and columns in `order` (for symmetric pairs only)."""
        if self.row_group is None:
            return EVERY
        group = self.row_group if order is None else self.row_group[order]
        return Pairs(self.relation, group, group)


EVERY = Pairs()


def others(n: int, device: torch.device | None = None) -> Pairs:
    """Each of the n rows of this process with every other row of all processes."""
    mine, all_ids = row_ids(n, device)
    return Pairs(row_id=mine, col_id=all_ids, distinct=True)


def positives(group: Int[Tensor, " N"]) -> Pairs:
    """Each row of this process with the other rows of its group."""
    mine, all_ids = row_ids(len(group), group.device)
    return Pairs("same", group, gather_rows(group), mine, all_ids, distinct=True)


def negatives(group: Int[Tensor, " N"]) -> Pairs:
    """Each row of this process with the rows of other groups."""
    return Pairs("different", group, gather_rows(group))


@lru_cache(maxsize=8)
def two_views(n: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Of n rows, two views one after the other: each row's match, and where it is in [n, n]."""
    with torch.inference_mode(False):
        row = torch.arange(n)
        match = row.roll(n // 2)
        return match, row * n + match


class Blocks:
    """The mask of `pairs` block by block: a tensor of 0 and 1, or one bool if a block is uniform.

    Most blocks are known to be uniform from the least and greatest group and id of their rows and
    columns, without a comparison of every pair.
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
        """The mask of block (i, j). out: returns scratch of the block's shape and of `dtype`."""
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
    """Integers as `dtype`; if that is not exact, numbers that are equal for equal integers."""
    if row is None or col is None or row.device.type != "cpu":
        return row, col
    if all(not len(x) or int(x.abs().max()) <= EXACT for x in (row, col)):
        return row.to(dtype), col.to(dtype)
    names = torch.cat([row, col]).unique(return_inverse=True)[1].to(dtype)  # type: ignore[no-untyped-call]
    return names[: len(row)], names[len(row) :]


def _agreement(sides: Sides, rows: list[slice], cols: list[slice]) -> list[list[bool | None]]:
    """For each pair of blocks: True if all values are equal, False if none are, None otherwise."""
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
