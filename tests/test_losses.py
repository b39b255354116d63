"""Identities between losses, limits known in closed form, and the papers' own formulas."""

import inspect
import math
import warnings

import pytest
import torch
from support.oracles import ORACLE
from torch.nn.functional import cross_entropy, normalize

from contrapose import losses
from contrapose.similarity import Pairs

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
    """By similarities s: the gradient is (softmax(s / T) - 1 at the positive) / T."""
    query, key, match = z[:1], z[1:], 2
    by_key = gradient(
        lambda k: losses.info_nce(query, k, torch.tensor([match]), temperature=T), key
    )
    by_similarity = (by_key * query).sum(dim=1)  # s_j = query . key_j, and the query is a unit
    negatives = torch.arange(len(key)) != match
    torch.testing.assert_close(-by_similarity[match], by_similarity[negatives].sum())
    assert by_similarity[negatives].min() > 0
    p = (key @ query[0] / T).softmax(0)
    torch.testing.assert_close(by_similarity, (p - (~negatives).double()) / T)


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
    loss = losses.align_uniform_joined(x, torch.tensor([0, 0]))
    assert loss.item() == pytest.approx(aligned - 8)


def test_info_nce_is_cross_entropy_over_the_bank():
    bank, match = z, torch.arange(B) + 3
    expected = cross_entropy(z[:B] @ bank.T / T, match)
    torch.testing.assert_close(losses.info_nce(z[:B], bank, match, temperature=T), expected)


def test_older_entries_of_an_image_in_a_queue_are_no_negatives():
    """Two queries, their keys, and a queue of four entries, one of which is of image 7."""
    query, key = z[:2], z[2:8]
    pairs = Pairs(row_id=torch.tensor([7, 8]), col_id=torch.tensor([-1, -1, 1, 7, 3, 4]))
    ours = losses.info_nce(query, key, torch.tensor([0, 1]), temperature=T, pairs=pairs)
    first = cross_entropy(query[:1] @ key[[0, 1, 2, 4, 5]].T / T, torch.tensor([0]))
    second = cross_entropy(query[1:] @ key.T / T, torch.tensor([1]))
    torch.testing.assert_close(ours, (first + second) / 2)


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


def test_the_whole_family_is_nt_xent_where_it_should_be():
    expected = losses.nt_xent(z, image, temperature=T)
    for same in (
        losses.hard_quantile(z, image, temperature=T, alpha=1.0),
        losses.debiased(z, image, temperature=T, tau_plus=0.0),
        losses.hcl(z, image, temperature=T, beta=0.0, tau_plus=0.0),
        losses.supcon_one_positive(z, image, temperature=T),
        losses.nt_xent_pairs(z, image, temperature=T),
    ):
        torch.testing.assert_close(same, expected)


def test_nt_xent_pairs_weighs_large_classes_more():
    """A class of 4 rows gives 12 pairs, one of 2 rows gives 2."""
    group, x = torch.tensor([0, 0, 0, 0, 1, 1]), z[:6]
    terms = []
    for i in range(6):
        for p in range(6):
            if i != p and group[i] == group[p]:
                negative = (x[i] @ x[group != group[i]].T / T).logsumexp(0)
                terms.append(torch.logaddexp(x[i] @ x[p] / T, negative) - x[i] @ x[p] / T)
    assert len(terms) == 14
    torch.testing.assert_close(
        losses.nt_xent_pairs(x, group, temperature=T), torch.stack(terms).mean()
    )


@pytest.mark.parametrize("temperature", [1e-3, 1e-4])
def test_nt_xent_reaches_its_cold_limit(temperature):  # S1, eq. 6
    ours = temperature * losses.nt_xent(z, image, temperature=temperature)
    limit = temperature * losses.cold_limit(z, image, temperature=temperature)
    # N - 1 negatives, the positive: between the maximum and the maximum + t log N
    assert limit <= ours <= limit + temperature * math.log(2 * B - 1)


@pytest.mark.parametrize("temperature", [10.0, 100.0])
def test_nt_xent_reaches_its_hot_limit(temperature):  # S1, eq. 7
    ours = losses.nt_xent(z, image, temperature=temperature)
    limit = losses.hot_limit(z, image, temperature=temperature)
    assert 0 <= ours - limit <= 1 / (2 * temperature**2)  # Var(s) <= 1


def test_simple_with_one_over_n_is_the_hot_limit():
    n, t = 2 * B - 2, 7.0
    simple = losses.simple(z, image, weight=1 / n)
    expected = n / ((n + 1) * t) * simple + math.log(n + 1)
    torch.testing.assert_close(losses.hot_limit(z, image, temperature=t), expected)


def test_hard_simple_with_every_negative_is_simple():
    torch.testing.assert_close(
        losses.hard_simple(z, image, weight=0.1, k=2 * B - 2), losses.simple(z, image, weight=0.1)
    )


