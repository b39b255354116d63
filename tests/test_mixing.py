"""MixUp and CutMix: from their formulas, image by image, with shares that follow Beta."""

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torchvision.transforms import v2

from contrapose.augment import cutmix, mixup
from contrapose.augment.mixing import CutMix, MixUp


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(count=12, height=9, width=14, classes=5):
    image = torch.rand(count, 3, height, width, generator=seeded(1))
    label = torch.randint(0, classes, (count,), generator=seeded(2))
    return image, torch.nn.functional.one_hot(label, classes).float()


def test_mixup_is_the_formula_with_a_share_and_a_partner_of_each_image():
    image, target = batch()
    drawn = MixUp.draw(12, seeded(3), alpha=0.4)
    made, soft = drawn(image, target)
    assert len(drawn.share.unique()) == 12 and sorted(drawn.partner.tolist()) == list(range(12))
    for b, j in enumerate(drawn.partner.tolist()):
        share = drawn.share[b].double()
        for mixed, plain in ((made, image), (soft, target)):
            expected = share * plain[b].double() + (1 - share) * plain[j].double()
            torch.testing.assert_close(mixed[b].double(), expected, atol=1e-6, rtol=0)


def test_cutmix_shows_a_box_of_the_partner_and_shares_targets_by_what_is_seen():
    image, target = batch()
    drawn = CutMix.draw(12, seeded(3))
    made, soft = drawn(image, target)
    for b, (j, box) in enumerate(
        zip(drawn.partner.tolist(), drawn.box(9, 14).tolist(), strict=True)
    ):
        top, left, bottom, right = box
        expected = image[b].clone()
        expected[:, top:bottom, left:right] = image[j, :, top:bottom, left:right]
        assert torch.equal(made[b], expected)
        share = 1 - (bottom - top) * (right - left) / (9 * 14)
        torch.testing.assert_close(soft[b], share * target[b] + (1 - share) * target[j])
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(12))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_boxes_equal_torchvisions_at_the_same_draw(alpha):
    """torchvision draws lambda and then the centre for a batch: given these, the same box."""
    height, width, theirs = 31, 48, v2.CutMix(num_classes=2, alpha=alpha)
    for seed in range(50):
        torch.manual_seed(seed)
        made = theirs.make_params([torch.zeros(2, 3, height, width)])
        torch.manual_seed(seed)
        lam = float(theirs._dist.sample(()))
        if not 1e-6 < lam < 1 - 1e-6:
            continue  # half a side and a hair less: float32 here, float64 there
        column, row = torch.randint(width, (1,)).item(), torch.randint(height, (1,)).item()
        drawn = CutMix(
            half=torch.tensor([0.5 * np.sqrt(1 - lam)], dtype=torch.double).float(),
            place=torch.tensor([[(row + 0.5) / height, (column + 0.5) / width]]),
            partner=torch.tensor([0]),
        )
        top, left, bottom, right = drawn.box(height, width)[0].tolist()
        assert (left, top, right, bottom) == made["box"]


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0])
def test_shares_follow_beta_and_p_says_how_many_are_mixed(alpha):
    n = 20_000
    share = MixUp.draw(n, seeded(5), alpha=alpha).share
    edge = np.array([0, 1e-3, 0.02, 0.2, 0.5, 0.8, 0.98, 0.999, 1 + 1e-9])
    expected = n * np.diff(beta(alpha, alpha).cdf(edge))
    counted, _ = np.histogram(share.double(), edge)
    assert (abs(counted - expected) <= 4 * np.sqrt(expected) + 1).all()
    half = CutMix.draw(n, seeded(5), alpha=alpha).half
    torch.testing.assert_close(half, 0.5 * (1 - share).sqrt())
    kept = (MixUp.draw(n, seeded(6), alpha=4.0, p=0.3).share == 1).double().mean().item()
    assert abs(kept - 0.7) < 4 * (0.3 * 0.7 / n) ** 0.5


def test_a_tiny_alpha_chooses_either_image_and_never_nothing():
    share = MixUp.draw(4000, seeded(), alpha=1e-4).share
    assert abs(share.mean() - 0.5) < 0.04  # four standard deviations, and so no NaN
    assert torch.minimum(share, 1 - share).gt(1e-6).double().mean() < 0.01


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_what_is_given_is_left_alone_and_the_generator_decides(mix):
    image, target = batch()
    before = image.clone(), target.clone()
    made, soft = mix(image, target, seeded(4))
    assert torch.equal(image, before[0]) and torch.equal(target, before[1])
    again, same = mix(image, target, seeded(4))
    assert torch.equal(made, again) and torch.equal(soft, same)
    assert not torch.equal(made, mix(image, target, seeded(5))[0])
    plain, hard = mix(image, target, seeded(4), p=0.0)
    assert torch.equal(plain, image) and torch.equal(hard, target)
    none, nothing = mix(image[:0], target[:0], seeded())
    assert none.shape == (0, 3, 9, 14) and nothing.shape == (0, 5)


@pytest.mark.parametrize("mix", [mixup, cutmix])
@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"alpha": -1.0}, {"p": 1.5}])
def test_impossible_mixtures_are_refused(mix, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        mix(*batch(), seeded(), **wrong)
