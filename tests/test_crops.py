"""What views are of: kinds of pairs by their pixels, the same crops undistorted, pages."""

from functools import partial

import numpy as np
import pytest
import torch

from contrapose import augment
from contrapose.data import Request
from contrapose.errors import UserError
from contrapose.evaluation.crops import CROPS, KINDS, crops_of, kinds_of, undistorted
from contrapose.explain.pictures import crop_arrays
from contrapose.report.crops import crop_section
from contrapose.report.pictures import crops_in
from contrapose.studies import views as study


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def colours(count=40, side=24):
    """Images whose colours are their own: a hue each, with texture."""
    g = np.random.default_rng(0)
    base = g.integers(20, 236, (count, 1, 1, 3))
    return (base + g.integers(-20, 20, (count, side, side, 3))).astype(np.uint8)


def opened(pixels):
    return Request(pixels).open("train")


def test_kinds_of_pairs_are_those_of_their_pixels():
    boxes = augment.draw_box(400, 12, 12, seeded(), area=(0.05, 0.6))
    one, two = boxes[:200], boxes[200:]
    covered = torch.zeros(2, 200, 12, 12, dtype=torch.bool)
    for k, side in enumerate((one, two)):
        for i, (top, left, height, width) in enumerate(side.tolist()):
            covered[k, i, top : top + height, left : left + width] = True
    a, b = covered.flatten(2)
    inside, apart, overlap = kinds_of(one, two)
    assert torch.equal(inside, (a <= b).all(dim=1) | (b <= a).all(dim=1))
    assert torch.equal(apart, ~(a & b).any(dim=1))
    torch.testing.assert_close(overlap, (a & b).sum(dim=1) / (a | b).sum(dim=1))
    assert 0 < int(inside.sum()) < 200 and 0 < int(apart.sum()) < 200


def test_undistorted_views_are_the_same_crops():
    image = torch.rand(8, 3, 24, 24, generator=seeded(1))
    policy = partial(augment.simclr, strength=1.0)
    with augment.draws_kept() as draws:
        policy(image, seeded(), size=16)
    made = undistorted(image, seeded(), size=16, views=policy)
    expected = augment.render(image, draws[0].box, 16, flip=draws[0].flip)
    assert torch.equal(made, expected)
    same = undistorted(image, seeded(), size=16, views=augment.crop_flip)
    torch.testing.assert_close(same, augment.crop_flip(image, seeded(), size=16))


def test_colours_tell_the_image_until_they_are_distorted():
    found = crops_of(opened(colours()), partial(augment.simclr, strength=1.0), size=24)
    assert found.undistorted.score.value > 0.9
    assert found.seen.score.value < found.undistorted.score.value / 2
    assert sum(value for value, *_ in found.share.values()) == pytest.approx(1)
    assert found.pairs == 2 * 40 and found.histogram.shape[:3] == (2, 2, CROPS)
    torch.testing.assert_close(found.histogram.sum(dim=3), torch.ones(2, 2, CROPS))
    for kind, (one, two) in zip(found.kind, found.boxes, strict=True):
        inside, apart, _ = kinds_of(*((24 * box[None]).round().long() for box in (one, two)))
        assert kind == KINDS[0] if inside else kind == KINDS[1] if apart else kind == KINDS[2]


def test_an_image_beside_its_crop_is_always_global_and_local():
    policy = partial(
        augment.branches,
        first=partial(augment.transformed, by=("crop",)),
        second=partial(augment.transformed),
    )
    found = crops_of(opened(colours()), policy, size=24)
    assert found.share[KINDS[0]][0] == 1 and found.pairs == 40


def test_views_that_are_no_crops_of_the_image_are_refused():
    image = torch.rand(4, 3, 16, 16)
    twice = partial(augment.transformed, by=("noise", "crop"))
    with pytest.raises(UserError, match="2 passes"):
        undistorted(image, seeded(), size=16, views=twice)
    hard = partial(augment.hardened, views=augment.crop_flip, area=0.5)
    with pytest.raises(UserError, match=r"area=0\.5"):
        undistorted(image, seeded(), size=16, views=hard)


def test_a_page_draws_every_kind_and_a_damaged_one_is_refused(tmp_path):
    found, page = study.examine(
        opened(colours()), recipe="simclr", out=tmp_path / "v.html", changes=["views=simclr"]
    )
    text = page.read_text()
    assert all(f"<strong>{kind}</strong>" in text for kind in KINDS)
    assert text.count('class="one"') == len(found.kind) and "simclr" in text
    arrays = crop_arrays(found)
    figures = {}
    section = crop_section(found.as_json(), crops_in(arrays), 3, figures)
    assert set(figures) == {"undistorted_3", "distorted_3"} and section.seen.unit == "%"
    assert crop_section({}, crops_in(arrays), 0, {}) is None
    with pytest.raises(UserError, match="crop_boxes has shape"):
        crops_in(arrays | {"crop_boxes": arrays["crop_boxes"][:1]})
    with pytest.raises(UserError, match="not finite"):
        crops_in(arrays | {"crop_histogram": arrays["crop_histogram"] * np.nan})
