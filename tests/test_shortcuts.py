"""Easy features: planted ones are named, their cure works, and plain digits are not accused."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from support.command import contrapose

from contrapose import adapt, augment, recipes
from contrapose.data import open_images
from contrapose.evaluation import easy_features as easy
from contrapose.studies import shortcuts
from contrapose.studies.candidates import candidates, with_suggestions

DIGITS = open_images("digits")
PIXELS = DIGITS.batch(torch.arange(len(DIGITS)))[:, 0].numpy()
LEVEL = np.random.default_rng(0).integers(0, 256, len(PIXELS)).astype(np.uint8)


def framed():
    """Digits in a frame of 2 px, each of its own grey."""
    made = np.pad(PIXELS, ((0, 0), (2, 2), (2, 2)))
    for side in (slice(0, 2), slice(-2, None)):
        made[:, side] = LEVEL[:, None, None]
        made[:, :, side] = LEVEL[:, None, None]
    return open_images(made)


def with_blue():
    """Digits whose blue channel is one level all over the image."""
    made = np.repeat(PIXELS[:, None], 3, axis=1)
    made[:, 2] = LEVEL[:, None, None]
    return open_images(made)


def bits(images, names, *, taken=()):
    """{feature: bits} of two views of 500 images, by the recipe for digits."""
    found = {c.name: c for c in candidates(images)}
    recipe = adapt.beside_constants(recipes.recipe_for("simclr", 8, 1), images)
    chosen = [found[name] for name in taken]
    policy = partial(with_suggestions(recipe.views, images, chosen), size=images.size)
    some = images.subset(torch.arange(500))
    return {n: shortcuts.shared_by_views(found[n], some, policy, 0)[0].bits.value for n in names}


def test_a_code_of_m_bits_has_m_bits_and_noise_has_none():
    generator = torch.Generator().manual_seed(0)
    code = torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1
    for m in (0, 3, 8):
        view = (code * (torch.arange(8) < m)).float()
        found = easy.shared(view, view, what="code", split="train")
        assert found.bits.value == pytest.approx(m, abs=1e-3)
        assert found.found.low <= 2.0**m / 256 <= found.found.high
    a, b = torch.randn(2, 256, 4, generator=generator)
    noise = easy.shared(a, b, what="noise", split="train")
    assert 0 <= noise.bits.value < 0.1 and noise.found.value < 0.03


def test_gaussian_bits_are_the_channels_capacity():
    """Among n images, two views x + e of x ~ N(0, I_d) share log2 of what their correlation says:
    I = -d/2 log2(1 - r^2), r = 1 / (1 + sigma^2), while far below log2 n."""
    generator = torch.Generator().manual_seed(0)
    x, sigma = torch.randn(1000, 3, generator=generator), 0.7
    a, b = (x + sigma * torch.randn(1000, 3, generator=generator) for _ in range(2))
    r = 1 / (1 + sigma**2)
    truth = -3 / 2 * math.log2(1 - r**2)
    found = easy.shared(a, b, what="x", split="train").bits.value
    assert 0.75 * truth < found <= 1.02 * truth


def test_what_h_holds_is_its_share_of_variance():
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(4000, 2, generator=generator)
    noise = torch.randn(4000, 2, generator=generator)
    h = (feature + noise) @ torch.randn(2, 20, generator=generator)
    half = easy.readable(h, feature, what="x", split="train")
    assert half.low < 0.5 < half.high
    assert easy.readable(h, noise.roll(1, 0), what="x", split="train").value < 0.02
    assert math.isnan(easy.readable(h, torch.ones(4000, 2), what="x", split="train").value)


def test_a_planted_border_is_measured_and_cut():
    images = framed()
    assert easy.border_width(images) == 2 and easy.border_width(DIGITS) == 0
    assert bits(images, ["border"])["border"] > 3
    assert bits(images, ["border"], taken=["border"])["border"] < 0.3


def test_constant_channels_are_found_whether_declared_or_not():
    declared = open_images("random-bits(digits, bits=3)")
    assert easy.constant_channels(declared) == (1, 2, 3)
    assert easy.constant_channels(with_blue()) == (2,)
    assert easy.constant_channels(DIGITS) == ()
    assert bits(declared, ["channels"])["channels"] == pytest.approx(3, abs=0.05)
    assert bits(with_blue(), ["channels"])["channels"] > 6
    for images in (declared, with_blue()):
        assert bits(images, ["channels"], taken=["channels"])["channels"] == 0


def test_colours_of_a_few_hues_are_found_and_turned_away():
    images = open_images("coloured(digits, colours=4)")
    assert 1.9 < bits(images, ["colour"])["colour"] < 3
    assert bits(images, ["colour"], taken=["colour"])["colour"] < 0.5


def test_plain_digits_share_nothing_planted():
    found = {c.name for c in candidates(DIGITS)}
    assert found == {"intensity", "position", "detail"}
    assert max(bits(DIGITS, found).values()) < shortcuts.CLEARLY


def test_repeated_images_are_found():
    near = PIXELS[5].copy()
    near[3, 3] = min(255, int(near[3, 3]) + 16) if near[3, 3] < 200 else near[3, 3] - 16
    made = open_images(np.concatenate([PIXELS[:200], PIXELS[3:4], near[None]]))
    groups, pairs = easy.duplicates(made)
    assert groups == ((3, 200),) and pairs.tolist() == [[5, 201]]


def test_hardened_views_refuse_what_leaves_nothing():
    image, generator = torch.rand(2, 1, 8, 8), torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="border=4 px of images of 8 x 8"):
        augment.hardened(image, generator, size=8, views=augment.digits, border=4)
    with pytest.raises(ValueError, match="area=0"):
        augment.hardened(image, generator, size=8, views=augment.digits, area=0.0)
    with pytest.raises(ValueError, match="channels=\\(1,\\)"):
        augment.blanked(image, generator, size=8, views=augment.digits, channels=(1,))


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    """`contrapose shortcuts` on a folder of framed photographs whose name is markup."""
    from PIL import Image

    root = tmp_path_factory.mktemp("photos")
    folder = root / "<script>alert(1)<∕script>"
    folder.mkdir()
    images = framed()
    for i, pixel in enumerate(images.batch(torch.arange(150))[:, 0].numpy()):
        Image.fromarray(pixel).save(folder / f"{i}.png")
    arguments = ("shortcuts", folder.name, "--steps", "4", "--out", "found", "--device", "cpu")
    return root, arguments, contrapose(*arguments, cwd=root)


def test_the_command_names_the_border_and_writes_a_recipe_that_cuts_it(examined):
    root, _, done = examined
    assert done.returncode == 0, done.stderr
    assert "shared: Border" in done.stdout
    paths = [line for line in done.stdout.splitlines() if "/" not in line]
    assert max(map(len, paths)) <= 80
    found = json.loads((root / "found" / "shortcuts.json").read_text())
    border = next(row for row in found["candidates"] if row["name"] == "border")
    assert border["suggested"] and border["bits_after"]["value"] < border["bits"]["low"]
    page = (root / "found" / "report.html").read_text()
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    own = recipes.recipe_for(root / "found" / "hardened.py", 12, 1)
    assert own.views.func is augment.hardened and own.views.keywords["border"] == 2


@pytest.mark.slow  # four brief runs
def test_the_same_request_again_trains_nothing_and_another_is_refused(examined):
    root, arguments, _ = examined
    weights = root / "found" / "as-it-is" / "encoder.safetensors"
    before = weights.stat().st_mtime_ns
    other = contrapose(*arguments[:3], "5", *arguments[4:], cwd=root)
    assert other.returncode == 2 and "holds another request" in other.stderr
    brief = ("--encoder", "small_conv", "--epochs", "1", "--batch-size", "50", "--no-explain")
    brief += ("--temperature", "0.7")
    assert contrapose("train", arguments[1], *brief, "--out", "own", cwd=root).returncode == 0
    of_run = contrapose("shortcuts", "own", "--out", "again", cwd=root)
    assert of_run.returncode == 0 and "Border" in of_run.stdout, of_run.stderr
    own = recipes.recipe_for(root / "again" / "hardened.py", 12, 1)
    assert own.batch_size == 50 and own.loss.keywords["temperature"] == 0.7  # the run's
    assert own.views.func is augment.hardened and own.views.keywords["border"] == 2
    assert weights.stat().st_mtime_ns == before
    few = contrapose("shortcuts", "own", "--size", "8", cwd=root)
    assert few.returncode == 2 and "leave out --size" in few.stderr
