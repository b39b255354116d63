"""Folders of real files: every odd image becomes a square, every bad one is counted or refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contrapose.data import NoSuchSplit, open_images

random = np.random.default_rng(0)


def photo(path: Path, width: int = 40, height: int = 30, mode: str = "RGB", **how: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **how)
    return path


def only(folder: Path, **how: object) -> np.ndarray:
    """The one image of a folder, as stored."""
    return open_images(folder, **how).batch(torch.tensor([0])).numpy()[0]


def test_class_subfolders_are_labels_in_sorted_order(tmp_path: Path) -> None:
    for name in ("zebra", "ant", "Ünïcode 猫"):
        for k in range(2):
            photo(tmp_path / name / "deeper" / f"{k}.png")
    images = open_images(tmp_path)
    assert images.classes == ("ant", "zebra", "Ünïcode 猫")
    assert images.label.tolist() == [0, 0, 1, 1, 2, 2]
    assert (images.split, images.channels, images.size) == ("all", 3, 30)
    with pytest.raises(NoSuchSplit, match="hold out"):
        open_images(tmp_path, "test")


def test_a_class_that_one_split_lacks_moves_no_other(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "train/c", "val/a", "val/c"):
        photo(tmp_path / name / "1.png")
    (tmp_path / "notes").mkdir()
    train, test = open_images(tmp_path), open_images(tmp_path, "test")
    assert train.classes == test.classes == ("a", "b", "c")
    assert (train.split, train.label.tolist()) == ("train", [0, 1, 2])
    assert (test.split, test.label.tolist()) == ("test", [0, 2])
    assert test.notes["read from val/"] == 2


def test_what_no_split_reads_is_counted(tmp_path: Path) -> None:
    for name in ("train/a/1", "train/b/1", "test/a/1", "test/b/1", "val/a/1", "val/b/1", "more/1"):
        photo(tmp_path / f"{name}.png")
    photo(tmp_path / "loose.png")
    (tmp_path / "labels.csv").write_text("")
    for split in ("train", "test"):
        assert open_images(tmp_path, split).notes == {
            "in more/, not read: no split has that name": 1,
            "in val/, not read: test/ is": 2,
            "beside the folders of the splits, not read": 1,
            ".csv files ignored": 1,
            "cropped to a square": 2,
        }


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    for name in ("bus/1", "bus/2", "car/1", "train/1", "train/2"):
        photo(tmp_path / f"{name}.png")
    images = open_images(tmp_path)
    assert images.classes == ("bus", "car", "train") and len(images) == 5
    assert images.notes["in train/, a class like the folders beside it and not a split"] == 2


def test_a_folder_without_images_is_no_class(tmp_path: Path) -> None:
    for name in ("a/1", "b/1"):
        photo(tmp_path / f"{name}.png")
    (tmp_path / "c/deeper").mkdir(parents=True)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/notes.txt").write_text("")
    images = open_images(tmp_path)
    assert images.classes == ("a", "b")
    assert images.notes["folders without images, no classes"] == 2


def test_an_image_keeps_its_name_and_place_when_others_are_left_out(tmp_path: Path) -> None:
    for name in ("train/a/1", "train/a/2", "train/b/3", "train/b/4", "test/a/1"):
        photo(tmp_path / f"{name}.png")
    (tmp_path / "train/a/1.png").write_bytes(b"")
    for memory in (2**30, 0):
        images = open_images(tmp_path, max_bad_share=0.5, memory=memory)
        assert images.files == ["train/a/2.png", "train/b/3.png", "train/b/4.png"]
        assert images.index.tolist() == [1, 2, 3]
        part = images.subset(torch.tensor([2, 0])).subset(torch.tensor([0]))
        assert part.files == ["train/b/4.png"] and part.index.tolist() == [3]


def test_names_that_are_no_utf8_are_read_and_shown(tmp_path: Path) -> None:
    photo(tmp_path / "cat/1.png"), photo(tmp_path / os.fsdecode(b"ni\xf1o") / "1.png")
    (tmp_path / os.fsdecode(b"cat/\xff.png")).write_bytes(b"junk")
    images = open_images(tmp_path, max_bad_share=0.5)
    assert images.classes == ("cat", "ni\\xf1o") and images.label.tolist() == [0, 1]
    assert images.files == ["cat/1.png", "ni\\xf1o/1.png"]
    assert images.skipped[0].path == f"{tmp_path}/cat/\\xff.png"


def test_pipes_and_links_in_a_circle_stop_nothing(tmp_path: Path) -> None:
    photo(tmp_path / "set/1.png"), photo(tmp_path / "set/2.png")
    (tmp_path / "set/round.png").symlink_to("round.png")
    os.mkfifo(tmp_path / "set/x.parquet"), os.mkfifo(tmp_path / "x.npy")
    images = open_images(tmp_path / "set")
    assert len(images) == 2 and images.notes["links that lead round in a circle, ignored"] == 1
    with pytest.raises(ValueError, match=r"x\.npy: neither a folder nor a plain file"):
        open_images(tmp_path / "x.npy")
    os.mkfifo(tmp_path / "set/3.png")
    assert "not a plain file" in open_images(tmp_path / "set", max_bad_share=0.5).skipped[0].reason


def test_a_labelled_val_is_preferred_to_a_test_without_labels(tmp_path: Path) -> None:
    for name in ("train/a/1", "train/b/1", "val/a/1", "val/b/1", "test/1", "test/2"):
        photo(tmp_path / f"{name}.png")
    assert open_images(tmp_path, "test").label.tolist() == [0, 1]


def test_flat_folders_and_a_single_subfolder_have_no_labels(tmp_path: Path) -> None:
    photo(tmp_path / "flat/1.jpg"), photo(tmp_path / "flat/2.jpg")
    photo(tmp_path / "one/holidays/1.jpg")
    for folder in ("flat", "one"):
        images = open_images(tmp_path / folder)
        assert images.label is None and images.classes == ()


def test_images_beside_class_subfolders_are_kept_without_a_label(tmp_path: Path) -> None:
    for name in ("a/1", "b/1", "loose"):
        photo(tmp_path / f"{name}.png")
    images = open_images(tmp_path)
    assert images.label.tolist() == [0, 1, -1]
    assert images.notes["outside the class subfolders, without label"] == 1


def test_the_stored_side_never_enlarges_an_image_for_the_sake_of_others(tmp_path: Path) -> None:
    photo(tmp_path / "same/1.png", 60, 48), photo(tmp_path / "same/2.png", 48, 48)
    photo(tmp_path / "small/1.png", 60, 48), photo(tmp_path / "small/2.png", 20, 20)
    photo(tmp_path / "large/1.png", 700, 500), photo(tmp_path / "large/2.png", 20, 20)
    sides = [open_images(tmp_path / name).size for name in ("same", "small", "large")]
    assert sides == [48, 48, 224]
    assert open_images(tmp_path / "small").notes["enlarged to 48 px"] == 1


def test_grey_only_if_every_image_is(tmp_path: Path) -> None:
    for k, mode in enumerate(("L", "1", "LA")):
        photo(tmp_path / f"{k}.png", mode=mode)
    images = open_images(tmp_path)
    assert images.channels == 1
    photo(tmp_path / "colour.png")
    mixed = open_images(tmp_path)
    assert mixed.channels == 3 and mixed.notes["from grey to RGB"] == 3
    first = mixed.batch(torch.tensor([0]))[0]
    assert torch.equal(first, images.batch(torch.tensor([0]))[0].expand(3, -1, -1))
    assert open_images(tmp_path, channels=1).notes["from colour to grey"] == 1


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)  # black
    pixels[..., 3] = np.array([0, 51, 102, 255])  # from invisible to opaque
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    assert only(tmp_path)[0, 0].tolist() == [255, 204, 153, 0]
    assert open_images(tmp_path).notes["with transparency, laid on white"] == 1


def test_a_transparent_palette_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode=None).convert("P")
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "p.png", transparency=0)
    assert only(tmp_path).reshape(3, 4).T.tolist() == [
        [255, 255, 255],
        [10, 200, 30],
        [10, 200, 30],
        [255, 255, 255],
    ]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.array([[0, 257], [32896, 65535]], np.uint16)
    Image.fromarray(ramp).save(tmp_path / "16.png")
    assert only(tmp_path).tolist() == [[[0, 1], [128, 255]]]
    Image.fromarray(ramp).save(tmp_path / "16.png", format="TIFF")
    assert only(tmp_path).tolist() == [[[0, 1], [128, 255]]]


def test_float_images_are_scaled_from_their_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0.2], [0.4, 1]], np.float32)).save(tmp_path / "f.tiff")
    assert only(tmp_path).tolist() == [[[0, 51], [102, 255]]]


def test_one_bit_one_pixel_cmyk_and_animated_images_work(tmp_path: Path) -> None:
    photo(tmp_path / "bit.png", mode="1")
    photo(tmp_path / "pixel.png", 1, 1)
    photo(tmp_path / "cmyk.jpg", mode="CMYK")
    photo(tmp_path / "line.png", 300, 1)
    frames = [Image.new("RGB", (9, 9), (90 * k, 0, 0)) for k in range(3)]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    images = open_images(tmp_path, size=16)
    assert (len(images), images.size, images.channels) == (5, 16, 3)
    assert images.notes["from CMYK to RGB"] == 1
    assert images.notes["of several frames, first one taken"] == 1


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255  # light above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: light on the right
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    stored = only(tmp_path).mean(axis=0)
    assert stored[:, 8:].min() > 200 and stored[:, :8].max() < 50
    assert open_images(tmp_path).notes["turned upright (EXIF)"] == 1


def test_crop_keeps_the_centre_and_pad_keeps_everything(tmp_path: Path) -> None:
    pixels = np.full((10, 30, 3), 255, np.uint8)
    pixels[:, 10:20] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    assert (only(tmp_path) == np.array([255, 0, 0])[:, None, None]).all()
    padded = only(tmp_path, fit="pad", size=30)
    assert padded[:, :10].max() == 0 and padded[:, 20:].max() == 0
    assert (padded[:, 10:20] == pixels.transpose(2, 0, 1)).all()


def test_decoding_at_a_reduced_scale_keeps_the_picture(tmp_path: Path) -> None:
    y, x = np.mgrid[0:1024, 0:1536] / 1024
    smooth = np.stack([127 + 120 * np.sin(9 * x), 127 + 120 * np.cos(7 * y), 255 * y], -1)
    image = Image.fromarray(smooth.astype(np.uint8))
    image.save(tmp_path / "1.jpg", quality=95)
    exact = image.crop((256, 0, 1280, 1024)).resize((64, 64), Image.Resampling.BICUBIC)
    error = np.abs(only(tmp_path, size=64).astype(float) - np.asarray(exact).transpose(2, 0, 1))
    assert error.mean() < 1.5


def test_unreadable_images_are_counted_and_listed(tmp_path: Path) -> None:
    for k in range(20):
        photo(tmp_path / f"cat/{k:02}.png")
        photo(tmp_path / f"dog/{k:02}.jpg")
    (tmp_path / "cat/03.png").write_bytes((tmp_path / "cat/04.png").read_bytes()[:700])
    (tmp_path / "dog/07.jpg").write_bytes(b"")
    (tmp_path / "dog/08.jpg").write_text("<html>404</html>")
    (tmp_path / "dog/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    images = open_images(tmp_path, max_bad_share=0.1)
    assert len(images) == 37 and images.label.tolist() == [0] * 19 + [1] * 18
    assert {Path(s.path).name for s in images.skipped} == {"03.png", "07.jpg", "08.jpg", "gone.jpg"}
    assert any("empty" in s.reason for s in images.skipped)
    with pytest.raises(
        ValueError, match=r"4 of 41 images cannot be read.*5%(.|\n)*07.jpg: .*empty"
    ):
        open_images(tmp_path)


def test_a_truncated_file_is_found_before_a_streaming_set_is_used(tmp_path: Path) -> None:
    for k in range(20):
        photo(tmp_path / f"{k:02}.jpg", 300, 200)
    cut = tmp_path / "05.jpg"
    cut.write_bytes(cut.read_bytes()[:-4000])
    images = open_images(tmp_path, memory=0)
    assert not images.in_memory and len(images) == 19
    assert [Path(s.path).name for s in images.skipped] == ["05.jpg"]


def test_a_file_that_breaks_later_is_named(tmp_path: Path) -> None:
    for k in range(3):
        photo(tmp_path / f"{k}.png")
    images = open_images(tmp_path, memory=0)
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1\.png: .* decoding failed"):
        images.batch(torch.arange(3))


def test_what_is_not_an_image_is_ignored_and_counted(tmp_path: Path) -> None:
    photo(tmp_path / "a/1.png"), photo(tmp_path / "b/1.png")
    (tmp_path / "a/notes.txt").write_text("")
    (tmp_path / "b/photo.heic").write_text("")
    (tmp_path / ".DS_Store").write_text("")
    photo(tmp_path / "a/folder.png/inside.png")
    (tmp_path / "b/loop").symlink_to(tmp_path)
    images = open_images(tmp_path)
    assert len(images) == 3 and images.label.tolist() == [0, 0, 1]
    assert images.notes[".txt files ignored"] == images.notes[".heic files ignored"] == 1


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the folder is empty"):
        open_images(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"no image .* only 1 \.txt"):
        open_images(tmp_path)
    (tmp_path / "a.png").write_text("")
    with pytest.raises(ValueError, match=r"none of its 1 images can be read(.|\n)*a\.png"):
        open_images(tmp_path, max_bad_share=1.0)


def test_decompression_bombs_are_skipped_and_large_photographs_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(tmp_path / "bomb.png", 100, 100)
    photo(tmp_path / "large.png", 60, 60)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # warns above it, refuses above twice it
    images = open_images(tmp_path, max_bad_share=0.5)
    assert len(images) == 1 and "--max-pixels 10000 " in images.skipped[0].reason
    for memory in (2**30, 0):
        images = open_images(tmp_path, max_pixels=10_000, memory=memory)
        assert images.batch(torch.arange(2)).shape == (2, 3, 100, 100) and not images.skipped
        assert Image.MAX_IMAGE_PIXELS == 3000
    with pytest.raises(ValueError, match=r"bomb\.png: .*--max-pixels 10000"):
        open_images(tmp_path, max_pixels=9_999, max_bad_share=0.1)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    photo(tmp_path / "a/1.png")
    (tmp_path / "a").chmod(0)
    with pytest.raises(PermissionError, match="a"):
        open_images(tmp_path)
    (tmp_path / "a").chmod(0o700)


def test_a_path_that_does_not_exist_names_its_nearest_sibling(tmp_path: Path) -> None:
    photo(tmp_path / "photos/1.png")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*photos"):
        open_images(tmp_path / "fotos")
    with pytest.raises(ValueError, match="one image; name the folder"):
        open_images(tmp_path / "photos/1.png")


def test_labels_come_from_a_table_or_an_array(tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    for k in range(3):
        photo(folder / f"{k}.png")
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n2.png,cat\n0.png,dog\n")
    images = open_images(folder, labels=table)
    assert images.classes == ("cat", "dog") and images.label.tolist() == [1, -1, 0]
    assert images.notes["without a label"] == 1
    np.save(tmp_path / "y.npy", np.array([4, 9, 4]))
    images = open_images(folder, labels=str(tmp_path / "y.npy"))
    assert images.classes == ("4", "9") and images.label.tolist() == [0, 1, 0]
    table.write_text("file,label\n7.png,cat\n")
    with pytest.raises(ValueError, match=r"'7\.png' names no image"):
        open_images(folder, labels=table)
    with pytest.raises(ValueError, match="2 labels for 3 images"):
        open_images(folder, labels=[0, 1])


def test_labels_stay_with_their_images_when_a_file_is_skipped(tmp_path: Path) -> None:
    for k in range(3):
        photo(tmp_path / f"{k}.png")
    (tmp_path / "0.png").write_bytes(b"")
    images = open_images(tmp_path, labels=np.array([5, 6, 7]), max_bad_share=0.5)
    assert [images.classes[k] for k in images.label] == ["6", "7"]
