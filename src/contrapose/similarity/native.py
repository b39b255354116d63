"""Row reductions by native.c: product, exponential, mask and sum of a tile in one go.

What it takes: log-sum-exps in float32 on a CPU whose exponentials need no shift (`tiled`, direct),
and the k nearest keys. Everything else is left to torch's operations.
"""

import ctypes
import math
from ctypes import POINTER, byref, c_float, c_int32, c_int64, c_void_p
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from contrapose.compiler import Library
from contrapose.similarity.pairs import RELATIONS, Pairs
from contrapose.similarity.tiles import LOG2E, rounds
from contrapose.threads import alone

SIDE = 192  # rows and columns of a tile: a core's cache holds its weights and its operands
MANY = 3072  # rows that are cut into such tiles; fewer into tiles of half the side
KEEP = 12 * 2**20  # bytes of exponentials kept for the backward pass; more are made again
RULES = 4  # that one pass takes
ALONE = 2**16  # entries of a matrix that one thread works off sooner than it wakes another
CANDIDATES = 2**19  # nearest keys that a thread may hold, at 8 bytes
INT32 = torch.iinfo(torch.int32)
LIBRARY = Library(
    Path(__file__).with_name("native.c"),
    "torch",
    "similarities are computed by torch's operations, two to four times slower than by a library "
    "compiled for this processor",
)


class LogSumExp(torch.autograd.Function):
    """What `passes.DirectLogSumExp` computes. key None: rows against themselves."""

    @staticmethod
    @alone
    def forward(ctx, query, key, scale, rules, columns, match, bound, threads):  # type: ignore[no-untyped-def]
        work = _Work(query, key, float(scale), rules, match, threads)
        total = [query.new_zeros(work.n) for _ in rules]
        below = total if key is None else [query.new_zeros(work.m)] if columns else []
        if any(ctx.needs_input_grad):
            work.keep()
        work.visit(work.described(total, below))
        total = total + below if columns else total
        ctx.save_for_backward(query, key, *total)
        ctx.work, ctx.bound = work, bound
        return tuple(x.log() for x in total)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @alone
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        query, key, *total = ctx.saved_tensors
        work, (_, for_key, for_scale, *_) = ctx.work, ctx.needs_input_grad
        # d L / d e_ij is one number along a row, one along a column, or the sum of the two; in a
        # row without pairs every e_ij is 0, whatever that number is
        weight = [
            (g / x.clamp(min=math.exp(-ctx.bound))).contiguous()
            for g, x in zip(grads, total, strict=True)
        ]
        rules = len(work.rules)
        query, key = work.padded(query), None if key is None else work.padded(key)
        dquery = torch.zeros_like(query)
        dkey = dquery if key is None else torch.zeros_like(key) if for_key else None
        operands = query, query if key is None else key, dquery, dkey
        below = weight if key is None else weight[rules:]
        work.visit(work.described(weight[:rules], below, operands), backward=True)
        dscale = None
        if for_scale:  # with rows against themselves each pair is in the sum twice
            dscale = (dquery * query).sum() / (1 + (key is None))
        results = [
            None if x is None else x.mul_(work.scale)[:, : work.depth]
            for x in (dquery, None if key is None else dkey)
        ]
        return *results, dscale, None, None, None, None, None


