"""Keys from elsewhere than the batch: what is kept of them, and what a loss makes of it."""

import copy
import io
import subprocess
import sys
import tempfile
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support.oracles import ORACLE
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from contrapose import keys, losses
from contrapose.encoders import Encoder, linear, small_conv
from contrapose.keys.contrast import Grouped, InBatch, Matched, fits
from contrapose.keys.sources import Entries
from contrapose.similarity import across
from contrapose.training.signals import agreement

T = 0.2


def rows(n, dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, dim, generator=generator, dtype=torch.float64), dim=1)


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def network(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), *layers, nn.Linear(16, 4)).double()


# ---- stores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_a_queue_holds_the_last_keys_whatever_the_sizes(size):
    queue, pushed = keys.Queue(size, 4).double(), []
    for step, n in enumerate([2, 5, 0, 1, 11, 3]):
        new = rows(n, seed=step)
        index = torch.arange(n) + 100 * step
        queue.push(new, index, index + 1)
        pushed += list(zip(index.tolist(), new, strict=True))
        kept = dict(pushed[-size:])
        assert len(queue) == len(kept) and set(queue.index.tolist()) == kept.keys()
        assert torch.equal(queue.group, queue.index + 1)
        for i, key in zip(queue.index.tolist(), queue.key, strict=True):
            assert torch.equal(key, kept[i])


