"""The transformations of SimCLR's study: each against its definition, one draw an image."""

from functools import partial

import pytest
import torch

from contrapose import augment
from contrapose.errors import UserError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=6, channels=3, side=16):
    return torch.rand(count, channels, side, side, generator=seeded(1))


def test_rotations_are_quarter_turns_each_image_its_own():
    image = pictures(count=64)
    step = augment.Rotation.draw(64, seeded())
    made = image.clone()
    step(made)
    assert sorted(set(step.turns.tolist())) == [0, 1, 2, 3]
    for b, k in enumerate(step.turns.tolist()):
        assert torch.equal(made[b], torch.rot90(image[b], k, (1, 2)))
    with pytest.raises(UserError, match="square"):
        step(image[:, :, :, :-1])


def test_sobel_is_the_length_of_the_gradient():
    x, y = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="xy")
    ramp = ((3 * x + 4 * y) / 100)[None, None].repeat(2, 1, 1, 1)  # its gradient is 5 / 100 a px
    made = ramp.clone()
    augment.Sobel(on=torch.tensor([True, False]))(made)
    assert torch.allclose(made[0, 0, 1:-1, 1:-1], torch.tensor(8 * 0.05 / 4), atol=1e-6)
    assert torch.equal(made[1], ramp[1])
    step = torch.zeros(1, 1, 4, 4)
    step[..., 2:] = 1
    augment.Sobel(on=torch.tensor([True]))(step)
    assert step.max() == 1 and step[..., 0].max() == 0


def test_noise_has_its_deviation_and_is_drawn_for_each_value():
    gray = torch.full((4, 3, 64, 64), 0.5)
    step = augment.Noise.draw(gray.shape, seeded(), std=0.1)
    step(gray)
    assert abs(float(gray.std()) - 0.1) < 0.003 and abs(float(gray.mean()) - 0.5) < 0.003
    apart = torch.corrcoef(gray.flatten(1))
    assert (apart - torch.eye(4)).abs().max() < 0.05
    with pytest.raises(UserError, match="std=-1"):
        augment.Noise.draw((1, 1, 2, 2), seeded(), std=-1)


def test_without_transformation_a_view_is_the_image():
    image = pictures()
    assert torch.allclose(augment.transformed(image, seeded(), size=16), image, atol=1e-6)


def test_cutout_hides_a_square_of_half_the_side():
    made = augment.transformed(pictures() * 0.9 + 0.1, seeded(), size=16, by=("cutout",))
    hidden = (made == 0).all(dim=1).sum(dim=(1, 2))
    assert hidden.max() == 64 and (hidden >= 16).all()  # a corner at least, where it reaches out


def test_what_comes_before_a_crop_is_cropped_with_the_picture():
    image = torch.full((200, 3, 16, 16), 0.5)
    before = augment.transformed(image, seeded(), size=16, by=("cutout", "crop"), area=(0.2, 0.2))
    after = augment.transformed(image, seeded(), size=16, by=("crop", "cutout"), area=(0.2, 0.2))
    hidden = [(v < 0.1).all(dim=1).float().mean(dim=(1, 2)) for v in (before, after)]
    assert float(hidden[0].max()) > 0.9 and float(hidden[1].max()) <= 0.25
    assert float(hidden[0].std()) > 2 * float(hidden[1].std())


def test_the_asymmetric_study_leaves_one_branch_alone():
    image = (pictures() * 255).round().to(torch.uint8)
    policy = partial(
        augment.branches, size=16,
        first=partial(augment.transformed, by=("colour", "noise")),
        second=partial(augment.transformed),
    )  # fmt: skip
    first, second = augment.views(policy, image, seeded())
    assert torch.allclose(second, image / 255, atol=1e-6)
    assert (first - second).abs().mean() > 0.02


def test_an_unknown_transformation_is_an_error():
    with pytest.raises(UserError, match="by=invert"):
        augment.transformed(pictures(), seeded(), size=16, by=("invert",))