def test_dclw_with_equal_positives_is_dcl():
    x = torch.cat([z[:B], z[:B]])
    torch.testing.assert_close(
        losses.dclw(x, image, temperature=T, sigma=0.5), losses.dcl(x, image, temperature=T)
    )


def test_anchors_can_be_chosen():
    """The first views as anchors: with the second ones they average to the symmetric loss."""
    first = torch.arange(2 * B) < B
    a, b = (losses.supcon(z, label, temperature=T, anchor=rows) for rows in (first, ~first))
    torch.testing.assert_close((a + b) / 2, losses.supcon(z, label, temperature=T))


def test_a_relation_distilled_to_itself_has_no_gradient():
    def to_itself(x):
        return losses.relation_distillation(x, z, temperature=T, past_temperature=T)

    torch.testing.assert_close(gradient(to_itself, z), torch.zeros_like(z))


def test_nnclr_whose_neighbours_are_the_rows_is_info_nce():
    a, b, i = z[:B], z[B:], torch.arange(B)
    torch.testing.assert_close(
        losses.nnclr(a, b, a.flip(0), temperature=T), losses.info_nce(a, b, i, temperature=T)
    )


def test_n_pairs_is_info_nce_at_temperature_one():
    a, b, i = z[:B], z[B:], torch.arange(B)
    torch.testing.assert_close(losses.n_pairs(a, b), losses.info_nce(a, b, i, temperature=1.0))


@pytest.mark.parametrize(
    "loss, bad",
    [
        (losses.hard_quantile, {"alpha": 0.0}),
        (losses.hcl, {"beta": -1.0, "tau_plus": 0.1}),
        (losses.hcl, {"beta": 1.0, "tau_plus": 1.0}),
        (losses.dclw, {"sigma": 0.0}),
    ],
)
def test_values_out_of_range_are_refused(loss, bad):
    with pytest.raises(ValueError, match=r"=(0\.0|-1\.0|1\.0); give a"):
        loss(z, image, temperature=T, **bad)


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 100])
def test_surplus_positives_leave_numerator_and_denominator(views, k):  # SupCon, table 5
    images = torch.tensor([4, 9, 2, 7, 5])
    group = torch.tensor([0, 0, 1, 0, 0]).repeat(views)
    x, image = torch.cat([z, z.roll(1, 1)])[: 5 * views], images.repeat(views)
    s, kept_by, each = x @ x.T / T, torch.zeros(5 * views), []
    for i in range(5 * views):
        order = sorted(images[group[:5] == group[i]].tolist())
        start = order.index(int(image[i]))
        after = [*order[start:], *order[:start]]  # the anchor's image, those after it, from the top
        rows = [r for a in after for r in range(5 * views) if image[r] == a]
        at = rows.index(i)  # its view: from there on in every image
        rows = [*rows[at + 1 : views], *rows[:at], *rows[at + views :], *rows[views : at + views]][
            :k
        ]
        if rows:
            kept_by[rows] += 1
            negative = s[i][group != group[i]]
            push = torch.cat([s[i][rows], negative]).logsumexp(0)
            each.append(push - s[i][rows].mean())
    with warnings.catch_warnings(action="ignore"):  # the lonely image
        ours = losses.supcon(x, group, temperature=T, max_positives=k, image=image)
    torch.testing.assert_close(ours, torch.stack(each).mean())
    assert len(set(kept_by[group == 0].tolist())) == 1  # every row serves as often


def test_a_cap_on_positives_above_their_number_is_supcon():
    ours = losses.supcon(z, label, temperature=T, max_positives=2 * B, image=image)
    torch.testing.assert_close(ours, losses.supcon(z, label, temperature=T))
    alone = losses.supcon(z, image, temperature=T, max_positives=1, image=image)
    torch.testing.assert_close(alone, losses.nt_xent(z, image, temperature=T))


def test_a_cap_on_positives_needs_to_know_the_views():
    with pytest.raises(ValueError, match="max_positives=1 with image=None"):
        losses.supcon(z, label, temperature=T, max_positives=1)


def test_rows_that_share_one_of_several_labels_are_positives():
    """The formula on whole matrices, value and gradient; with one label each it is SupCon."""
    rows = torch.Generator().manual_seed(3)
    x = normalize(torch.randn(12, 5, generator=rows).double(), dim=1)
    several = torch.randint(-1, 2, (12, 4), generator=rows).to(torch.int8)
    image = torch.arange(6).repeat(2)
    found = []
    for loss in (losses.supcon_shared, ORACLE["supcon_shared"]):
        own = x.clone().requires_grad_()
        value = loss(own, image, several, temperature=T)
        value.backward()
        found.append((value.detach(), own.grad))
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-12)
    one = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0, 1, 2]).repeat(2)).to(torch.int8)
    torch.testing.assert_close(
        losses.supcon_shared(x, image, one, temperature=T),
        losses.supcon(x, one.argmax(dim=1), temperature=T),
    )
    none = losses.supcon_shared(x, image, -one, temperature=T)
    torch.testing.assert_close(none, losses.nt_xent(x, image, temperature=T))