def test_a_bank_starts_uniform_and_moves_by_exponential_averages():
    bank = keys.Bank(1000, 12, momentum=0.5)
    assert bank.key.abs().max() <= 0.5 and bank.key.std() == pytest.approx(0.5 / 3**0.5, rel=0.02)
    before, z, index = bank.key.clone(), rows(3, 12).float(), torch.tensor([7, 2, 7])
    bank.push(z, index)
    of_seven = 0.5 * before[7] + 0.5 * (z[0] + z[2]) / 2  # an image that comes twice
    expected = normalize(torch.stack([0.5 * before[2] + 0.5 * z[1], of_seven]), dim=1)
    torch.testing.assert_close(bank.key[[2, 7]], expected)
    others = torch.ones(1000, dtype=torch.bool)
    others[index] = False
    assert torch.equal(bank.key[others], before[others])


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: keys.Queue(0, 4), "size=0"),
        (lambda: keys.Bank(4, 4, momentum=1.0), "momentum=1.0"),
        (lambda: keys.Bank(4, 4).push(torch.ones(1, 4), torch.tensor([4])), "bank of 4; use 0 to"),
        (lambda: keys.Bank(4, 4).push(torch.ones(1, 3), torch.tensor([0])), r"\[N 4\]"),
        (lambda: keys.Queue(4, 4).push(torch.ones(2, 4), torch.tensor([0])), "N ids"),
        (lambda: keys.chunked(network(), torch.ones(2, 6), chunk=0), "chunk=0"),
        (lambda: keys.momentum_copy(network()).update(network(), 1.5), "m=1.5"),
        (lambda: keys.momentum_copy(network()).update(nn.Linear(2, 2), 0.5), "a copy of"),
    ],
)
def test_what_cannot_be_meant_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_the_momentum_copy_follows_and_copies_the_statistics():
    trained = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    follower = keys.momentum_copy(trained)
    old = [w.clone() for w in trained.parameters()]
    with torch.no_grad():
        for w in trained.parameters():
            w += 1
    trained(torch.randn(5, 3))
    follower.update(trained, 0.9)
    for mine, before, theirs in zip(follower.parameters(), old, trained.parameters(), strict=True):
        torch.testing.assert_close(mine, 0.9 * before + 0.1 * theirs)
    for mine, theirs in zip(follower.buffers(), trained.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    assert not follower(torch.randn(5, 3)).requires_grad


# ---- sources: a step of training -----------------------------------------------------------------


def encoder():
    torch.manual_seed(0)
    return Encoder(small_conv(width=16), linear(16, dim=4, batch_norm=False), [0.5], [0.2])


SOURCES = {
    "bank": lambda e: keys.bank(e, 9, 4, momentum=0.5),
    "queue": lambda e: keys.queue(e, 9, 4, size=7, momentum=0.9),
    "memory": lambda e: keys.memory(e, 9, 4, size=7),
    "support": lambda e: keys.support(e, 9, 4, size=7),
}


def one_step(source, trained, index, seed):
    """Loss, and everything that is left behind."""
    view = torch.rand(2, len(index), 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    _, z = trained(source.queries(view).flatten(0, 1))
    entries = source.entries(view, z, index, index % 3)
    contrast = source.contrast(len(z), entries)
    function = losses.supcon_memory if len(contrast.takes) == 4 else losses.info_nce
    function = losses.nnclr if "support" in contrast.takes else function
    loss = contrast.loss(partial(function, temperature=T), z)
    loss.backward()
    with torch.no_grad():
        for w in trained.parameters():
            w -= 0.1 * w.grad
            w.grad = None
    source.update(trained, entries)
    return loss.detach()


@pytest.mark.parametrize("kind", SOURCES)
def test_saved_and_loaded_a_source_goes_on_bit_for_bit(kind):
    trained = encoder()
    source = SOURCES[kind](trained)
    for step, n in enumerate([3, 5, 4]):
        one_step(source, trained, torch.arange(n) + step, seed=step)
    other, again = encoder(), copy.deepcopy(trained)
    restored = SOURCES[kind](other)
    restored.load_state_dict(saved_and_loaded(source.state_dict()))
    for step in (7, 8):
        index = torch.tensor([8, 0, 3, 8])
        assert torch.equal(
            one_step(source, trained, index, step), one_step(restored, again, index, step)
        )
    a, b = source.state_dict(), restored.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_step_with_a_queue_is_mocos_but_for_older_keys_of_the_same_image():
    """Algorithm 1 of arXiv 1911.05722: logits [q k+, q queue] / t, label 0."""
    source = keys.queue(encoder(), 9, 4, size=6, momentum=0.9).double()
    source.queue.push(rows(4, seed=1), torch.tensor([1, 2, 3, 1]))
    entries = Entries(rows(3, seed=2), torch.tensor([1, 8, 2]), torch.tensor([1, 8, 2]))
    query = rows(6, seed=3)  # two query views of three images
    ours = source.contrast(6, entries).loss(partial(losses.info_nce, temperature=T), query)
    held, images = source.queue.key, source.queue.index
    assert sorted(images.tolist()) == [-1, -1, 1, 1, 2, 3]  # it starts full of random directions
    each = []
    for i, q in enumerate(query):
        positive, image = entries.key[i % 3], entries.index[i % 3]
        s = torch.cat([positive[None], held[images != image]]) @ q / T
        each.append(cross_entropy(s[None], torch.tensor([0])))
    torch.testing.assert_close(ours, torch.stack(each).mean())


@pytest.mark.parametrize("name", ["hard_info_nce", "simple_info_nce", "hard_simple_info_nce"])
def test_pairs_keep_older_entries_out_of_every_loss_against_keys(name):
    source = keys.queue(encoder(), 9, 4, size=6, momentum=0.9).double()
    source.queue.push(rows(6, seed=1), torch.tensor([1, 4, 3, 1, 5, 6]))
    entries = Entries(rows(2, seed=2), torch.tensor([1, 8]), torch.tensor([1, 8]))
    query = rows(2, seed=3).requires_grad_()
    more = {"weight": 0.3} if "simple" in name else {"temperature": T}
    more |= {"k": 3} if "hard" in name else {}
    ours = source.contrast(2, entries).loss(partial(getattr(losses, name), **more), query)
    first = torch.cat([entries.key[:1], source.queue.key[source.queue.index != 1]])
    second = torch.cat([entries.key[1:], source.queue.key])
    plain = [
        ORACLE[name](query[i : i + 1], key, torch.tensor([0]), **more)
        for i, key in enumerate((first, second))
    ]
    expected = torch.stack(plain).mean()
    torch.testing.assert_close(ours, expected)
    grads = [torch.autograd.grad(x, query)[0] for x in (ours, expected)]
    torch.testing.assert_close(*grads)


def test_an_empty_memory_leaves_supcon():
    z, group = rows(6), torch.tensor([0, 1, 0, 1, 2, 2])
    empty = z[:0], group[:0]
    torch.testing.assert_close(
        losses.supcon_memory(z, group, *empty, temperature=T),
        losses.supcon(z, group, temperature=T),
    )


def test_rows_without_a_positive_in_batch_and_memory_are_counted():
    z, key = rows(4), rows(2, seed=1)
    with pytest.warns(UserWarning, match="supcon_memory: 2 of 4 rows are without a positive"):
        loss = losses.supcon_memory(
            z, torch.tensor([0, 0, 1, 2]), key, torch.tensor([0, 5]), temperature=T
        )
    loss_of = ORACLE["supcon_memory"](
        z, torch.tensor([0, 0, 1, 2]), key, torch.tensor([0, 5]), temperature=T
    )
    torch.testing.assert_close(loss, loss_of)


def test_more_negatives_than_keys_are_refused():
    bank, query = rows(5), rows(2)
    for name, more in (
        ("hard_info_nce", {"temperature": T}),
        ("hard_simple_info_nce", {"weight": 1.0}),
    ):
        f = getattr(losses, name)
        with pytest.raises(ValueError, match="k=5 negatives among 5 keys; use 1 to 4"):
            f(query, bank, torch.tensor([0, 1]), k=5, **more)


def test_keys_embedded_in_shuffled_parts_come_back_in_their_order():
    trained = encoder()
    trained.head.append(nn.BatchNorm1d(4))  # whose statistics are the part's
    view, index = torch.rand(2, 7, 1, 8, 8), torch.arange(7)
    whole, parts = (keys.queue(trained, 9, 4, size=5, chunk=c).train() for c in (None, 3))
    ours = parts.entries(view, None, index, index).key
    follows = torch.Generator().manual_seed(parts.queue.pushed)  # from the state of the queue
    for part in torch.randperm(7, generator=follows).tensor_split(3):
        torch.testing.assert_close(ours[part], whole.entries(view[:, part], None, part, part).key)
    trained.eval()
    whole, parts = (keys.queue(trained, 9, 4, size=5, chunk=c) for c in (None, 3))
    torch.testing.assert_close(
        *(s.eval().entries(view, None, index, index).key for s in (whole, parts))
    )


def test_signals_look_at_the_keys():
    """Against a queue: how often no older key is nearer than the own one; against a memory: how
    often the nearest of all rows and keys is of the row's group."""
    z, older, images = rows(6), rows(7, seed=1), torch.tensor([0, 1, 2, 0, 4, 9, 9])
    source = keys.queue(encoder(), 9, 4, size=7).double()
    source.queue.push(older, images)
    own, index = rows(3, seed=2), torch.arange(3)
    found = agreement(z, source.contrast(6, Entries(own, index, index)))
    nearer = [older[images != i % 3] @ z[i] < own[i % 3] @ z[i] for i in range(6)]
    assert found["contrastive_accuracy"] == pytest.approx(sum(bool(x.all()) for x in nearer) / 6)
    apart = (z - own.repeat(2, 1)).square().sum(dim=1)
    assert found["alignment"] == pytest.approx(float(apart.mean()))

    group = torch.tensor([0, 1, 2, 0, 5, 7])  # 5 and 7 have no positive
    found = agreement(z, Grouped(group, older, images))
    s, names = torch.cat([z, older]) @ z.T, torch.cat([group, images])
    right = names[s[:, :4].fill_diagonal_(-2).argmax(dim=0)] == group[:4]
    assert found["contrastive_accuracy"] == pytest.approx(float(right.double().mean()))


# ---- gradient caching ----------------------------------------------------------------------------


def loss_and_gradients(encode, x, chunk, loss=losses.nt_xent):
    group = torch.arange(len(x)) // 2
    total = keys.cached(
        encode, x, lambda z: loss(normalize(z, dim=1), group, temperature=T), chunk=chunk
    )
    total.backward()
    grads = [w.grad for w in encode.parameters()]
    encode.zero_grad(set_to_none=True)
    return total.detach(), grads


@pytest.mark.parametrize("chunk", [1, 3, 5, 8, 64])
def test_in_chunks_loss_and_gradient_are_those_of_the_whole_batch(chunk):
    encode, x = network(nn.Tanh()), rows(10, 6)
    for loss in (losses.nt_xent, losses.supcon_in):
        torch.testing.assert_close(
            loss_and_gradients(encode, x, chunk, loss), loss_and_gradients(encode, x, 10, loss)
        )


def test_dropout_falls_alike_in_both_passes():
    encode, x = network(nn.Dropout(0.5)), rows(10, 6)
    torch.manual_seed(3)
    ours = loss_and_gradients(encode, x, 4)
    torch.manual_seed(3)
    z = torch.cat([encode(part) for part in x.tensor_split(3)])
    after = torch.get_rng_state()
    loss = losses.nt_xent(normalize(z, dim=1), torch.arange(10) // 2, temperature=T)
    expected = loss.detach(), torch.autograd.grad(loss, list(encode.parameters()))
    torch.testing.assert_close(ours, (expected[0], list(expected[1])))
    torch.manual_seed(3)
    loss_and_gradients(encode, x, 4)
    assert torch.equal(torch.get_rng_state(), after)  # the second pass drew nothing new


def test_statistics_take_in_every_chunk_once_and_batches_are_the_chunks():
    encode, x = network(nn.BatchNorm1d(16)), rows(10, 6)
    plain = copy.deepcopy(encode)
    ours = loss_and_gradients(encode, x, 4)
    z = torch.cat([plain(part) for part in x.tensor_split(3)])
    loss = losses.nt_xent(normalize(z, dim=1), torch.arange(10) // 2, temperature=T)
    grads = list(torch.autograd.grad(loss, list(plain.parameters())))
    torch.testing.assert_close(ours, (loss.detach(), grads))
    for mine, theirs in zip(encode.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    whole = loss_and_gradients(encode, x, 10)[0]
    assert (whole - ours[0]).abs() > 1e-3  # another normalisation, another loss


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_dropout_falls_alike_in_both_passes_on_a_gpu():
    encode, x = network(nn.Dropout(0.5)).cuda(), rows(10, 6).cuda()
    torch.manual_seed(3)
    ours = loss_and_gradients(encode, x, 4)[1]
    torch.manual_seed(3)
    z = torch.cat([encode(part) for part in x.tensor_split(3)])
    group = torch.arange(10, device="cuda") // 2
    loss = losses.nt_xent(normalize(z, dim=1), group, temperature=T)
    torch.testing.assert_close(ours, list(torch.autograd.grad(loss, list(encode.parameters()))))


# ---- several processes ---------------------------------------------------------------------------

X, Y = rows(12), rows(12, seed=1)
INDEX = torch.tensor([3, 7, 0, 5, 5, 1, 8, 2, 6, 4, 9, 3])
SHARES = [[4, 4, 4], [5, 0, 7]]  # rows of each rank


def two_steps(part):
    """Two pushes and two losses against what they left, on the rows `part`."""
    found = {}
    torch.manual_seed(0)
    bank, queue, memory = keys.Bank(10, 4).double(), keys.Queue(7, 4).double(), keys.Queue(30, 4)
    memory.double()
    w = torch.eye(4, dtype=torch.float64).requires_grad_()
    for x in (X, Y):
        z, index = normalize(x[part] @ w, dim=1), INDEX[part]
        found["bank"] = losses.info_nce(z, bank.key.clone(), index, temperature=T)
        group = index % 3
        older = memory.key.clone(), memory.group.clone()
        found["memory"] = losses.supcon_memory(z, group, *older, temperature=T)
        found["capped"] = losses.supcon(z, group, temperature=T, max_positives=2, image=index)
        for store in (queue, memory):
            store.push(z, index, group)
        bank.push(z, index)
    for name, loss in list(found.items()):
        (grad,) = torch.autograd.grad(loss, w, retain_graph=True)
        found[name] = torch.cat([loss.detach()[None], grad.flatten()])
    state = [bank.key, queue.key, queue.index, memory.key, memory.index, memory.group]
    return found, state


class InChunks(nn.Module):
    def __init__(self, encode, chunk):
        super().__init__()
        self.encode, self.chunk = encode, chunk

    def forward(self, x):
        return normalize(keys.chunked(self.encode, x, chunk=self.chunk), dim=1)


def gradients_in_chunks(part, wrapped):
    """Of NT-Xent over all ranks, by DistributedDataParallel where there are several."""
    encode = InChunks(network(nn.Tanh()), 2)
    model = nn.parallel.DistributedDataParallel(encode) if wrapped else encode
    x, group = rows(12, 6)[part], torch.arange(12)[part] // 2
    losses.nt_xent(model(x), group, temperature=T).backward()
    return [w.grad.tolist() for w in encode.parameters()]


def worker(rank, store, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    results = []
    for share in SHARES:
        start = sum(share[:rank])
        with across():
            part = slice(start, start + share[rank])
            found, state = two_steps(part)
            cached = gradients_in_chunks(part, wrapped=True)
        for x in found.values():  # what DDP does: the mean over ranks
            dist.all_reduce(x)
        states = [None] * 3
        dist.all_gather_object(states, [x.tolist() for x in state])
        found = {name: (x / 3).tolist() for name, x in found.items()}
        results.append((found, states, cached))
    if rank == 0:
        out.put(results)
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*are without a positive")
def test_many_ranks_hold_and_compute_what_one_does():
    out = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(worker, (f"{folder}/store", out), nprocs=3, start_method="spawn")
    found, state = two_steps(slice(None))
    whole = gradients_in_chunks(slice(None), wrapped=False)
    for share, (theirs, states, cached) in zip(SHARES, out.get(), strict=True):
        for mine, x in zip(cached, whole, strict=True):
            torch.testing.assert_close(torch.tensor(mine), torch.tensor(x))
        for name, x in found.items():
            torch.testing.assert_close(
                torch.tensor(theirs[name], dtype=torch.float64), x, msg=f"{name}, {share}"
            )
        for of_rank in states:
            assert of_rank == states[0]  # bit for bit the same on every rank
            for mine, x in zip(of_rank, state, strict=True):
                torch.testing.assert_close(torch.tensor(mine, dtype=x.dtype), x)


MEASURE = """
import resource, torch
from torch.nn.functional import normalize
from contrapose import keys, losses

def step(n, loss, **more):
    bank = keys.Bank(n, 128, 0.5)
    z = normalize(torch.randn(128, 128), dim=1).requires_grad_()
    index = torch.randperm(n)[:128]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss(z, bank.key, index, **more).backward()
    bank.push(z, index)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

step(500, losses.LOSS, **MORE)
print(step(200_000, losses.LOSS, **MORE))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KB on Linux only")
@pytest.mark.parametrize(
    "loss, more",
    [
        ("info_nce", {"temperature": 0.07}),
        ("hard_info_nce", {"temperature": 0.07, "k": 400}),
        ("simple_info_nce", {"weight": 0.1}),
    ],
)
def test_a_step_with_a_bank_of_102_mb_copies_none_of_it(loss, more):
    code = MEASURE.replace("LOSS", loss).replace("MORE", str(more))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 30


# ---- which loss takes what -----------------------------------------------------------------------


def test_a_loss_is_given_what_its_arguments_name_in_whatever_order():
    z, group = rows(6), torch.arange(3).repeat(2)
    contrast = InBatch(group, 10 + group)

    def turned(group, z, *, image):
        assert torch.equal(image, 10 + group)
        return losses.nt_xent(z, group, temperature=T)

    assert fits(turned, contrast)
    assert torch.equal(contrast.loss(turned, z), losses.nt_xent(z, group, temperature=T))


def test_a_loss_that_names_other_inputs_or_leaves_its_positives_out_does_not_fit():
    fitting = {
        name
        for name, f in vars(losses).items()
        if name in ("nt_xent", "time_contrastive", "clip", "n_pairs", "info_nce", "supcon_memory")
        for kind in (InBatch, Matched, Grouped)
        if fits(f, kind)
    }
    assert fitting == {"nt_xent", "info_nce", "supcon_memory"}
    assert not fits(lambda z: z.sum(), InBatch) and not fits(lambda a, b: a.sum(), InBatch)
