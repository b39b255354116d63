"""Calibration and scores under corruption: from their formulas in float64, on real files."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize_scalar

from contrapose.data import open_images
from contrapose.evaluation.calibration import calibration, confidences, fitted_temperature
from contrapose.evaluation.corruptions import BENCHMARK, CORRUPTIONS, corrupted
from contrapose.evaluation.robustness import (
    ALEXNET,
    BLOCK,
    mce,
    published,
    relative_mce,
    robustness,
    robustness_of_published,
    seed_of,
)


def classifier(n=600, classes=7, sharp=3.0, seed=0):
    """Logits that are right more often than not, and labels."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), label] += 1.0
    return sharp * logits, label


def ece_by_hand(logits, label, bins, temperature):
    total = 0.0
    p = torch.softmax(logits.double() / temperature, dim=1)
    top, named = p.max(dim=1)
    for m in range(bins):
        low, high = m / bins, (m + 1) / bins
        chosen = [
            i for i in range(len(label)) if low <= top[i] < high or (m == bins - 1 and top[i] == 1)
        ]
        if chosen:
            right = np.mean([float(named[i] == label[i]) for i in chosen])
            total += (
                len(chosen) / len(label) * abs(right - np.mean([float(top[i]) for i in chosen]))
            )
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_ece_is_the_sum_over_bins(bins, temperature):
    logits, label = classifier()
    found = calibration(logits, label, bins=bins, temperature=temperature, resamples=10)
    assert found.ece == pytest.approx(ece_by_hand(logits, label, bins, temperature), abs=1e-12)
    assert sum(found.count) == found.n == len(label)
    again = sum(
        n / found.n * abs(a - c)
        for n, a, c in zip(found.count, found.bin_accuracy, found.bin_confidence, strict=True)
        if n
    )
    assert again == pytest.approx(found.ece, abs=1e-12)


def test_a_confidence_of_one_is_in_the_last_bin():
    """Logits so large that softmax is exactly 1: half of them wrong, so ECE = 1/2, in one bin."""
    logits = torch.zeros(8, 3)
    logits[:, 1] = 1000.0
    label = torch.tensor([1, 1, 1, 1, 0, 0, 2, 2])
    assert (confidences(logits, label)[0] == 1).all()
    found = calibration(logits, label, resamples=10)
    assert found.ece == 0.5 and found.count == (0,) * 14 + (8,)


