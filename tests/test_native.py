"""The compiled library agrees with the definition, for any shape, mask and number of threads."""

import itertools
import warnings
from functools import partial

import pytest
import torch
from torch.nn.functional import normalize

from contrapose.compiler import REPEATS, Library
from contrapose.data import resize
from contrapose.similarity import EVERY, Pairs, dense, native, others, tiled

pytestmark = pytest.mark.skipif(native.LIBRARY.load() is None, reason="no C compiler is here")

SHAPES = (
    (1, 1, 3), (7, 7, 5), (13, 13, 16), (401, 401, 128),
    (5, 300, 7), (300, 5, 40), (193, 385, 20), (0, 4, 8), (4, 0, 8),
)  # fmt: skip


@pytest.fixture(autouse=True)
def by_library():
    threads = torch.get_num_threads()
    with tiled.library(True):
        yield
    torch.set_num_threads(threads)


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(rows, dim=1)


def pairs_of(n: int, m: int, same: bool) -> dict[str, Pairs]:
    draw = torch.Generator().manual_seed(n + m)
    row = torch.randint(0, 4, (n,), generator=draw)
    col = row if same else torch.randint(0, 4, (m,), generator=draw)
    found = {
        "every": EVERY,
        "same": Pairs("same", row, col),
        "different, large numbers": Pairs("different", row + 2**40, col + 2**40),
        "ids": Pairs(row_id=torch.arange(n), col_id=torch.arange(m)),
        "same, duplicates": Pairs("same", row, col, row // 2, col // 2),
    }
    return found | ({"others": others(n)} if same else {})


def results(implementation, dtype, n, m, d, pairs, match, same, columns):
    query = unit(n, d, 0).to(dtype).requires_grad_()
    key = query if same else unit(m, d, 1).to(dtype).requires_grad_()
    scale = torch.tensor(9.0, dtype=dtype, requires_grad=True)
    if columns:
        found = implementation.logsumexp_both(query, key, scale=scale, match=match)
    else:
        found = (implementation.logsumexp(query, key, scale=scale, pairs=pairs, match=match),)
    loss = sum(torch.where(x.isfinite(), x * torch.arange(1, len(x) + 1), 0.0).sum() for x in found)
    gradients = torch.autograd.grad(loss, [query, scale] + ([] if same else [key]))
    return [x.detach().double() for x in (*found, *gradients)]


@pytest.mark.parametrize(("n", "m", "d"), SHAPES)
def test_sums_and_gradients_are_the_definition(n, m, d):
    for same in (True, False) if n == m else (False,):
        match = torch.arange(n).flip(0) % max(m, 1)
        cases = itertools.product(pairs_of(n, m, same).items(), (None, match) if m else (None,))
        for (name, pairs), left_out in cases:
            for columns in (False, True) if pairs is EVERY else (False,):
                case = (n, m, d, pairs, left_out, same, columns)
                exact = results(dense, torch.float64, *case)
                for a, b in zip(exact, results(tiled, torch.float32, *case), strict=True):
                    size = a[a.isfinite()].abs().max() if a.isfinite().any() else 1.0
                    torch.testing.assert_close(
                        b, a, rtol=2e-5, atol=2e-6 * float(size), msg=lambda m, n=name: f"{n}: {m}"
                    )


def test_threads_and_what_is_kept_change_rounding_alone_and_a_repeat_nothing(monkeypatch):
    case = (700, 700, 24, others(700), torch.arange(700).roll(350), True, False)
    torch.set_num_threads(1)
    first = results(tiled, torch.float32, *case)
    for threads, keep in ((2, native.KEEP), (3, native.KEEP), (2, 0)):
        torch.set_num_threads(threads)
        monkeypatch.setattr(native, "KEEP", keep)
        for a, b in zip(first[:2], results(tiled, torch.float32, *case), strict=False):
            assert (a - b).abs().max() <= 1e-6 * a.abs().max(), (threads, keep)
    for a, b in zip(*(results(tiled, torch.float32, *case) for _ in range(2)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("n", "m", "k"), [(7, 9, 1), (7, 9, 9), (50, 5000, 700), (401, 3001, 49), (2500, 600, 5)]
)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_nearest_are_the_definition(n, m, k, threads):
    torch.set_num_threads(threads)
    query, key = unit(n, 20, 0).float(), unit(m, 20, 1).float()
    for name, pairs in pairs_of(n, m, False).items():
        value, index = tiled.topk(query, key, k, pairs=pairs)
        exact, _ = dense.topk(query.double(), key.double(), k, pairs=pairs)
        torch.testing.assert_close(value.double(), exact, rtol=0, atol=1e-6, msg=name)
        there = value.isfinite()
        product = (query[:, None] * key[index]).sum(dim=2)
        torch.testing.assert_close(product[there], value[there], rtol=0, atol=1e-6)
        assert all(len(set(i[t].tolist())) == t.sum() for i, t in zip(index, there, strict=True))


def test_of_equal_keys_the_first_are_nearest():
    key = unit(3, 8, 0).float().repeat(400, 1)
    _, index = tiled.topk(key[:3], key, 5)
    assert index.tolist() == [[i, i + 3, i + 6, i + 9, i + 12] for i in range(3)]


def anew() -> Library:
    return Library(native.LIBRARY.source, "torch", "slow")


def test_without_a_compiler_torchs_operations_serve_and_it_is_said_once(monkeypatch, tmp_path):
    monkeypatch.setenv("CONTRAPOSE_CACHE", str(tmp_path))
    monkeypatch.setenv("CONTRAPOSE_CC", "no-such-compiler")
    said = "losses, resizing and batch norm .*: CONTRAPOSE_CC=no-such-compiler is no program"
    with pytest.warns(UserWarning, match=said):
        assert anew().load() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert anew().load() is None  # said before
        assert Library(resize.LIBRARY.source, "Pillow", "slow").load() is None  # and of all
        monkeypatch.setenv("CONTRAPOSE_CC", "none")
        assert anew().load() is None
    monkeypatch.setenv("CONTRAPOSE_CC", "false")  # a program that fails
    with pytest.warns(UserWarning, match="does not compile it"):
        assert anew().load() is None
    monkeypatch.delenv("CONTRAPOSE_CC")
    assert anew().load() is not None
    (kept,) = (tmp_path / "native").glob("*.so")
    whole = kept.read_bytes()
    kept.unlink()  # not written over: this process has it in memory
    kept.write_bytes(whole[:100])
    assert anew().load() is not None and kept.read_bytes() == whole  # damaged: made anew
    monkeypatch.setenv("CONTRAPOSE_CACHE", "off")
    assert anew().load() is not None  # compiled, and not kept


def test_the_quicker_way_is_measured_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("CONTRAPOSE_CACHE", str(tmp_path))
    calls = []
    for slow, fast, quicker in ((0, 10**6, True), (10**6, 0, False)):
        for library in (anew(), anew()):  # the second reads the file
            assert library.load() is not None
            ours = partial(lambda n: calls.append(sum(range(n))), slow)
            assert (
                library.is_quicker("float32", ours, partial(lambda n: sum(range(n)), fast))
                is quicker
            )
            assert library.measured()["float32"].keys() == {"native", "torch"}
        assert len(calls) == REPEATS
        calls.clear()
        next((tmp_path / "native").glob("*.json")).unlink()
