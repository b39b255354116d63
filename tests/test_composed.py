"""Composed sets: pixels as a loop makes them, labels that pixels confirm, the same everywhere."""

import io
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from support.command import contrapose

from contrapose import api, explain
from contrapose.augment import crop_flip, digits, on_channels, views
from contrapose.commands import list_ as terminal
from contrapose.data import COMPOSED, Images, hold_out, open_images
from contrapose.data.composed import (
    coloured,
    contact_sheet,
    digits_on_images,
    features_of,
    layout,
    many_digits,
    random_bits,
    two_digits,
    usage,
    write_sheet,
)
from contrapose.data.composed.canvas import ink_box, resized
from contrapose.data.composed.spec import absolute
from contrapose.encoders import Encoder, none, small_conv
from contrapose.evaluation.features import probes_of_features, read_features

CALLS = (
    "many-digits(digits, digits=3)",
    "many-digits(digits, digits=16, placement=grid, by=maximum)",
    "many-digits(digits, digits=1, images=50)",
    "digits-on-images(digits, digits, glyph=2)",
    "digits-on-images(digits, digits, unique=4, glyph=2, by=addition)",
    "two-digits(digits, fixed=6, varied=13, canvas=32, images=60)",
    "random-bits(digits, bits=5)",
    "random-bits(coloured(digits, colours=3), bits=2, label=colour)",
    "coloured(digits, saturation=1)",
    "digits-on-images(digits, digits, glyph=3, placement=grid, contrast=0.3)",
)
every_call = pytest.mark.parametrize("call", CALLS)
GLYPHS = open_images("digits")
INK = GLYPHS.batch(torch.arange(len(GLYPHS)))[:, 0]


def real(name: str) -> None:
    root = os.environ.get("CONTRAPOSE_DATA")
    if not root or not (Path(root) / name).exists():
        pytest.skip(f"needs {name} in the folder that CONTRAPOSE_DATA names")


def everything(images):
    return images.batch(torch.arange(len(images)))


def photographs(n, side, channels=3):
    pixels = np.random.default_rng(1).integers(0, 256, (n, side, side, channels), dtype=np.uint8)
    return open_images((pixels[..., 0] if channels == 1 else pixels, np.arange(n) % 3))


