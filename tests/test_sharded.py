"""Several processes compute the loss and the gradient that one computes on the joined batch."""

import inspect
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import normalize

from contrapose import losses
from contrapose.similarity import across, gather_rows
from contrapose.verification.inputs import keywords

EVERY = dict(inspect.getmembers(losses, inspect.isfunction))
del EVERY["triplet_distance_weighted"]  # draws other negatives on other ranks
SHARES = {2: [[6, 6], [9, 3], [12, 0]], 3: [[4, 4, 4], [5, 0, 7]]}  # rows of each rank
CASES = [(name, share) for shares in SHARES.values() for share in shares for name in EVERY]

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IMAGE = torch.tensor([-1, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, -1])  # two without a label: each alone
CLASS = torch.tensor([0, 1, 1, 0, -1, 1, 0, 0, 1, -1, 0, 1])


def loss_of(name, x, y, rows):
    """The loss of the given rows: of the batch, or of towers x and y."""
    parameters = inspect.signature(EVERY[name]).parameters
    arguments = keywords(parameters)
    if "key_group" in parameters:
        return EVERY[name](x, CLASS[rows], normalize(Y, dim=1), CLASS.flip(0), **arguments)
    if "labels" in parameters:
        several = torch.stack([CLASS == 0, CLASS == 1, torch.arange(12) % 3 == 0], 1).to(torch.int8)
        return EVERY[name](x, IMAGE[rows], several[rows], **arguments)
    if "group" in parameters:
        group = CLASS if name.startswith("supcon") else IMAGE
        return EVERY[name](x, group[rows], **arguments)
    if "match" in parameters:
        bank = normalize(Y, dim=1).to(x.dtype)
        return EVERY[name](x, bank, torch.arange(12)[rows], **arguments)
    if "time" in parameters:
        return EVERY[name](x, torch.arange(12)[rows], **arguments)
    if "classes" in parameters:
        return EVERY[name](x, normalize(Y, dim=1), torch.arange(12)[rows], **arguments)
    if "support" in parameters:
        return EVERY[name](x, y, normalize(Y, dim=1), **arguments)
    return EVERY[name](x, y, **arguments)


def encode(x, w):
    return normalize(x @ w, dim=1)


def weight():
    return torch.eye(4, dtype=torch.float64).requires_grad_()


def worker(rank, store, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    groups = {2: dist.new_group([0, 1]), 3: dist.group.WORLD}
    results = {}
    for name, share in CASES:
        if rank >= (world := len(share)):
            continue
        rows = slice(sum(share[:rank]), sum(share[: rank + 1]))
        w = weight()
        with across(groups[world]):
            loss = loss_of(name, encode(X[rows], w), encode(Y[rows], w), rows)
        loss.backward()
        both = torch.cat([loss.detach()[None], w.grad.flatten()])
        dist.all_reduce(both, group=groups[world])  # what DDP does: the mean over ranks
        results[name, tuple(share)] = (both / world).tolist()
        if world == 2:  # on neither process a row
            with across(groups[world]):
                x, y = encode(X[:0], w), encode(Y[:0], w)
                results["empty", name] = float(loss_of(name, x, y, slice(0)))
    with across():
        results["ids"] = gather_rows(torch.arange(rank + 1, dtype=torch.int32)).tolist()
        low = torch.ones(rank + 1, 2, dtype=torch.bfloat16, requires_grad=True)
        gather_rows(low).sum().backward()
        results["bf16"] = low.grad.tolist()
    if rank == 0:
        out.put(results)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def measured():
    """Every case, computed by two or three of three processes."""
    out = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(worker, (f"{folder}/store", out), nprocs=3, start_method="spawn")
    return out.get()


@pytest.mark.filterwarnings("ignore:.*are without a (positive|label)")
@pytest.mark.parametrize("world", SHARES)
def test_many_ranks_equal_one(world, measured):
    for name, share in CASES:
        if len(share) != world:
            continue
        w = weight()
        expected = loss_of(name, encode(X, w), encode(Y, w), slice(None))
        expected.backward()
        torch.testing.assert_close(
            torch.tensor(measured[name, tuple(share)], dtype=torch.float64),
            torch.cat([expected.detach()[None], w.grad.flatten()]),
            msg=lambda m, what=(name, share): f"{what}: {m}",
        )


def test_a_batch_without_rows_on_any_rank_gives_zero(measured):
    assert {name: measured["empty", name] for name in EVERY} == dict.fromkeys(EVERY, 0.0)


def test_rows_of_any_type_are_gathered_in_rank_order(measured):
    assert measured["ids"] == [0, 0, 1, 0, 1, 2]


def test_a_low_precision_gradient_comes_back_from_every_rank(measured):
    assert measured["bf16"] == [[3.0, 3.0]]


def test_across_needs_a_process_group():
    with pytest.raises(RuntimeError, match="init_process_group"), across():
        pass
