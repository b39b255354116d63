"""Perplexity in place of a temperature: the effective number of negatives, and what it rests on."""

import inspect
import itertools
import json
import math
import tempfile
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import normalize

import contrapose
from contrapose import losses
from contrapose.losses import temperature as tempered
from contrapose.losses.temperature import entropy, temperature_at
from contrapose.partials import assign
from contrapose.recipes import recipe_for
from contrapose.similarity import EVERY, across, gather_rows, negatives

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Z = normalize(X, dim=1)
GROUP = torch.arange(12).repeat(2)
OTHER = GROUP[:, None] != GROUP
TAKE_PERPLEXITY = ["nt_xent", "supcon", "supcon_in", "dcl", "info_nce"]


def plain_entropy(z, t, mask=OTHER):
    """H(r_i) from the whole matrix (S1, eq. 5)."""
    logits = (z @ z.T / t).masked_fill(~mask, -math.inf)
    return torch.special.entr(logits.softmax(dim=1)).sum(dim=1)


def bisected(f, low=1e-3, high=1e3):
    """The temperature at which the growing f is 0, by a hundred halvings."""
    low, high = math.log(low), math.log(high)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if f(math.exp(middle)) > 0 else (middle, high)
    return math.exp(low)


def given(name, z=Z):
    """The operands of a loss: rows with a group, or queries, all rows as keys, and matches."""
    if "match" in inspect.signature(getattr(losses, name)).parameters:
        return z[:12], z, torch.arange(12) + 12
    return z, GROUP


