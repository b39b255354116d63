"""Whether the encoder is compiled, and that a compiled one learns the same."""

import json

import pytest
import torch
from support.command import contrapose
from support.quick_recipe import quick

from contrapose import adapt, api
from contrapose.data import open_images
from contrapose.encoders import read_weights
from contrapose.errors import UserError
from contrapose.training import compiling, trials
from contrapose.training.compiling import GAIN, WAYS, chosen_way, judged

SLOW = {"off": 0.10, "on": 0.08, "on, first": 60.0, "graphs": 0.07, "graphs, first": 90.0}


@pytest.mark.parametrize(
    ("seen", "steps", "way"),
    [
        (SLOW, 100_000, "graphs"),
        (SLOW, 2500, "off"),  # 250 s; compiled 260 s
        (SLOW, 2999, "off"),  # 299.9 s; 299.92 and 299.93 s
        (SLOW, 3001, "graphs"),  # on 300.08, graphs 300.07, off 300.1
        ({"off": 0.10, "on": 0.08, "on, first": 60.0}, 1e5, "on"),  # graphs failed
        ({"off": 0.10}, 1e5, "off"),
        ({"off": 0.10, "on": 0.0999 / GAIN, "on, first": 1.0}, 1e9, "on"),
        ({"off": 0.10, "on": 0.1001 / GAIN, "on, first": 1.0}, 1e9, "off"),
    ],
)
def test_the_way_is_that_by_which_the_whole_run_ends_soonest(seen, steps, way):
    chosen, words = judged(seen, WAYS, steps)
    assert chosen == way
    assert words.startswith("0.1 s not compiled")
    assert ("it fails" in words) == (len([w for w in WAYS if w in seen]) < 3)


def test_on_a_cpu_nothing_is_tried_and_what_cannot_be_is_refused(tmp_path):
    digits, recipe = open_images("digits"), quick()
    network = adapt.build(recipe, digits)
    assert chosen_way("auto", recipe, digits, network, "cpu", bf16=False)[0] == "off"
    for begun, way in (("graphs", "on"), ("on", "on"), ("off", "off"), (None, "off")):
        found = chosen_way(None, recipe, digits, network, "cpu", bf16=False, begun=begun)
        assert found[0] == way
        assert (found[1] == "as the run was begun") == (begun in ("on", "off"))
    with pytest.raises(UserError, match=r"--compile quick: use auto, on, off or graphs"):
        api.train(recipe, "no such folder", out=tmp_path / "run", compiled="quick")
    with pytest.raises(UserError, match=r"--compile graphs: CUDA graphs take one process on a CUD"):
        api.train(recipe, digits, out=tmp_path / "run", compiled="graphs", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_long_run_is_tried_and_the_result_kept(tmp_path, monkeypatch):
    """On a CPU, where nothing compiles in this time: the compiler is one that there is not."""
    monkeypatch.setenv("CONTRAPOSE_CACHE", str(tmp_path / "cache"))
    digits, recipe = open_images("digits"), quick()
    network, state = adapt.build(recipe, digits), torch.get_rng_state()
    found = compiling.quickest(recipe, digits, network, "cpu", ("off",), bf16=False)
    assert found[0] == "off" and "too little to compile for" in found[1]
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(compiling, "WORTH", 0.0)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, str(tmp_path / "none")))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    found = compiling.quickest(recipe, digits, network, "cpu", ("off", "on"), bf16=False)
    assert found[0] == "off" and found[1].startswith("measured at the start: a step of")
    assert found[1].endswith("not compiled; compiled it fails")
    (kept,) = (tmp_path / "cache/compile").iterdir()
    kept.write_text(json.dumps({"off": 1.0, "on": 0.5, "on, first": 0.0}))
    found = compiling.quickest(recipe, digits, network, "cpu", ("off", "on"), bf16=False)
    assert found[0] == "on" and found[1].startswith("measured before")
    kept.write_text("{")
    _, when = trials.remembered(
        "compile", ("off",), recipe, digits, lambda: {"off": 1.0}, "cpu", False, None, ("off", "on")
    )
    assert when == "at the start" and json.loads(kept.read_text())["off"] == 1.0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow  # the compiler takes 30 s for each
@pytest.mark.parametrize("changes", [[], ["--set", "chunk=64"], ["--ranks", "2"]])
def test_a_compiled_encoder_learns_the_same(tmp_path, changes):
    train = [
        "train", "digits", "--encoder", "small_conv", "--set", "backbone.width=16", "--epochs", "1",
        "--batch-size", "100", "--device", "cpu", "--precision", "fp32", "--no-explain", *changes,
    ]  # fmt: skip
    for way in ("off", "on"):
        done = contrapose(*train, "--out", way, "--compile", way, cwd=tmp_path, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / way / "environment.json").read_text())["compile"] == way
    off, on = (read_weights(tmp_path / way)[0] for way in ("off", "on"))
    assert max((off[name].double() - on[name]).abs().max() for name in off) < 1e-5
