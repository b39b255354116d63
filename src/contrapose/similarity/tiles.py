"""The tiles of a similarity matrix, and the order in which threads work on them.

A tile fits into the cache of a core. It is computed in scratch memory that is used again, so that a
pass allocates almost nothing. Every thread works on its tiles one after the other (see
`contrapose.threads`). Tiles that are worked on at the same time have no row and no column in
common: threads add to the sums of rows and of columns without a lock, always in the same order. A
small matrix is a single tile, since it has too little work for several threads.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from contrapose.similarity.pairs import Blocks, Pairs, two_views
from contrapose.similarity.wide import instructions_for
from contrapose.threads import share

LOG2E = 1 / math.log(2)  # e^x = 2^(x log2 e), and a power of 2 takes half the time
AREA = 256 * 256  # entries of a tile on a CPU: 256 KB in float32, and a core keeps a few at hand
DEVICE_TILE = 4096  # rows and columns on an accelerator, where few large products are quickest
ALONE = 2**17  # entries of a matrix that one thread works off sooner than it wakes another
WHOLE = 2**21  # entries up to which it is one tile, on the threads that torch has

Tile = tuple[int, int]  # which block of rows, which block of columns


class Tiles:
    """The tiles of query @ key.T; if key is None, of the query's rows against themselves.

    In the second case the tiles below the diagonal are left out, because the matrix is symmetric.
    tile: rows and columns of a tile, default by the sizes. precision: of the products, default the
    query's. match: one column of each row that does not count; in a symmetric matrix, the match of
    a row's match is that row. The attribute `parallel` is True if torch's own threads work on the
    only tile.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor | None,
        tile: int | None = None,
        precision: torch.dtype | None = None,
        match: Tensor | None = None,
    ) -> None:
        self.precision = precision or query.dtype
        n, m = query.shape[0], (query if key is None else key).shape[0]
        self.like, self.mirrored = query, key is None
        self.threads = workers(query, m, few=ALONE if tile else WHOLE)
        self.parallel = query.device.type == "cpu" and not tile and ALONE < n * m <= WHOLE
        height, width = (tile, tile) if tile else _shape(query, m, self.mirrored, self.threads)
        self.shape = max(1, min(height, n)), max(1, min(width, m))
        self.rows, self.cols = slices(n, self.shape[0]), slices(m, self.shape[1])
        self.rounds = rounds(len(self.rows), len(self.cols), self.threads, self.mirrored)
        self.bytes = math.prod(self.shape) * query.element_size()
        self.match = match
        self.matches = {} if match is None else _places(match, self.shape, m)

    def by_row(self, x: Tensor, dim: int = -1) -> tuple[Tensor, ...]:
        """x cut along `dim` into the pieces that belong to each block of rows."""
        return (x,) if len(self.rows) == 1 else torch.split(x, self.shape[0], dim)

    def by_col(self, x: Tensor, dim: int = -1) -> tuple[Tensor, ...]:
        return (x,) if len(self.cols) == 1 else torch.split(x, self.shape[1], dim)

    def on_diagonal(self, i: int, j: int) -> bool:
        return self.mirrored and i == j

    def leave_out(self, i: int, j: int, logits: Tensor) -> Tensor:
        """Write -inf into tile (i, j) where a row meets itself or its match."""
        if self.on_diagonal(i, j):
            logits.fill_diagonal_(-math.inf)
        if (places := self.matches.get((i, j))) is not None:
            logits.view(-1).index_fill_(0, places, -math.inf)
        elif self.match is not None and logits.device.type != "cpu":
            cols = torch.arange(self.cols[j].start, self.cols[j].stop, device=logits.device)
            logits.masked_fill_(self.match[self.rows[i], None] == cols, -math.inf)
        return logits

    def blocks(self, pairs: Pairs) -> Callable[..., Tensor | bool]:
        """The function (i, j) -> mask of that tile, as `Blocks` defines it."""
        return Blocks(pairs, self.rows, self.cols, self.like.dtype)

    def visit(self, work: Callable[[int, int, "Scratch"], None]) -> None:
        """Call work(i, j, scratch) for every tile."""

        def run(task: list[Tile]) -> None:
            scratch = Scratch(self)
            for i, j in task:
                scratch.enter(i, j)
                work(i, j, scratch)

        with instructions_for(self.precision):
            for tasks in self.rounds:
                share(run, tasks, self.threads)


