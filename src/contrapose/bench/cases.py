"""The cases of the benchmark: inputs, sizes, and contenders with their expected memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from contrapose.bench import contenders as by
from contrapose.errors import UserError
from contrapose.partials import unknown

DIM = 128
TILES = 64 * 2**20  # bytes that a computation in tiles may hold, at any size
OURS = "contrapose fp32"
OURS_LOW = "contrapose bf16"


@dataclass(frozen=True)
class Contender:
    """An implementation: `make(**inputs)` returns the computation to time.

    It is expected to take about per_pair * pairs^power bytes.
    """

    name: str
    make: Callable[..., by.Computation]
    per_pair: float = 0.0  # bytes per entry of the similarity matrix; 0: in tiles
    power: float = 1.0
    needs: str | None = None  # the module it is imported from
    device: str | None = None  # the only kind of device it runs on
    low: bool = False  # operands in bf16
    differs: str | None = None  # what it computes, where that is something else

    @property
    def ours(self) -> bool:
        return self.name in (OURS, OURS_LOW)

    def bytes(self, pairs: float) -> float:
        return self.per_pair * pairs**self.power if self.per_pair else TILES


@dataclass(frozen=True)
class Case:
    """One computation at several sizes. `learned`: the inputs that get a gradient."""

    name: str
    about: str
    unit: str  # what the size counts
    inputs: Callable[[int], dict[str, Tensor]]
    pairs: Callable[[int], float]  # entries of the similarity matrix
    learned: tuple[str, ...]
    contenders: tuple[Contender, ...]
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    cuda: tuple[int, ...] = ()  # few on CUDA, since every size is compiled anew
    large: tuple[int, ...] = ()  # with --large
    large_cuda: tuple[int, ...] = ()
    smallest: int = 2  # size at which a contender warms up

    def title(self, size: int) -> str:
        return f"2 x {size // 2:,} rows" if self.unit == "rows" else f"{size:,} {self.unit}"


def unit(*shape: int, seed: int = 0) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return normalize(rows, dim=-1)


def two_views(n: int) -> dict[str, Tensor]:
    return {"z": unit(n, DIM), "group": torch.arange(n // 2).repeat(2)}


def hundred_classes(n: int) -> dict[str, Tensor]:
    return {"z": unit(n, DIM), "group": (torch.arange(n // 2) * 37 % 100).repeat(2)}


def towers(n: int) -> dict[str, Tensor]:
    return {"image": unit(n, DIM), "text": unit(n, DIM, seed=1)}


def queue(n: int) -> dict[str, Tensor]:
    batch = 256
    keys = {"key": unit(batch, DIM, seed=1), "queue": unit(n, DIM, seed=2)}
    return {"query": unit(batch, DIM)} | keys


def bank(n: int) -> dict[str, Tensor]:
    batch = 128
    match = torch.arange(batch) * (n // batch)
    return {"query": unit(batch, DIM), "bank": unit(n, DIM, seed=1), "match": match}


def neighbours(n: int) -> dict[str, Tensor]:
    return {"query": unit(max(1, n // 5), DIM), "key": unit(n, DIM, seed=1)}


def square(n: int) -> float:
    return n * n


def ours(step: Callable[..., by.Computation]) -> tuple[Contender, Contender]:
    return Contender(OURS, step), Contender(OURS_LOW, by.in_bf16(step), low=True)


def plain(step: Callable[..., by.Computation], per_pair: float) -> tuple[Contender, ...]:
    """Contenders of the formula in plain torch: in float32; on CUDA also compiled and in bf16."""
    return (
        Contender("plain torch", step, per_pair),
        Contender("plain, compiled", by.compiled(step), per_pair, device="cuda"),
        Contender("plain, compiled, bf16", by.compiled(step), per_pair, device="cuda", low=True),
    )


NT_XENT = Case(
    "nt_xent",
    f"NT-Xent of two views, forward and backward, D = {DIM}, temperature {by.TEMPERATURE}",
    "rows",
    two_views,
    square,
    ("z",),
    (
        *ours(by.our_nt_xent),
        *plain(by.plain_nt_xent, 13),
        Contender("lightly", by.lightly_nt_xent, 18, needs="lightly.loss"),
        Contender(
            "metric-learning",
            by.metric_learning_nt_xent,
            17,
            power=1.5,  # a matrix of positive pairs x negative pairs
            needs="pytorch_metric_learning.losses",
        ),
        Contender("attention (SDPA)", by.attention_nt_xent, device="cpu"),
        Contender("attention (SDPA) bf16", by.attention_nt_xent, device="cuda", low=True),
        Contender("FlexAttention bf16", by.flex_nt_xent, device="cuda", low=True),
    ),
    sizes=(256, 512, 1024, 2048, 8192),
    quick=(256, 1024),
    cuda=(2048, 16384),
    large=(65536,),
    large_cuda=(65536, 524288),
)
SUPCON = Case(
    "supcon",
    f"SupCon, sum outside, 100 classes, forward and backward, D = {DIM}, temperature "
    f"{by.TEMPERATURE}",
    "rows",
    hundred_classes,
    square,
    ("z",),
    (
        *ours(by.our_supcon),
        *plain(by.plain_supcon, 22),
        Contender("SupContrast's formula", by.supcontrast, 21),
        Contender(
            "metric-learning", by.metric_learning_supcon, 47, needs="pytorch_metric_learning.losses"
        ),
    ),
    sizes=(512, 2048, 8192),
    quick=(1024,),
    cuda=(2048, 16384),
    smallest=256,
)
SUPCON_IN = Case(
    "supcon_in",
    f"SupCon, sum inside, 100 classes, forward and backward, D = {DIM}, temperature "
    f"{by.TEMPERATURE}",
    "rows",
    hundred_classes,
    square,
    ("z",),
    (*ours(by.our_supcon_in), *plain(by.plain_supcon_in, 22)),
    sizes=(512, 2048, 8192),
    quick=(1024,),
    cuda=(2048, 16384),
    smallest=256,
)
CLIP = Case(
    "clip",
    f"CLIP, both directions, forward and backward, D = {DIM}, scale {1 / by.TEMPERATURE:g}",
    "pairs",
    towers,
    square,
    ("image", "text"),
    (
        *ours(by.our_clip),
        *plain(by.plain_clip, 17),
        Contender("attention (SDPA)", by.attention_clip, device="cpu"),
        Contender("attention (SDPA) bf16", by.attention_clip, device="cuda", low=True),
    ),
    sizes=(256, 1024, 4096),
    quick=(512,),
    cuda=(1024, 8192),
    large_cuda=(32768,),
)
INFO_NCE = Case(
    "info_nce",
    f"InfoNCE of 256 queries against a queue, forward and backward, D = {DIM}, temperature "
    f"{by.MOCO}",
    "keys",
    queue,
    lambda n: 256 * n,
    ("query",),
    (
        *ours(by.our_info_nce),
        *plain(by.plain_info_nce, 17),
        Contender("lightly", by.lightly_info_nce, 20, needs="lightly.loss"),
    ),
    sizes=(4096, 16384, 65536),
    quick=(16384,),
    cuda=(16384, 65536),
    smallest=512,
)
HARD = Case(
    "hard",
    f"Hard InfoNCE of 128 queries, the {by.HARDEST:,} nearest of a bank, forward and backward, "
    f"D = {DIM}, temperature {by.MOCO}",
    "keys",
    bank,
    lambda n: 128 * n,
    ("query",),
    (*ours(by.our_hard), *plain(by.plain_hard, 17)),
    sizes=(12500, 50000),
    quick=(12500,),
    cuda=(50000,),
    smallest=4352,
)
UNIFORMITY = Case(
    "uniformity",
    f"Alignment and uniformity of two views, forward and backward, D = {DIM}, t = 2",
    "rows",
    two_views,
    square,
    ("z",),
    (
        *ours(by.our_uniformity),
        *plain(by.plain_uniformity, 9),
        Contender("torch.pdist, as released", by.pdist_uniformity, 10),
        Contender(
            "lightly",
            by.lightly_uniformity,
            5,
            needs="lightly.loss",
            differs="uniformity of each view alone: a quarter of the pairs",
        ),
    ),
    sizes=(512, 2048, 8192),
    quick=(1024,),
    cuda=(2048, 16384),
    smallest=8,
)
TOPK = Case(
    "topk",
    f"The {by.NEAREST} most similar keys of a fifth as many queries, D = {DIM}, no gradient",
    "keys",
    neighbours,
    lambda n: n * max(1, n // 5),
    (),
    (
        *ours(by.our_topk),
        *plain(by.plain_topk, 6),
        Contender("faiss", by.faiss_topk, needs="faiss", device="cpu"),
    ),
    sizes=(12500, 50000),
    quick=(5000,),
    cuda=(50000,),
    smallest=1000,
)
CASES = {c.name: c for c in (NT_XENT, SUPCON, SUPCON_IN, CLIP, INFO_NCE, HARD, UNIFORMITY, TOPK)}


def chosen(only: Sequence[str]) -> list[Case]:
    """The cases with these names, or all; UserError with the nearest name for an unknown one."""
    for name in only:
        if name not in CASES:
            raise UserError(f"bench --only {name}: no case {unknown(name, CASES)}")
    return [case for name, case in CASES.items() if name in (only or CASES)]