def test_a_classifier_that_knows_how_often_it_is_right_has_no_error_but_chance():
    """Labels drawn from the softmax itself: ECE of n = 50,000 is below 15 bins' noise."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(50_000, 5, generator=generator)
    label = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    assert calibration(logits, label, resamples=2).ece < 0.01
    assert fitted_temperature(logits, label) == pytest.approx(1.0, abs=0.02)
    assert fitted_temperature(4 * logits, label) == pytest.approx(4.0, abs=0.08)


def test_the_temperature_minimises_the_likelihood_and_changes_no_answer():
    logits, label = classifier()
    found = fitted_temperature(logits, label)

    def loss(log_t):
        return torch.nn.functional.cross_entropy(logits.double() / np.exp(log_t), label).item()

    best = minimize_scalar(loss, bounds=(-3, 4), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(np.exp(best.x), rel=1e-5)
    before, after = (calibration(logits, label, temperature=t, resamples=2) for t in (1.0, found))
    assert before.accuracy == after.accuracy and after.ece < before.ece


def test_a_temperature_without_a_finite_optimum_is_held():
    logits = torch.eye(4)
    assert fitted_temperature(logits, torch.arange(4)) == pytest.approx(0.01)
    assert fitted_temperature(logits, (torch.arange(4) + 1) % 4) == pytest.approx(100.0)


def test_the_interval_is_the_bootstraps_over_images():
    logits, label = classifier(n=300)
    found = calibration(logits, label, seed=3, resamples=60)
    p, right = confidences(logits, label)
    random, drawn = np.random.default_rng(3), []
    for _ in range(60):
        some = random.integers(300, size=300)
        drawn.append(ece_by_hand(logits[some], label[some], 15, 1.0))
    assert (found.low, found.high) == pytest.approx(
        tuple(np.quantile(drawn, [0.025, 0.975])), rel=1e-5
    )
    assert found.low < found.ece < found.high
    assert right.mean() == found.accuracy and p.mean() == pytest.approx(found.confidence)


def test_images_without_a_label_are_left_out_and_bad_input_is_refused():
    logits, label = classifier(n=50)
    some = torch.where(torch.arange(50) < 20, -1, label)
    assert calibration(logits, some, resamples=5).n == 30
    assert fitted_temperature(logits, some) == fitted_temperature(logits[20:], label[20:])
    for wrong, words in (
        ({"label": torch.full((50,), -1)}, "none of the images has a label"),
        ({"label": label + 7}, "class 13"),
        ({"logits": logits / 0}, "not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            calibration(**({"logits": logits, "label": label} | wrong))
    for option in ({"bins": 0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=next(iter(option))):
            calibration(logits, label, **option)


def test_mce_of_alexnet_is_100_and_of_half_its_errors_50():
    """And of errors that grow with severity only their mean counts."""
    errors = {
        name: {s: ALEXNET[name] * (1 + 0.1 * (s - 3)) for s in range(1, 6)} for name in BENCHMARK
    }
    assert mce(errors) == pytest.approx(100)
    half = {name: {s: e / 2 for s, e in of.items()} for name, of in errors.items()}
    assert mce(half) == pytest.approx(50)
    assert relative_mce(errors, clean=0.43, alexnet_clean=0.43) == pytest.approx(100)
    expected = 100 * np.mean([(ALEXNET[n] - 0.24) / (ALEXNET[n] - 0.43) for n in BENCHMARK])
    assert relative_mce(errors, clean=0.24, alexnet_clean=0.43) == pytest.approx(expected)
    with pytest.raises(ValueError, match="fog"):
        mce({name: of for name, of in errors.items() if name != "fog"})


def coloured(n=150, side=16, classes=3):
    """Images whose mean colour is their class, as arrays, with some noise."""
    random = np.random.default_rng(0)
    label = random.integers(0, classes, n)
    x = random.integers(0, 100, (n, side, side, 3))
    x[np.arange(n), :, :, label] += 90
    return x.astype(np.uint8), label


def by_colour(x):
    """Logits: how bright each channel is."""
    return 20 * x.mean(dim=(2, 3))


def test_robustness_measures_each_corruption_of_the_same_images_whatever_the_batches():
    x, label = coloured()
    images = open_images((x, label))
    found = robustness(
        by_colour, images, size=16, names=["fog", "gaussian_noise"], severities=[1, 5],
        temperature=2.0, seed=4,
    )  # fmt: skip
    assert [(m.corruption, m.severity) for m in found.corrupted] == [
        ("fog", 1), ("fog", 5), ("gaussian_noise", 1), ("gaussian_noise", 5),
    ]  # fmt: skip
    assert found.clean.before.accuracy == 1.0 and found.clean.before.n == 150
    logits = []
    for block in range(0, 150, BLOCK):  # by hand
        pixel = images.batch(torch.arange(block, min(block + BLOCK, 150))).float() / 255
        generator = torch.Generator().manual_seed(seed_of(4, "fog", 5, block // BLOCK))
        logits.append(by_colour(corrupted(pixel, "fog", 5, generator)))
    expected = calibration(torch.cat(logits), torch.from_numpy(label), seed=4)
    assert found.corrupted[1].before == expected
    assert found.corrupted[1].after.temperature == 2.0
    rows = found.by_severity()
    assert rows[0]["accuracy"] == 1.0 and set(rows) == {0, 1, 5}
    assert rows[5]["ece"] == pytest.approx(
        np.mean([m.before.ece for m in found.corrupted if m.severity == 5])
    )
    assert found.by_corruption()["fog"]["accuracy"] == pytest.approx(
        np.mean([m.before.accuracy for m in found.corrupted[:2]])
    )
    assert found.mean_error() == pytest.approx(np.mean([m.error for m in found.corrupted]))
    written = found.as_json()
    assert written["mce"] is None and len(written["measured"]) == 5
    again = robustness(by_colour, images, size=16, names=["fog"], severities=[5], seed=4)
    assert again.corrupted[0].before == found.corrupted[1].before


def test_what_cannot_be_measured_is_refused_before_anything_is():
    x, label = coloured(12)
    gray = open_images((x[..., :1], label))
    for names, severities, words in (
        (["fgo"], [1], "did you mean 'fog'"),
        (["fog"], [7], "did you mean 5"),
        (["saturate"], [1], "3 channels, these have 1"),
    ):
        with pytest.raises(ValueError, match=words):
            robustness(by_colour, gray, size=16, names=names, severities=severities)
    with pytest.raises(ValueError, match="no labels"):
        robustness(by_colour, open_images(x), size=16, names=["fog"])
    some = np.where(np.arange(12) < 4, -1, label)
    found = robustness(by_colour, open_images((x, some)), size=16, names=["fog"], severities=[1])
    assert found.clean.before.n == 8 and found.notes == ("4 images without a label left out",)


def test_published_arrays_are_five_severities_one_after_another(tmp_path):
    x, label = coloured(20)
    made = np.concatenate([np.clip(x.astype(int) + 10 * s, 0, 255) for s in range(1, 6)])
    np.save(tmp_path / "brightness.npy", made.astype(np.uint8))
    np.save(tmp_path / "labels.npy", np.tile(label, 5))
    there = published(tmp_path)
    assert list(there.sets) == [("brightness", s) for s in range(1, 6)]
    third = there.sets["brightness", 3]()
    stored = third.batch(torch.arange(20)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(stored, made[40:60]) and np.array_equal(third.label.numpy(), label)
    clean = open_images((x, label))
    found = robustness_of_published(by_colour, clean, there, size=16)
    assert [m.severity for m in found.corrupted] == [1, 2, 3, 4, 5]
    assert found.source == str(tmp_path) and found.corrupted[0].before.accuracy == 1.0
    some = torch.arange(0, 20, 2)
    half = robustness_of_published(by_colour, clean, there, size=16, rows=some)
    assert {m.before.n for m in (half.clean, *half.corrupted)} == {10}
    with pytest.raises(ValueError, match="has no fog; it has brightness"):
        robustness_of_published(by_colour, clean, there, size=16, names=["fog"])
    (tmp_path / "labels.npy").unlink()
    with pytest.raises(ValueError, match=r"labels\.npy is missing"):
        published(tmp_path)


@pytest.mark.parametrize("family", [True, False])
def test_published_folders_are_matched_by_the_names_of_their_classes(family, tmp_path):
    x, label = coloured(18)
    names = ("red", "green", "blue")
    for severity in (1, 4):
        for i, (image, of) in enumerate(zip(x, label, strict=True)):
            base = tmp_path / "noise" if family else tmp_path
            folder = base / "shot_noise" / str(severity) / names[of]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.png")
    (tmp_path / "clean").mkdir()
    for i, (image, of) in enumerate(zip(x, label, strict=True)):
        (tmp_path / "clean" / names[of]).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "clean" / names[of] / f"{i}.png")
    clean = open_images(str(tmp_path / "clean"))
    order = [names.index(name) for name in clean.classes]
    there = published(tmp_path)
    assert list(there.sets) == [("shot_noise", 1), ("shot_noise", 4)]
    predict = lambda x: by_colour(x)[:, order]  # noqa: E731
    found = robustness_of_published(predict, clean, there, size=16)
    assert [m.before.accuracy for m in found.corrupted] == [1.0, 1.0]
    with pytest.raises(ValueError, match="none of the classifier's"):
        robustness_of_published(by_colour, open_images((x, label % 2)), there, size=16)
    with pytest.raises(ValueError, match="neither NAME"):
        published(tmp_path / "clean")


def test_every_corruption_of_the_benchmark_has_alexnets_error():
    assert set(ALEXNET) == set(BENCHMARK) <= set(CORRUPTIONS)
    assert all(0.5 < error < 1 for error in ALEXNET.values())
