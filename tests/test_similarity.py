"""Every backend agrees with the definition, and is no less precise than plain torch."""

import math

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from contrapose import similarity
from contrapose.losses import nt_xent
from contrapose.similarity import (
    EVERY,
    Pairs,
    dense,
    negatives,
    others,
    passes,
    positives,
    positives_of,
    tiled,
    tiles,
)
from contrapose.similarity.pairs import Blocks

GROUP = torch.tensor([2, 0, 0, 1, 3, 1, 0])
PAIRS = {
    "every": EVERY,
    "others": others(7),
    "positives": positives(GROUP),
    "negatives": negatives(GROUP),
    "duplicates": Pairs(row_id=GROUP, col_id=GROUP),  # an image that is in the batch twice
    "same, duplicates": Pairs("same", GROUP // 2, GROUP // 2, GROUP, GROUP),
}
MATCHES = {
    "": None,
    "without a match": torch.tensor([1, 1, 0, 6, 3, 3, 2]),
    "without each other": torch.tensor([2, 1, 0, 6, 5, 4, 3]),  # 1 is its own
}
WARM, COLD = 5.0, 2000.0


@pytest.fixture
def z() -> torch.Tensor:
    return normalize(
        torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1
    )


@pytest.mark.parametrize("scale", [WARM, COLD])
@pytest.mark.parametrize("tile", [1, 3, 64])
@pytest.mark.parametrize("same", [True, False], ids=["rows with themselves", "with other keys"])
@pytest.mark.parametrize("match", MATCHES.values(), ids=MATCHES.keys())
@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS.keys())
def test_logsumexp_is_the_definition(z, pairs, match, same, tile, scale):
    results = []
    for implementation in (dense, tiled):
        options = {"tile": tile} if implementation is tiled else {}
        query = z.clone().requires_grad_()
        key = query if same else z.flip(0).clone().requires_grad_()
        factor = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
        lse = implementation.logsumexp(
            query, key, scale=factor, pairs=pairs, match=match, **options
        )
        weight = torch.arange(1.0, 8.0)
        torch.where(lse.isfinite(), lse * weight, 0.0).sum().backward()
        results.append((lse.detach(), query.grad, key.grad, factor.grad))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("tile", [2, 64])
def test_two_rules_in_one_pass_are_two_passes(z, tile):
    rules = others(7), positives(GROUP)
    torch.testing.assert_close(
        tiled.logsumexps(z, z, scale=5.0, rules=rules, tile=tile),
        dense.logsumexps(z, z, scale=5.0, rules=rules),
    )


@pytest.mark.parametrize("match", [None, torch.tensor([6, 0, 0, 3, 2])])
@pytest.mark.parametrize("scale", [WARM, COLD])
@pytest.mark.parametrize("tile", [2, 64])
def test_rows_and_columns_in_one_pass_are_two_passes(z, tile, scale, match):
    results = []
    for implementation in (dense, tiled):
        options = {"tile": tile} if implementation is tiled else {}
        query, key = z[:5].clone().requires_grad_(), z.flip(0).clone().requires_grad_()
        factor = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
        rows, cols = implementation.logsumexp_both(query, key, scale=factor, match=match, **options)
        ((rows * torch.arange(5)).sum() + (cols * torch.arange(7)).sum()).backward()
        results.append((rows.detach(), cols.detach(), query.grad, key.grad, factor.grad))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("keep", [0, passes.KEEP])
@pytest.mark.parametrize("tile", [2, 7])
@pytest.mark.parametrize("same", [True, False])
def test_gradient(z, tile, same, keep, monkeypatch):
    monkeypatch.setattr(passes, "KEEP", keep)  # exponentials made again, or kept
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    rules = others(7), negatives(GROUP)

    def f(q, k, s):
        return tiled.logsumexps(q, q if same else k, scale=s, rules=rules, tile=tile)

    assert torch.autograd.gradcheck(f, (z.requires_grad_(), z.detach().flip(0), scale))