def cut(square):
    """A glyph without the black around it."""
    rows, columns = np.nonzero(square.any(1))[0], np.nonzero(square.any(0))[0]
    return square[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


# ---- the contract of an image set


@every_call
def test_a_composed_set_is_an_image_set(call):
    images = open_images(call)
    index = torch.tensor([7, 0, 7, 31])
    batch = images.batch(index)
    assert batch.dtype == torch.uint8
    assert batch.shape == (4, images.channels, images.size, images.size)
    assert torch.equal(batch[0], batch[2])
    part = images.subset(index)
    assert torch.equal(everything(part), batch) and images.batch(index[:0]).shape[0] == 0
    for name, label in images.features.items():
        assert torch.equal(part.features[name], label[index])
    kept, held = hold_out(images, 0.25)
    assert len(kept) + len(held) == len(images) and len(held.features) == len(images.features)
    assert images.name == call
    again = open_images(call, size=images.size, channels=images.shown)  # as a run reopens it
    assert again.fingerprint == images.fingerprint


def test_images_are_the_same_in_every_process():
    code = (
        "import json, sys, torch; from contrapose.data import open_images\n"
        "torch.manual_seed(5); torch.set_num_threads(1)\n"
        "for call in json.load(sys.stdin):\n"
        "    x = open_images(call); index = torch.arange(40)\n"
        "    print(hash(tuple(x.batch(index).flatten().tolist())), x.fingerprint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(CALLS), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for call, line in zip(CALLS, done.stdout.splitlines(), strict=True):
        images = open_images(call)
        pixels = hash(tuple(images.batch(torch.arange(40)).flatten().tolist()))
        assert line == f"{pixels} {images.fingerprint}", call


def test_an_image_does_not_depend_on_how_many_follow_nor_a_digit_on_how_many_lie_beside():
    few, many = (many_digits(GLYPHS, digits=3, images=n) for n in (20, 200))
    assert torch.equal(everything(few), everything(many)[:20])
    three, five = (layout(many_digits(GLYPHS, digits=k), torch.arange(9)).glyph for k in (3, 5))
    assert torch.equal(three, five[:, :3])
    five_bits, nine_bits = (everything(random_bits(GLYPHS, bits=b)) for b in (5, 9))
    assert torch.equal(five_bits, nine_bits[:, :6])


def test_seed_split_and_every_option_make_another_set():
    sets = [many_digits(GLYPHS, digits=2, seed=seed) for seed in (0, 1)]
    sets += [open_images("many-digits(digits, digits=2)", split="test")]
    sets += [many_digits(GLYPHS, digits=2, by="maximum"), many_digits(GLYPHS, digits=3)]
    assert len({images.fingerprint for images in sets}) == len(sets)
    assert not torch.equal(everything(sets[0]), everything(sets[1]))


# ---- pixels: a loop as oracle


@pytest.mark.parametrize("by", ["addition", "maximum"])
@pytest.mark.parametrize("placement", ["random", "grid"])
def test_many_digits_is_a_loop_over_digits(placement, by):
    images = many_digits(GLYPHS, digits=7, placement=placement, by=by, canvas=27, images=30)
    made, where = everything(images)[:, 0].numpy(), layout(images, torch.arange(30))
    for i in range(30):
        canvas = np.zeros((27, 27), int)
        for (top, left, height, width), glyph in zip(
            where.box[i].tolist(), where.glyph[i].tolist(), strict=True
        ):
            square = INK[glyph].numpy()
            square = cut(square) if placement == "random" else square
            assert square.shape == (height, width)
            part = canvas[top : top + height, left : left + width]
            part[:] = np.maximum(part, square) if by == "maximum" else part + square
        assert np.array_equal(made[i], canvas.clip(max=255))


@pytest.mark.parametrize("by", ["addition", "maximum"])
def test_two_digits_is_a_loop_over_the_two(by):
    images = two_digits(GLYPHS, fixed=9, varied=21, canvas=30, by=by, images=20, channels=3)
    made, where = everything(images), layout(images, torch.arange(20))
    assert torch.equal(made[:, 0], made[:, 2])
    for i in range(20):
        canvas = np.zeros((30, 30), int)
        for k, size in enumerate((9, 21)):
            square = cut(resized(INK[where.glyph[i, k]][None], size)[0].numpy())
            top, left, height, width = where.box[i, k].tolist()
            assert square.shape == (height, width)
            part = canvas[top : top + height, left : left + width]
            part[:] = np.maximum(part, square) if by == "maximum" else part + square
        assert np.array_equal(made[i, 0].numpy(), canvas.clip(max=255))


@pytest.mark.parametrize("by", ["addition", "maximum"])
def test_nine_copies_lie_where_the_notebook_puts_them(by):
    under = photographs(4, 224)
    glyphs = open_images(np.random.default_rng(2).integers(0, 256, (5, 28, 28), np.uint8))
    images = digits_on_images(under, glyphs, by=by, unique=3)
    made, chosen = everything(images), layout(images, torch.arange(4)).glyph[:, 0]
    for i in range(4):
        image = under.batch(torch.tensor([i]))[0].int()
        for top in (33, 100, 168):
            for left in (33, 100, 168):
                part = image[:, top : top + 28, left : left + 28]
                glyph = glyphs.batch(chosen[i : i + 1])[0].int()
                part[:] = torch.maximum(part, glyph) if by == "maximum" else part + glyph
        assert torch.equal(made[i].int(), image.clamp(max=255))


@pytest.mark.parametrize("contrast", [0.3, 1.0])
def test_a_digit_keeps_its_brightness_where_the_contrast_of_the_image_is_lowered(contrast):
    under = photographs(6, 17)
    images = digits_on_images(under, GLYPHS, glyph=8, placement="grid", contrast=contrast)
    made, chosen = everything(images), layout(images, torch.arange(6)).glyph
    assert chosen.shape == (6, 4)  # two by two of 8 px, and a row and a column over
    for i in range(6):
        ink = torch.zeros(17, 17, dtype=torch.uint8)
        ink[:16, :16] = INK[chosen[i, 0]].tile(2, 2)
        plain = (under.batch(torch.tensor([i]))[0] * contrast).round().byte()
        assert torch.equal(made[i], torch.maximum(plain, ink))
    assert torch.equal(images.features["image"], under.label)


def test_sets_that_older_run_folders_name_have_the_fingerprint_they_had():
    images = open_images("digits-on-images(digits, digits, unique=4, glyph=2, by=addition)")
    assert images.fingerprint == "ba8956fff1340304"  # as written before contrast and placement
    faint = digits_on_images(GLYPHS, GLYPHS, unique=4, glyph=2, by="addition", contrast=0.5)
    assert faint.fingerprint != images.fingerprint


def test_resizing_is_the_identity_at_the_same_side_and_keeps_the_ink():
    assert torch.equal(resized(INK, 8), INK)
    for side in (5, 8, 20, 33):
        ratio = resized(INK, side).double().mean() / INK.double().mean()
        assert abs(float(ratio) - 1) < 0.05
    blank = torch.zeros(2, 6, 6, dtype=torch.uint8)
    assert ink_box(blank).tolist() == [[0, 0, 6, 6]] * 2


@pytest.mark.parametrize("canvas", [8, 9, 40])
def test_digits_stay_inside_the_canvas_and_reach_its_edges(canvas):
    images = many_digits(GLYPHS, digits=4, canvas=canvas, images=400)
    box = layout(images, torch.arange(400)).box
    assert int(box[..., :2].min()) == 0
    assert int((box[..., :2] + box[..., 2:]).max()) == canvas
    grid = many_digits(GLYPHS, digits=9, placement="grid", canvas=25, images=50)
    corner = layout(grid, torch.arange(50)).box[..., :2]
    assert all(len({tuple(c) for c in one}) == 9 for one in corner.tolist())


def test_every_glyph_is_drawn_as_often_as_any_other():
    few = GLYPHS.subset(torch.arange(10))
    drawn = layout(many_digits(few, digits=16, images=1000), torch.arange(1000)).glyph
    count = torch.bincount(drawn.flatten(), minlength=10)
    assert (count - 1600).abs().max() < 5 * 1600**0.5


# ---- labels: a decoder reads them from the pixels


def name_of(square, glyphs, label):
    """The labels of the glyphs that look like this one."""
    return {int(label[g]) for g in range(len(glyphs)) if np.array_equal(cut(glyphs[g]), square)}


@pytest.mark.parametrize("placement", ["random", "grid"])
def test_the_label_of_a_single_digit_is_that_of_its_pixels(placement):
    images = many_digits(GLYPHS, digits=1, placement=placement, images=25)
    assert images.label is images.features["digit"] and images.classes == GLYPHS.classes
    for square, label in zip(everything(images)[:, 0].numpy(), images.label, strict=True):
        assert name_of(cut(square), INK.numpy(), GLYPHS.label) == {int(label)}


def test_which_digits_a_canvas_holds_is_read_from_its_cells():
    images = many_digits(GLYPHS, digits=5, placement="grid", images=12)
    assert images.label is None
    for i, canvas in enumerate(everything(images)[:, 0].numpy()):
        cells = [canvas[y : y + 8, x : x + 8] for y in range(0, 32, 8) for x in range(0, 32, 8)]
        read = [name_of(cut(cell), INK.numpy(), GLYPHS.label) for cell in cells if cell.any()]
        assert all(len(one) == 1 for one in read) and len(read) == 5
        there = {int(c) for c in range(10) if images.features[f"holds {c}"][i]}
        assert there == set.union(*read)


def test_digit_glyph_and_image_are_read_from_digits_on_images():
    under = photographs(30, 24)
    images = digits_on_images(under, GLYPHS, unique=6)
    assert torch.equal(images.label, under.label) and images.classes == under.classes
    alone = digits_on_images(open_images(np.zeros((6, 24, 24, 3), np.uint8)), GLYPHS, unique=6)
    stamp = {int(g): everything(alone)[i] for i, g in enumerate(alone.features["glyph"])}
    for i, image in enumerate(everything(images)):
        plain = under.batch(torch.tensor([i]))[0]
        fits = [g for g, s in stamp.items() if torch.equal(torch.maximum(plain, s), image)]
        glyph = int(images.features["glyph"][i])
        assert glyph not in stamp or fits == [glyph]
        assert images.features["digit"][i] == GLYPHS.label[glyph]
    many = digits_on_images(photographs(200, 24), GLYPHS, unique=6).features["glyph"]
    assert torch.unique(many).tolist() == list(range(6))


def test_the_colour_is_read_from_the_ratio_of_the_channels():
    images = coloured(GLYPHS, colours=6, saturation=0.7)
    total = everything(images).double().sum(dim=(2, 3))
    # hues at 0, 60 ... 300 degrees: the channels that are brightest name them
    brightest = (total > 0.9 * total.amax(dim=1, keepdim=True)).long()
    named = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]])
    assert torch.equal(named[images.features["colour"]], brightest)
    assert torch.equal(images.features["image"], GLYPHS.label)


