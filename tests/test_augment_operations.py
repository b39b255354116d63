"""The operations of AutoAugment and RandAugment against Pillow at the same parameters, bit for bit;
what a policy draws, counted; the warp against the spline in float64."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import map_coordinates
from scipy.stats import binom, kstest
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.functional import InterpolationMode

from contrapose.augment import (
    OPERATIONS,
    ImageOperations,
    Warp,
    autoaugment,
    draw_autoaugment,
    draw_randaugment,
    randaugment,
    simaugment,
    stacked_randaugment,
)
from contrapose.augment.automated import V0, argument_of
from contrapose.augment.operations import CODE

SIDES = ((1, 1), (2, 5), (7, 7), (32, 32), (33, 20), (64, 90))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count, channels, height, width):
    """Noise, gradients and flat images: empty histograms and full ones."""
    x = torch.randint(0, 256, (count, channels, height, width), generator=seeded(3))
    x[1::4] = x[1::4] // 8 + 60
    x[2::4] = torch.linspace(20, 230, width).long()
    x[3::4] = x[3::4, :, :1, :1]
    return x.to(torch.uint8)


def one(name, argument, count=1, place=(0.5, 0.5), **more):
    return ImageOperations(
        code=torch.full((count, 1), CODE[name]),
        argument=torch.full((count, 1), float(argument)),
        place=torch.tensor([[place]]).expand(count, 1, 2).float(),
        **more,
    )


def as_pillow(x):
    return Image.fromarray(x[0].numpy() if len(x) == 1 else x.permute(1, 2, 0).numpy())


def back(picture):
    return torch.from_numpy(np.atleast_3d(np.asarray(picture)).copy()).permute(2, 0, 1)


def by_torchvision(x, name, argument):
    """torchvision's own function for the name, on a Pillow image, gray outside."""
    theirs = {"shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX",
              "translate_y": "TranslateY", "auto_contrast": "AutoContrast"}  # fmt: skip
    relative = name in ("color", "contrast", "brightness", "sharpness")
    fill = [128.0] * len(x)
    made = _apply_op(
        as_pillow(x),
        theirs.get(name, name.title()),
        argument - 1 if relative else argument,
        InterpolationMode.NEAREST,
        fill,
    )
    return back(made)


