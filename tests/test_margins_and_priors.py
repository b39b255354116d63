"""Identities of the margin losses and of the generalised contrastive losses."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from contrapose import losses

B = 6
z = normalize(
    torch.randn(2 * B, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=1
)
image = torch.arange(B).repeat(2)
label = torch.tensor([0, 0, 1, 1, 1, 2]).repeat(2)


def test_triplet_is_twice_the_papers_margin_loss():  # SimCLR, table 2, at half the margin
    s = z @ z.T
    terms = [
        (s[i, n] - s[i, p] + 0.2).relu()
        for i in range(2 * B)
        for p in range(2 * B)
        for n in range(2 * B)
        if i != p and image[i] == image[p] and image[i] != image[n]
    ]
    expected = 2 * torch.stack(terms).mean()
    torch.testing.assert_close(losses.triplet(z, image, margin=0.4), expected)


def test_mining_orders_the_triplet_losses():
    """Semi-hard negatives are no nearer than the nearest one."""
    semi_hard = losses.triplet_semi_hard(z, label, margin=0.3)
    batch_hard = losses.triplet_batch_hard(z, label, margin=0.3)
    every = losses.triplet(z, label, margin=0.3)
    assert semi_hard <= batch_hard and every <= batch_hard
    assert losses.triplet_ohem(z, label, margin=0.3, share=0.3) >= batch_hard


def test_every_anchor_kept_is_batch_hard():
    torch.testing.assert_close(
        losses.triplet_ohem(z, label, margin=0.3, share=1.0),
        losses.triplet_batch_hard(z, label, margin=0.3),
    )


def test_distance_weighted_negatives_are_rarely_far():
    """Its expectation is under that of uniform negatives: near ones are drawn more often."""
    g = torch.Generator().manual_seed(0)
    x = normalize(torch.randn(40, 16, generator=g), dim=1)
    group = torch.arange(20).repeat(2)
    drawn = [
        losses.triplet_distance_weighted(x, group, margin=0.2, generator=g) for _ in range(100)
    ]
    assert torch.stack(drawn).mean() > losses.triplet(x, group, margin=0.2)


def test_two_distant_groups_have_no_margin_loss():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    group = torch.tensor([0, 0, 1, 1])
    assert losses.max_margin(x, group, margin=2.0) == 0  # the distance is 2
    assert losses.triplet(x, group, margin=4.0) == 0  # its square is 4
    # four of twelve pairs are positive; the eight negative ones miss margin 3 by 1
    torch.testing.assert_close(losses.max_margin(x, group, margin=3.0), torch.tensor(8 / 12 / 2))


def test_margin_loss_of_equal_rows_has_a_finite_gradient():
    x = torch.ones(4, 4).div(2).requires_grad_()
    losses.max_margin(x, torch.tensor([0, 0, 1, 1]), margin=1.0).backward()
    assert x.grad.isfinite().all()


def test_frames_between_near_and_far_are_neither():
    """Frames 0, 1, 2: neighbours attract; 0 and 2 are too far to attract, too near to repel."""
    x = z[:3]
    with pytest.warns(UserWarning, match="3 of 3 rows are without a positive and a negative"):
        assert losses.time_contrastive(x, torch.arange(3), near=1, far=2, margin=0.2) == 0
    with pytest.raises(ValueError, match="near=3, far=2"):
        losses.time_contrastive(x, torch.arange(3), near=3, far=2, margin=0.2)


def test_large_margin_softmax_with_m_one_is_cross_entropy():
    x, classes, y = 3 * z[:8], 2 * z[8:], torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    torch.testing.assert_close(
        losses.large_margin_softmax(x, classes, y, m=1), cross_entropy(x @ classes.T, y)
    )
    harder = [losses.large_margin_softmax(x, classes, y, m=m) for m in (1, 2, 3, 4)]
    assert harder == sorted(harder)
    blended = losses.large_margin_softmax(x, classes, y, m=4, blend=1e9)
    torch.testing.assert_close(blended, harder[0], rtol=1e-6, atol=1e-6)


def test_coupled_is_nt_xent_times_its_temperature():
    ours = losses.gcl_coupled(z, image, temperature=0.2)
    torch.testing.assert_close(ours, 0.2 * losses.nt_xent(z, image, temperature=0.2))
    decoupled = losses.gcl_decoupled(z, image, temperature=0.2, weight=0.2)
    torch.testing.assert_close(decoupled, ours)


def test_the_notebooks_alignment_is_the_papers_over_its_width():
    """mean over entries of (z1 - z2)^2 / 2 = mean of (1 - cos) / D, for unit vectors."""
    ours = losses.gcl_notebook(z, image, temperature=0.2, weight=0.0)
    cosine = (z[:B] * z[B:]).sum(1).mean()
    torch.testing.assert_close(ours, (1 - cosine) / 5)
    push = losses.gcl_notebook(z, image, temperature=0.2, weight=1.0) - ours
    torch.testing.assert_close(push, (z @ z.T / 0.2).logsumexp(1).mean() - math.log(5))


@pytest.mark.parametrize(
    "loss, sample",
    [
        (losses.gcl_swd_hypersphere, lambda g, n: normalize(torch.randn(n, 8, generator=g), dim=1)),
        (losses.gcl_swd_normal, lambda g, n: torch.randn(n, 8, generator=g)),
        (losses.gcl_swd_hypercube, lambda g, n: 2 * torch.rand(n, 8, generator=g) - 1),
    ],
)
def test_samples_of_the_prior_are_near_it_and_nearer_in_larger_batches(loss, sample):
    g = torch.Generator().manual_seed(0)

    def distance(x):
        group = torch.arange(len(x) // 2).repeat(2)
        both, align = (loss(x, group, weight=w, generator=g) for w in (1.0, 0.0))
        return both - align

    small, large = distance(sample(g, 32)), distance(sample(g, 2048))
    assert 0 < large < small / 4
    collapsed = normalize(torch.ones(2048, 8), dim=1)
    assert distance(collapsed) > 20 * large


def test_nt_logistic_of_orthogonal_rows_is_twice_log_two():
    x = torch.eye(4, dtype=torch.float64)
    for loss in (losses.nt_logistic, losses.nt_logistic_semi_hard):
        value = loss(x, torch.tensor([0, 0, 1, 1]), temperature=0.3)
        assert value.item() == pytest.approx(2 * math.log(2))
