"""Arrays: layouts, types and ranges are read in one way or refused with a reason."""

from pathlib import Path

import numpy as np
import pytest
import torch

from contrapose.data import ImageSet, NoSuchSplit, open_images

random = np.random.default_rng(0)
COLOUR = random.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def stored(images: ImageSet) -> np.ndarray:
    return images.batch(torch.arange(len(images))).numpy()


@pytest.mark.parametrize(
    "x",
    [
        COLOUR,
        COLOUR.transpose(0, 3, 1, 2),
        torch.from_numpy(COLOUR),
        COLOUR.astype(np.int64),
        COLOUR / 255,
        (COLOUR / 255).astype(np.float32),
        COLOUR.astype(np.float32),
        COLOUR.astype(np.uint16) * 257,
    ],
    ids=["NHWC", "NCHW", "tensor", "int64", "float64", "float32", "float to 255", "uint16"],
)
def test_layouts_types_and_ranges_of_one_image_set_agree(x: object) -> None:
    assert (stored(open_images(x)) == COLOUR.transpose(0, 3, 1, 2)).all()


def test_three_axes_are_grey_images() -> None:
    images = open_images((COLOUR[..., 0], [3, 3, 5, 5, -1, 5]))
    assert (images.channels, images.size, images.name) == (1, 8, "array")
    assert images.classes == ("3", "5") and images.label.tolist() == [0, 0, 1, 1, -1, 1]
    assert (stored(images)[:, 0] == COLOUR[..., 0]).all()
    assert stored(open_images(COLOUR[..., 0] > 99)).max() == 255


def test_a_set_does_not_change_with_the_array_it_came_from() -> None:
    x = COLOUR.transpose(0, 3, 1, 2).copy()
    images = open_images(x)
    before = stored(images)
    x[:] = 0
    assert (stored(images) == before).all()


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((20, 30, 3), np.uint8), r"one image .*add an axis: \[1 H W C\]"),
        (np.zeros((3, 20, 30), np.uint8), r"one image .*add an axis: \[1 C H W\]"),
        (np.zeros((5, 3, 9, 3), np.uint8), r"could be \[N C H W\] or \[N H W C\]"),
        (np.zeros((5, 7, 9, 7), np.uint8), "no axis of channels; expected 1, 3, 4"),
        (np.zeros((5, 64)), "not a set of images"),
        (np.zeros((0, 8, 8)), "holds no image"),
        (np.full((5, 8, 8), "a"), "values of type <U1"),
        (np.full((5, 8, 8), None), "Python objects"),
        ([np.zeros((8, 8)), np.zeros((9, 9))], "must share one shape"),
        (np.full((5, 8, 8), -1.0), "undo the normalisation"),
        (np.full((5, 8, 8), 70_000), r"values from 70000 .*--range 0:70000"),
        (np.full((5, 8, 8), 1j), "values of type complex128"),
        (np.ma.masked_greater(np.ones((5, 8, 8)), 0.5), "masked array; fill"),
        (torch.ones(5, 8, 8).to_sparse(), "no array of pixels"),
        (np.full((5, 8, 8), 1.01), "neither in"),
    ],
)
def test_what_could_mean_two_things_is_refused(x: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_images(x)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        ([0, 1], "2 labels for 6 images"),
        (np.full((6, 2), 3), r"shape \[6, 2\] with values from 3 to 3"),
        (np.full(6, 0.5), "type float64"),
        ([0, 1, -3, 0, 0, 0], "value -3 at position 2"),
    ],
)
def test_labels_that_fit_no_image_set_are_refused(y: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_images((COLOUR, y))


def test_npz_by_the_usual_names(tmp_path: Path) -> None:
    y = np.array(["b", "a", "b", "c", "a", "b"])
    np.savez(tmp_path / "one.npz", images=COLOUR, labels=y)
    images = open_images(tmp_path / "one.npz")
    assert (images.split, images.classes) == ("all", ("a", "b", "c"))
    with pytest.raises(NoSuchSplit, match="x_test"):
        open_images(tmp_path / "one.npz", "test")

    np.savez(tmp_path / "two.npz", x_train=COLOUR, y_train=y, x_test=COLOUR[:2], y_test=["c", "z"])
    train, test = (open_images(tmp_path / "two.npz", split) for split in ("train", "test"))
    assert train.classes == test.classes == ("a", "b", "c", "z")
    assert (train.split, len(train)) == ("train", 6)
    assert (test.split, test.label.tolist()) == ("test", [2, 3])


def test_arrays_of_an_npz_that_no_split_reads_are_said(tmp_path: Path) -> None:
    y = np.zeros(6, int)
    np.savez(tmp_path / "x.npz", x_train=COLOUR, y_train=y, x_test=COLOUR, x_val=COLOUR, y_val=y)
    for split in ("train", "test"):
        notes = open_images(tmp_path / "x.npz", split).notes
        key = f"x_{split}"
        assert notes[f"images read from {key!r}; not read: x_val, y_val"] == 6
    assert open_images(tmp_path / "x.npz", "test").label is None  # y_val is of x_val
    np.savez(tmp_path / "y.npz", images=COLOUR, labels=y, y=y)
    assert open_images(tmp_path / "y.npz").notes == {"images read from 'images'; not read: y": 6}


def test_npz_without_images_lists_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", pictures=COLOUR, other=[1])
    with pytest.raises(ValueError, match="found other, pictures"):
        open_images(tmp_path / "odd.npz")
    np.savez(tmp_path / "objects.npz", images=np.array([None, "x"], object))
    with pytest.raises(ValueError, match=r"objects\.npz: 'images' holds Python objects"):
        open_images(tmp_path / "objects.npz")
    whole = (tmp_path / "odd.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:200])
    with pytest.raises(ValueError, match=r"cut\.npz: not a whole NumPy file"):
        open_images(tmp_path / "cut.npz")


def test_npy_is_mapped_and_streams(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", COLOUR)
    images = open_images(tmp_path / "x.npy", memory=0)
    assert not images.in_memory
    assert (stored(images) == stored(open_images(COLOUR))).all()
    np.save(tmp_path / "o.npy", np.array([None], object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        open_images(tmp_path / "o.npy")


def test_rectangles_are_cropped_and_resized() -> None:
    images = open_images(np.zeros((4, 12, 20, 3), np.uint8), size=6)
    assert images.size == 6 and images.notes["cropped to a square"] == 4