def test_uniformity_is_over_images_drawn_independently_as_the_authors_code_has_it():
    """Their lunif is of each view alone; here all pairs of two images, of whichever views."""
    z = normalize(
        torch.randn(2 * 400, 6, generator=torch.Generator().manual_seed(0)).double(), dim=1
    )
    image = torch.arange(400).repeat(2)
    authors = [torch.pdist(v).pow(2).mul(-2).exp().mean().log() for v in z.split(400)]
    ours = losses.align_uniform(z, image) - losses.align_uniform(z, image, weight=0.0)
    assert float(ours) == pytest.approx(float(sum(authors) / 2), abs=0.01)
    equal = z[:400].repeat(2, 1)  # two views alike: theirs to the last digit, the joined form not
    ours, joined = (f(equal, image) for f in (losses.align_uniform, losses.align_uniform_joined))
    assert float(ours) == pytest.approx(float(authors[0]), rel=1e-12)
    assert float(joined - ours) > 0.01


MIXED = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])  # groups of several sizes, one row alone


@pytest.mark.filterwarnings("ignore:.*are left out of the mean")
def test_a_mean_over_pairs_is_over_all_of_them_at_once():
    x = z[:8]
    d, same = 2 - 2 * x @ x.T, MIXED[:, None] == MIXED
    terms = []
    for i in range(8):
        n = d[i][~same[i]]
        for p in d[i][same[i] & (torch.arange(8) != i)]:
            beyond = n[n > p]
            terms.append((p - (beyond.min() if len(beyond) else n.max()) + 0.3).relu())
    ours = losses.triplet_semi_hard(x, MIXED, margin=0.3, mean_over="pairs")
    torch.testing.assert_close(ours, torch.stack(terms).mean())
    time = torch.tensor([0, 1, 2, 9, 10, 20, 21, 40])
    by_time = losses.time_contrastive(x, time, near=2, far=5, margin=0.3, mean_over="pairs")
    torch.testing.assert_close(by_time, ours)  # frames as near as the groups are
    with pytest.raises(ValueError, match="mean_over='rows'; use 'anchors' or 'pairs'"):
        inspect.unwrap(losses.triplet_semi_hard)(x, MIXED, margin=0.3, mean_over="rows")


@pytest.mark.filterwarnings("ignore:.*are left out of the mean")
def test_a_mean_over_rows_divides_the_sum_over_anchors_by_all_rows():
    x, anchor = z[:8], torch.arange(8) < 5
    mean = losses.supcon(x, MIXED, temperature=T, anchor=anchor)
    ours = losses.supcon(x, MIXED, temperature=T, anchor=anchor, mean_over="rows")
    torch.testing.assert_close(ours, mean * 5 / 8)


def test_the_weight_of_dclw_may_be_fixed():
    x = z.clone().requires_grad_()
    image, given = torch.arange(B).repeat(2), {"temperature": T, "sigma": 0.5}
    free, fixed = (losses.dclw(x, image, **given, fixed_weight=f) for f in (False, True))
    assert free == fixed
    p = (x[:B] * x[B:]).sum(dim=1).repeat(2)
    weight = 2 - (p / 0.5).exp() / (p / 0.5).exp().mean()
    far = torch.where(image[:, None] == image, -math.inf, x @ x.T / T).logsumexp(dim=1)
    expected = (far - weight.detach() * p / T).mean()
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (fixed, expected)))


def test_negatives_beyond_the_cut_off_are_not_drawn():
    """On a circle: positives at 0, one negative at 60 degrees (distance 1), many at 180 (2)."""
    angle = torch.tensor([0.0, 0.0, math.pi / 3] + 30 * [math.pi])
    x, group = (
        torch.stack([angle.cos(), angle.sin()], dim=1).double(),
        torch.tensor([0, 0, *range(1, 32)]),
    )

    def drawn(**given):
        generator = torch.Generator().manual_seed(0)
        with warnings.catch_warnings(action="ignore"):  # rows without a positive
            return float(
                losses.triplet_distance_weighted(x, group, margin=4.0, generator=generator, **given)
            )

    assert drawn(farthest=1.4) == pytest.approx(4.0 - 1.0)  # margin less the squared distance
    assert drawn(farthest=0.9) == drawn(farthest=0.8) < 1.5  # none inside: all alike
    with pytest.raises(ValueError, match=r"farthest=0.4, nearest=0.5"):
        drawn(farthest=0.4)
