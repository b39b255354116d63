"""Differences of two accuracies on the same images: exact, and counted by groups where told so."""

from math import comb

import numpy as np
import pytest

from contrapose import paired


def test_the_p_value_is_that_of_a_coin_for_the_images_that_one_alone_names():
    a, b = np.zeros(100, bool), np.zeros(100, bool)
    a[:60], b[10:62] = True, True  # 10 by a alone, 2 by b alone
    found = paired.difference(a, b)
    assert (found.only_a, found.only_b, found.n) == (10, 2, 100)
    assert found.p == pytest.approx(2 * sum(comb(12, k) for k in range(3)) / 2**12)
    assert found.low < found.value == 0.08 < found.high and found.sign == 1
    assert paired.difference(b, a).value == -0.08 and paired.difference(a, a).p == 1.0


def test_frames_of_one_clip_count_once():
    random = np.random.default_rng(0)
    a, b = random.random(40) < 0.7, random.random(40) < 0.4
    alone = paired.difference(a, b, np.arange(40))
    assert alone.p == paired.difference(a, b).p
    frames = paired.difference(a.repeat(8), b.repeat(8), np.arange(40).repeat(8))
    assert (frames.p, frames.groups, frames.n) == (alone.p, 40, 320)
    assert frames.low == pytest.approx(alone.low) and frames.high == pytest.approx(alone.high)
    assert paired.difference(a.repeat(8), b.repeat(8)).p < frames.p


def test_the_interval_covers_the_difference_as_often_as_it_says():
    random = np.random.default_rng(1)
    found = [
        paired.difference(random.random(200) < 0.8, random.random(200) < 0.75) for _ in range(300)
    ]
    assert sum(d.low <= 0.05 <= d.high for d in found) >= 0.91 * 300


def test_bits_and_numbers_read_back():
    bits = np.random.default_rng(0).random(1001) < 0.5
    assert (paired.unpacked(paired.packed(bits), 1001) == bits).all()
    number = np.array([3, 0, 70_000, -1])
    assert (paired.numbers_in(paired.numbers_as_text(number)) == number).all()
    with pytest.raises(ValueError, match="8 bits for 9 images"):
        paired.unpacked("ff", 9)
    assert paired.of_scores({"images": "a", "n": 9, "right": "ff"}, {"images": "b"}) is None


def test_p_over_the_same_draws_counts_those_of_the_other_sign():
    def score(draws, images="f0"):
        return {"draws": list(draws), "images": images}

    zero, n = score([0.5] * 200), 200
    assert paired.of_draws(score([0.6] * n), zero) == pytest.approx(2 / 201)
    assert paired.of_draws(zero, score([0.6] * n)) == pytest.approx(2 / 201)  # two-sided
    assert paired.of_draws(zero, zero) == 1.0
    some = score([0.4] * 3 + [0.6] * 197)
    assert paired.of_draws(some, zero) == pytest.approx(2 * 4 / 201)
    assert paired.of_draws(score([0.6] * n, "other"), zero) is None
    assert paired.of_draws({"images": "f0"}, zero) is None