class Scratch:
    """Scratch memory of one thread: numbered tensors with the shape of its current tile."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles
        self.made: dict[int, Tensor] = {}

    def enter(self, i: int, j: int) -> None:
        rows, cols = self.tiles.rows[i], self.tiles.cols[j]
        self.shape = rows.stop - rows.start, cols.stop - cols.start

    def new(self) -> Tensor:
        return self.tiles.like.new_empty(self.shape)

    def __call__(self, number: int) -> Tensor:
        """The tensor with this number: the same memory for every tile."""
        whole = self.made.get(number)
        if whole is None:
            whole = self.made[number] = self.tiles.like.new_empty(self.tiles.shape)
        if self.shape == self.tiles.shape:
            return whole
        return whole.view(-1)[: math.prod(self.shape)].view(self.shape)


def _places(match: Tensor, shape: tuple[int, int], columns: int) -> dict[Tile, Tensor]:
    """For each tile that holds some, where in it (row, match of the row) are, row after row."""
    if match.device.type != "cpu" or not len(match):  # reading values would stall the device
        return {}
    height, width = shape
    whole = height >= len(match) and width >= columns
    if whole and len(match) == columns and match is two_views(columns)[0]:
        return {(0, 0): two_views(columns)[1]}
    if whole:
        return {(0, 0): torch.arange(0, len(match) * columns, columns).add_(match)}
    row = torch.arange(len(match))
    right = match // width
    actual = (columns - right * width).clamp(max=width)  # the last tile is narrower
    place = (row % height) * actual + match % width
    across = -(-columns // width)
    tile = (row // height) * across + right
    order = tile.argsort(stable=True)
    number, count = tile[order].unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
    pieces = torch.split(place[order], count.tolist())
    return {divmod(t, across): piece for t, piece in zip(number.tolist(), pieces, strict=True)}


def workers(query: Tensor, keys: int, *, few: int) -> int:
    """Number of threads for the similarities to this many keys; 1 for up to `few` entries."""
    if query.device.type != "cpu" or query.shape[0] * keys <= few:
        return 1
    return torch.get_num_threads()


def slices(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _shape(query: Tensor, keys: int, mirrored: bool, threads: int) -> tuple[int, int]:
    """Rows and columns of a tile."""
    if query.device.type != "cpu":
        return DEVICE_TILE, DEVICE_TILE
    if query.shape[0] * keys <= WHOLE:
        return query.shape[0], keys
    if mirrored:
        side = min(256, max(128, -(-query.shape[0] // (2 * threads))))
        return side, side
    width = min(256, max(32, -(-keys // threads)))
    height = min(AREA // width, max(32, -(-query.shape[0] // threads)))
    return height, max(width, AREA // height)


def rounds(rows: int, cols: int, threads: int, mirrored: bool) -> list[list[list[Tile]]]:
    """The order in which threads visit rows x cols tiles: rounds of tasks, each a list of tiles.

    Tasks of one round have no row and no column in common. mirrored: only tiles (i, j) with i <= j.
    """
    # twice as many parts as threads, so that the tasks of a round are as many as threads
    parts = max(1, min(2 * threads, rows)) if threads > 1 else 1
    return (_mirrored if mirrored else _rectangular)(rows, cols, parts)


def _mirrored(blocks: int, _: int, parts: int) -> list[list[list[Tile]]]:
    """Rounds of tasks: in round t part p is paired with part t - p (a round-robin schedule)."""
    spans = _spans(blocks, parts)
    rounds = []
    for turn in range(parts):
        meetings = [(p, q) for p in range(parts) if p <= (q := (turn - p) % parts)]
        tasks = [[(i, j) for i in spans[p] for j in spans[q] if i <= j] for p, q in meetings]
        rounds.append(sorted(tasks, key=len, reverse=True))
    return rounds


def _rectangular(rows: int, cols: int, parts: int) -> list[list[list[Tile]]]:
    """Rounds of tasks: in round t part p of the rows is paired with part t + p of the columns."""
    down, right = _spans(rows, parts), _spans(cols, parts)
    return [
        [[(i, j) for i in down[p] for j in right[(turn + p) % parts]] for p in range(parts)]
        for turn in range(parts)
    ]


def _spans(blocks: int, parts: int) -> list[range]:
    return [range(a, b) for a, b in pairwise(blocks * p // parts for p in range(parts + 1))]
