"""Colour against torchvision at the same drawn parameters, and the distributions of the draws."""

import itertools

import pytest
import torch
import torchvision.transforms.functional as TF
from scipy.stats import chisquare, ks_2samp
from torchvision.transforms import ColorJitter

from contrapose.augment import Grayscale, Jitter, Solarise

OPERATION = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def strong(count, generator, p=0.8):
    return Jitter.draw(count, generator, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5, p=p)


def torchvision_jitter(image, jitter):
    """In float64; an image that is off stays as it is."""
    made = image.double().clone()
    for b in jitter.on.nonzero()[:, 0].tolist():
        for operation in jitter.order[b].tolist():
            made[b] = OPERATION[operation](made[b], jitter.factor[b, operation].item())
    return made


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [1, 7, 32, 70])
def test_jitter_equals_torchvision_in_the_drawn_order(side, channels):
    image = torch.rand(48, channels, side, side, generator=seeded())
    image[0], image[1], image[2] = 0.0, 1.0, 0.5  # without a hue
    image[3, :, 0, 0] = 0.25
    jitter = strong(48, seeded(1))
    ours = image.clone()
    jitter(ours)
    torch.testing.assert_close(ours.double(), torchvision_jitter(image, jitter), atol=1e-5, rtol=0)
    assert torch.equal(ours[~jitter.on], image[~jitter.on])
    assert 0 <= ours.min() and ours.max() <= 1


def test_every_order_of_the_four_operations_is_exact():
    orders = torch.tensor(list(itertools.permutations(range(4))))
    image = torch.rand(24, 3, 16, 16, generator=seeded())
    drawn = strong(24, seeded(2), p=1.0)
    jitter = Jitter(on=drawn.on, order=orders, factor=drawn.factor)
    ours = image.clone()
    jitter(ours)
    torch.testing.assert_close(ours.double(), torchvision_jitter(image, jitter), atol=1e-5, rtol=0)


def test_factors_follow_torchvisions_law_and_every_order_is_equally_likely():
    n = 3000
    strength = {"brightness": 0.8, "contrast": 1.4, "saturation": 0.4, "hue": 0.2}
    ours = Jitter.draw(n, seeded(5), **strength, p=0.8)
    theirs = ColorJitter(**strength)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        drawn = [
            ColorJitter.get_params(
                theirs.brightness, theirs.contrast, theirs.saturation, theirs.hue
            )[1:]
            for _ in range(n)
        ]
    for k, factor in enumerate(zip(*drawn, strict=True)):
        assert ks_2samp(ours.factor[:, k], factor).pvalue > 0.01
    code = (ours.order * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    _, count = code.unique(return_counts=True)
    assert len(count) == 24 and chisquare(count).pvalue > 0.01
    assert abs(ours.on.float().mean() - 0.8) < 0.03  # 4 standard deviations


@pytest.mark.parametrize("channels", [1, 3])
def test_grayscale_and_solarise_equal_torchvision_where_on(channels):
    image = torch.rand(20, channels, 9, 9, generator=seeded())
    on = torch.arange(20) % 3 == 0
    gray, solar = image.clone(), image.clone()
    Grayscale(on=on)(gray)
    Solarise(on=on, threshold=0.6)(solar)
    for b in range(20):
        expected = TF.rgb_to_grayscale(image[b], channels) if on[b] else image[b]
        torch.testing.assert_close(gray[b], expected, atol=1e-6, rtol=0)
        assert torch.equal(solar[b], TF.solarize(image[b], 0.6) if on[b] else image[b])


@pytest.mark.parametrize("step", [strong(2, seeded()), Grayscale.draw(2, seeded(), p=0.5)])
def test_colour_of_other_channels_is_refused(step):
    with pytest.raises(ValueError, match="4 channels"):
        step(torch.rand(2, 4, 8, 8))


@pytest.mark.parametrize("wrong", [{"hue": 0.6}, {"brightness": -0.1}, {"p": 1.5}])
def test_impossible_strengths_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Jitter.draw(2, seeded(), **wrong)
