"""Crop, flip and blur against torchvision at the same drawn parameters, and their distributions."""

import pytest
import torch
import torchvision.transforms.functional as TF
from scipy.stats import chi2_contingency, ks_2samp
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from contrapose.augment import Blur, bernoulli, center, draw_box, draw_box_tf, resized_crop
from contrapose.augment.resample import matrix, multiply

MODE = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def torchvision_crop(image, box, size, filter):
    """In float64, so that only our own rounding shows."""
    return torch.stack(
        [
            TF.resized_crop(x, *b, [size, size], interpolation=MODE[filter], antialias=True)
            for x, b in zip(image.double(), box.tolist(), strict=True)
        ]
    ).clamp(0, 1)


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 32, 32), (8, 8, 8), (1, 1, 1), (1, 1, 5), (40, 33, 17), (100, 130, 96), (30, 300, 97)],
)
def test_crop_equals_torchvision_at_the_same_box(height, width, size, filter):
    image = torch.rand(7, 3, height, width, generator=seeded())
    box = draw_box(7, height, width, seeded(1))
    ours = resized_crop(image, box, size, filter=filter)
    torch.testing.assert_close(
        ours.double(), torchvision_crop(image, box, size, filter), atol=3e-6, rtol=0
    )


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_whole_matrices_equal_taps(filter):
    """What an accelerator multiplies is what a CPU gathers."""
    image, box, flip = torch.rand(5, 3, 90, 70), draw_box(5, 90, 70, seeded()), torch.arange(5) > 2
    top, left, h, w = box.unbind(dim=1)
    rows = matrix(top, h, 90, 80, filter=filter)
    columns = matrix(left, w, 70, 80, filter=filter, reverse=flip)
    whole = multiply(image, rows, columns).clamp(0, 1)
    gathered = resized_crop(image, box, 80, flip=flip, filter=filter)
    torch.testing.assert_close(gathered, whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("side", "size"), [(32, 32), (80, 72)])
def test_flipped_crop_is_the_flip_of_the_crop(side, size):
    image, box = torch.rand(6, 3, side, side), draw_box(6, side, side, seeded())
    flip = bernoulli(6, 0.5, seeded(2))
    assert flip.any() and not flip.all()
    plain = resized_crop(image, box, size)
    expected = torch.where(flip[:, None, None, None], plain.flip(-1), plain)
    torch.testing.assert_close(
        resized_crop(image, box, size, flip=flip), expected, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(("height", "width"), [(32, 32), (50, 200)])
def test_boxes_follow_torchvisions_law(height, width):
    n, area, ratio = 2000, (0.2, 1.0), (3 / 4, 4 / 3)
    ours = draw_box(n, height, width, seeded(3), area=area, ratio=ratio)
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        theirs = torch.tensor(
            [RandomResizedCrop.get_params(image, list(area), list(ratio)) for _ in range(n)]
        )
    top, left, h, w = ours.unbind(dim=1)
    assert bool((top >= 0).all() and (left >= 0).all() and (h > 0).all() and (w > 0).all())
    assert bool((top + h <= height).all() and (left + w <= width).all())
    for k in range(4):
        assert ks_2samp(ours[:, k], theirs[:, k]).pvalue > 0.01
    assert ks_2samp(w / h, theirs[:, 3] / theirs[:, 2]).pvalue > 0.01
    assert ks_2samp(w * h, theirs[:, 2] * theirs[:, 3]).pvalue > 0.01


# counts of top, left, height and width = 0, 1, ... of 40,000 and 200,000 boxes drawn by
# tf.image.sample_distorted_bounding_box (TensorFlow 2.21, not seeded) with bounding_boxes the whole
# image, min_object_covered=0.1 and aspect_ratio_range=(3/4, 4/3)
TF_BOXES = {
    (28, 28, 0.5): (
        [12458, 7216, 5829, 4470, 3503, 2668, 1800, 1099, 696, 261],
        [14033, 7621, 5811, 4322, 3267, 2239, 1436, 721, 402, 148],
        [0] * 18 + [2512, 3415, 4022, 4721, 5100, 4562, 4032, 3445, 3040, 2810, 2341],
        [0] * 18 + [1502, 2263, 3086, 4005, 4911, 5071, 4943, 4156, 3696, 3364, 3003],
    ),
    (12, 9, 0.08): (
        [43638, 37225, 33602, 28330, 23073, 16173, 10649, 5983, 1327],
        [105955, 41829, 26748, 16120, 7914, 1434],
        [0] * 3 + [12224, 36810, 33311, 33027, 33364, 22391, 14142, 8666, 4511, 1554],
        [0] * 3 + [8264, 32039, 33956, 31559, 30076, 31643, 32463],
    ),
}


@pytest.mark.parametrize("setting", TF_BOXES, ids=str)
def test_boxes_follow_tensorflows_law(setting):
    height, width, smallest = setting
    ours = draw_box_tf(100_000, height, width, seeded(3), area=(smallest, 1.0))
    for column, theirs in zip(ours.unbind(dim=1), TF_BOXES[setting], strict=True):
        assert int(column.max()) < len(theirs)
        counts = torch.bincount(column, minlength=len(theirs)).tolist()
        both = [pair for pair in zip(counts, theirs, strict=True) if sum(pair)]
        assert all(min(pair) > 0 for pair in both)  # no value that only one of them draws
        assert chi2_contingency(list(zip(*both, strict=True))).pvalue > 1e-3
    area = ours[:, 2] * ours[:, 3] / (height * width)
    assert area.min() >= max(smallest, 0.1) and area.max() <= 1


@pytest.mark.parametrize(("height", "width"), [(10, 100), (100, 10), (20, 20), (1, 9), (37, 90)])
def test_a_box_that_never_fits_is_torchvisions_centre(height, width):
    area, ratio = (3.0, 4.0), (3 / 4, 4 / 3)  # larger than the image
    theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), list(area), list(ratio))
    ours = draw_box(4, height, width, seeded(), area=area, ratio=ratio)
    assert ours.tolist() == [list(theirs)] * 4