@pytest.fixture
def three_threads(monkeypatch):
    monkeypatch.setattr(tiles, "WHOLE", 0)  # small matrices are shared as large ones are
    monkeypatch.setattr(tiled, "ALONE", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("scale", [WARM, COLD])
@pytest.mark.parametrize("keys", ["the rows", "fewer", "more"])
def test_threads_change_nothing_and_give_the_same_bits_again(three_threads, keys, scale):
    generator = torch.Generator().manual_seed(0)
    z, group = torch.randn(150, 5, generator=generator).double(), torch.arange(150) // 7
    m = {"the rows": 150, "fewer": 40, "more": 333}[keys]
    fixed = torch.randn(m, 5, generator=generator).double()
    rules = (others(150), negatives(group)) if keys == "the rows" else (EVERY,)

    def results(backend, **options):
        query = normalize(z, dim=1).requires_grad_()
        key = query if keys == "the rows" else normalize(fixed, dim=1).requires_grad_()
        lse = backend.logsumexps(query, key, scale=scale, rules=rules, **options)
        nearest, _ = backend.topk(query, key, 9, pairs=rules[-1], **options)
        (sum((x * torch.arange(150)).sum() for x in lse) + nearest.sum()).backward()
        return [*(x.detach() for x in lse), nearest.detach(), query.grad, key.grad]

    ours = results(tiled, tile=16)
    torch.testing.assert_close(ours, results(dense))
    assert all(torch.equal(a, b) for a, b in zip(ours, results(tiled, tile=16), strict=True))
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("parts", [1, 2, 4, 5])
@pytest.mark.parametrize("rounds", [tiles._mirrored, tiles._rectangular])
def test_every_tile_has_its_turn_and_none_shares_a_row_or_column_meanwhile(rounds, parts):
    seen = []
    for tasks in rounds(5, 5, parts):
        rows = [{i for i, _ in task} for task in tasks]
        cols = [{j for _, j in task} for task in tasks]
        touched = [a | b for a, b in zip(rows, cols, strict=True)]
        for used in [touched] if rounds is tiles._mirrored else [rows, cols]:
            assert sum(map(len, used)) == len(set().union(*used))
        seen += [tile for task in tasks for tile in task]
    half = rounds is tiles._mirrored
    assert sorted(seen) == [(i, j) for i in range(5) for j in range(i if half else 0, 5)]


@pytest.mark.parametrize("backend", [dense, tiled])
def test_a_row_without_pairs_has_no_gradient(backend):
    for scale in (WARM, COLD):
        z = torch.randn(4, 3, requires_grad=True)
        pairs = negatives(torch.zeros(4, dtype=torch.long))
        lse = backend.logsumexp(z, z, scale=scale, pairs=pairs)
        assert (lse == -math.inf).all()
        torch.where(lse.isfinite(), lse, 0.0).sum().backward()
        assert z.grad is not None and (z.grad == 0).all()


@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS.keys())
@pytest.mark.parametrize("tile", [2, 7])
def test_topk_is_the_definition(z, tile, pairs):
    expected = dense.topk(z, z, 3, pairs=pairs)
    value, index = tiled.topk(z, z, 3, pairs=pairs, tile=tile)
    torch.testing.assert_close(value, expected[0])
    found = value > -math.inf
    assert (index[found] == expected[1][found]).all()


@pytest.mark.parametrize("k", [1, 5, 60])
def test_groups_of_columns_hide_none_of_the_nearest(k):
    query, key = torch.randn(9, 4), torch.randn(1003, 4)
    key[::3] = -100.0 * key[::3].abs()  # far out, so that whole groups are
    expected = dense.topk(query, key, k)
    torch.testing.assert_close(tiled.topk(query, key, k), expected)


def test_gradient_of_topk(z):
    def f(q, k):
        return tiled.topk(q, k, 3, pairs=negatives(GROUP), tile=2)[0].clamp(min=-1)

    assert torch.autograd.gradcheck(f, (z.requires_grad_(), z.detach().flip(0).requires_grad_()))


