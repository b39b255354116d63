"""`contrapose robustness`: a run's own classifier, the temperature apart from what is measured."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from tests.support.quick_recipe import quick

import contrapose
from contrapose import encoders, explain, losses
from contrapose.commands.robustness import print_robustness
from contrapose.data import open_images
from contrapose.evaluation.calibration import calibration, fitted_temperature
from contrapose.evaluation.corruptions import BENCHMARK
from contrapose.training import optim

FAST = dict(
    optimizer=partial(optim.adamw), scaling=optim.no_scaling, lr=1e-2, epochs=6, warmup=0
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = quick(head=encoders.none, loss=losses.cross_entropy, positives="class", **FAST)
    folder = tmp_path_factory.mktemp("runs") / "classes"
    return contrapose.train(recipe, "digits", out=folder, device="cpu")


def logits_of(run, images):
    encoder = contrapose.Encoder.load(run.path).eval()
    with torch.no_grad():
        x = images.batch(torch.arange(len(images))).float() / 255
        return encoder.logits(encoder(x)[0])


def test_a_runs_classifier_is_measured_on_images_that_did_not_fit_its_temperature(run, capsys):
    found = explain.robustness(run, corruptions=["fog", "jpeg_compression"], severities=[1, 5])
    subject = explain.Subject.open(run, device="cpu")
    logits, label = logits_of(run, subject.test), subject.test.label
    fits = torch.arange(len(label)) % 5 == 4
    temperature = fitted_temperature(logits[fits], label[fits])
    assert found.temperature == pytest.approx(temperature, rel=1e-4)
    clean = calibration(logits[~fits], label[~fits])
    assert found.clean.before.n == int((~fits).sum()) and clean.accuracy > 0.5
    assert found.clean.before.accuracy == pytest.approx(clean.accuracy, abs=0.004)
    assert found.clean.before.ece == pytest.approx(clean.ece, abs=2e-3)
    assert [(m.corruption, m.severity) for m in found.corrupted] == [
        ("fog", 1), ("fog", 5), ("jpeg_compression", 1), ("jpeg_compression", 5),
    ]  # fmt: skip
    written = json.loads((run.path / "robustness.json").read_text())
    assert written["mce"] is None and written["classes"] == list(map(str, range(10)))
    assert written["measured"][0]["after"]["temperature"] == found.temperature
    print_robustness(found)
    shown = capsys.readouterr().out
    assert "ECE after scaling" in shown and "mean error under corruption" in shown
    assert "mCE" not in shown and "fitted the temperature" in " ".join(shown.split())


def test_all_of_the_benchmark_have_an_mce_and_what_gray_images_lack_is_said(run, capsys):
    found = explain.robustness(run, corruptions=["all"])
    names = {m.corruption for m in found.corrupted}
    assert names >= set(BENCHMARK) and len(names) == 18 and "saturate" not in names
    assert any("not defined for images of 1 channels: saturate" in note for note in found.notes)
    print_robustness(found)
    assert "Relative mCE is left out" in " ".join(capsys.readouterr().out.split())
    written = json.loads((run.path / "robustness.json").read_text())
    assert written["mce"] > 0 and len(written["measured"]) == 1 + 18 * 5
    assert written["measured"][1]["family"] == "noise" and len(written["ce"]) == 15
    sheet = np.load(run.path / "pictures.npz")
    assert sheet["corrupted"].shape == (18, 6, 8, 8, 1)
    assert not (sheet["corrupted"][:, 0] == sheet["corrupted"][:, 5]).all(axis=(1, 2, 3)).any()
    page = contrapose.write_report([run.path]).read_text()
    assert page.count('class="tile corrupted-0"') == 18 * 6 and "gaussian noise" in page


def test_published_images_are_read_and_the_fitting_ones_left_out_there_too(run, tmp_path):
    test = explain.Subject.open(run, device="cpu").test
    x = test.batch(torch.arange(len(test))).permute(0, 2, 3, 1).numpy()
    np.save(tmp_path / "fog.npy", np.concatenate([x] * 5))
    np.save(tmp_path / "labels.npy", np.tile(test.label.numpy(), 5))
    found = explain.robustness(run, at=tmp_path)
    assert [m.severity for m in found.corrupted] == [1, 2, 3, 4, 5]
    assert all(m.before.accuracy == found.clean.before.accuracy for m in found.corrupted)
    assert found.source == str(tmp_path)


def test_classes_that_the_classifier_lacks_are_counted_or_refused(run, tmp_path):
    digits = open_images("digits")
    x = digits.batch(torch.arange(120))[:, 0].numpy()
    label = digits.label[:120].numpy()
    found = explain.robustness(
        run, (x, np.where(label == 3, 11, label)), corruptions=["fog"], severities=[1]
    )
    assert any("images of classes that the classifier does not know" in n for n in found.notes)
    with pytest.raises(ValueError, match="none of its classes"):
        explain.robustness(run, (x, label + 20), corruptions=["fog"])
    with pytest.raises(ValueError, match="no labels"):
        explain.robustness(run, x, corruptions=["fog"])
    with pytest.raises(ValueError, match="did you mean 'fog'"):
        explain.robustness(run, corruptions=["fgo"])


def test_a_run_without_a_classifier_is_told_how_to_train_one(tmp_path):
    plain = contrapose.train(quick(epochs=1), "digits", out=tmp_path / "plain", device="cpu")
    with pytest.raises(ValueError, match=r"has no classifier.*--recipe cross_entropy.*classifier="):
        explain.robustness(plain)
