"""Local features: k-means beside scikit-learn's, entropies beside its scores, maps beside hooks."""

import itertools
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import homogeneity_score

from contrapose.data import open_images
from contrapose.data.composed import layout, many_digits
from contrapose.encoders import Encoder, none, resnet18, small_conv
from contrapose.evaluation.kmeans import kmeans
from contrapose.evaluation.local import (
    adjusted_mutual_information,
    feature_maps,
    hierarchy,
    local_maps,
    stages,
    truth_map,
    uncertainty_coefficient,
)
from contrapose.evaluation.local_page import palette


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def encoder_of(backbone, channels):
    torch.manual_seed(0)
    return Encoder.build(
        partial(backbone, channels=channels), none, [0.5] * channels, [0.25] * channels
    )


# ---- k-means


def test_kmeans_is_scikit_learns_on_each_set():
    centre = torch.randn(3, 4, 6, generator=seeded()) * 8
    x = centre.repeat_interleave(25, dim=1) + torch.randn(3, 100, 6, generator=seeded(1))
    found = kmeans(x, 4)
    for i in range(3):
        other = KMeans(4, n_init=10, random_state=0).fit(x[i].numpy())
        assert abs(float(found.inertia[i]) / other.inertia_ - 1) < 1e-4
        assert homogeneity_score(other.labels_, found.label[i].numpy()) == pytest.approx(1)


@pytest.mark.parametrize("spherical", [False, True])
def test_kmeans_finds_the_best_of_all_partitions(spherical):
    x = torch.randn(1, 9, 3, dtype=torch.float64, generator=seeded(3))
    x = torch.nn.functional.normalize(x, dim=2) if spherical else x
    best = np.inf
    for labels in itertools.product((0, 1), repeat=8):
        group = torch.tensor([0, *labels], dtype=torch.bool)
        total = 0.0
        for part in (x[0, group], x[0, ~group]):
            if len(part):
                c = part.mean(0)
                c = c / c.norm() if spherical else c
                total += float((part - c).square().sum())
        best = min(best, total)
    found = kmeans(x, 2, spherical=spherical, restarts=20)
    assert float(found.inertia) == pytest.approx(best, rel=1e-9)
    if spherical:
        torch.testing.assert_close(found.centre.norm(dim=2), torch.ones(1, 2).double())


def test_clusters_come_by_size_and_points_go_to_the_nearest_centre():
    x = torch.randn(2, 60, 3, generator=seeded(4))
    found = kmeans(x, 5, generator=seeded())
    for i in range(2):
        count = torch.bincount(found.label[i], minlength=5)
        assert torch.equal(count, count.sort(descending=True).values) and int(count.min()) > 0
        assert torch.equal(found.label[i], torch.cdist(x[i], found.centre[i]).argmin(dim=1))
    assert torch.equal(found.assign(x), found.label)
    again = kmeans(x, 5, generator=seeded())
    assert torch.equal(again.label, found.label)


def test_few_different_points_leave_clusters_empty_and_nothing_else():
    x = torch.tensor([0.0, 0.0, 0.0, 5.0]).view(1, 4, 1)
    found = kmeans(x, 3)
    assert float(found.inertia) == 0 and len(torch.unique(found.label[0, :3])) == 1
    assert found.label[0, 3] != found.label[0, 0]
    with pytest.raises(ValueError, match="5 clusters of 4 points"):
        kmeans(x, 5)


# ---- numbers


def test_the_uncertainty_coefficient_is_scikit_learns_homogeneity():
    a, b = torch.randint(0, 4, (5, 6, 7), generator=seeded()), torch.zeros(5, 6, 7).long()
    b = a // 2 + 2 * torch.randint(0, 3, (5, 6, 7), generator=seeded(1))
    each = [homogeneity_score(x.flatten().numpy(), y.flatten().numpy()) for x, y in zip(a, b)]  # noqa: B905
    assert uncertainty_coefficient(a, b, joint=False).value == pytest.approx(np.mean(each))
    whole = homogeneity_score(a.flatten().numpy(), b.flatten().numpy())
    assert uncertainty_coefficient(a, b, joint=True).value == pytest.approx(whole)