def test_label_chooses_the_feature_that_is_learned():
    call = "digits-on-images(digits, digits, glyph=2, label={})"
    for name in ("image", "digit"):
        images = open_images(call.format(name))
        assert torch.equal(images.label, images.features[name])
        assert images.classes == GLYPHS.classes
    nested = open_images("random-bits(coloured(digits), bits=2, label=colour)")
    assert torch.equal(nested.label, nested.features["colour"]) and len(nested.classes) == 8


# ---- random bits


def test_bits_are_constant_channels_that_say_their_feature():
    images = random_bits(GLYPHS, bits=7)
    assert images.constant == 7 and images.shown == 1 and images.channels == 8
    batch = everything(images)
    assert torch.equal(batch[:, 0], INK)
    assert torch.equal(batch[:, 1:].amax(dim=(2, 3)), batch[:, 1:].amin(dim=(2, 3)))
    for j in range(7):
        assert torch.equal(batch[:, 1 + j, 0, 0] == 255, images.features[f"bit {j}"].bool())
    assert everything(random_bits(GLYPHS, bits=0)).shape[1] == 1


def test_bits_follow_the_pixels_not_the_place():
    order = torch.randperm(len(GLYPHS), generator=torch.Generator().manual_seed(0))
    there, moved = random_bits(GLYPHS, bits=16), random_bits(GLYPHS.subset(order), bits=16)
    assert torch.equal(everything(there)[order], everything(moved))
    pixels = np.zeros((33, 1, 4, 4), np.uint8)
    for k in range(16):  # images that differ from black in one pixel, by little or by much
        pixels[1 + k].flat[k], pixels[17 + k].flat[k] = 1, 128
    value = everything(random_bits(open_images(pixels[:, 0]), bits=32))[:, 1:, 0, 0]
    assert len(torch.unique(value, dim=0)) == 33


