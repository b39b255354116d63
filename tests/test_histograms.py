"""The histogram shortcut: crops tell their image by their intensities, distorted colours do not."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from contrapose.augment import Jitter, crop_flip, digits, draw_box, render, simclr
from contrapose.data import open_images
from contrapose.evaluation.histograms import identify_source, intensity_histogram


def real(name: str) -> None:
    root = os.environ.get("CONTRAPOSE_DATA")
    if not root or not (Path(root) / name).exists():
        pytest.skip(f"needs {name} in the folder that CONTRAPOSE_DATA names")


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_histogram_is_numpys(per_channel):
    view = torch.rand(3, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    found = intensity_histogram(view, bins=10, per_channel=per_channel)
    for i in range(3):
        parts = view[i] if per_channel else view[i][None]
        wanted = [np.histogram(p.numpy(), 10, (0, 1))[0] / view[i].numel() for p in parts]
        torch.testing.assert_close(found[i], torch.from_numpy(np.concatenate(wanted)).float())
    ends = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert intensity_histogram(ends, bins=4).tolist() == [[0.5, 0, 0, 0.5]]


def test_grey_levels_give_an_image_away_and_equal_images_do_not():
    level = np.arange(40, dtype=np.uint8)[:, None, None] * 6
    flat = open_images(np.broadcast_to(level, (40, 8, 8)).copy())
    assert identify_source(flat, digits).score.value == 1
    same = open_images(np.zeros((40, 8, 8), np.uint8) + 9)
    found = identify_source(same, digits)
    assert found.chance == 1 / 40 and found.score.low <= 1 / 40 <= found.score.high
    with pytest.raises(ValueError, match="crops=1 of 40 images"):
        identify_source(flat, digits, crops=1)


def always_jittered(image, generator, *, size):
    """Crop and colour jitter of strength 1 on every view, where SimCLR leaves one in five as is."""
    n, box = len(image), draw_box(len(image), *image.shape[2:], generator)
    jitter = Jitter.draw(n, generator, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    return render(image, box, size, steps=[jitter])


@pytest.mark.parametrize(("name", "size"), [("cifar10", 32), ("coco128", 96)])
def test_colour_distortion_destroys_the_shortcut_of_real_images(name, size):
    """SimCLR, figure 6 (protocol A5). CIFAR-10, 1,000 images, chance 0.001: 0.62 by crops alone,
    0.05 with strength 1, most of it by views that kept their colours (p = 0.8); 0.01 without."""
    real(name)
    images = open_images(name, split="test" if name == "cifar10" else "train", size=size)
    strong = partial(simclr, strength=1.0, blur=False)
    crops, distorted, all_distorted = (
        identify_source(images, views) for views in (crop_flip, strong, always_jittered)
    )
    assert crops.score.low > 50 * crops.chance
    assert distorted.score.high < crops.score.low / 4
    assert all_distorted.score.value < distorted.score.value
    assert all_distorted.score.value < crops.score.value / 10