def test_finer_clusters_that_split_coarse_ones_tell_them_and_not_the_reverse():
    fine = torch.randint(0, 8, (4, 30, 30), generator=seeded())
    assert uncertainty_coefficient(fine // 2, fine, joint=False).value == pytest.approx(1)
    assert uncertainty_coefficient(fine, fine // 2, joint=False).value == pytest.approx(
        2 / 3, abs=0.01
    )
    unrelated = uncertainty_coefficient(
        torch.randint(0, 2, (4, 30, 30), generator=seeded(1)), fine, joint=False
    )
    assert abs(unrelated.value - unrelated.shuffled) < 0.01
    assert abs(adjusted_mutual_information(fine, fine // 2, joint=True) - 0.8) < 0.01
    with pytest.raises(ValueError, match="one class on every image"):
        uncertainty_coefficient(fine * 0, fine, joint=False)


# ---- maps


def test_maps_are_what_the_stages_give():
    x = torch.rand(2, 3, 64, 64, generator=seeded())
    encoder = encoder_of(resnet18, 3)
    found = feature_maps(encoder, x)
    assert {name: tuple(m.shape[1:]) for name, m in found.items()} == {
        "layer1": (64, 16, 16), "layer2": (128, 8, 8), "layer3": (256, 4, 4), "layer4": (512, 2, 2),
    }  # fmt: skip
    body = encoder.eval().backbone
    torch.testing.assert_close(found["layer4"].mean(dim=(2, 3)), encoder.represent(x))
    small = encoder_of(small_conv, 3)
    assert [m.shape[2] for m in feature_maps(small, x).values()] == [64, 32, 16, 8]
    last = feature_maps(small, x, [stages(small, x)[-1]])
    torch.testing.assert_close(
        next(iter(last.values())).mean(dim=(2, 3)), small.eval().represent(x)
    )
    assert not any(m._forward_hooks for m in (*body.modules(), *small.modules()))


def test_looking_leaves_the_encoder_as_it_was():
    encoder = encoder_of(small_conv, 1).train()
    encoder.head.eval()
    before = {name: w.clone() for name, w in encoder.state_dict().items()}
    feature_maps(encoder, torch.rand(4, 1, 16, 16))
    assert encoder.backbone.training and not encoder.head.training
    assert all(torch.equal(w, before[name]) for name, w in encoder.state_dict().items())
    with pytest.raises(ValueError, match="no module 'layer9'"):
        feature_maps(encoder, torch.rand(1, 1, 16, 16), ["layer9"])
    with pytest.raises(ValueError, match="gives no map"):
        feature_maps(encoder, torch.rand(1, 1, 16, 16), [""])


@pytest.mark.parametrize("joint", [False, True])
def test_the_control_finds_the_halves_of_a_picture(joint):
    pixels = np.zeros((20, 16, 16, 3), np.uint8)
    pixels[:, :, 8:] = (250, 20, 90)
    pixels[:, :, 4] = 0
    images = open_images(pixels)
    maps = local_maps(encoder_of(small_conv, 3), images, clusters=(2, 100), joint=joint, restarts=2)
    half = maps.labels["pixels 16x16"][2]
    assert half.shape == (20, 16, 16) and half.dtype == torch.uint8
    assert (half[:, :, :8] == half[:, :1, :1]).all() and (half[:, :, 8:] == half[:, :1, 15:]).all()
    assert (half[:, 0, 0] != half[:, 0, 15]).all()
    assert sorted(maps.labels) == sorted(
        [*stages(encoder_of(small_conv, 3), torch.rand(1, 3, 16, 16))]
        + [f"pixels {s}x{s}" for s in (2, 4, 8, 16)]
    )
    # a map of 4 positions has no 100 clusters
    assert set(maps.labels["pixels 2x2"]) == {2}
    assert hierarchy(maps, "pixels 16x16")[2, 100].value > 0.99


def test_a_map_of_known_digits_determines_them():
    glyphs = open_images("digits")
    images = many_digits(glyphs, digits=5, placement="grid", images=6)
    where = layout(images, torch.arange(6))
    number = torch.arange(5).expand(6, 5)
    truth = truth_map(where.box, 32, (16, 16), number)
    assert (truth.flatten(1) > 0).sum(dim=1).tolist() == [5 * 16] * 6
    ink = torch.nn.functional.max_pool2d(images.batch(torch.arange(6)).float(), 2)[:, 0] > 0
    assert (truth[ink] > 0).all()
    for i in range(6):
        top, left, height, width = where.box[i, 2].tolist()
        part = truth[i, top // 2 : (top + height) // 2, left // 2 : (left + width) // 2]
        assert (part == 3).all()
    assert adjusted_mutual_information(truth, truth, joint=False) == pytest.approx(1)
    maps = local_maps(encoder_of(small_conv, 1), images, clusters=(4,), restarts=2)
    found = uncertainty_coefficient(truth, maps.labels["pixels 16x16"][4], joint=False)
    assert found.value > found.shuffled + 0.1


# ---- pictures


def test_every_cluster_has_a_colour_of_its_own():
    assert len({tuple(c) for c in palette(16).tolist()}) == 16


def test_maps_of_real_photographs(tmp_path):
    root = os.environ.get("CONTRAPOSE_DATA")
    if not root or not (Path(root) / "coco128").exists():
        pytest.skip("needs coco128 in the folder that CONTRAPOSE_DATA names")
    images = open_images("coco128", size=64).subset(torch.arange(3))
    maps = local_maps(encoder_of(resnet18, 3), images, clusters=(2, 4), restarts=1)
    nested = hierarchy(maps, "layer1")[2, 4]
    assert nested.value > nested.shuffled + 0.2