def test_bits_are_fair_and_independent_coins():
    images = photographs(4096, 4, 1)
    flips = everything(random_bits(images, bits=8, seed=3))[:, 1:, 0, 0].double() / 255
    assert (flips.mean(dim=0) - 0.5).abs().max() < 5 * 0.5 / 64
    assert (torch.corrcoef(flips.T) - torch.eye(8)).abs().max() < 5 / 64


@pytest.mark.parametrize("policy", [digits, crop_flip])
def test_views_share_the_bits_and_see_the_image_as_without_them(policy):
    batch = everything(random_bits(GLYPHS, bits=4))[:50]
    beside = partial(on_channels, views=policy, channels=1, size=11)
    seen = views(beside, batch, torch.Generator().manual_seed(2), n=2)
    assert seen.shape == (2, 50, 5, 11, 11)
    bits = (batch[:, 1:, :1, :1] / 255).expand(-1, -1, 11, 11)
    assert torch.equal(seen[0, :, 1:], bits) and torch.equal(seen[1, :, 1:], bits)
    plain = views(partial(policy, size=11), batch[:, :1], torch.Generator().manual_seed(2), n=2)
    assert torch.equal(seen[:, :, :1], plain)


def test_training_and_evaluation_take_the_bits_unchanged(tmp_path):
    call = "random-bits(digits, bits=3)"
    run = api.train(
        "simclr", call, out=tmp_path / "run", epochs=1, device="cpu", changes=["views.area=0.6,1"]
    )
    encoder = Encoder.load(run.path)
    assert encoder.channels == 4
    described = run.read("recipe.json")["recipe"]["views"]
    assert described["channels"] == 1 and described["views"]["area"] == [0.6, 1]
    found = explain.evaluate(run, device="cpu")
    scores = {score.metric: score for score in found if score.features == "h"}
    before = {score.metric: score for score in found if score.features == "untrained h"}
    assert {name for name in scores if ":" in name} <= before.keys()  # each beside its control
    for name in ("image", "bit 0", "bit 1", "bit 2"):
        assert f"{name}: linear probe accuracy" in scores
    assert scores["bit 0: linear probe accuracy"].value > 0.95
    assert explain.diagnose(run, device="cpu")["signals"]["images"] == 359
    embedded, images = api.embed(run, call, split="test", device="cpu")
    assert len(embedded.h) == 359 and images.constant == 3
    resumed = api.resume(run, device="cpu")
    assert resumed.read("status.json")["state"] == "finished"


