"""The kernels for accelerators, against the definition: on CUDA, or under Triton's interpreter.

The interpreter multiplies float32 and float16; it has no products of bf16.
"""

import importlib.machinery
import importlib.util
import math
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch.nn.functional import normalize

from contrapose import losses, similarity
from contrapose.similarity import EVERY, Pairs, dense, negatives, others, positives

pytest.importorskip("triton")
finder, name = importlib.machinery.PathFinder, "contrapose.similarity.kernels"
spec = finder.find_spec(name, similarity.__path__)  # past the tests' hook that checks every
sys.modules[name] = importlib.util.module_from_spec(spec)  # function's shapes: kernels have none
spec.loader.exec_module(sys.modules[name])
from contrapose.similarity import fused  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

N, M, DIM = 90, 70, 20  # no whole number of tiles, nor of a tensor core's columns
GROUP = torch.arange(N) % 40
GROUP[3] = 77  # alone in its group
PAIRS = {
    "every": EVERY,
    "others": others(N),
    "positives": positives(GROUP),
    "negatives": negatives(GROUP),
}
HALF = torch.float16 if DEVICE == "cpu" else torch.bfloat16
SCALES = [(torch.float32, 5.0), (torch.float32, 300.0), (HALF, 300.0)]


@pytest.fixture(autouse=True)
def with_float32():
    """Which the kernels take where TF32 is allowed."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def rows(n: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, DIM, generator=generator), dim=1).to(dtype)


def assert_near(found, expected, share):
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=share * expected.abs().max())


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS.keys())
@pytest.mark.parametrize("same", [True, False], ids=["rows with themselves", "with other keys"])
@pytest.mark.parametrize("match", [None, torch.arange(N).roll(7)], ids=["", "without a match"])
def test_logsumexp_is_the_definition(match, same, pairs, scale, dtype):
    results = []
    for implementation in (dense, fused):
        wide = torch.float64 if implementation is dense else None
        query = rows(N, dtype, 0).to(wide or dtype).requires_grad_()
        key = query if same else rows(N, dtype, 1).to(wide or dtype).requires_grad_()
        factor = torch.tensor(scale, dtype=wide or torch.float32, requires_grad=True)
        lse = implementation.logsumexp(query, key, scale=factor, pairs=pairs, match=match)
        torch.where(lse.isfinite(), lse * torch.arange(N), 0.0).sum().backward()
        results.append((lse.detach(), query.grad, key.grad, factor.grad))
    (lse, *gradients), (expected, *others_) = results[1], results[0]
    assert ((lse == -math.inf) == (expected == -math.inf)).all()
    torch.testing.assert_close(lse.double(), expected, rtol=1e-6, atol=scale * 2**-23)
    for found, wanted in zip(gradients, others_, strict=True):
        # weights are rounded as the operands are, and off by what their logits are off
        near = 2 * torch.finfo(dtype).eps if dtype == HALF else scale * 2**-22
        assert_near(found, wanted, near if DEVICE == "cpu" else 8e-3)


@pytest.mark.parametrize("match", [None, torch.arange(N) // 2], ids=["", "without a match"])
@pytest.mark.parametrize("parts", [1, 3])
def test_rows_and_columns_and_spans_of_columns(monkeypatch, parts, match):
    monkeypatch.setattr(fused, "PROGRAMS", 5 * parts)  # few rows: the columns are divided
    results = []
    for implementation, dtype in ((dense, torch.float64), (fused, torch.float32)):
        query = rows(N, torch.float32, 0).to(dtype).requires_grad_()
        key = rows(M, torch.float32, 1).to(dtype).requires_grad_()
        down, right = implementation.logsumexp_both(query, key, scale=7.0, match=match)
        ((down * torch.arange(N)).sum() + (right * torch.arange(M)).sum()).backward()
        results.append((down.detach(), right.detach(), query.grad, key.grad))
    for found, wanted in zip(*reversed(results), strict=True):
        assert_near(found, wanted, 1e-6)


@pytest.mark.parametrize(("precision", "near"), [(torch.float16, 1e-3), (None, 1e-5)])
def test_losses_run_on_it(precision, near):
    z = rows(64, torch.float16, 0).float()
    group = torch.arange(64) % 8
    how = similarity.products(precision) if precision else nullcontext()
    results = []
    for implementation in (dense, fused):
        x = z.clone().requires_grad_()
        with similarity.using(implementation), how if implementation is fused else nullcontext():
            value = losses.supcon(x, group, temperature=0.1) + losses.supcon_in(
                x, group, temperature=0.07
            )
        value.backward()
        results.append((value.item(), x.grad.double()))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert_near(results[1][1], results[0][1], near)


def test_what_the_kernels_do_not_take_goes_to_the_tiles():
    for query in (rows(9, torch.float64, 0), torch.randn(9, 300), torch.randn(0, 4)):
        assert not fused.takes(query, query)
        found = fused.logsumexp(query, query, scale=0.1, pairs=Pairs())
        torch.testing.assert_close(found, dense.logsumexp(query, query, scale=0.1))


COMPILE = """
import sys, torch, triton
from contrapose.similarity import fused, kernels
name, arch = sys.argv[1], int(sys.argv[2])
kernel, z = getattr(kernels, name), torch.empty(4096, 128, dtype=torch.bfloat16)
constants = fused._plan(z, z)["constants"]
options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
constants |= {"D": 128, "RELATION": 2}
kinds = {"query": "*bf16", "key": "*bf16", "n": "i32", "m": "i32", "span": "i32"}
kinds |= dict.fromkeys(("scale", "out", "row", "col"), "*fp32")
names = [p.name for p in kernel.params]
signature = {n: "constexpr" if n in constants else kinds.get(n, "*i64") for n in names}
places = {(names.index(name),): value for name, value in constants.items()}
source = triton.compiler.ASTSource(kernel, signature, places)
target = triton.backends.compiler.GPUTarget("cuda", arch, 32)
made = triton.compile(source, target=target, options=options)
assert ("wgmma.mma_async" if arch == 90 else "mma.sync") in made.asm["ptx"]
assert made.metadata.shared <= 99 * 1024  # what the smallest of their kind have
"""


@pytest.mark.slow  # the compiler takes some seconds a kernel
@pytest.mark.parametrize("kernel", ["log_sum_exp", "gradient"])
@pytest.mark.parametrize("arch", ["80", "90"])
def test_kernels_compile_for_tensor_cores(kernel, arch):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", COMPILE, kernel, arch], env=env, check=True)