@pytest.mark.parametrize("perplexity", [1.5, 4.0, 15.0, 21.9])
def test_the_batch_has_the_perplexity_in_the_mean(perplexity):
    found = temperature_at(Z, Z, perplexity=perplexity, pairs=negatives(GROUP))
    expected = bisected(lambda t: plain_entropy(Z, t).exp().mean() - perplexity)
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("perplexity", [2.0, 4.0, 15.0, 21.9])
def test_every_anchor_has_the_perplexity(perplexity):
    found = temperature_at(Z, Z, perplexity=perplexity, per="anchor", pairs=negatives(GROUP))
    for i in (0, 7, 23):
        expected = bisected(lambda t, i=i: plain_entropy(Z, t)[i].exp() - perplexity)
        assert float(found[i]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("per", ["batch", "anchor"])
def test_the_temperature_falls_with_the_perplexity_and_scales_with_the_similarities(per):
    pairs = negatives(GROUP)
    grid = [temperature_at(Z, Z, perplexity=p, per=per, pairs=pairs) for p in (2, 4, 8, 16, 21)]
    assert all(bool((a < b).all()) for a, b in itertools.pairwise(grid))
    halved = temperature_at(0.5 * Z, Z, perplexity=4, per=per, pairs=pairs)
    torch.testing.assert_close(halved, 0.5 * grid[1])


def test_the_entropy_and_its_derivatives_are_the_formulas():
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    h = entropy(Z, Z, scale=1 / t, pairs=negatives(GROUP))
    torch.testing.assert_close(h, plain_entropy(Z, t))
    (slope,) = torch.autograd.grad(h.sum(), t)
    r = (Z @ Z.T / t.detach()).masked_fill(~OTHER, -math.inf).softmax(dim=1)
    s = Z @ Z.T
    variance = (r * s**2).sum(1) - (r * s).sum(1) ** 2
    torch.testing.assert_close(slope, (variance / t.detach() ** 3).sum())  # Var_r(s) / t^3
    match, scale = torch.arange(12) + 12, torch.linspace(1, 9, 12).double()

    def f(query, key, scale):
        return entropy(query, key, scale=scale, pairs=EVERY, match=match)

    rows = Z[:12].clone().requires_grad_(), Z.clone().requires_grad_(), scale.requires_grad_()
    assert torch.autograd.gradcheck(f, rows, fast_mode=True)


@pytest.mark.parametrize("per", ["batch", "anchor"])
def test_the_temperature_is_differentiable_by_the_implicit_function_theorem(per):
    def f(x):
        z = normalize(x, dim=1)
        return temperature_at(z, z, perplexity=5.0, per=per, pairs=negatives(GROUP))

    assert torch.autograd.gradcheck(f, X.clone().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("per", ["batch", "anchor"])
@pytest.mark.parametrize("name", TAKE_PERPLEXITY)
@pytest.mark.parametrize("noise", [0.5, 2.0, math.inf])
def test_a_loss_is_that_at_the_temperature_in_force_which_carries_no_gradient(name, per, noise):
    """Two views of 12 images that differ by noise: little, so much that the temperature of the
    perplexity would draw all together, and nothing in common."""
    other = X[12:] if noise == math.inf else X[:12] + noise * X[12:]
    z = normalize(torch.cat([X[:12], other]), dim=1).requires_grad_()
    loss = getattr(losses, name)
    matched = "match" in inspect.signature(loss).parameters
    value = loss(*given(name, z), perplexity=4.0, per=per)
    (grad,) = torch.autograd.grad(value, z)
    pairs, match = (EVERY, given(name)[2]) if matched else (negatives(GROUP), None)
    query = z.detach()[: 12 if matched else 24]
    t = temperature_at(query, z.detach(), perplexity=4.0, per=per, pairs=pairs, match=match)
    own = torch.eye(24, dtype=torch.bool).roll(12, dims=1)[: len(query)]
    raised = raised_until_nothing_is_drawn_together(
        query @ z.detach().T, own, ~own if matched else OTHER, t.expand(len(query))
    )
    assert bool((raised >= t).all())
    if name == "nt_xent" and per == "batch":
        wanted = {0.5: raised[0] == t, 2.0: t < raised[0] < 1, math.inf: raised[0] == 1}
        assert wanted[noise]
    expected = row_by_row(name, z, raised)
    (expected_grad,) = torch.autograd.grad(expected, z)
    torch.testing.assert_close((value, grad), (expected, expected_grad), rtol=1e-8, atol=1e-10)


def raised_until_nothing_is_drawn_together(s, own, negative, t):
    """t times the least factor from 1 at which sum of (E_{r_i} s_i - p_i) / t_i is not above 0; no
    temperature is raised above 1."""

    def at(factor):
        return torch.where(t < 1, (t * factor).clamp(max=1.0), t)

    def drawn(factor):
        r = (s / (t * factor)[:, None]).masked_fill(~negative, -math.inf).softmax(dim=1)
        return float((((r * s).sum(dim=1) - s[own]) / t).sum())

    return t if drawn(1.0) <= 0 else at(bisected(lambda factor: -drawn(factor), low=1.0))


def row_by_row(name, z, t):
    s = z[: len(t)] @ z.T / t[:, None]
    if name == "info_nce":
        return torch.nn.functional.cross_entropy(s, torch.arange(12) + 12)
    positive = ~OTHER & ~torch.eye(len(z), dtype=torch.bool)
    candidates = OTHER if name == "dcl" else OTHER | positive
    push = s.masked_fill(~candidates, -math.inf).logsumexp(1)
    return (push - s[positive]).mean()  # one positive each: sum inside or outside the log is one


def test_a_small_perplexity_does_not_draw_everything_together():
    """Views that have little in common: at the temperature of a perplexity of 4, which shrinks with
    the similarities, all embeddings become one; at that in force they do not."""

    def cosine(loss_of):
        draw = torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = torch.nn.Sequential(
                torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16)
            )
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(60):
            x = torch.randn(128, 64, generator=draw)
            views = [x + 2 * torch.randn(128, 64, generator=draw) for _ in range(2)]
            z = normalize(net(torch.cat(views)), dim=1)
            optimizer.zero_grad()
            loss_of(z, torch.arange(128).repeat(2)).backward()
            optimizer.step()
        return float((z @ z.T).mean().detach())

    def literally(z, group):
        with warnings.catch_warnings(action="ignore"):  # of similarities that are all but equal
            t = temperature_at(z.detach(), z.detach(), perplexity=4.0, pairs=negatives(group))
        return losses.nt_xent(z, group, temperature=t)

    assert cosine(literally) > 0.9
    assert cosine(lambda z, group: losses.nt_xent(z, group, perplexity=4.0)) < 0.2


def test_with_a_gradient_through_the_temperature_the_loss_would_forget_the_scale():
    """Why the temperature is a setting: nothing would drive the similarities apart."""
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    s = scale * Z[:12] @ Z.T
    r = s.detach().masked_fill(~OTHER[:12], -math.inf)
    t0 = bisected(lambda t: torch.special.entr((r / t).softmax(1)).sum(1).exp().mean() - 4)
    moving = t0 * scale  # the temperature of a given perplexity scales with the similarities
    target = torch.arange(12) + 12
    off_self = torch.eye(12, 24, dtype=torch.bool)
    for t, through in ((moving, True), (torch.tensor(t0).double(), False)):
        loss = torch.nn.functional.cross_entropy((s / t).masked_fill(off_self, -math.inf), target)
        (slope,) = torch.autograd.grad(loss, scale, retain_graph=True)
        assert (abs(float(slope)) < 1e-9) == through


@pytest.mark.parametrize("name", TAKE_PERPLEXITY)
def test_exactly_one_of_temperature_and_perplexity(name):
    loss, operands = getattr(losses, name), given(name)
    with pytest.raises(ValueError, match=f"{name}: got neither of temperature=None"):
        loss(*operands)
    with pytest.raises(ValueError, match=f"{name}: got both of temperature=0.1 and perplexity=4"):
        loss(*operands, temperature=0.1, perplexity=4.0)
    for bad in (1.0, 0.5, -3.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"{name}: perplexity=.*above 1"):
            loss(*operands, perplexity=bad)
    for per in ("batch", "anchor"):
        with pytest.raises(ValueError, match=f"{name}: perplexity=24 .* less than that"):
            loss(*operands, perplexity=24.0, per=per)
    with pytest.raises(ValueError, match="per='row'; use 'batch'"):
        inspect.unwrap(tempered.temperature_at)(Z, Z, perplexity=3.0, per="row")


@pytest.mark.parametrize("per", ["batch", "anchor"])
def test_equal_similarities_get_the_lowest_temperature_and_say_so(per):
    z = torch.zeros(24, 6).index_fill(1, torch.tensor([0]), 1.0).requires_grad_()
    with pytest.warns(UserWarning, match=r"nt_xent: perplexity=4 is at no temperature .* all but"):
        loss = losses.nt_xent(z, GROUP, perplexity=4.0, per=per)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(23), rel=1e-5) and z.grad.isfinite().all()
    with pytest.warns(UserWarning, match="is at no temperature"):
        t = temperature_at(z, z, perplexity=4.0, per=per, pairs=negatives(GROUP))
    torch.testing.assert_close(t, torch.full_like(t, tempered.LOWEST))