def test_uint8_counts_255_as_one():
    image = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=seeded())
    box = draw_box(4, 32, 32, seeded())
    for size in (32, 80):
        torch.testing.assert_close(
            resized_crop(image, box, size), resized_crop(image / 255, box, size), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(("side", "radius"), [(32, 1), (9, 8), (97, 4), (96, 11)])
def test_blur_equals_torchvision_at_the_same_sigma(side, radius, channels):
    image = torch.rand(6, channels, side, side, generator=seeded())
    sigma = torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0, 5.0])
    blurred = image.clone()
    Blur(sigma=sigma, radius=radius)(blurred)
    assert torch.equal(blurred[0], image[0])
    for ours, x, s in zip(blurred[1:], image[1:], sigma[1:].tolist(), strict=True):
        theirs = TF.gaussian_blur(x, [2 * radius + 1] * 2, [s, s])
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_kernel_wider_than_the_image_shrinks_to_what_can_be_reflected():
    image, sigma = torch.rand(3, 1, 4, 4), torch.tensor([1.0, 2.0, 3.0])
    wide, widest = image.clone(), image.clone()
    Blur(sigma=sigma, radius=30)(wide)
    Blur(sigma=sigma, radius=3)(widest)
    assert torch.equal(wide, widest)
    pixel = torch.rand(3, 1, 1, 1)
    same = pixel.clone()
    Blur(sigma=sigma, radius=30)(same)
    assert torch.equal(same, pixel)


def test_blur_draws_uniform_widths_for_its_share_of_the_images():
    blur = Blur.draw(4000, seeded(), side=224)
    assert 2 * blur.radius + 1 == 23  # a tenth of the side, made odd
    drawn = blur.sigma[blur.sigma > 0]
    assert abs(len(drawn) / 4000 - 0.5) < 0.03  # 4 standard deviations
    assert ks_2samp(drawn, torch.empty(4000).uniform_(0.1, 2.0, generator=seeded(1))).pvalue > 0.01


def test_center_is_the_evaluation_transform():
    image = torch.rand(2, 3, 80, 64)
    assert torch.equal(center(image[:, :, :64], 64), image[:, :, :64])
    resized = TF.resize(TF.center_crop(image, [56, 56]), [28, 28], antialias=True)
    torch.testing.assert_close(center(image, 28), resized, atol=1e-5, rtol=0)
    assert center(torch.full((1, 1, 5, 5), 255, dtype=torch.uint8), 8).eq(1).all()


@pytest.mark.parametrize("wrong", [{"area": (0.0, 1.0)}, {"area": (0.5, 0.2)}, {"ratio": (-1, 1)}])
def test_impossible_boxes_are_refused(wrong):
    for draw in (draw_box, draw_box_tf):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            draw(2, 8, 8, seeded(), **wrong)
