"""Corruptions against imagecorruptions-imaug: equal where nothing is drawn or the draw is given,
alike in distribution else; elastic against the published formula in SciPy. A development-only
oracle, of ImageNet-C's constants; those of 32 px share the code."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.stats import ks_2samp, kstest

from contrapose.evaluation import corruptions
from contrapose.evaluation.corruptions import (
    BENCHMARK,
    CORRUPTIONS,
    blurs,
    corrupted,
    filters,
    spatter,
    weather,
)

SIDE = 72
EVERY = (1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def oracle():
    why = "the oracle imagecorruptions-imaug cannot be imported: pip install -e '.[dev]'"
    return pytest.importorskip("imagecorruptions.corruptions", reason=why, exc_type=ImportError)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(channels=3, side=SIDE, seed=0):
    """Smooth colours with a hard edge and some noise: [1 C side side] in whole 255ths."""
    generator = seeded(seed)
    x = torch.rand(1, channels, 6, 6, generator=generator)
    x = torch.nn.functional.interpolate(x, (side, side), mode="bicubic").clamp(0, 1)
    x[..., side // 3 : side // 2, side // 4 : side // 2] = torch.rand(
        1, channels, 1, 1, generator=generator
    )
    x = x + 0.03 * torch.randn(x.shape, generator=generator)
    return (x.clamp(0, 1) * 255).round() / 255


def as_pillow(x):
    levels = (x[0] * 255).round().to(torch.uint8)
    return Image.fromarray((levels[0] if len(levels) == 1 else levels.permute(1, 2, 0)).numpy())


def back(made):
    """The oracle's answer as [1 C H W] in whole 255ths, cut off as it cuts off."""
    x = torch.from_numpy(np.atleast_3d(np.uint8(np.asarray(made))).copy())
    return x.permute(2, 0, 1)[None] / 255


def apart(ours, theirs):
    """Differences in levels of 0-255."""
    return ((ours - theirs) * 255).abs()


def finished(x):
    return (x.clamp(0, 1) * 255 + 1e-3).floor() / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("severity", EVERY)
@pytest.mark.parametrize(
    "name", ["defocus_blur", "gaussian_blur", "zoom_blur", "brightness", "contrast", "saturate",
             "pixelate"]
)  # fmt: skip
def test_what_draws_nothing_equals_the_oracle(name, severity, channels, oracle):
    if name == "saturate" and channels == 1:
        return
    for seed in (0, 1):
        x = picture(channels, seed=seed)
        given = x if name != "gaussian_blur" else x.expand(-1, 3, -1, -1)  # of gray it blurs rows
        theirs = back(getattr(oracle, name)(as_pillow(given), severity))[:, :channels]
        ours = corrupted(x, name, severity, seeded(), constants="large")
        off = apart(ours, theirs)  # one level where a value is whole but for rounding, and cut off
        assert off.max() <= 1.01 and off.mean() < 0.15, (off.max(), off.mean())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 72, 75])
def test_jpeg_is_what_pillows_encoder_leaves(side, channels, oracle):
    """But for coefficients half-way between two steps, which whole-number transforms round
    otherwise: now and then a block differs by one wave.
    """
    off, changed = [], []
    for severity in EVERY:
        for seed in range(8):
            x = picture(channels, side, seed)
            theirs = back(oracle.jpeg_compression(as_pillow(x), severity))
            ours = corrupted(x, "jpeg_compression", severity, seeded(), constants="large")
            off.append(apart(ours, theirs))
            changed.append(apart(x, theirs))
    off, changed = torch.cat(off), torch.cat(changed)
    assert off.median() == 0 and (off > 2.5).double().mean() < 0.02
    assert off.mean() < 0.03 * changed.mean()


@pytest.mark.parametrize("severity", EVERY)
def test_glass_moves_pixels_as_the_loop_does_one_by_one(severity):
    _, reach, _ = CORRUPTIONS["glass_blur"].large[severity - 1]
    side, random = 19, np.random.default_rng(severity)
    down, right = random.integers(-reach, reach, (2, 3, side, side))
    x = np.arange(3 * side * side, dtype=np.float32).reshape(3, 1, side, side)
    expected = x.copy()
    for b in range(3):
        for h in range(side - reach, reach, -1):
            for w in range(side - reach, reach, -1):
                expected[b, 0, h, w] = expected[b, 0, h + down[b, h, w], w + right[b, h, w]]
    ours = blurs.shuffled(*(torch.from_numpy(a) for a in (x, down, right)), reach)
    assert np.array_equal(ours.numpy(), expected)


