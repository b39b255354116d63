"""Fine-tuning with few labels: draws, controls, what is saved, and a study that goes on."""

import json

import numpy as np
import pytest
import torch
from scipy import stats
from support import command
from support.quick_recipe import quick
from support.run_folders import write_run

import contrapose
from contrapose.data import balanced, open_images
from contrapose.downstream.finetune import PROTOCOLS, budget, finetune, reached, saved
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.report import write_report
from contrapose.report.few_labels import saved_words
from contrapose.training.run import Run


@pytest.fixture(scope="module")
def digits():
    return open_images("digits")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("finetune") / "run"
    return contrapose.train(quick(epochs=2), "digits", out=out)


def test_draws_are_nested_balanced_and_hold_every_class(digits):
    few, more = (balanced(digits, budget(w, digits), seed=3) for w in ("1%", "10%"))
    assert set(few.index.tolist()) < set(more.index.tolist())
    count = torch.bincount(few.label)
    assert len(few) == 14 and count.min() >= 1 and count.max() - count.min() <= 1
    assert budget("3-per-class", digits) == 30 and budget("100%", digits) == len(digits)


@pytest.mark.parametrize("words", ["0.5%", "0-per-class", "101%", "many", "10"])
def test_what_is_no_number_of_labels_is_refused_by_name(digits, words):
    with pytest.raises(UserError, match=f"--budgets {words}"):
        budget(words, digits)


def test_what_scratch_needs_is_read_between_budgets():
    curve = [(10, 0.2), (100, 0.6), (1000, 0.8)]
    assert reached(curve, 0.4) == pytest.approx(10**1.5)
    assert reached(curve, 0.6) == pytest.approx(100) and reached(curve, 0.1) == 10
    assert reached(curve, 0.9) is None
    seen = {"a": {"finetuned": [0.4, 0.6], "scratch": [0.2, 0.2]},
            "b": {"finetuned": [0.9], "scratch": [0.6]}}  # fmt: skip
    few, all_ = saved({"b": 100, "a": 10}, seen)
    assert (few["least"], few["most"]) == (pytest.approx(10**0.5), pytest.approx(10))
    assert few["factor"] == pytest.approx(10**0.75)
    half = stats.t.ppf(0.975, 1) * np.std(np.log([10**0.5, 10]), ddof=1) / 2**0.5
    assert few["high"] / few["factor"] == pytest.approx(np.exp(half))
    assert few["factor"] / few["low"] == pytest.approx(np.exp(half))
    assert all_["factor"] is None and all_["not_reached"] == 1 and all_["beyond"] == 1


def test_a_study_has_its_controls_goes_on_and_leaves_runs_with_a_classifier(run):
    brief = {"labels": ("2-per-class",), "draws": 2, "protocol": "simclr"}
    found = finetune(run, **brief)
    rows = {row["method"]: row for row in found["rows"]}
    assert set(rows) == {"finetuned", "scratch", "probe"} and found["n_test"] == 359
    for row in rows.values():
        assert len(row["each"]) == 2 and 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    folder = run.path / "finetune" / "2-per-class-draw1"
    encoder, scratch = (Encoder.load(folder / m) for m in ("finetuned", "scratch"))
    assert encoder.classes == tuple(map(str, range(10))) == scratch.classes
    begun = Encoder.load(folder / "finetuned" / "start.safetensors").backbone.state_dict()
    own = Encoder.load(run.path).state_dict()
    assert all(torch.equal(x, own[f"backbone.{n}"]) for n, x in begun.items())
    assert not Run.open(folder / "scratch").read("recipe.json").get("start")
    kept = (folder / "finetuned" / "encoder.safetensors").stat().st_mtime_ns
    assert finetune(run, **brief) == found
    assert (folder / "finetuned" / "encoder.safetensors").stat().st_mtime_ns == kept
    assert json.loads((run.path / "finetune" / "finetune.json").read_text())["rows"]
    other = finetune(run, **brief | {"draws": 1, "seed": 2}, methods=("finetuned",))
    assert other["rows"][0]["each"][0] not in rows["finetuned"]["each"]
    assert Run.open(run.path / "finetune" / "2-per-class-draw2" / "finetuned").status()