@alone
def nearest(
    query: Tensor, key: Tensor, k: int, pairs: Pairs, threads: int
) -> tuple[Tensor, Tensor]:
    """(similarity, index) of the k nearest keys, nearest first; -inf and 0 if there are fewer."""
    work = _Work(query, key, 1.0, (pairs,), None, threads)
    high, wide, _ = _sizes()
    most = k + max(k, 512) + wide
    # as many rows as can share a panel of keys in the cache, unless their candidates are too many
    height = min(SIDE, -(-work.n // work.threads), max(1, CANDIDATES // most))
    work.height = max(high, -(-height // high) * high)
    value = query.new_empty(work.n, k)
    index = torch.empty(work.n, k, dtype=torch.long)
    work.visit(work.described([value], []), _Nearest(k, most, _at(value), _at(index)))
    return value, index


class _Rule(ctypes.Structure):
    _fields_ = (
        ("relation", c_int32), ("row_group", c_void_p), ("col_group", c_void_p),
        ("row_id", c_void_p), ("col_id", c_void_p), ("row", c_void_p), ("col", c_void_p),
    )  # fmt: skip


class _Described(ctypes.Structure):
    _fields_ = (
        ("n", c_int64), ("m", c_int64), ("depth", c_int64), ("height", c_int64),
        ("width", c_int64), ("stride", c_int64), ("rows", c_void_p), ("cols", c_void_p),
        ("query", c_void_p), ("key", c_void_p), ("dquery", c_void_p), ("dkey", c_void_p),
        ("kept", c_void_p), ("match", c_void_p), ("factor", c_float), ("mirrored", c_int32),
        ("rules", c_int32), ("rule", POINTER(_Rule)),
    )  # fmt: skip


class _Nearest(ctypes.Structure):
    _fields_ = (("k", c_int64), ("most", c_int64), ("value", c_void_p), ("index", c_void_p))


class _Work:
    """Operands as native.c takes them, and the order in which threads visit their tiles."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor | None,
        scale: float,
        rules: tuple[Pairs, ...],
        match: Tensor | None,
        threads: int,
    ) -> None:
        high, wide, self.lanes = _sizes()
        self.mirrored, self.scale = key is None, scale
        key = query if key is None else key
        self.n, self.m, self.depth = len(query), len(key), query.shape[1]
        query, key = query.detach().contiguous(), key.detach().contiguous()
        self.rows = query.new_empty(-(-self.n // high) * high * self.depth)
        self.cols = query.new_empty(-(-self.m // wide) * wide * self.depth)
        self.operands = query, key
        self.rules = [(RELATIONS[r.relation], _numbers(r)) for r in rules]
        self.match = None if match is None else match.to(torch.int32)
        self.kept: Tensor | None = None
        self.threads = max(1, min(threads, self.n * self.m // ALONE))
        self.height = self.width = SIDE if self.n >= MANY else SIDE // 2
        if not self.mirrored:
            self.height = max(high, min(SIDE, -(-self.n // (self.threads * high)) * high))

    def keep(self) -> None:
        """Room for the exponentials of all tiles, if they are few enough."""
        tiles = -(-self.n // self.height) * -(-self.m // self.width)
        _, wide, _ = _sizes()
        size = tiles * self.height * (-(-self.width // wide) * wide)
        if 4 * size <= KEEP * (1 + self.mirrored):  # of mirrored tiles half are never touched
            self.kept = self.rows.new_empty(size)

    def padded(self, x: Tensor) -> Tensor:
        """Rows that a whole number of vectors holds."""
        more = -self.depth % self.lanes
        return (pad(x, (0, more)) if more else x).contiguous()

    def described(
        self, rows: list[Tensor], cols: list[Tensor], gradients: tuple[Tensor | None, ...] = ()
    ) -> _Described:
        """The arguments in C. rows, cols: what each rule sums up to, or its weights."""
        beside = [*cols, *[None] * (len(rows) - len(cols))]
        rule = (_Rule * len(self.rules))(
            *(
                _Rule(relation, *map(_at, sides), _at(row), _at(col))
                for (relation, sides), row, col in zip(self.rules, rows, beside, strict=True)
            )
        )
        query, key, dquery, dkey = map(_at, gradients or (*self.operands, None, None))
        stride = self.depth + -self.depth % self.lanes
        return _Described(
            self.n, self.m, self.depth, self.height, self.width, stride, _at(self.rows),
            _at(self.cols), query, key, dquery, dkey, _at(self.kept), _at(self.match),
            self.scale * LOG2E, self.mirrored, len(rule), rule,
        )  # fmt: skip

    def visit(
        self, work: _Described, nearest: _Nearest | None = None, backward: bool = False
    ) -> None:
        """Sums, gradients or the nearest keys, from all tiles."""
        down, right = -(-self.n // self.height), -(-self.m // self.width)
        right = 1 if nearest else right  # its tasks are blocks of rows
        order = _order(down, right, self.threads, self.mirrored)
        asked = None if nearest is None else byref(nearest)
        if _library().contrapose_visit(byref(work), asked, backward, self.threads, *order):
            raise MemoryError(f"not enough memory for the tiles of {self.threads} threads")


@cache
def _library() -> ctypes.CDLL:
    found = LIBRARY.load()
    assert found is not None, "asked for without a library"
    found.contrapose_visit.argtypes = [
        POINTER(_Described), POINTER(_Nearest), c_int32, c_int32, c_int64, POINTER(c_int32),
        POINTER(c_int32), POINTER(c_int32),
    ]  # fmt: skip
    return found


@cache
def _sizes() -> tuple[int, int, int]:
    """Rows of a panel of queries, rows of a panel of keys, lanes of a vector."""
    found = (c_int32 * 4)()
    _library().contrapose_sizes(found)
    return found[0], found[1], found[2]


@lru_cache(maxsize=16)
def _order(rows: int, cols: int, threads: int, mirrored: bool) -> tuple[Any, ...]:
    """`rounds` as numbers: how many; the first task of each; the first tile of each task; tiles."""
    turns = [[task for task in turn if task] for turn in rounds(rows, cols, threads, mirrored)]
    tasks = [task for turn in turns for task in turn]
    tiles = [x for task in tasks for tile in task for x in tile]
    ends = [0, *accumulate(len(turn) for turn in turns)], [0, *accumulate(map(len, tasks))]
    return len(turns), *((c_int32 * len(x))(*x) for x in (*ends, tiles))


def _numbers(pairs: Pairs) -> list[Tensor | None]:
    """Groups of rows and of columns, then their ids, as far as the pairs have some."""
    if pairs.row_id is None or pairs.col_id is None:
        ids: tuple[Tensor | None, Tensor | None] = None, None
    else:
        ids = _narrow(pairs.row_id, pairs.col_id)
    if pairs.row_group is None or pairs.col_group is None:
        return [None, None, *ids]
    return [*_narrow(pairs.row_group, pairs.col_group), *ids]


def _narrow(row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers in 32 bits: as they are, or numbers that are equal for equal ones."""
    for x in (row, col):
        if len(x) and not INT32.min <= int(x.min()) <= int(x.max()) <= INT32.max:
            both = torch.cat([row, col]).unique(return_inverse=True)[1].to(torch.int32)  # type: ignore[no-untyped-call]
            return both[: len(row)], both[len(row) :]
    narrow = row.to(torch.int32).contiguous()
    return narrow, narrow if col is row else col.to(torch.int32).contiguous()


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