def test_glass_follows_the_oracles_own_loop(oracle):
    """Its draws are NumPy's of the seed: the same image from them, blurs included."""
    x, severity = picture(), 3
    sigma, reach, rounds = CORRUPTIONS["glass_blur"].large[severity - 1]
    theirs = back(oracle.glass_blur(as_pillow(x), severity, seed=5))
    np.random.seed(5)  # noqa: NPY002
    level = (filters.gaussian(x, sigma) * 255 + 1e-3).floor() / 255
    for _ in range(rounds):
        shift = np.zeros((2, 1, SIDE, SIDE), dtype=np.int64)
        for h in range(SIDE - reach, reach, -1):
            for w in range(SIDE - reach, reach, -1):
                shift[:, 0, h, w] = np.random.randint(-reach, reach, size=(2,))[::-1]  # noqa: NPY002
        level = blurs.shuffled(level, *torch.from_numpy(shift), reach)
    off = apart(finished(filters.gaussian(level, sigma)), theirs)
    assert off.max() <= 2.01 and off.mean() < 0.1


@pytest.mark.parametrize("angle", [-135.0, -90.0, -45.0, -20.3, 0.0, 33.3, 45.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_motion_equals_the_oracle_at_the_same_angle(angle, channels, oracle):
    x = picture(channels)
    for radius, sigma in CORRUPTIONS["motion_blur"].large:
        shape = np.asarray(as_pillow(x)).astype(float)
        theirs = oracle._motion_blur(shape, radius, sigma, angle) / 255
        ours = filters.motion(x, radius, sigma, torch.tensor([angle]))[0]
        ours = ours[0] if channels == 1 else ours.permute(1, 2, 0)
        assert abs(ours.numpy() - theirs).max() < 1e-5


@pytest.mark.parametrize("severity", EVERY)
@pytest.mark.parametrize("channels", [1, 3])
def test_snow_equals_the_oracle_at_the_same_draw(severity, channels, oracle):
    x, c = picture(channels), CORRUPTIONS["snow"].large[severity - 1]
    np.random.seed(severity)  # noqa: NPY002
    theirs = back(oracle.snow(as_pillow(x), severity))
    np.random.seed(severity)  # noqa: NPY002
    layer = np.random.normal(size=(SIDE, SIDE), loc=c[0], scale=c[1])  # noqa: NPY002
    angle = np.random.uniform(-135, -45)  # noqa: NPY002
    ours = weather.snowed(
        x, c, torch.from_numpy(layer).float()[None, None], torch.tensor([angle]).float()
    )
    off = apart(finished(ours), theirs)  # a flake that is rounded away or not: 2 levels
    assert off.mean() < 0.05 and (off > 2.5).double().mean() < 1e-3


@pytest.mark.parametrize(("side", "decay"), [(2, 2.0), (16, 1.4), (64, 3.0)])
def test_plasma_equals_the_oracle_at_the_same_draws(side, decay, oracle):
    np.random.seed(3)  # noqa: NPY002
    theirs = oracle.plasma_fractal(side, decay)
    np.random.seed(3)  # noqa: NPY002
    draw = lambda h, w: torch.from_numpy(np.random.uniform(-1, 1, (1, h, w))).float()  # noqa: E731, NPY002
    assert abs(filters.plasma(side, decay, draw)[0].numpy() - theirs).max() < 1e-5


@pytest.mark.parametrize("severity", EVERY)
@pytest.mark.parametrize("channels", [1, 3])
def test_spatter_equals_the_oracle_at_the_same_draw(severity, channels, oracle):
    x, c = picture(channels, 96), CORRUPTIONS["spatter"].large[severity - 1]
    np.random.seed(severity)  # noqa: NPY002
    theirs = back(oracle.spatter(as_pillow(x), severity))
    np.random.seed(severity)  # noqa: NPY002
    layer = np.random.normal(size=(96, 96), loc=c[0], scale=c[1])  # noqa: NPY002
    ours = finished(spatter.spattered(x, c, torch.from_numpy(layer).float()[None, None]))
    off = apart(ours, theirs)
    assert apart(x, theirs).mean() > 1
    assert (off > 1.01).double().mean() < 0.02 and off.mean() < 0.5


def elastic_in_scipy(x, c, moved, field, span):
    """The published formula: OpenCV's warpAffine as exact bilinear sampling, then displacement."""
    side = x.shape[-1]
    middle, arm = side // 2, side // 3
    corner = np.array([[1, 1], [1, -1], [-1, -1]]) * arm + middle
    to = np.concatenate([corner + moved, np.ones((3, 1))], axis=1)
    back = np.linalg.solve(to, corner.astype(float))
    row, column = np.mgrid[:side, :side].astype(float)
    source = np.stack([column, row, np.ones_like(row)], axis=-1) @ back
    shift = [
        gaussian_filter(f, c[1] * span, mode="reflect", truncate=3) * c[0] * span for f in field
    ]
    made = []
    for channel in x:
        turned = map_coordinates(channel, [source[..., 1], source[..., 0]], order=1, mode="mirror")
        at = [row + shift[1], column + shift[0]]
        made.append(map_coordinates(turned, at, order=1, mode="reflect"))
    return np.stack(made)


@pytest.mark.parametrize("constants", ["small", "large"])
@pytest.mark.parametrize("severity", EVERY)
def test_elastic_is_the_published_formula(severity, constants):
    side = 32 if constants == "small" else 72
    c = getattr(CORRUPTIONS["elastic_transform"], constants)[severity - 1]
    span = side if constants == "small" else side * 244 / 224
    x, random = picture(3, side), np.random.default_rng(severity)
    moved = random.uniform(-c[2] * span, c[2] * span, (3, 2))
    field = random.uniform(-1, 1, (2, side, side))
    expected = elastic_in_scipy(x[0].double().numpy(), c, moved, field, span)
    turned = blurs.affine(x, torch.from_numpy(moved).float()[None])
    smooth = filters.gaussian(
        torch.from_numpy(field).float()[None], c[1] * span, border="symmetric", truncate=3.0
    )
    ours = blurs.displaced(turned, smooth * (c[0] * span))[0]
    assert abs(ours.numpy() - expected).max() < 2e-3


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"])
def test_noise_follows_the_oracles_law(name, level, severity, oracle):
    """On a flat image: the two samples of 12,288 values by Kolmogorov and Smirnov, p > 1e-4."""
    flat = torch.full((1, 3, 64, 64), round(level * 255) / 255)
    ours = corrupted(flat, name, severity, seeded(severity), constants="large").flatten()
    np.random.seed(severity)  # noqa: NPY002
    theirs = back(getattr(oracle, name)(as_pillow(flat), severity)).flatten()
    assert ks_2samp(ours, theirs).pvalue > 1e-4
    channel = corrupted(flat, name, severity, seeded(9), constants="large")[0].flatten(1)
    assert abs(np.corrcoef(channel)[0, 1]) < 4 / 64  # channels draw for themselves


@pytest.mark.parametrize("severity", EVERY)
@pytest.mark.parametrize("name", ["fog", "motion_blur", "glass_blur", "snow"])
def test_images_under_weather_and_blur_have_the_oracles_mean_and_spread(name, severity, oracle):
    """32 of each: mean and standard deviation of an image as samples of one law, p > 1e-3."""
    x = picture(side=64)
    ours = corrupted(x.expand(32, -1, -1, -1), name, severity, seeded(1), constants="large")
    np.random.seed(1)  # noqa: NPY002
    theirs = torch.cat([back(getattr(oracle, name)(as_pillow(x), severity)) for _ in range(32)])
    for measure in (partial(torch.mean, dim=(1, 2, 3)), partial(torch.std, dim=(1, 2, 3))):
        assert ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3


def test_directions_are_uniform():
    angle = []
    original = filters.motion
    for low, high, name in ((-45, 45, "motion_blur"), (-135, -45, "snow")):
        module = blurs if name == "motion_blur" else weather

        def record(x, radius, sigma, drawn):
            angle.append(drawn)
            return original(x, radius, sigma, drawn)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "motion", record)
            corrupted(torch.rand(2000, 1, 8, 8), name, 1, seeded())
        assert kstest((angle.pop() - low) / (high - low), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("severity", [1, 5])
def test_frost_has_the_photographs_colours_and_six_pictures(severity):
    """c[0] x + c[1] frost, cut off; the pictures' means are those of the photographs."""
    pictures = weather.frost_pictures(128)
    assert pictures.shape == (6, 3, 128, 128)
    mean = pictures.mean(dim=(2, 3)) * 255
    assert (mean - torch.tensor(weather.FROST_MEAN)).abs().max() < 12
    _, b = CORRUPTIONS["frost"].small[severity - 1]
    made = corrupted(torch.zeros(600, 3, 32, 32), "frost", severity, seeded())
    expected = b * torch.tensor(weather.FROST_MEAN).double().mean().item()
    assert made.mean().item() * 255 == pytest.approx(expected, rel=0.08)
    assert len({tuple(x) for x in made.flatten(1).tolist()}) > 590


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_at_every_size_is_an_image_and_the_generator_decides(name, channels):
    if channels not in (CORRUPTIONS[name].channels or (1, 3)):
        return
    for side in (5, 28, 33):
        x = picture(channels, side).expand(4, -1, -1, -1)
        for severity in (1, 3, 5):
            made = corrupted(x, name, severity, seeded(2))
            assert made.shape == x.shape and made.dtype == torch.float32
            assert 0 <= made.min() and made.max() <= 1 and bool(made.isfinite().all())
            torch.testing.assert_close((made * 255).round() / 255, made, atol=1e-6, rtol=0)
            assert torch.equal(corrupted((x * 255).round().byte(), name, severity, seeded(2)), made)
    assert corrupted(x[:0], name, 1, seeded()).shape == (0, channels, 33, 33)


RANDOM = sorted(set(CORRUPTIONS) - {
    "defocus_blur", "gaussian_blur", "zoom_blur", "brightness", "contrast", "saturate", "pixelate",
    "jpeg_compression",
})  # fmt: skip


@pytest.mark.parametrize("name", RANDOM)
def test_each_image_has_a_draw_of_its_own(name):
    made = corrupted(picture(side=32).expand(6, -1, -1, -1), name, 5, seeded()).flatten(1)
    assert torch.cdist(made, made).fill_diagonal_(1).min() > 0


@pytest.mark.parametrize("name", sorted(set(BENCHMARK) - {"elastic_transform"}))
def test_a_higher_severity_is_further_from_the_image(name):
    x = torch.cat([picture(side=32, seed=k) for k in range(24)])
    for constants in ("small", "large"):
        off = [
            (corrupted(x, name, severity, seeded(), constants=constants) - x).abs().mean().item()
            for severity in EVERY
        ]
        assert off[4] > off[0] > 0  # not so elastic: published severities 1 and 2 turn, 3-5 ripple


def test_fifteen_are_the_benchmark_and_four_are_not():
    assert len(BENCHMARK) == 15 and len(CORRUPTIONS) == 19
    assert corruptions.SMALL == 64


def test_unknown_names_severities_and_channels_are_refused_with_what_is_near():
    x = torch.rand(1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"'gausian_noise'; did you mean 'gaussian_noise'"):
        corrupted(x, "gausian_noise", 1, seeded())
    for severity, near in ((0, 1), (9, 5)):
        with pytest.raises(ValueError, match=rf"no severity {severity}; did you mean {near}"):
            corrupted(x, "fog", severity, seeded())
    with pytest.raises(ValueError, match=r"saturate is defined for images of 3 channels.*have 1"):
        corrupted(x, "saturate", 1, seeded())
    with pytest.raises(ValueError, match=r"snow is defined for images of 1 or 3.*have 4.*fog"):
        corrupted(torch.rand(1, 4, 8, 8), "snow", 1, seeded())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_cuda_corrupts_as_the_cpu_does_but_for_its_own_draw(name):
    x = torch.cat([picture(side=32, seed=k) for k in range(64)])
    there = corrupted(x.cuda(), name, 3, torch.Generator("cuda").manual_seed(0)).cpu()
    here = corrupted(x, name, 3, seeded())
    if name in RANDOM:
        means = [(made - x).abs().mean(dim=(1, 2, 3)) for made in (here, there)]
        assert ks_2samp(*means).pvalue > 1e-4
    else:
        assert apart(here, there).mean() < 0.05
