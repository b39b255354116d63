"""Geometry of embeddings against sums written out, and the identities each measure must obey."""

import math

import pytest
import torch

from contrapose.evaluation import geometry
from contrapose.evaluation.projection import project


def cloud(n=40, d=8, groups=10, seed=0):
    """Rows of no particular length, with a group of several rows each."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) * 3
    return x, torch.arange(n) % groups


def pairs(x):
    """Unit rows in float64, their similarities, and which (i, j) are different rows."""
    z = torch.nn.functional.normalize(x.double(), dim=1)
    return z, z @ z.T, ~torch.eye(len(x), dtype=torch.bool)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment_is_the_mean_over_pairs_of_a_group(alpha):
    x, group = cloud()
    z, _, other = pairs(x)
    distance = (z[:, None] - z[None]).norm(dim=2).pow(alpha)
    expected = distance[other & (group[:, None] == group)].mean()
    assert geometry.alignment(x, group, alpha=alpha) == pytest.approx(float(expected), rel=1e-6)


def test_alignment_sees_differences_that_two_minus_two_s_would_round_away():
    x = torch.tensor([[1.0, 0.0], [1.0, 1e-5]])
    assert geometry.alignment(x, torch.tensor([0, 0])) == pytest.approx(1e-10, rel=1e-4)


def test_uniformity_is_the_log_mean_potential():
    x, _ = cloud()
    z, _, other = pairs(x)
    potential = (-2 * (z[:, None] - z[None]).norm(dim=2).square()).exp()
    expected = float(potential[other].mean().log())
    assert geometry.uniformity(x) == pytest.approx(expected, abs=1e-5)


def test_uniformity_of_equal_rows_is_zero_and_of_opposite_rows_finite():
    assert geometry.uniformity(torch.ones(7, 5)) == pytest.approx(0, abs=1e-5)
    assert geometry.uniformity(torch.tensor([[1e6, 0.0], [-1e6, 0.0]])) == pytest.approx(-8)


def test_uniformity_of_the_sphere_in_128_dimensions_is_the_published_bound():
    x = torch.randn(3000, 128, generator=torch.Generator().manual_seed(0))
    assert geometry.uniformity(x) == pytest.approx(-3.9375, abs=2e-3)


def test_tolerance_is_a_mean_over_pairs_of_a_class():
    x, label = cloud()
    label[:5] = -1
    _, s, other = pairs(x)
    counted = other & (label[:, None] == label) & (label >= 0)
    expected = float(s[counted].mean())
    assert geometry.tolerance(x, label) == pytest.approx(expected, abs=1e-6)


def test_alignment_is_two_minus_two_tolerance():
    x, group = cloud(seed=3)
    assert geometry.alignment(x, group) == pytest.approx(2 - 2 * geometry.tolerance(x, group))


def test_effective_rank_counts_the_directions_in_use():
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert geometry.effective_rank(x) == pytest.approx(16, rel=0.01)
    assert geometry.effective_rank(torch.eye(9)) == pytest.approx(9)
    assert geometry.effective_rank(x[:, :3] @ torch.eye(3, 16)) == pytest.approx(3, rel=0.01)
    assert geometry.effective_rank(torch.ones(50, 16)) == pytest.approx(1, abs=1e-6)
    assert geometry.effective_rank(torch.zeros(5, 4)) == 0


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_effective_rank_is_rankme(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) @ torch.diag(
        torch.logspace(0, -3, shape[1])
    )
    sigma = torch.linalg.svdvals(x.double())
    p = sigma / sigma.sum()
    assert geometry.effective_rank(x) == pytest.approx(float((-p * p.log()).sum().exp()), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 100.0])
def test_effective_negatives_is_the_perplexity_of_the_softmax(temperature):
    x, group = cloud()
    _, s, _ = pairs(x)
    logits = (s / temperature).masked_fill(group[:, None] == group, -math.inf)
    expected = float(torch.special.entr(logits.softmax(dim=1)).sum(dim=1).exp().mean())
    found = geometry.effective_negatives(x, group, temperature=temperature)
    assert found == pytest.approx(expected, rel=1e-4)


def test_effective_negatives_runs_between_one_and_all():
    x, group = cloud()
    assert geometry.effective_negatives(x, group, temperature=1e4) == pytest.approx(36, rel=1e-3)
    assert geometry.effective_negatives(x, group, temperature=1e-4) == pytest.approx(1, rel=1e-2)
    with torch.inference_mode():
        same = geometry.effective_negatives(torch.ones(6, 2), torch.arange(6), temperature=0.5)
    assert same == pytest.approx(5, rel=1e-4)


def test_lidar_counts_the_directions_that_tell_images_apart():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3000, 12, generator=generator)
    image[:, 8:] = 0  # four directions in which only views differ
    noise = torch.randn(2, 3000, 12, generator=generator) * torch.linspace(0.5, 2, 12)
    noise[:, :, :8] = 0.3 * torch.randn(2, 3000, 8, generator=generator)
    views, group = (image + noise).flatten(0, 1), torch.arange(3000).repeat(2)
    assert geometry.lidar(views, group) == pytest.approx(8.7, abs=0.3)
    assert geometry.effective_rank(views) > 10
    turned = views @ torch.linalg.qr(torch.randn(12, 12, generator=generator))[0]
    assert geometry.lidar(turned, group) == pytest.approx(geometry.lidar(views, group), rel=1e-4)
    assert geometry.lidar(torch.ones(8, 3), torch.arange(4).repeat(2)) == 0
    with pytest.raises(ValueError, match="no two of the 8 rows"):
        geometry.lidar(torch.ones(8, 3), torch.arange(8))


def test_contrastive_accuracy_asks_whether_the_positive_is_nearest():
    x, group = cloud()
    _, s, other = pairs(x)
    nearest = s.masked_fill(~other, -2).argmax(dim=1)
    expected = float((group[nearest] == group).double().mean())
    assert geometry.contrastive_accuracy(x, group) == pytest.approx(expected)
    z = torch.eye(4).repeat(2, 1)
    assert geometry.contrastive_accuracy(z, torch.arange(8) % 4) == 1
    lonely = torch.tensor([0, 1, 2, 3, 0, 1, 2, 9])  # rows 3 and 7 have no positive
    assert geometry.contrastive_accuracy(z, lonely) == 1


def test_local_separation_is_the_positive_and_the_sorted_negatives():
    x, group = cloud()
    _, s, other = pairs(x)
    same = group[:, None] == group
    positive = (s * (same & other)).sum(dim=1) / (same & other).sum(dim=1)
    nearest = s.masked_fill(same, -9).sort(dim=1, descending=True).values[:, :5].mean(dim=0)
    found = geometry.local_separation(x, group, k=5)
    torch.testing.assert_close(
        found, torch.cat([positive.mean()[None], nearest]), atol=1e-6, rtol=0
    )
    with pytest.raises(ValueError, match="k=37 negatives of 40 rows"):
        geometry.local_separation(x, group, k=37)


@pytest.mark.parametrize("tile", [7, 1024])
def test_histogram_counts_every_pair_once(tile):
    x, group = cloud()
    label = group % 2
    label[:3] = -1
    _, s, _ = pairs(x)
    found = geometry.similarity_histogram(x, group, label, bins=20, tile=tile)
    upper = torch.ones_like(s, dtype=torch.bool).triu(1)
    positive = group[:, None] == group
    same_class = ~positive & (label[:, None] == label) & (label >= 0)[:, None]
    for name, kind in [
        ("positive", positive),
        ("same_class", same_class),
        ("negative", ~positive & ~same_class),
    ]:
        expected = torch.histc(s[kind & upper], bins=20, min=-1, max=1)
        assert getattr(found, name).tolist() == expected.long().tolist(), name
    assert int((found.positive + found.same_class + found.negative).sum()) == 40 * 39 // 2
    assert geometry.similarity_histogram(x, group).same_class.sum() == 0


def test_measures_of_directions_do_not_depend_on_the_length_of_rows():
    x, group = cloud()
    scaled = x * torch.linspace(0.1, 10, len(x))[:, None]
    for measure in (geometry.alignment, geometry.tolerance, geometry.contrastive_accuracy):
        assert measure(scaled, group) == pytest.approx(measure(x, group), rel=1e-5)
    assert geometry.uniformity(scaled) == pytest.approx(geometry.uniformity(x), rel=1e-5)


def test_what_cannot_be_meant_is_an_error():
    x, group = cloud()
    with pytest.raises(ValueError, match="uniformity: got 1 rows; needs 2"):
        geometry.uniformity(x[:1])
    with pytest.raises(ValueError, match="no two of the 40 rows"):
        geometry.tolerance(x, torch.arange(40))
    with pytest.raises(ValueError, match=r"40 rows without one"):
        geometry.tolerance(x, torch.full((40,), -1))
    with pytest.raises(ValueError, match="rows of two groups"):
        geometry.effective_negatives(x, group * 0, temperature=1.0)
    with pytest.raises(ValueError, match="temperature=0"):
        geometry.effective_negatives(x, group, temperature=0.0)
    x[3, 2] = math.nan
    for measure in (geometry.uniformity, geometry.effective_rank):
        with pytest.raises(ValueError, match="1 of 40 rows"):
            measure(x)


def test_map_is_the_same_each_time_and_separates_clusters():
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(120) % 3
    x = torch.randn(120, 20, generator=generator) + 20 * torch.eye(3, 20)[label]
    first, second = project(x, max_points=90), project(x, max_points=90)
    assert torch.equal(first.xy, second.xy) and torch.equal(first.index, second.index)
    assert len(first.index.unique()) == 90 and "90 of 120 rows" in first.method
    distance = torch.cdist(first.xy, first.xy).fill_diagonal_(math.inf)
    kept = label[first.index]
    assert bool((kept[distance.argmin(dim=1)] == kept).all())


@pytest.mark.parametrize("x", [torch.ones(30, 4), torch.rand(3, 4)], ids=["equal", "few"])
def test_map_of_what_has_no_shape_says_so(x):
    assert project(x).method.startswith("none") and project(x).xy.abs().sum() == 0


@pytest.mark.parametrize("shape", [(6, 3), (40, 1)])
def test_map_of_few_rows_or_one_column_is_finite(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert project(x).xy.isfinite().all()
