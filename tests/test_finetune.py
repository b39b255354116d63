"""Fine-tuning with few labels: draws, controls, what is saved, and a study that goes on."""

import json
import subprocess
import sys

import pytest
import torch
from support.quick_recipe import quick

import contrapose
from contrapose.data import balanced, open_images
from contrapose.downstream.finetune import budget, finetune, reached, saved
from contrapose.encoders import Encoder
from contrapose.errors import UserError
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
    few, all_ = saved({"b": 100, "a": 10}, seen, 100)
    assert (few["low"], few["high"]) == (pytest.approx(10**0.5), pytest.approx(10))
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


@pytest.mark.slow
def test_more_labels_are_better_and_each_method_has_the_rate_that_suits_it(run):
    found = finetune(run, labels=("2-per-class", "20-per-class"), draws=2)
    rows = {(row["labels"], row["method"]): row for row in found["rows"]}
    assert rows["20-per-class", "finetuned"]["rate"] in (3e-4, 1e-3, 3e-3)
    for method in ("finetuned", "scratch", "probe"):
        few, more = (rows[w, method]["value"] for w in ("2-per-class", "20-per-class"))
        assert more > few > 0.2


def test_the_command_refuses_what_it_must(run):
    def call(*more):
        command = [sys.executable, "-m", "contrapose", "finetune", str(run.path), *more]
        return subprocess.run(command, capture_output=True, text=True)

    wrong = call("--protocol", "simclt")
    assert wrong.returncode != 0 and "did you mean 'simclr'" in wrong.stderr
