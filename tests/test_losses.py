"""Identities between losses, limits known in closed form, and the papers' own formulas."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from contrapose import losses

B, T = 6, 0.2
z = normalize(
    torch.randn(2 * B, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=1
)
image = torch.arange(B).repeat(2)
label = torch.tensor([0, 0, 1, 1, 1, 2]).repeat(2)


def gradient(f, z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(f(z), z)[0]


def test_nt_xent_is_cross_entropy_against_the_other_view():
    logits = (z @ z.T / T).fill_diagonal_(-math.inf)
    expected = cross_entropy(logits, (torch.arange(2 * B) + B) % (2 * B))
    torch.testing.assert_close(losses.nt_xent(z, image, temperature=T), expected)


def test_swapping_two_images_with_their_views_changes_nothing():  # S1, figure 1
    swap = torch.tensor([3, 1, 2, 0, 4, 5, 9, 7, 8, 6, 10, 11])
    torch.testing.assert_close(
        losses.nt_xent(z[swap], image, temperature=T), losses.nt_xent(z, image, temperature=T)
    )


def test_supcon_in_is_below_supcon_out():  # Jensen
    assert losses.supcon_in(z, label, temperature=T) <= losses.supcon(z, label, temperature=T)


def test_one_positive_makes_both_forms_equal():
    torch.testing.assert_close(
        losses.supcon_in(z, image, temperature=T), losses.supcon(z, image, temperature=T)
    )


@pytest.mark.parametrize("temperature", [0.001, T, 100.0])
def test_all_embeddings_equal_gives_log_of_the_number_of_candidates(temperature):
    same = normalize(torch.ones(2 * B, 5, dtype=torch.float64), dim=1)
    expected = torch.tensor(2 * B - 1.0, dtype=torch.float64).log()
    torch.testing.assert_close(losses.nt_xent(same, image, temperature=temperature), expected)
    torch.testing.assert_close(losses.supcon(same, label, temperature=temperature), expected)


def test_own_anchor_gradient_is_the_papers():  # SupCon, section 3.2.2 and supplement
    """d L_i / d z_i = (sum over P of z_p (P_ip - X_ip) + sum over N of z_n P_in) / t."""
    i, s = 0, z[0] @ z.T / T
    other = torch.arange(2 * B) != i
    positive = (label == label[i]) & other
    p = torch.where(other, s, -math.inf).softmax(0)
    x_out = positive / positive.sum()
    x_in = torch.where(positive, s, -math.inf).softmax(0)
    for loss, x in ((losses.supcon, x_out), (losses.supcon_in, x_in)):
        # Only row i is an anchor: the others are keys of a loss whose anchors are detached.
        full = gradient(lambda z, loss=loss: loss(z, label, temperature=T), z)[i]
        keys_only = torch.zeros(5, dtype=torch.float64)
        for a in range(1, 2 * B):  # what row i gets as a key of the other anchors
            sa, oa = z[a] @ z.T / T, torch.arange(2 * B) != a
            pa = (label == label[a]) & oa
            q = torch.where(oa, sa, -math.inf).softmax(0)
            xa = (
                pa / pa.sum()
                if loss is losses.supcon
                else torch.where(pa, sa, -math.inf).softmax(0)
            )
            keys_only += z[a] * (q[i] - xa[i]) / T / (2 * B)
        torch.testing.assert_close(full - keys_only, ((p - x) @ z) / T / (2 * B))


def test_the_positive_gradient_equals_the_sum_of_the_negative_ones():  # S1, eq. 4
    s = (z[:1] @ z.T).detach()
    query = torch.eye(1, dtype=torch.float64)  # similarities as the keys' only coordinate
    g = gradient(
        lambda k: losses.info_nce(query, k, torch.tensor([2]), temperature=T),
        s.T.sign() * 0 + 1,  # unit keys: every similarity is 1
    )
    torch.testing.assert_close(-g[2], g.sum() - g[2] + torch.zeros(1, dtype=torch.float64))


def test_dcl_is_nt_xent_without_its_positive():
    """log(e^L - 1) turns log((p + n) / p) into log(n / p), anchor by anchor."""
    two = torch.tensor([[0, 1, 0, 1]]).flatten()
    x = z[:4]
    total = 0.0
    s = x @ x.T / T
    for i, p in enumerate([2, 3, 0, 1]):
        others = torch.arange(4) != i
        total += (s[i][others].logsumexp(0) - s[i, p]).expm1().log()
    torch.testing.assert_close(losses.dcl(x, two, temperature=T), total / 4)


def test_hard_with_every_negative_is_nt_xent():
    torch.testing.assert_close(
        losses.hard(z, image, temperature=T, k=2 * B - 2), losses.nt_xent(z, image, temperature=T)
    )


def test_uniformity_of_two_opposite_points_is_minus_eight():  # |x - y|^2 = 4, t = 2
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    aligned = 4.0  # both views of one image, opposite
    loss = losses.align_uniform(x, torch.tensor([0, 0]))
    assert loss.item() == pytest.approx(aligned - 8)


def test_info_nce_is_cross_entropy_over_the_bank():
    bank, match = z, torch.arange(B) + 3
    expected = cross_entropy(z[:B] @ bank.T / T, match)
    torch.testing.assert_close(losses.info_nce(z[:B], bank, match, temperature=T), expected)


def test_clip_is_info_nce_both_ways():
    a, b, i = z[:B], z[B:], torch.arange(B)
    there, back = (losses.info_nce(*p, i, temperature=T) for p in ((a, b), (b, a)))
    torch.testing.assert_close(losses.clip(a, b, scale=1 / T), (there + back) / 2)
    torch.testing.assert_close(losses.clip(a, b, scale=5.0), losses.clip(b, a, scale=5.0))


def test_a_scale_can_be_learned():
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: losses.clip(z[:B], z[B:], scale=s), scale)


def test_towers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="clip: 6 images but 5 texts"):
        losses.clip.__wrapped__(z[:6], z[:5], scale=5.0)
    with pytest.raises(ValueError, match="matches from 0 to 12 among 12 keys; use 0 to 11"):
        losses.info_nce(z[:2], z, torch.tensor([0, 12]), temperature=T)
