"""Copies and groups stay on one side of what is held out, and are counted in what is said."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import contrapose
from contrapose import explain
from contrapose.data import Request, hold_out, open_images
from contrapose.data.copies import copies, named_groups, repeated
from contrapose.evaluation.scores import accuracy, effective_number, wilson
from contrapose.experiments.trained import both_splits
from contrapose.explain.verdict import verdict
from contrapose.studies import tuning


def clips(folder, noise: int, clips: int = 20, frames: int = 6):
    """Files of clips whose frames differ by noise; a class drawn for each clip."""
    random = np.random.default_rng(0)
    for clip in range(clips):
        base = random.integers(40, 216, (8, 8, 3)).repeat(3, 0).repeat(3, 1)
        place = folder / "ab"[clip % 2]
        place.mkdir(parents=True, exist_ok=True)
        for frame in range(frames):
            x = (base + random.integers(-noise, noise + 1, base.shape)).clip(0, 255)
            Image.fromarray(x.astype(np.uint8)).save(place / f"clip{clip:02d}_{frame}.png")
    return folder


def saved_again(square: np.ndarray, quality: int, side: int) -> np.ndarray:
    """The picture resized, compressed and resized back, as copies on a disk are."""
    size = square.shape[0]
    buffer = io.BytesIO()
    Image.fromarray(square).resize((side, side)).save(buffer, "jpeg", quality=quality)
    return np.asarray(Image.open(buffer).resize((size, size)))


@pytest.mark.parametrize("noise", [0, 6])
def test_copies_and_frames_are_found_and_kept_on_one_side(tmp_path, noise):
    images = open_images(clips(tmp_path, noise))
    found = copies(images)
    assert len(torch.unique(found.group)) == 20 and found.repeats == 100
    assert found.exact == (100 if noise == 0 else 0)
    kept, held = Request(images).divided(images, 0.2, 0)
    assert {f[:8] for f in kept.files}.isdisjoint({f[:8] for f in held.files})
    assert len(held) == 24 and len(torch.unique(held.label)) == 2
    assert len(repeated(held, kept)[0]) == 0
    careless = hold_out(images, 0.2)
    assert len(repeated(careless[1], careless[0])[0]) == 24


def test_an_image_saved_again_is_a_copy_and_another_image_is_none():
    random = np.random.default_rng(0)
    x = random.random((60, 3, 7, 7))
    smooth = torch.nn.functional.interpolate(torch.from_numpy(x), size=64, mode="bicubic")
    squares = smooth.mul(255).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    assert copies(open_images(squares)).repeats == 0
    again = np.stack([saved_again(s, 60, 48) for s in squares[:20]])
    found = copies(open_images(np.concatenate([squares, again])))
    assert (found.exact, found.near) == (0, 20)
    assert found.group[60:].tolist() == list(range(20))
    digits = copies(open_images("digits"))
    assert (digits.exact, digits.near) == (0, 0)


def test_without_copies_the_parts_are_those_of_before():
    images = open_images("digits").subset(torch.arange(200))
    parts = Request(images).divided(images, 0.2, 3)
    assert [p.fingerprint for p in parts] == [p.fingerprint for p in hold_out(images, 0.2, 3)]


def test_groups_are_told_by_a_pattern_or_a_table(tmp_path):
    images = open_images(clips(tmp_path / "x", 90, frames=2))
    by_name = named_groups(images, r"clip(\d+)_")
    table = tmp_path / "groups.csv"
    table.write_text("file,group\n" + "".join(f"{f},g{f[6:8]}\n" for f in images.files))
    for told in (by_name, named_groups(images, table)):
        assert len(np.unique(told)) == 20 and (np.bincount(told) == 2).all()
    with pytest.raises(ValueError, match=r"--groups clip: a pattern has one part in parentheses"):
        named_groups(images, "clip")
    with pytest.raises(ValueError, match=r"fits none of the names, such as 'a/clip00_0\.png'"):
        named_groups(images, r"patient(\d+)")
    with pytest.raises(ValueError, match="no regular expression"):
        named_groups(images, "clip(")


def test_one_group_of_all_images_is_refused_before_training(tmp_path):
    folder, out = clips(tmp_path / "x", 90, clips=4, frames=5), tmp_path / "r"
    with pytest.raises(ValueError, match=r"--groups \(cl\)ip: all 20 images .* are in one group"):
        contrapose.train("simclr", folder, groups="(cl)ip", out=out, epochs=1)
    assert not out.exists()


def test_a_run_keeps_groups_together_and_its_intervals_count_them(tmp_path):
    folder = clips(tmp_path / "x", 90, clips=20, frames=5)
    how = {"epochs": 1, "batch_size": 16, "encoder": "small_conv", "device": "cpu"}
    run = contrapose.train("simclr", folder, groups=r"clip(\d+)_", out=tmp_path / "r", **how)
    written = json.loads((run.path / "recipe.json").read_text())["data"]
    assert (written["groups"], written["copies_together"]) == (r"clip(\d+)_", True)
    first = contrapose.evaluate(run, device="cpu")[0]
    assert (first.n, first.groups) == (20, 4)
    low, high = wilson(round(first.value * 20), 20)
    assert first.low <= low and first.high >= high
    states = [f["state"] for f in explain.diagnose(run, device="cpu")["verdict"]]
    assert "groups" in states and "not readable" in states
    data = {k: v for k, v in written.items() if k not in ("groups", "copies_together")}
    assert not Request.from_json(data).copies_together  # of an older run: held out as it was then


def test_a_search_holds_out_whole_groups_too(tmp_path):
    data = {"source": str(clips(tmp_path, 90, frames=3)), "groups": r"clip(\d+)_"}
    images = tuning.opened("train", data=data, most=50)
    train, test = both_splits(
        lambda split: tuning.opened(split, data=data, most=50), None, None, None
    )
    assert len(train) + len(test) == len(images) == 50
    assert {f[:8] for f in train.files}.isdisjoint({f[:8] for f in test.files})


def test_examples_that_repeat_count_once():
    random = np.random.default_rng(0)
    right = torch.from_numpy(random.random(50) < 0.7)
    group = torch.arange(50)
    assert effective_number(right, group) == pytest.approx(49)  # G / (G - 1) of the variance
    same = effective_number(right.repeat_interleave(8), group.repeat_interleave(8))
    assert same == pytest.approx(49)
    assert effective_number(torch.ones(40, dtype=torch.bool), torch.arange(40) // 8) == 5
    scores, label = torch.eye(2)[torch.arange(40) // 8 % 2], torch.zeros(40, dtype=torch.long)
    how = dict(metric="m", protocol="p", split="s", seed=0, features="h")
    alone, told = (accuracy(scores, label, **how, group=g) for g in (None, torch.arange(40) // 8))
    assert alone.value == told.value == 0.6 and told.low < alone.low and told.groups == 5


def test_the_verdict_says_what_repeats_and_what_that_means():
    signals = {
        "exact_copies": 3, "near_copies": 4, "compared_images": 30_000, "train_images": 50_000,
        "test_images": 1_000, "test_images_in_train": 37, "test_images_in_train_exactly": 30,
    }  # fmt: skip
    found = {f.state: f for f in verdict([], signals=signals)}
    assert "37 of 1,000 test images are copies of training images" in (
        found["copies across the split"].sentence
    )
    assert found["copies across the split"].level == "bad"
    assert "3 byte for byte, 4 nearly; 30,000 of 50,000" in found["copies"].evidence
    assert "groups" not in found