@pytest.mark.parametrize("per", ["batch", "anchor"])
def test_tiles_and_keeping_them_change_nothing(per, monkeypatch):
    z = normalize(torch.randn(1100, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    group = torch.arange(550).repeat(2)
    results = []
    for keep in (tempered.KEEP, 0):
        monkeypatch.setattr(tempered, "KEEP", keep)
        x = z.clone().requires_grad_()
        losses.nt_xent(x, group, perplexity=50.0, per=per).backward()
        results.append(x.grad)
    torch.testing.assert_close(*results)
    t = temperature_at(z, z, perplexity=50.0, per=per, pairs=negatives(group))
    mask = group[:, None] != group
    effective = plain_entropy(z.double(), t[:, None] if t.ndim else t, mask).exp()
    assert float(effective.mean()) == pytest.approx(50, rel=1e-3)
    assert per == "batch" or float((effective - 50).abs().max()) < 0.05


SHARES = [[12, 12], [20, 4], [24, 0]]


def sharded_loss(name, w, rows, per):
    z = normalize(X[rows] @ w, dim=1)
    if name == "info_nce":
        every = gather_rows(z)
        match = (torch.arange(24)[rows] + 12) % 24
        return losses.info_nce(z, every, match, perplexity=5.0, per=per)
    return getattr(losses, name)(z, GROUP[rows], perplexity=5.0, per=per)


CASES = [
    (n, s, p) for n in TAKE_PERPLEXITY for s in range(len(SHARES)) for p in ("batch", "anchor")
]


def worker(rank, store, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results = {}
    for name, share, per in CASES:
        sizes = SHARES[share]
        rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        w = torch.eye(6, dtype=torch.float64).requires_grad_()
        with across():
            loss = sharded_loss(name, w, rows, per)
        loss.backward()
        both = torch.cat([loss.detach()[None], w.grad.flatten()])
        dist.all_reduce(both)
        results[name, share, per] = (both / 2).tolist()
    if rank == 0:
        out.put(results)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one():
    out = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(worker, (f"{folder}/store", out), nprocs=2, start_method="spawn")
    measured = out.get()
    for (name, share, per), found in measured.items():
        w = torch.eye(6, dtype=torch.float64).requires_grad_()
        loss = sharded_loss(name, w, slice(None), per)
        loss.backward()
        torch.testing.assert_close(
            torch.tensor(found, dtype=torch.float64),
            torch.cat([loss.detach()[None], w.grad.flatten()]),
            msg=lambda m, what=(name, SHARES[share], per): f"{what}: {m}",
        )


def test_set_perplexity_puts_the_temperature_aside_and_the_other_way_round():
    recipe = assign(recipe_for("simclr", 32, 3), "loss.perplexity", "50")
    assert recipe.loss.keywords == {"perplexity": 50.0} and recipe.temperature is None
    recipe = assign(assign(recipe, "loss.per", "anchor"), "loss.temperature", "0.1")
    assert recipe.loss.keywords == {"per": "anchor", "temperature": 0.1}
    with pytest.raises(ValueError, match=r"perplexity=0\.5: use an effective number"):
        assign(recipe, "loss.perplexity", "0.5")


@pytest.mark.parametrize("per", ["batch", "anchor"])
def test_a_run_with_a_perplexity_records_the_temperature_in_force(tmp_path, per):
    changes = ["loss.perplexity=20", f"loss.per={per}", "backbone.width=16", "batch_size=64"]
    run = contrapose.train(
        "simclr", "digits", out=tmp_path / "run", epochs=1, changes=changes, device="cpu"
    )
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    effective = [row["effective_negatives"] for row in rows]
    assert all(20 * (1 - 1e-3) <= value < 127 for value in effective)
    assert effective[0] > 40  # positives are far before training
    assert len({row["temperature"] for row in rows}) == len(rows)
    signals = contrapose.diagnose(run)["signals"]
    assert signals["effective_negatives"] > 20 * (1 - 1e-3)
    with pytest.raises(ValueError, match=r"the recipe's loss cannot run: .* perplexity=600"):
        contrapose.train("simclr", "digits", out=tmp_path / "no", changes=["loss.perplexity=600"])