def test_the_report_has_the_learning_curve_and_what_is_saved_in_words(tmp_path):
    def row(labels, n, method, value):
        return {"labels": labels, "n": n, "method": method, "value": value, "low": value - 0.02,
                "high": value + 0.02, "each": [value] * 2}  # fmt: skip

    def saving(labels, n, **more):
        return {"labels": labels, "n": n, "factor": 6.0, "low": 4.0, "high": 9.0, "beyond": 10.0,
                "not_reached": 0, "draws": 2} | more  # fmt: skip

    folder = write_run(tmp_path / "digits", points=40)
    (folder / "finetune").mkdir()
    rows = [row(w, n, m, v) for w, n in (("1%", 14), ("10%", 144))
            for m, v in (("finetuned", 0.8), ("scratch", 0.5), ("probe", 0.7))]  # fmt: skip
    found = {"rows": rows, "n_test": 359, "split": "test", "how": "AdamW", "saved": [
        saving("1%", 14), saving("10%", 144, factor=None, beyond=1.0, not_reached=2)]}  # fmt: skip
    file = folder / "finetune" / "finetune.json"
    file.write_text(json.dumps(found))
    text = write_report([folder]).read_text()
    assert 'data-figure="few_labels_0_0"' in text and "80.0 (78.0 to 82.0)" in text
    assert "pretraining saves 70 labels: from scratch it takes 6 times as many" in text
    assert "(95 % interval 4 to 9)" in text
    assert "training from scratch does not reach what fine-tuning does" in text
    file.write_text(json.dumps(found | {"rows": [{"labels": "1%"}]}))
    text = write_report([folder]).read_text()
    assert "few_labels_0_0" not in text and "finetune.json" in text


def test_what_is_saved_is_a_sentence_for_every_outcome():
    row = {"labels": "5-per-class", "n": 50, "low": None, "high": None, "beyond": 20.0, "draws": 3}
    none = saved_words(row | {"factor": None, "not_reached": 3})
    assert "saves more than 950 labels" in none and "draws" not in none
    assert "in 1 of 3 draws" in saved_words(row | {"factor": None, "not_reached": 1})
    most = saved_words(row | {"factor": None, "not_reached": 1, "beyond": 1.0})
    assert most.endswith("does not reach what fine-tuning does, in 1 of 3 draws.")
    no = saved_words(row | {"factor": 0.8, "not_reached": 0})
    assert no.endswith("saves no labels: from scratch it takes no more, 0.8 times as many.")
    row |= {"low": 0.0032, "high": 846.0, "not_reached": 0}
    open_ = saved_words(row | {"factor": 1.6})
    assert "cannot be told" in open_ and open_.endswith("(95 % interval 0.0032 to 850).")
    row |= {"low": 1.01, "high": 1.03}
    assert "saves 1 label:" in saved_words(row | {"factor": 1.02})


@pytest.mark.slow
def test_more_labels_are_better_and_each_method_has_the_rate_that_suits_it(run):
    found = finetune(run, labels=("2-per-class", "20-per-class"), draws=2)
    rows = {(row["labels"], row["method"]): row for row in found["rows"]}
    assert rows["20-per-class", "finetuned"]["rate"] in PROTOCOLS["default"].rates
    for method in ("finetuned", "scratch"):  # two labels of a class cannot choose a rate
        assert rows["2-per-class", method]["rate"] == rows["20-per-class", method]["rate"]
    for method in ("finetuned", "scratch", "probe"):
        few, more = (rows[w, method]["value"] for w in ("2-per-class", "20-per-class"))
        assert more > few > 0.2


def test_the_command_refuses_what_it_must(run):
    def call(*more):
        return command.contrapose("finetune", run.path, *more)

    wrong = call("--protocol", "simclt")
    assert wrong.returncode != 0 and "did you mean 'simclr'" in wrong.stderr
    done = call("--labels", "1-per-class", "--draws", "1", "--protocol", "simclr")
    said = " ".join(done.stdout.split())
    assert done.returncode == 0 and "over test images for a single draw" in said, done
    assert f"contrapose report {run.path}" in done.stdout
    assert (run.path / "finetune" / "1-per-class-draw0" / "finetuned").is_dir()
    wrong = call("--labels", "labels.csv")
    assert wrong.returncode == 2 and "for other images" in wrong.stderr