ARGUMENTS = {
    "identity": [0],
    "auto_contrast": [0],
    "equalize": [0],
    "invert": [0],
    "rotate": [-30, -27, -3, 0, 3, 12, 24, 30, 45, 90, 137.3, 180],
    "posterize": [1, 2, 4, 8],
    "solarize": [0, 51, 128, 255, 256],
    "color": [0.0, 0.1, 0.46, 1.0, 1.72, 1.9],
    "contrast": [0.0, 0.1, 0.46, 1.0, 1.72, 1.9],
    "brightness": [0.0, 0.1, 0.46, 1.0, 1.72, 1.9],
    "sharpness": [0.0, 0.1, 0.46, 1.0, 1.72, 1.9],
    "shear_x": [-0.3, -0.09, 0.0, 0.12, 0.27, 0.3],
    "shear_y": [-0.3, -0.09, 0.0, 0.12, 0.27, 0.3],
    "translate_x": [-100, -7.9, 0, 3, 14.3],
    "translate_y": [-100, -7.9, 0, 3, 14.3],
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_each_operation_equals_torchvisions_on_pillow_images_bit_for_bit(name, channels):
    for height, width in SIDES:
        x = pictures(4, channels, height, width)
        for argument in ARGUMENTS[name]:
            if name == "contrast" and argument != 1 and channels == 1 and height * width == 1:
                continue  # torchvision refuses
            ours = x / 255
            one(name, argument, 4)(ours)
            expected = torch.stack([by_torchvision(each, name, argument) for each in x])
            assert torch.equal((ours * 255).round().to(torch.uint8), expected), (argument, height)
            alone = x[:1] / 255
            one(name, argument)(alone)
            assert torch.equal(alone[0], ours[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_solarize_add_and_cutout_equal_their_definition(channels):
    """added = min(x + a, 255) where x < 128; a square of side 2 half about a pixel is gray."""
    x = pictures(4, channels, 9, 12)
    ours = x / 255
    one("solarize_add", 110, 4)(ours)
    expected = torch.where(x < 128, (x.int() + 110).clamp_max(255), x.int())
    assert torch.equal((ours * 255).round().int(), expected)
    for place, row, column in (((0.0, 0.0), 0, 0), ((0.5, 0.999), 4, 11)):
        ours, expected = x / 255, x.clone()
        one("cutout", 3, 4, place)(ours)
        expected[..., max(row - 3, 0) : row + 3, max(column - 3, 0) : column + 3] = 128
        assert torch.equal((ours * 255).round().to(torch.uint8), expected)


def test_no_bits_count_as_one():
    x = pictures(4, 3, 8, 8)
    none, single = x / 255, x / 255
    one("posterize", 0, 4)(none)
    one("posterize", 1, 4)(single)
    assert torch.equal(none, single) and (none * 255).unique().tolist() == [0.0, 128.0]


def test_images_with_operations_of_their_own_are_as_if_each_were_alone():
    drawn = draw_randaugment(100, seeded(5), side=20, operations=3)
    x = pictures(100, 3, 20, 20) / 255
    together = x.clone()
    drawn(together)
    assert set(OPERATIONS) == {OPERATIONS[c] for c in drawn.code.flatten().tolist()}
    for b in range(100):
        alone = x[b : b + 1].clone()
        drawn[torch.tensor([b])](alone)
        assert torch.equal(alone[0], together[b])


def test_colour_of_named_channels_and_geometry_of_all():
    drawn = draw_randaugment(300, seeded(6), side=16)
    named = ImageOperations(**{**vars(drawn), "rgb": (4, 0, 2)})
    x = pictures(300, 6, 16, 16) / 255
    made, three = x.clone(), x[:, [4, 0, 2]]
    named(made)
    drawn(three)
    assert torch.equal(made[:, [4, 0, 2]], three)
    moves = {CODE[n] for n in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y",
                               "cutout")}  # fmt: skip
    still = torch.tensor([not moves & set(c) for c in drawn.code.tolist()])
    rest = [1, 3, 5]
    assert torch.equal(made[still][:, rest], (x[still] * 255).round()[:, rest] / 255)
    assert not torch.equal(made[~still][:, rest], x[~still][:, rest])


@pytest.mark.parametrize("policy", [autoaugment, randaugment, simaugment, stacked_randaugment])
@pytest.mark.parametrize("channels", [2, 4])
def test_channels_without_names_are_refused_by_number(policy, channels):
    with pytest.raises(ValueError, match=rf"{channels} channels.*rgb=\(3, 2, 1\).*crop_flip"):
        policy(pictures(2, channels, 8, 8), seeded(), size=8)


def test_impossible_draws_are_refused():
    for wrong in ({"operations": 0}, {"magnitude": 11.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            draw_randaugment(2, seeded(), side=32, **wrong)
    with pytest.raises(ValueError, match=r"furthest=-1"):
        Warp.draw(2, seeded(), furthest=-1.0)


def as_likely_as(count, n, p):
    """Within four standard deviations of the binomial mean n p."""
    return abs(count - n * p) <= 4 * binom.std(n, p) + 1e-9


def test_randaugment_draws_seventeen_operations_equally_often_and_either_sign():
    n = 20_000
    drawn = draw_randaugment(n, seeded(1), side=224)
    for k in (0, 1):
        counts = Counter(drawn.code[:, k].tolist())
        assert len(counts) == 17 and all(as_likely_as(c, n, 1 / 17) for c in counts.values())
    pairs = Counter(map(tuple, drawn.code.tolist()))  # the second does not depend on the first
    assert all(as_likely_as(pairs[a, b], n, 1 / 17**2) for a in range(17) for b in range(17))
    level_10 = {
        "rotate": 30, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 100, "translate_y": 100,
        "color": 1.9, "contrast": 1.9, "brightness": 1.9, "sharpness": 1.9, "posterize": 4,
        "solarize": 256, "solarize_add": 110, "cutout": 40,
    }  # fmt: skip
    for name, size in level_10.items():
        argument = drawn.argument[drawn.code == CODE[name]]
        assert torch.allclose(argument.abs(), torch.tensor(float(size))), name
        negative = int((argument < 0).sum())
        signed = name.startswith(("rotate", "shear", "translate"))
        assert as_likely_as(negative, len(argument), 0.5) if signed else negative == 0
    place = drawn.place[drawn.code == CODE["cutout"]]
    assert all(kstest(place[:, axis], "uniform").pvalue > 0.001 for axis in (0, 1))


def test_autoaugment_draws_each_of_25_pairs_and_each_operation_as_often_as_published():
    """Every (first, second) outcome of the definition, the probabilities of equal ones added."""
    n = 50_000
    drawn = draw_autoaugment(n, seeded(2), side=224)
    law = Counter()
    for (a, p, _), (b, q, _) in V0:
        for first, share in ((a, p), ("identity", 1 - p)):
            for second, other in ((b, q), ("identity", 1 - q)):
                law[CODE[first], CODE[second]] += share * other / 25
    seen = Counter(map(tuple, drawn.code.tolist()))
    assert sum(law.values()) == pytest.approx(1) and seen.keys() <= law.keys()
    assert all(as_likely_as(seen[key], n, p) for key, p in law.items())
    shear = drawn.argument[:, 1][drawn.code[:, 1] == CODE["shear_y"]]  # levels 4 and 3, as often
    assert {round(v, 3) for v in shear.abs().tolist()} == {0.12, 0.09}
    assert as_likely_as(int((shear > 0).sum()), len(shear), 0.5)
    moved = drawn.argument[:, 1][drawn.code[:, 1] == CODE["translate_y"]]
    assert set(moved.abs().tolist()) == {225.0}


def test_distances_follow_the_side_and_levels_the_table():
    assert argument_of("translate_x", 10, 32, translate=100.0) == pytest.approx(100 / 7)
    assert argument_of("cutout", 10, 32, translate=0.0, cutout=40.0) == 5
    assert [argument_of("posterize", level, 32, translate=0.0) for level in (2, 6, 10)] == [0, 2, 4]
    assert argument_of("solarize", 3, 32, translate=0.0) == 76
    assert argument_of("solarize_add", 7, 32, translate=0.0) == 77
    assert argument_of("color", 0, 32, translate=0.0) == 0.1


def test_stacked_randaugment_is_simaugment_with_randaugment_after_the_jitter():
    """With neither jitter nor gray, warp nor blur it is randaugment of the same crops."""
    x = pictures(64, 3, 24, 24)
    plain = partial(stacked_randaugment, strength=0.0, warp=0.0, blur=0.0)
    made = plain(x, seeded(), size=24)
    colourful = (made - made[:, :1]).abs().amax(dim=(1, 2, 3)) > 0
    assert as_likely_as(int((~colourful).sum()), 64, 0.2 + 0.8 * 1 / 4)  # a quarter drawn gray


def spline_flow(start, move, height, width):
    """SciPy's thin-plate spline through the moved points, at every pixel."""
    grid = np.stack(np.mgrid[:height, :width], axis=-1).reshape(-1, 2).astype(float)
    f = RBFInterpolator(start + move, move, kernel="thin_plate_spline", degree=1)
    return f(grid).reshape(height, width, 2)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 48)])
def test_the_warp_is_the_thin_plate_spline_through_four_points(height, width):
    image = torch.rand(8, 3, height, width, generator=seeded())
    warp = Warp.draw(8, seeded(4), p=0.7)
    made = image.clone()
    warp(made)
    assert 0 < int(warp.on.sum()) < 8
    side = np.array([height, width])
    start = np.array([[i, j] for i in (1 / 3, 2 / 3) for j in (1 / 3, 2 / 3)]) * side
    for b in range(8):
        if not warp.on[b]:
            assert torch.equal(made[b], image[b])
            continue
        flow = spline_flow(start, warp.shift[b].double().numpy() * side, height, width)
        at = np.moveaxis(np.stack(np.mgrid[:height, :width], axis=-1) - flow, -1, 0)
        for c in range(3):
            expected = map_coordinates(image[b, c].double().numpy(), at, order=1, mode="nearest")
            assert np.abs(made[b, c].numpy() - expected).max() < 2e-4


def test_a_warp_that_moves_all_points_alike_moves_the_image():
    image = torch.rand(2, 1, 30, 30, generator=seeded())
    made = image.clone()
    Warp(on=torch.tensor([True, True]), shift=torch.full((2, 4, 2), 0.1))(made)
    torch.testing.assert_close(made[..., 3:, 3:], image[..., :-3, :-3], atol=1e-5, rtol=0)


def test_points_move_by_a_normal_of_one_length_for_all_four():
    n = 20_000
    shift = Warp.draw(n, seeded(3), furthest=0.1).shift.double()
    assert shift.square().mean().item() == pytest.approx(0.1**2 / 3, rel=0.05)  # E[length^2]
    within = shift.square().mean(dim=(1, 2))  # sums of 8 squares that share one length
    assert within.var().item() / within.mean().item() ** 2 == pytest.approx(
        (1 + 2 / 8) * 9 / 5 - 1, rel=0.15
    )  # E[length^4] / E[length^2]^2 = 9 / 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_operations_on_cuda_are_those_on_the_cpu_bit_for_bit():
    drawn = draw_randaugment(256, seeded(5), side=40)
    here = pictures(256, 3, 40, 40) / 255
    there = here.cuda()
    drawn(here)
    ImageOperations(**{k: v.cuda() if torch.is_tensor(v) else v for k, v in vars(drawn).items()})(
        there
    )
    assert torch.equal((there.cpu() * 255).round(), (here * 255).round())


def test_torchvision_names_what_is_tested_here():
    """The rest of what RandAugment draws is what torchvision lacks."""
    assert set(OPERATIONS) - set(ARGUMENTS) == {"cutout", "solarize_add"}
    assert TF.solarize(torch.tensor([[[200]]], dtype=torch.uint8), 128).item() == 55