# ---- a probe per feature


def test_a_probe_reads_each_feature_with_its_interval():
    torch.manual_seed(0)
    train, test = (open_images("random-bits(digits, bits=2)", split=s) for s in ("train", "test"))
    encoder = Encoder.build(partial(small_conv, channels=3, width=64), none, [0.3] * 3, [0.4] * 3)
    found = probes_of_features(encoder, train, test)
    assert list(found) == ["image", "bit 0", "bit 1"]
    assert found["bit 1"].value > 0.99 and found["image"].value > 0.7
    assert all(s.n == len(test) and s.low <= s.value <= s.high for s in found.values())
    often = (test.features["bit 0"] == train.features["bit 0"].mode().values).double().mean()
    assert f"the most common class alone: {float(often):.3f}" in found["bit 0"].protocol


def test_features_that_cannot_be_told_apart_are_named():
    train, test = many_digits(GLYPHS, digits=16), many_digits(GLYPHS, digits=16, seed=1)
    train.features["holds 3"].fill_(1)
    x, y = torch.randn(len(train), 4), torch.randn(len(test), 4)
    with pytest.warns(UserWarning, match="'holds 3', left out"):
        found = read_features(x, train, y, test, l2=1.0)
    assert len(found) == 9
    with pytest.raises(ValueError, match="no 'digit' in train and test; it has holds 0"):
        read_features(x, train, y, test, names=["digit"])
    plain = read_features(INK.flatten(1).float(), GLYPHS, INK.flatten(1).float(), GLYPHS, l2=1.0)
    assert plain["image"].value > 0.95
    assert features_of(open_images(np.zeros((3, 4, 4), np.uint8))) == {}


# ---- any PyTorch loader


@pytest.mark.parametrize("workers", [0, 2])
def test_any_loader_gets_images_views_and_labels(workers):
    images = open_images("random-bits(digits, bits=3)")
    two_views = lambda image: [image.float() / 255, image.flip(2).float() / 255]  # noqa: E731
    loader = torch.utils.data.DataLoader(
        Images(images, two_views, features=["bit 1", "image"]), batch_size=32, num_workers=workers
    )
    (first, second), label = next(iter(loader))
    assert first.shape == (32, 4, 8, 8) and torch.equal(first[:, 1:], second[:, 1:])
    assert torch.equal(first[:, :1], second[:, :1].flip(3))
    assert torch.equal(first[:, 2, 0, 0].long(), label["bit 1"])
    assert torch.equal(label["image"], GLYPHS.label[:32]) and set(label) == {"bit 1", "image"}


