"""The gradient analysis of temperature against the gradients of the losses themselves."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from contrapose.evaluation.penalties import SHARE, penalties, ratio
from contrapose.explain import diagnose_embeddings
from contrapose.losses import cold_limit, hot_limit, nt_xent

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Z = normalize(X, dim=1)
GROUP = torch.arange(20).repeat(2)
OTHER = GROUP[:, None] != GROUP
GRID = [0.03, 0.07, 0.3, 1.0, 10.0]


def of_losses(s, positive, t):
    """-log e^{s+/t} / (e^{s+/t} + sum e^{s/t}) for one anchor (S1, eq. 1)."""
    return torch.logsumexp(torch.cat([positive[None], s]) / t, 0) - positive / t


@pytest.mark.parametrize("t", GRID)
def test_the_ratio_is_that_of_gradients_and_the_positive_answers_all_negatives(t):
    s = torch.linspace(-0.9, 0.9, 15, dtype=torch.float64).requires_grad_()
    positive = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    by_s, by_positive = torch.autograd.grad(of_losses(s, positive, t), (s, positive))
    torch.testing.assert_close(by_s.sum(), -by_positive)  # eq. 4
    torch.testing.assert_close(by_s / -by_positive, ratio(s.detach(), temperature=t))


@pytest.mark.parametrize("t", GRID)
def test_entropy_and_perplexity_are_those_of_the_ratio(t):
    (found,) = penalties(Z, GROUP, temperatures=[t])
    s = (Z @ Z.T).masked_fill(~OTHER, -math.inf)
    h = torch.special.entr(ratio(s, temperature=t)).sum(dim=1)
    assert found.entropy == pytest.approx(float(h.mean()), rel=1e-9)
    assert found.perplexity == pytest.approx(float(h.exp().mean()), rel=1e-9)


@pytest.mark.parametrize("t", GRID)
def test_the_slope_of_the_entropy_is_its_derivative(t):
    step = 1e-4 * t
    low, at, high = penalties(Z, GROUP, temperatures=[t - step, t, t + step])
    difference = (high.entropy - low.entropy) / (2 * step)
    assert at.slope == pytest.approx(difference, rel=1e-5, abs=1e-9)
    assert at.slope > 0  # entropy falls strictly as t does


def test_a_lower_temperature_concentrates_the_repulsion():
    found = penalties(Z, GROUP, temperatures=GRID)
    lows = [p.interval[0] for p in found]
    assert lows == sorted(lows, reverse=True)
    assert [p.perplexity for p in found] == sorted(p.perplexity for p in found)
    assert found[0].perplexity < 6 and found[-1].perplexity == pytest.approx(38, rel=1e-3)


@pytest.mark.parametrize("t", GRID)
def test_bins_hold_all_repulsion_and_the_interval_its_share(t):
    (found,) = penalties(Z, GROUP, temperatures=[t], bins=400)
    s = Z @ Z.T
    r = ratio(s.masked_fill(~OTHER, -math.inf), temperature=t)
    assert float(found.mass.sum()) == pytest.approx(1)
    low, high = found.interval
    held = float(r[OTHER & (s >= low)].sum() / len(Z))
    assert held == pytest.approx(SHARE, abs=float(found.mass.max()) + 1e-9)
    assert high == pytest.approx(float(s[OTHER].max()))
    counts = torch.histc(s[OTHER], 400, min=-1, max=1)
    seen = counts > 0
    torch.testing.assert_close((found.ratio * counts)[seen], (found.mass * len(Z))[seen])
    assert bool(found.ratio[~seen].isnan().all())


def test_equal_rows_repel_equally():
    (found,) = penalties(torch.ones(30, 4), torch.arange(30), temperatures=[0.07])
    assert found.perplexity == pytest.approx(29, rel=1e-5) and found.slope == pytest.approx(0)
    assert found.interval[0] == pytest.approx(1, abs=0.02)


def test_tiles_change_nothing(monkeypatch):
    x = normalize(torch.randn(700, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    group = torch.arange(350).repeat(2)
    (kept,) = penalties(x, group, temperatures=[0.2])
    monkeypatch.setattr("contrapose.losses.temperature.KEEP", 0)
    (again,) = penalties(x, group, temperatures=[0.2])
    torch.testing.assert_close(kept.mass, again.mass)
    assert kept.entropy == pytest.approx(again.entropy)


def test_what_cannot_be_meant_is_an_error():
    with pytest.raises(ValueError, match="penalties: temperature=0"):
        penalties(Z, GROUP, temperatures=[0.0])
    with pytest.raises(ValueError, match="needs rows of two groups"):
        penalties(Z, GROUP * 0, temperatures=[0.1])


def test_a_file_of_embeddings_is_diagnosed_at_several_temperatures(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    found = diagnose_embeddings(tmp_path / "x.npy", out=tmp_path / "found.json")["repulsion"]
    effective = [row["effective_negatives"] for row in found]
    assert [row["temperature"] for row in found] == [0.05, 0.1, 0.2, 0.5, 1.0]
    assert effective == sorted(effective) and 1 <= effective[0] and effective[-1] <= 39
    lows = [row["from_similarity"] for row in found]
    assert lows == sorted(lows, reverse=True)


@pytest.mark.parametrize("t", [3e-4, 1e-3])
def test_a_cold_loss_is_a_triplet_loss_without_margin(t):
    """S1, eq. 6: t L -> max(nearest negative - positive, 0)."""
    gap = t * (nt_xent(Z, GROUP, temperature=t) - cold_limit(Z, GROUP, temperature=t))
    assert 0 <= float(gap) <= t * math.log(39)


def test_a_hot_loss_is_linear_up_to_the_variance():
    """S1, eq. 7: what is left over falls as Var(s) / (2 t^2)."""
    s = Z @ Z.T
    candidates = s[~torch.eye(40, dtype=torch.bool)].view(40, 39)
    variance = float(candidates.var(dim=1, correction=0).mean())
    for t in (10.0, 100.0):
        left = nt_xent(Z, GROUP, temperature=t) - hot_limit(Z, GROUP, temperature=t)
        assert float(left) == pytest.approx(variance / (2 * t**2), rel=0.05)


def test_exchanging_two_instances_changes_nothing():
    """S1, figure 1: the loss cannot know which instances are alike."""
    order = torch.arange(40)
    order[[3, 8, 23, 28]] = order[[8, 3, 28, 23]]  # images 3 and 8, both views of each
    for t in GRID:
        torch.testing.assert_close(
            nt_xent(Z[order], GROUP, temperature=t), nt_xent(Z, GROUP, temperature=t)
        )
