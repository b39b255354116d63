"""Squares are Pillow's bicubic resize, bit for bit, whichever computes it."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from contrapose.compiler import Library
from contrapose.data import open_images, resize

SHAPES = [  # (width, height) -> (width, height), of the box
    ((341, 256), (224, 224), (42, 0, 298, 256)),
    ((256, 341), (224, 224), (0, 42, 256, 298)),  # by Pillow 13 columns first
    ((500, 375), (97, 73), None), ((97, 61), (33, 21), (3, 1, 90, 60)), ((50, 40), (64, 65), None),
    ((7, 9), (5, 4), (1, 2, 6, 9)), ((1, 1), (9, 9), None), ((1, 77), (8, 3), None),
    ((2000, 3), (17, 1), None), ((3, 900), (1, 400), None), ((5, 700), (300, 2), (1, 9, 4, 680)),
    ((64, 64), (64, 65), None), ((64, 64), (65, 64), None), ((70, 64), (64, 64), (3, 0, 67, 64)),
    ((16, 48), (12, 36), (2, 0, 16, 48)), ((640, 480), (3, 2), None),
]  # fmt: skip


@pytest.fixture
def library() -> resize.Found:
    found = resize.library()
    if found is None:
        pytest.skip("Pillow resizes here: no C compiler, or Pillow is quicker")
    return found


def pictures(width: int, height: int) -> list[Image.Image]:
    """Grey and colour: noise, and black against white, which overshoots and is clipped."""
    draw = np.random.default_rng(width + height)
    noise = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    both = [noise, noise // 128 * np.uint8(255)]
    return [Image.fromarray(y) for x in both for y in (x, np.ascontiguousarray(x[..., 1]))]


def pillow(image: Image.Image, size: tuple[int, int], box: resize.Box | None) -> np.ndarray:
    x = np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box))
    return x[None] if x.ndim == 2 else x.transpose(2, 0, 1)


@pytest.mark.parametrize(("shape", "size", "box"), SHAPES)
def test_every_value_is_pillows(library, shape, size, box):
    for image in pictures(*shape):
        found = resize.by_library(library, image, size, box or (0, 0, *shape))
        assert found.flags.c_contiguous and np.array_equal(found, pillow(image, size, box))


def test_random_shapes_and_boxes_too(library):
    draw, columns = np.random.default_rng(0), 0
    for _ in range(300):
        w, h, width, height = (int(2 ** draw.uniform(0, 8)) for _ in range(4))
        left, top = int(draw.integers(w)), int(draw.integers(h))
        box = left, top, int(draw.integers(left + 1, w + 1)), int(draw.integers(top + 1, h + 1))
        columns += library.columns(w, h, width, height)
        for image in pictures(w, h)[:2]:
            found = resize.by_library(library, image, (width, height), box)
            assert np.array_equal(found, pillow(image, (width, height), box)), (w, h, box)
    assert columns == 0 or 50 < columns < 250


def test_memory_of_any_layout(library):
    """Turned and cut images, those that borrow an array's memory, and those in several pieces,
    which Pillow does not share."""
    colour, grey, *_ = pictures(61, 47)
    array = np.asarray(grey)
    for image in (
        colour.transpose(Image.Transpose.ROTATE_90), colour.crop((3, 5, 40, 44)),
        Image.fromarray(array), Image.fromarray(array[::2, 5:50]), Image.fromarray(array[:, ::-1]),
        Image.new("RGB", (2400, 2000), (250, 3, 99)), Image.effect_noise((4200, 4100), 80),
    ):  # fmt: skip
        box, size = (0, 0, *image.size), (23, 31)
        assert np.array_equal(
            resize.by_library(library, image, size, box), pillow(image, size, box)
        )


def test_threads_share_weights_and_nothing_else(library):
    cases = [(image, (k, 70 - k)) for k in range(20, 44) for image in pictures(90 + k, 80)[:2]]
    resize._axis.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda case: resize.resized(*case), cases * 4))
    for one, (image, size) in zip(found, cases * 4, strict=True):
        assert np.array_equal(one, pillow(image, size, None))


def test_nothing_is_computed_where_the_box_has_the_size():
    colour, grey, *_ = pictures(40, 30)
    found = resize.resized(colour, (10, 20), (5, 6, 15, 26))
    assert np.array_equal(found, np.asarray(colour)[6:26, 5:15].transpose(2, 0, 1))
    assert np.array_equal(resize.resized(grey, (40, 30))[0], np.asarray(grey))


def test_sets_are_the_same_without_the_library(monkeypatch, tmp_path):
    for k, (w, h) in enumerate([(50, 40), (33, 90), (24, 24), (17, 21), (200, 30)]):
        for j, image in enumerate(pictures(w, h)[:2]):
            image.save(tmp_path / f"{k}{j}.png")

    def opened() -> list[str]:
        found = []
        for fit in ("crop", "pad"):
            images = open_images(tmp_path, size=24, fit=fit, channels=3)
            pixels = images.batch(images.index).numpy()
            found += [images.fingerprint, hashlib.sha256(pixels.tobytes()).hexdigest()]
        return found

    monkeypatch.setenv("CONTRAPOSE_CACHE", "off")
    by_library = opened()
    monkeypatch.setattr(resize, "LIBRARY", Library(resize.LIBRARY.source, "Pillow", "slow"))
    monkeypatch.setenv("CONTRAPOSE_CC", "none")
    resize.library.cache_clear()
    try:
        assert resize.library() is None
        assert opened() == by_library
    finally:
        resize.library.cache_clear()