def test_an_item_is_what_the_set_holds():
    images = open_images("many-digits(digits, digits=1)")
    item, label = Images(images)[-1]
    assert torch.equal(item, everything(images)[-1]) and label == {"digit": int(images.label[-1])}
    with pytest.raises(IndexError):
        Images(images)[len(images)]
    with pytest.raises(ValueError, match="no feature 'image'; it has digit"):
        Images(images, features=["image"])


# ---- glyphs from anywhere


def test_an_omniglot_style_folder_of_dark_ink_is_a_glyph_set(tmp_path):
    """Whose glyphs are in the canvases of one split alone."""
    for c, name in enumerate(("alpha", "beta")):
        (tmp_path / "signs" / name).mkdir(parents=True)
        for k in range(5):
            paper = np.full((20, 20), 255, np.uint8)
            paper[2 : 5 + 6 * c + k, 5] = 0  # 3 to 7 px of ink, 9 to 13
            Image.fromarray(paper).save(tmp_path / "signs" / name / f"{k}.png")
    call = f"many-digits({tmp_path / 'signs'}, digits=1, images=60)"
    inks = {}
    for split, glyphs in (("train", 8), ("test", 2)):
        images = open_images(call, split=split)
        assert images.size == 80 and images.classes == ("alpha", "beta") and images.split == split
        assert images.notes["glyphs inverted, dark ink on light paper"] == glyphs
        inked = (everything(images) > 127).sum(dim=(1, 2, 3))
        assert torch.equal(images.label, (inked > 8).long())
        inks[split] = set(inked.tolist())
    assert len(inks["train"]) == 8 and len(inks["test"]) == 2
    assert inks["train"].isdisjoint(inks["test"])
    assert absolute("random-bits(digits, bits=3)") == "random-bits(digits, bits=3)"


def test_a_call_names_its_folders_wherever_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "mine" / "0.png")
    monkeypatch.chdir(tmp_path)
    named = absolute(
        "random-bits(digits-on-images(mine, digits, glyph=1), bits=3)", keep={"digits"}
    )
    inner = f"digits-on-images({tmp_path / 'mine'}, digits, glyph=1)"
    assert named == f"random-bits({inner}, bits=3)"
    monkeypatch.chdir("/")
    assert len(open_images(named)) == 1


# ---- errors

ERRORS = {
    "many-digit(digits)": "no composed set 'many-digit'; did you mean 'many-digits'",
    "random-bits": "write the sets it is composed of, random-bits(IMAGES, bits=8",
    "many-digits(digitz)": "its glyphs: 'digitz': no set of that name.*did you mean 'digits'",
    "digits-on-images(digits)": "takes IMAGES and GLYPHS, got 1; write digits-on-images(IMAGES",
    "many-digits(digits, digit=4)": "has no 'digit'; did you mean 'digits'",
    "many-digits(digits, digits=four)": "digits=four: 'four' is not of type int",
    "many-digits(digits, digits=17)": "digits=17 on a canvas; use 1 to 16",
    "many-digits(digits, digits=5, placement=grid, canvas=16)": "16 px have 4 cells of 8 px",
    "many-digits(digits, placement=spiral)": "placement=spiral",
    "many-digits(digits, canvas=5)": "a glyph of 8 px does not fit on a canvas of 5 px",
    "many-digits(digits, digits=2, digits=3)": "digits is given twice",
    "digits-on-images(digits, digits, unique=9999)": "has 1,438; use 1 to 1438",
    "digits-on-images(digits, digits, glyph=3)": "glyph=3 px does not fit.*use 1 to 2",
    "digits-on-images(digits, digits, glyph=9, placement=grid)": "does not fit.*use 1 to 8",
    "digits-on-images(digits, digits, placement=row)": "no 'row'.*Available: apart, grid",
    "digits-on-images(digits, digits, contrast=0)": "contrast=0; use a number above 0, up to 1",
    "digits-on-images(digits, digits, contrast=1.5)": "contrast=1.5; use a number above 0, up to 1",
    "digits-on-images(digits, digits, contrast=nan)": "contrast=nan: 'nan' is not of type float",
    "digits-on-images(digits, digits, contrast=low)": "contrast=low",
    "random-bits(digits, bits=33)": "bits=33 is out of range; use 0 to 32",
    "random-bits(random-bits(digits), bits=3)": "already has random bits",
    "coloured(random-bits(digits))": "outermost, once",
    "coloured(coloured(digits))": "already have a feature 'colour'",
    "coloured(digits, colours=1)": "colours=1; use 2 to 256",
    "random-bits(digits, label=digit)": "label=digit: no feature 'digit'. Available: bit 0",
}