@pytest.mark.parametrize("k", [0, 8])
def test_topk_refuses_more_neighbours_than_keys(z, k):
    with pytest.raises(ValueError, match=f"asked for k={k} neighbours among 7 keys"):
        similarity.topk(z, z, k)


class Bf16Hardware(TorchDispatchMode):
    """What a processor with bf16 instructions does while torch is told to use them."""

    def __init__(self) -> None:
        super().__init__()
        self.used = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        products = {torch.ops.aten.addmm.out, torch.ops.aten.addmm_.default}
        if func in products and torch.backends.mkldnn.matmul.fp32_precision == "bf16":
            self.used += 1
            args = args[0], *(x.bfloat16().float() for x in args[1:3])
        return func(*args, **(kwargs or {}))


def test_products_of_bf16_keep_sums_in_float32():
    generator = torch.Generator().manual_seed(0)
    rows = normalize(torch.randn(300, 128, generator=generator), dim=1).bfloat16()
    group = torch.arange(150).repeat(2)

    def gradient(z, backend):
        z = z.clone().requires_grad_()
        with similarity.using(backend):
            loss = nt_xent(z, group, temperature=0.1)
        loss.backward()
        return loss.item(), z.grad.double()

    def error(found):
        assert found[0] == pytest.approx(exact[0], rel=1e-6)
        return (found[1] - exact[1]).norm() / exact[1].norm()

    exact = gradient(rows.double(), dense)
    before = torch.backends.mkldnn.matmul.fp32_precision
    with Bf16Hardware() as hardware, tiled.library(False):  # torch's products alone are in bf16
        gradient(rows.float(), tiled)
        assert hardware.used == 0
        with similarity.products(torch.bfloat16):
            assert error(gradient(rows.float(), tiled)) < 2e-4
            assert (used := hardware.used) >= 2
            gradient(rows.double(), tiled)
        similarity.logsumexp(rows, rows)
        assert hardware.used == used + 1
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize("scale", [10.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_less_precise_than_plain_torch(dtype, scale):
    generator = torch.Generator().manual_seed(0)
    z = normalize(torch.randn(512, 64, dtype=torch.float64, generator=generator), dim=1)
    low, pairs = z.to(dtype), others(512)
    truth = dense.logsumexp(z, z, scale=scale, pairs=pairs)
    plain = (dense.logsumexp(low, low, scale=scale, pairs=pairs) - truth).abs()
    for tile in (64, 2048, None):
        ours = (tiled.logsumexp(low, low, scale=scale, pairs=pairs, tile=tile) - truth).abs()
        assert ours.max() <= plain.max() + 4 * torch.finfo(torch.float32).eps * truth.abs().max()


@pytest.mark.parametrize("n", [0, 1])
def test_few_rows(n):
    z, key = torch.ones(n, 3, requires_grad=True), torch.ones(2, 3)
    assert similarity.logsumexp(z, z, pairs=others(n)).shape == (n,)
    lse = similarity.logsumexp(z, key, scale=0.1)
    assert lse.shape == (n,)
    lse.sum().backward()
    assert z.grad.shape == (n, 3)


def test_blocks_need_no_comparison_where_ids_cannot_meet():
    rows = [slice(0, 4), slice(4, 8)]
    block = Blocks(others(8), rows, rows)
    assert block(0, 1) is True and isinstance(block(0, 0), torch.Tensor)
    block = Blocks(positives(torch.arange(4).repeat_interleave(2)), rows, rows)
    assert block(0, 1) is False


@pytest.mark.parametrize("shift", [0, 2**24, 2**60], ids=["small", "large", "huge"])
@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS.keys())
def test_blocks_are_the_mask(pairs, shift):
    def moved(ids):
        return None if ids is None else ids + shift

    sides = (pairs.row_group, pairs.col_group, pairs.row_id, pairs.col_id)
    pairs = Pairs(pairs.relation, *map(moved, sides))
    blocks, cut = [slice(0, 3), slice(3, 6), slice(6, 7)], Pairs.mask
    block = Blocks(pairs, blocks, blocks)
    for i, rows in enumerate(blocks):
        for j, cols in enumerate(blocks):
            mask = cut(pairs, rows, cols)
            shape = rows.stop - rows.start, cols.stop - cols.start
            expected = torch.ones(shape) if mask is None else mask.float()
            assert torch.equal(torch.ones(shape) * block(i, j), expected)


def test_pairs_of_other_rows_are_refused(z):
    with pytest.raises(ValueError, match="pairs describe 9 rows, the similarity has 7"):
        similarity.logsumexp(z, z, pairs=others(9))
    with pytest.raises(ValueError, match="relation 'same' needs a row_group"):
        Pairs("same")


def test_similarity_to_positives_is_over_the_other_rows(z):
    similarity_, count = similarity.positive_similarity(z, GROUP)
    assert count.tolist() == [0, 2, 2, 1, 0, 1, 2] == similarity.positive_count(GROUP).tolist()
    torch.testing.assert_close(similarity_[1], (z[1] @ z[2] + z[1] @ z[6]) / 2)
    assert similarity_[0].abs() < 1e-12
    torch.testing.assert_close(similarity.group_sum(z, GROUP)[0], z[1] + z[2] + z[6])


@pytest.mark.parametrize("group", [GROUP, 5 - 10**10 * GROUP], ids=["small", "any"])
def test_gradient_of_the_similarity_to_positives(z, group):
    def f(z):
        return similarity.positive_similarity(z, group)[0]

    assert torch.autograd.gradcheck(f, z.requires_grad_())


@pytest.mark.parametrize(
    "group", [[40, 2, 40, 2, 7], [3, 3], [0], [], [1, 0, 0, 1], [0, 1, 0, 1], [5, 6]]
)
def test_the_only_positive_is_the_other_row_of_the_group(group):
    *_, only = positives_of(torch.zeros(len(group), 2), torch.tensor(group, dtype=torch.long))
    found = only.tolist()
    for i, j in enumerate(found):
        same = [k for k, name in enumerate(group) if name == group[i] and k != i]
        assert j == (same[0] if same else i)
    for three in ([0, 1, 0, 0], [0, 1, 0, 1, 0, 1]):
        assert positives_of(torch.zeros(len(three), 2), torch.tensor(three))[2] is None


@pytest.mark.parametrize(
    "group", [[4, 0, 4, 4, 0, 7], [2, 2, 2], [0, 1, 2] * 4, [3, 3, 3, -5, 10**12]]
)
def test_a_few_positives_are_the_other_rows_of_the_group(group):
    z = torch.randn(len(group), 3, dtype=torch.float64, requires_grad=True)
    few = similarity.few_positives(torch.tensor(group))
    for i, row in enumerate(few.tolist()):
        same = {k for k, name in enumerate(group) if name == group[i] and k != i}
        assert set(row[: len(same)]) == same and set(row[len(same) :]) <= {i}
    assert similarity.few_positives(torch.arange(30) // 10) is None  # nine are many
    torch.testing.assert_close(similarity.similarity_at(z, z, few), (z @ z.T).gather(1, few))
    assert torch.autograd.gradcheck(lambda z: similarity.similarity_at(z, z * 2, few), z)


@pytest.mark.parametrize("views", [1, 2, 3])
def test_views_one_after_the_other_are_groups_like_any_other(views):
    z = torch.randn(6, 4, dtype=torch.float64).requires_grad_()
    group = torch.tensor([7, 3, 9, 1, 2, 0])[: 6 // views].repeat(views)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    results = []
    for rows in (slice(None), order):
        mean, count = similarity.positive_similarity(z[rows], group[rows])
        (grad,) = torch.autograd.grad((mean * group[rows]).sum(), z)
        results.append((mean[order] if rows is not order else mean, count, grad))
    torch.testing.assert_close(results[1], results[0])
    assert results[0][1].tolist() == [views - 1] * 6
