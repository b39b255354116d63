"""Suppression scores: from their formula, beside scikit-learn's ridge, and on known encoders."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

import contrapose
from contrapose import explain
from contrapose.data import open_images
from contrapose.encoders import Encoder, none
from contrapose.evaluation.suppression import (
    Suppression,
    explained,
    lost,
    majority_accuracy,
    pictures,
    standardised,
    suppression,
)


class Shows(nn.Module):
    """h = the mean of each of these channels: an encoder of which one knows what it reads."""

    def __init__(self, channels):
        super().__init__()
        self.channels, self.width = list(channels), len(channels)

    def forward(self, x):
        return x[:, self.channels].mean(dim=(2, 3))


def showing(*channels):
    return Encoder(Shows(channels), none(len(channels)), *STATS)


STATS = ([0.0] * 3, [1.0] * 3)


def test_the_score_is_the_share_of_the_readable_that_is_lost():
    assert lost(0.9, 0.9, 0.1) == 0 and lost(0.1, 0.9, 0.1) == 1
    assert lost(0.5, 0.9, 0.1) == pytest.approx(0.5)
    # never clipped: more than the control, less than chance
    assert lost(1.0, 0.9, 0.1) == pytest.approx(-0.125)
    assert lost(0.0, 0.9, 0.1) == pytest.approx(1.125)
    assert math.isnan(lost(0.1, 0.1, 0.1))
    found = Suppression(accuracy=0.4, supervised=0.9, untrained=0.6, chance=0.1, n=1000)
    assert found.score == pytest.approx(0.5 / 0.8) and found.erased == pytest.approx(0.2 / 0.5)


def test_its_standard_error_is_that_of_repeated_tests():
    found = Suppression(accuracy=0.4, supervised=0.9, untrained=0.6, chance=0.1, n=500)
    draw = np.random.default_rng(0)
    a, s = (draw.binomial(500, p, 20_000) / 500 for p in (0.4, 0.9))
    assert found.error == pytest.approx(((s - a) / (s - 0.1)).std(), rel=0.03)


def test_chance_is_the_most_common_class_of_training():
    assert majority_accuracy(
        torch.tensor([2, 2, 0, -1]), torch.tensor([2, 0, -1, 0])
    ) == pytest.approx(1 / 3)


def test_an_encoder_that_drops_a_feature_suppresses_it_and_no_other():
    generator = np.random.default_rng(0)
    label = generator.integers(0, 2, (300, 3))
    pixels = np.broadcast_to((label * 255).astype(np.uint8)[:, None, None], (300, 5, 5, 3))
    images = open_images((np.ascontiguousarray(pixels), label[:, 0]))
    features = {f"channel {c}": torch.from_numpy(label[:, c]) for c in range(3)}
    images = type(images)(**(vars(images) | {"features": features}))
    train, test = images.subset(torch.arange(200)), images.subset(torch.arange(200, 300))
    found = suppression(
        showing(0, 1), train, test, l2=1.0, untrained=showing(0, 2),
        supervised={f"channel {c}": showing(c) for c in range(3)},
    )  # fmt: skip
    assert [found[f"channel {c}"].score for c in (0, 1)] == [0, 0]
    assert found["channel 2"].score > 0.8 and found["channel 2"].erased > 0.8
    assert found["channel 1"].untrained < 0.7 and found["channel 1"].accuracy == 1
    with pytest.raises(ValueError, match="no 'bit 0'"):
        suppression(showing(0), train, test, supervised={"bit 0": showing(0)}, untrained=showing(1))


def test_what_is_explained_is_scikit_learns_ridge():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator).double() * torch.arange(1, 7)
    t = x @ torch.randn(6, 4, generator=generator).double()
    t += 3 * torch.randn(200, 4, generator=generator)
    parts = x[:150], t[:150], x[150:], t[150:]
    scale = (parts[0] - parts[0].mean(0)) / parts[0].std(0, correction=0)
    other = Ridge(alpha=0.1 * 150).fit(scale, parts[1])
    guess = other.predict((x[150:] - parts[0].mean(0)) / parts[0].std(0, correction=0))
    total = (parts[3] - parts[1].mean(0)).square().sum()
    expected = 1 - float((parts[3] - torch.from_numpy(guess)).square().sum() / total)
    assert explained(*parts, l2=[0.1]) == pytest.approx(expected, rel=1e-9)
    assert explained(*parts) >= expected


def test_all_is_explained_by_itself_and_nothing_by_noise():
    x = torch.randn(600, 5, generator=torch.Generator().manual_seed(1))
    y = torch.randn(600, 5, generator=torch.Generator().manual_seed(2))
    assert explained(x[:400], x[:400], x[400:], x[400:]) > 1 - 1e-4
    assert abs(explained(x[:400], y[:400], x[400:], y[400:])) < 0.05
    assert explained(x[:400], 5 * x[:400, :2] + 7, x[400:], 5 * x[400:, :2] + 7) > 1 - 1e-4


def test_pictures_are_averages_without_the_bits():
    images = open_images("random-bits(digits, bits=3)")
    found = pictures(images, side=2)
    assert found.shape == (len(images), 4)
    one = images.batch(torch.tensor([5]))[0, 0].float() / 255
    assert found[5, 0] == pytest.approx(float(one[:4, :4].mean()))
    alike = standardised(found, found)
    torch.testing.assert_close(alike.std(dim=0, correction=0), torch.ones(4))
    assert not standardised(torch.ones(3, 1), torch.ones(5, 1)).any()


def test_a_run_is_scored_against_controls_that_are_trained_for_it_once(tmp_path):
    brief = {"epochs": 2, "encoder": "small_conv", "changes": ["backbone.width=16"]}
    run = contrapose.train("simclr", "random-bits(digits, bits=2)", out=tmp_path / "run", **brief)
    found = explain.suppression_of(run, features=["image", "bit 0"])
    assert set(found) == {"image", "bit 0"}
    assert found["image"].supervised > found["image"].chance and found["image"].n == 359
    assert (run.path / "suppression.json").exists()
    control = run.path / "controls" / "taught-bit-0" / "encoder.safetensors"
    before = control.stat().st_mtime_ns
    assert explain.suppression_of(run, features=["image", "bit 0"]) == found
    assert control.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="has no feature 'bit 7'"):
        explain.suppression_of(run, features=["bit 7"])