@pytest.mark.parametrize("call", ERRORS)
def test_errors_repeat_the_request_and_say_what_to_do(call):
    words = ERRORS[call].replace("(", r"\(").replace(".*", "\0").replace(".", r"\.")
    with pytest.raises(ValueError, match=words.replace("\0", ".*")):
        open_images(call)


def test_sizes_and_labels_that_contradict_are_refused():
    with pytest.raises(ValueError, match="canvas=32, but 40 is asked for"):
        open_images("many-digits(digits, canvas=32)", size=40)
    with pytest.raises(ValueError, match="channels=1, but its images have 3"):
        open_images("coloured(digits)", channels=1)
    with pytest.raises(ValueError, match="choose with label=NAME"):
        open_images("coloured(digits)", labels=[0, 1])
    with pytest.raises(ValueError, match="glyphs are grey"):
        many_digits(photographs(4, 8))
    with pytest.raises(ValueError, match="no digits whose places are known"):
        layout(coloured(GLYPHS), torch.arange(2))
    assert open_images("many-digits(digits)", size=40, channels=3).channels == 3


# ---- contact sheets


@every_call
def test_every_composed_set_draws_its_contact_sheet(call):
    images = open_images(call)
    sheet = contact_sheet(images, count=5, columns=3)
    assert sheet.ndim == 3 and sheet.shape[2] == 3 and sheet.dtype == np.uint8
    zoom = -(-112 // images.size)
    first = images.batch(torch.tensor([0]))[0, : images.shown].permute(1, 2, 0).numpy()
    drawn = sheet[8 : 8 + zoom * images.size : zoom, 8 : 8 + zoom * images.size : zoom]
    assert np.array_equal(drawn, np.broadcast_to(first, drawn.shape))


def test_every_composed_set_is_listed_with_what_it_is(monkeypatch):
    assert usage("random-bits") == "random-bits(IMAGES, bits=8, label=none, seed=0)"
    monkeypatch.setattr(terminal, "console", Console(file=io.StringIO(), width=80))
    terminal.print_inventory()
    listed = terminal.console.file.getvalue()
    assert len(COMPOSED) == 5 and all(f"  {name} " in listed for name in COMPOSED)


def test_show_writes_a_sheet_and_keeps_what_is_there(tmp_path):
    done = contrapose("show", CALLS[7], "--count", "3", cwd=tmp_path)
    assert done.returncode == 0 and "5 x 8 x 8" in " ".join(done.stdout.split()), done.stderr
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 200
    with pytest.raises(FileExistsError, match="left as it is"):
        write_sheet(open_images(CALLS[0]), tmp_path / "sheet.png")


# ---- real sets


@pytest.mark.parametrize(
    ("name", "call", "shape"),
    [
        ("MNIST", "many-digits(mnist, digits=8)", (60_000, 1, 112)),
        ("MNIST", "random-bits(mnist, bits=10)", (60_000, 11, 28)),
        ("coco128", "digits-on-images(coco128, mnist, unique=16)", (128, 3, 224)),
    ],
)
def test_real_sets_compose(name, call, shape):
    real(name)
    images = open_images(call)
    assert (len(images), images.channels, images.size) == shape
    batch = images.batch(torch.arange(3))
    assert batch.shape == (3, shape[1], shape[2], shape[2])
    if "bits" in call:
        rate = torch.stack([v.double().mean() for n, v in images.features.items() if "bit" in n])
        assert (rate - 0.5).abs().max() < 5 * 0.5 / 60_000**0.5 + 0.002
