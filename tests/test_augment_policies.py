"""Policies and views: ranges and shapes, one draw an image, and the generator alone decides."""

from functools import partial

import pytest
import torch

from contrapose import augment, recipes
from contrapose.augment import bernoulli, center, crop_flip, digits, simclr, views
from contrapose.partials import assign, describe
from contrapose.portions import Portion, portion_of_batch

POLICIES = {
    "simclr": partial(simclr, strength=1.0),
    "simclr with strength 0.5": partial(simclr, strength=0.5),
    "simclr_cifar": augment.simclr_cifar,
    "supcon_cifar": augment.supcon_cifar,
    "instance_discrimination": augment.instance_discrimination,
    "instance_discrimination without flip": partial(augment.instance_discrimination, flip=0.0),
    "moco_v1": augment.moco_v1,
    "moco_v2": augment.moco_v2,
    "autoaugment": augment.autoaugment,
    "randaugment": augment.randaugment,
    "simaugment": augment.simaugment,
    "stacked_randaugment": augment.stacked_randaugment,
    "digits": digits,
    "crop_flip": crop_flip,
    "transformed": partial(augment.transformed, by=("blur", "sobel", "rotate", "crop", "noise")),
    "transformed by colour and crop": partial(augment.transformed, by=("colour", "crop")),
}
QUANTISED = (augment.autoaugment, augment.randaugment, augment.stacked_randaugment)
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count, channels, height, width):
    return torch.randint(
        0, 256, (count, channels, height, width), dtype=torch.uint8, generator=seeded(9)
    )


@every_policy
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(1, 1, 8), (8, 8, 8), (28, 28, 28), (33, 20, 31), (90, 70, 72)]
)
def test_views_are_floats_in_the_unit_interval(policy, channels, height, width, size):
    made = policy(pictures(5, channels, height, width), seeded(), size=size)
    assert made.shape == (5, channels, size, size) and made.dtype == torch.float32
    assert 0 <= made.min() and made.max() <= 1


@every_policy
@pytest.mark.parametrize("side", [32, 72])
def test_uint8_and_float_images_give_the_same_views(policy, side):
    image = pictures(9, 3, side, side)
    made, same = policy(image, seeded(), size=side), policy(image / 255, seeded(), size=side)
    if policy in QUANTISED:  # a value that lies between two of 255 levels may fall to either
        assert (made - same).abs().mean() < 1e-3
        return
    torch.testing.assert_close(made, same, atol=1e-5, rtol=0)


@every_policy
def test_the_state_of_the_generator_decides_a_view(policy):
    image, generator = pictures(8, 3, 32, 32), seeded()
    state = generator.get_state()
    first, second = policy(image, generator, size=32), policy(image, generator, size=32)
    assert not torch.equal(first, second)
    generator.set_state(state)
    assert torch.equal(policy(image, generator, size=32), first)


@every_policy
def test_a_process_with_a_portion_of_a_batch_makes_the_views_of_its_images(policy):
    image = pictures(7, 3, 20, 24)
    whole = views(partial(policy, size=16), image, seeded())
    place = torch.tensor([0, 3, 4])
    with portion_of_batch(Portion(place, 7)):
        mine = views(partial(policy, size=16), image[place], seeded())
    torch.testing.assert_close(mine, whole[:, place], atol=1e-6, rtol=0)


@every_policy
def test_each_image_has_a_draw_of_its_own(policy):
    same = pictures(1, 3, 32, 32).expand(6, 3, 32, 32)
    made = policy(same, seeded(), size=32).flatten(1)
    assert torch.cdist(made, made).fill_diagonal_(1).min() > 0


@pytest.mark.parametrize("size", [32, 80])
def test_neither_threads_nor_pieces_change_a_view(size, monkeypatch):
    image, before = pictures(40, 3, 80, 80), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = simclr(image, seeded(), size=size)
        torch.set_num_threads(3)
        monkeypatch.setattr(augment.chunks, "PIECE", 5 * size * size)
        torch.testing.assert_close(simclr(image, seeded(), size=size), alone, atol=1e-6, rtol=0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_two_views_of_a_batch_differ_and_repeat():
    image, policy = pictures(4, 3, 32, 32), partial(simclr, size=24)
    made = views(policy, image, seeded())
    assert made.shape == (2, 4, 3, 24, 24)
    assert not torch.equal(made[0], made[1])
    assert torch.equal(views(policy, image, seeded()), made)
    assert views(policy, image, seeded(), n=3).shape == (3, 4, 3, 24, 24)
    with pytest.raises(ValueError, match="n=0"):
        views(policy, image, seeded(), n=0)


def test_views_do_not_change_the_image():
    for image in (pictures(4, 3, 32, 32), torch.rand(4, 3, 32, 32)):
        before = image.clone()
        views(partial(simclr, size=32), image, seeded())
        center(image, 32).zero_()
        assert torch.equal(image, before)


def test_an_empty_batch_has_no_views():
    for size in (8, 80):
        assert simclr(pictures(0, 3, 9, 9), seeded(), size=size).shape == (0, 3, size, size)


def test_a_glyph_is_never_mirrored_or_recoloured():
    """Ink on the left half alone stays brighter on the left, as bright as it was."""
    image = torch.zeros(64, 1, 28, 28)
    image[..., :14] = 1.0
    made = digits(image, seeded(), size=28)
    assert bool((made[..., 0] >= made[..., -1]).all())
    assert set(made.round().unique().tolist()) == {0.0, 1.0}
    assert bool((made.amax(dim=(1, 2, 3)) > 0.999).all())


@pytest.mark.parametrize("name", ["autoaugment", "randaugment", "simaugment"])
def test_a_recipe_takes_a_policy_by_its_name_and_its_arguments(name):
    made = assign(recipes.recipe_for("simclr", 32, 3), "views", name)
    assert describe(made.views)["call"] == f"contrapose.augment.policies.{name}"
    strong = assign(assign(made, "views", "stacked_randaugment"), "views.magnitude", "7")
    assert strong.policy.keywords["magnitude"] == 7


def test_chance_is_refused_outside_zero_to_one():
    with pytest.raises(ValueError, match=r"p=1\.2"):
        bernoulli(3, 1.2, seeded())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@every_policy
def test_cuda_makes_the_views_of_its_generator(policy):
    image = pictures(16, 3, 40, 40).cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    made = policy(image, generator, size=32)
    assert made.is_cuda and 0 <= made.min() and made.max() <= 1
    assert torch.equal(policy(image, generator.manual_seed(0), size=32), made)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_step_on_cuda_is_the_step_on_the_cpu():
    image = torch.rand(32, 3, 72, 72, generator=seeded())
    rows = torch.arange(32).cuda()
    steps = [
        augment.Jitter.draw(32, seeded(), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2),
        augment.Grayscale.draw(32, seeded(), p=0.5),
        augment.Solarise.draw(32, seeded(), p=0.5),
        augment.Blur.draw(32, seeded(), side=72),
        augment.Warp.draw(32, seeded()),
    ]
    for step in steps:
        here, there = image.clone(), image.cuda()
        step(here)
        moved = type(step)(
            **{k: v.cuda() if torch.is_tensor(v) else v for k, v in vars(step).items()}
        )
        moved[rows](there)
        torch.testing.assert_close(there.cpu(), here, atol=1e-5, rtol=0)
