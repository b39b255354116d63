"""A policy for each view, and draws that can be had again."""

import dataclasses
from functools import partial

import pytest
import torch
from support.quick_recipe import quick

from contrapose import adapt, augment
from contrapose.augment import branches, draws_kept, views
from contrapose.data import open_images
from contrapose.partials import assign, describe, revive
from contrapose.studies.candidates import with_suggestions

CROP = partial(augment.crop_flip, area=(0.3, 1.0))
COLOUR = partial(augment.simclr, strength=1.0, blur=True)
BOTH = partial(branches, first=CROP, second=COLOUR)


def pictures(n=6, side=16):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def drawn(policy, image, n):
    return views(policy, image, torch.Generator().manual_seed(1), n=n)


def test_each_view_is_of_its_branch():
    image, policy = pictures(), partial(BOTH, size=8)
    seen = drawn(policy, image, 3)
    generator = torch.Generator().manual_seed(1)
    first = views(partial(CROP, size=8), image, generator, n=1)
    others = views(partial(COLOUR, size=8), image, generator, n=2)
    assert torch.equal(seen, torch.cat([first, others]))
    alone = policy(image, torch.Generator().manual_seed(1))
    assert torch.equal(alone, first[0])


def test_what_was_drawn_is_had_and_draws_the_same_views_again():
    image, size = pictures(), 8
    policy = partial(COLOUR, size=size)
    with draws_kept() as draws:
        seen = drawn(policy, image, 2)
    (draw,) = draws
    assert draw.box.shape == (12, 4) and draw.flip.shape == (12,)
    jitter = draw.steps[0]
    assert jitter.factor.shape == (12, 4) and jitter.on.float().mean() > 0.3
    again = augment.render(
        image.repeat(2, 1, 1, 1), draw.box, size, flip=draw.flip, steps=draw.steps
    )
    assert torch.equal(again.view_as(seen), seen)
    with draws_kept() as draws:
        drawn(partial(BOTH, size=size), image, 2)
    assert [len(d.box) for d in draws] == [6, 6] and not draws[0].steps
    drawn(policy, image, 2)
    assert len(draws) == 2  # nothing is kept outside


def test_branches_are_written_read_and_set_by_name():
    assert describe(revive(describe(BOTH))) == describe(BOTH)
    recipe = quick(views=augment.digits, size=16)
    with pytest.raises(ValueError, match=r"first names no policy; --set views\.first=NAME"):
        drawn(assign(recipe, "views", "branches").policy, pictures(), 2)
    recipe = assign(assign(recipe, "views", "branches"), "views.first", "crop_flip")
    recipe = assign(recipe, "views.second", "simclr_cifar")
    assert drawn(recipe.policy, pictures(), 2).shape == (2, 6, 3, 16, 16)
    with pytest.raises(ValueError, match="has no 'simclr_cifer'; did you mean 'simclr_cifar'"):
        assign(recipe, "views.second", "simclr_cifer")


def test_what_stands_on_top_of_a_policy_stands_on_both_branches():
    images = open_images("random-bits(digits, bits=2)")
    recipe = adapt.beside_constants(quick(views=BOTH), images)
    for branch in recipe.views.keywords.values():
        assert branch.func is augment.on_channels
    seen = drawn(partial(recipe.views, size=8), images.batch(torch.arange(4)), 2)
    assert torch.equal(seen[0, :, 1:, 0, 0], seen[1, :, 1:, 0, 0])  # the bits stay
    rgb = dataclasses.replace(open_images(pictures(64)), rgb=(2, 1, 0))
    named = adapt.beside_constants(quick(views=BOTH), rgb).views
    assert named.keywords["second"].keywords["rgb"] == (2, 1, 0)
    assert with_suggestions(BOTH, rgb, []).func is branches
