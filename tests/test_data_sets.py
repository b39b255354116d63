"""The contract of `ImageSet`, whatever it was read from; Parquet; real sets where present."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from contrapose.data import (
    NAMED,
    ImageSet,
    NoSuchSplit,
    balanced,
    exact_duplicates,
    few_labels,
    hold_out,
    open_images,
    overlap,
    parquet,
)

random = np.random.default_rng(0)


def real(name: str) -> None:
    """Skips where a real set is absent."""
    root = os.environ.get("CONTRAPOSE_DATA")
    if not root or not (Path(root) / name).exists():
        pytest.skip(f"needs {name} in the folder that CONTRAPOSE_DATA names")


def labelled(*labels: int) -> ImageSet:
    pixels = random.integers(0, 256, (len(labels), 5, 5), dtype=np.uint8)
    return open_images((pixels, list(labels)))


def png(folder: Path, k: int, suffix: str = "png") -> bytes:
    folder.mkdir(exist_ok=True)
    path = folder / f"{k}.{suffix}"
    Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


def shard(path: Path, images: list[object], label: list[object], names: list[str] | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": images, "label": label})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        said = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(said)
    pq.write_table(table, path, row_group_size=2)


# ---- the contract


def test_decoding_on_access_equals_one_tensor(tmp_path: Path) -> None:
    for k in range(9):
        size = (40 + 9 * k, 50)
        pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.{('png', 'jpg', 'webp')[k % 3]}")
    now, later = open_images(tmp_path, size=24), open_images(tmp_path, size=24, memory=0)
    assert now.in_memory and not later.in_memory
    index = torch.tensor([3, 0, 8, 8, 1])
    assert torch.equal(now.batch(index), later.batch(index))
    part = torch.tensor([7, 2])
    assert torch.equal(now.subset(part).batch(part - part), later.subset(part).batch(part - part))
    assert len(later.batch(index[:0])) == 0
    assert now.notes == later.notes and now.fingerprint != later.fingerprint


def test_batches_come_in_the_order_asked_and_positions_are_checked() -> None:
    images = labelled(0, 1, 0, 1)
    every = images.batch(torch.arange(4))
    assert torch.equal(images.batch(torch.tensor([2, 2, 0])), every[[2, 2, 0]])
    part = images.subset(torch.tensor([3, 1]))
    assert part.label.tolist() == [1, 1] and torch.equal(part.batch(torch.arange(2)), every[[3, 1]])
    with pytest.raises(IndexError, match="positions go from 0 to 3"):
        images.batch(torch.tensor([4]))


def test_the_fingerprint_follows_content_order_and_labels() -> None:
    x = random.integers(0, 256, (4, 5, 5), dtype=np.uint8)
    y = [0, 1, 0, 1]
    prints = [
        open_images((x, y)).fingerprint,
        open_images((x[::-1], y)).fingerprint,
        open_images((x ^ 1, y)).fingerprint,
        open_images((x, [1, 0, 0, 1])).fingerprint,
        open_images(x[:, None]).fingerprint,
        open_images((x, y)).subset(torch.arange(4)).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert prints[0] == open_images((x.copy(), y)).to("cpu").fingerprint


def test_the_fingerprint_of_a_streaming_set_follows_what_its_files_hold(tmp_path: Path) -> None:
    folder, copy = tmp_path / "set", tmp_path / "copy"
    for k in range(3):
        png(folder, k)
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)  # other times
    first, moved = open_images(folder, memory=0), open_images(copy, memory=0)
    assert first.fingerprint == moved.fingerprint != open_images(folder, memory=0, fit="pad")
    png(copy, 1)
    assert open_images(copy, memory=0).fingerprint != first.fingerprint


def test_a_set_in_memory_and_on_access_know_each_other(tmp_path: Path) -> None:
    for k in range(4):
        png(tmp_path / "set", k)
    np.save(tmp_path / "x.npy", random.integers(0, 256, (4, 1, 9, 9), dtype=np.uint8))
    pq.write_table(pa.table({"image": [png(tmp_path / "set", k) for k in range(4)]}),
                   tmp_path / "x.parquet")  # fmt: skip
    for source in ("set", "x.parquet", "x.npy"):
        now, later = (
            open_images(tmp_path / source, labels=[0, 1, 1, 0], memory=m) for m in (2**20, 0)
        )
        assert later.holds(now.fingerprint) and now.fingerprint != later.fingerprint
        assert now.holds(later.fingerprint)
        index = torch.tensor([2, 0])
        assert later.subset(index).holds(now.subset(index).fingerprint)
        assert not later.subset(index.flip(0)).holds(now.subset(index).fingerprint)
        other = open_images(tmp_path / source, labels=[1, 1, 0, 0], memory=0)
        assert not other.holds(now.fingerprint)


def test_a_balanced_subset_takes_as_many_of_each_class_and_grows_by_adding() -> None:
    label = np.repeat([0, 1, 2, -1], [50, 30, 4, 6])
    pixels = np.arange(90, dtype=np.uint8)[:, None, None] + np.zeros((90, 5, 5), np.uint8)
    images = open_images((pixels, label))
    few, more = balanced(images, 12, seed=3), balanced(images, 40, seed=3)
    assert few.label is not None and more.label is not None
    assert torch.bincount(few.label).tolist() == [4, 4, 4]
    assert torch.bincount(more.label).tolist() == [18, 18, 4]
    every = torch.arange(12)
    assert set(few.batch(every)[:, 0, 0, 0].tolist()) <= set(
        more.batch(torch.arange(40))[:, 0, 0, 0].tolist()
    )
    with pytest.raises(ValueError, match="it has 84 images to give"):
        balanced(images, 85)


def test_hold_out_keeps_classes_in_both_parts_and_nothing_twice() -> None:
    images = labelled(*[0] * 10, *[1] * 2, *[2] * 5, 3, 4, 5, 6, 7)
    train, test = hold_out(images, share=0.2, seed=1)
    assert (train.split, test.split) == ("train", "test")
    assert torch.bincount(test.label, minlength=8)[:3].tolist() == [2, 1, 1]
    assert int((test.label > 2).sum()) == 1  # classes of one image are drawn as one
    assert len(train) + len(test) == len(images) and len(overlap(train, test)) == 0
    again = hold_out(images, share=0.2, seed=1)[1]
    assert again.fingerprint == test.fingerprint
    assert hold_out(images, share=0.2, seed=2)[1].fingerprint != test.fingerprint
    assert len(hold_out(open_images(np.zeros((10, 5, 5))), share=0.3)[1]) == 3
    with pytest.raises(ValueError, match=r"share=1\.0"):
        hold_out(images, share=1.0)


def test_exact_duplicates_are_found() -> None:
    x = random.integers(0, 256, (6, 5, 5), dtype=np.uint8)
    x[4], x[5] = x[1], x[1]
    assert exact_duplicates(open_images(x)) == ((1, 4, 5),)
    assert overlap(open_images(x[:2]), open_images((x[2:], [0] * 4))).tolist() == [2, 3]


def test_wrong_arguments_are_named() -> None:
    x = np.zeros((4, 5, 5))
    for argument, value in {"size": 0, "channels": 2, "max_bad_share": 5.0, "memory": -1}.items():
        with pytest.raises(ValueError, match=f"{argument}={value}"):
            open_images(x, **{argument: value})
    with pytest.raises(ValueError, match="split='valid'"):
        open_images(x, "valid")
    with pytest.raises(NoSuchSplit):
        open_images(x, "test")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_set_moves_to_a_device() -> None:
    images = labelled(0, 1).to("cuda")
    assert images.batch(torch.tensor([1])).is_cuda and images.label.device.type == "cpu"


# ---- Parquet


def test_parquet_shards_with_class_names(tmp_path: Path) -> None:
    files = tmp_path / "files"
    cells = [{"bytes": png(files, k), "path": f"{k}.png"} for k in range(5)]
    folder = tmp_path / "set"
    shard(folder / "data/train-00000-of-00002.parquet", cells[:3], [1, 0, -1], ["cat", "dog"])
    shard(folder / "data/train-00001-of-00002.parquet", cells[3:4], [1], ["cat", "dog"])
    shard(folder / "data/validation-00000-of-00001.parquet", cells[4:], [1], ["cat", "dog"])
    images = open_images(folder)
    assert (images.split, images.classes) == ("train", ("cat", "dog"))
    assert images.label.tolist() == [1, 0, -1, 1]
    assert torch.equal(images.batch(torch.arange(4)), open_images(files).batch(torch.arange(4)))
    assert open_images(folder, "test").label.tolist() == [1]
    single = open_images(folder / "data/train-00000-of-00002.parquet")
    assert len(single) == 3


def test_only_names_inside_a_set_hide_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = tmp_path / ".cache" / "here"
    above.mkdir(parents=True)
    cells = [{"bytes": png(tmp_path / "files", k), "path": f"{k}.png"} for k in range(3)]
    shard(tmp_path / ".cache/set/train.parquet", cells[:2], [0, 1], None)
    shard(tmp_path / ".cache/set/.partial/train.parquet", cells[2:], [0], None)
    monkeypatch.chdir(above)
    assert len(open_images(Path("../set"))) == 2
    assert len(open_images(tmp_path / ".cache/set")) == 2


def test_parquet_larger_than_memory_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTRAPOSE_CACHE", str(tmp_path / "cache"))
    cells = [{"bytes": png(tmp_path / "files", k), "path": None} for k in range(7)]
    shard(tmp_path / "set/train.parquet", cells, list("abcabca"), None)
    now, later = (open_images(tmp_path / "set", memory=memory) for memory in (2**20, 0))
    assert now.in_memory and not later.in_memory
    assert later.classes == ("a", "b", "c") and later.label.tolist() == [0, 1, 2, 0, 1, 2, 0]
    index = torch.tensor([6, 0, 3])
    assert torch.equal(now.batch(index), later.batch(index))
    assert [p.suffix for p in (tmp_path / "cache/arrow").iterdir()] == [".arrow"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONTRAPOSE_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="CONTRAPOSE_CACHE"):
        open_images(tmp_path / "set", memory=0)


@pytest.mark.parametrize("room", [0, 2**30])
def test_large_parquet_is_read_by_row_groups_without_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setenv("CONTRAPOSE_CACHE", str(tmp_path / "cache"))
    cells = [{"bytes": png(tmp_path / "files", k), "path": None} for k in range(9)]
    for name, part in (("train-0", cells[:5]), ("train-1", cells[5:])):  # groups of 2, 2, 1, 2, 2
        shard(tmp_path / f"set/{name}.parquet", part, list("abcab")[: len(part)], None)
    mapped = open_images(tmp_path / "set", memory=0)
    monkeypatch.setattr(parquet, "COPIED", 0)
    monkeypatch.setattr(parquet, "ROOM", room)
    shutil.rmtree(tmp_path / "cache")
    images = open_images(tmp_path / "set", memory=0)
    index = torch.randint(0, 9, (40,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(images.batch(index), mapped.batch(index))
    assert images.fingerprint == mapped.fingerprint and images.files == mapped.files
    assert not (tmp_path / "cache/arrow").exists()
    (note,) = (note for note in images.notes if note.startswith("read by row groups"))
    assert "row_group_size" not in note
    monkeypatch.setattr(parquet, "FEW_ROWS", 1)
    (note,) = (n for n in open_images(tmp_path / "set", memory=0).notes if "read by" in n)
    assert "1.8 times what is used" in note and "row_group_size=1" in note  # 9 images, 5 groups
    monkeypatch.setenv("CONTRAPOSE_CACHE", "off")
    monkeypatch.setattr(parquet, "COPIED", 2**40)
    assert open_images(tmp_path / "set", memory=0).fingerprint == mapped.fingerprint


def test_parquet_rows_without_bytes_are_skipped_or_read_from_their_path(tmp_path: Path) -> None:
    cells: list[object] = [{"bytes": png(tmp_path / "set", k), "path": f"{k}.png"} for k in (0, 1)]
    cells += [{"bytes": None, "path": "0.png"}, {"bytes": None, "path": None}, None]
    shard(tmp_path / "set/train.parquet", cells, [0, 1, 1, 0, 0], None)
    images = open_images(tmp_path / "set", max_bad_share=0.5)
    assert images.label.tolist() == [0, 1, 1] and exact_duplicates(images) == ((0, 2),)
    assert [s.reason for s in images.skipped] == ["the row holds no image"] * 2


def test_bad_parquet_names_the_file_and_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet.*found text \(string\), label \(int64\)"):
        open_images(tmp_path)
    (tmp_path / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="Git LFS pointer"):
        open_images(tmp_path)
    shard(tmp_path / "train.parquet", [{"bytes": b"", "path": ""}], [7], ["cat", "dog"])
    with pytest.raises(ValueError, match="class 7 at position 0, but only 2 class names"):
        open_images(tmp_path)


# ---- named sets


def test_digits_need_no_network_and_split_by_class() -> None:
    train, test = open_images("digits"), open_images("digits", "test")
    assert (len(train), len(test)) == NAMED["digits"].images and len(train) + len(test) == 1797
    assert train.classes == tuple("0123456789") and (train.channels, train.size) == (1, 8)
    assert torch.bincount(test.label).min() >= 34
    assert train.batch(torch.arange(99)).max() == 255
    # no image is in both parts
    assert len(overlap(train, test)) == 0


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"did you mean 'cifar10'.*fashion-mnist"):
        open_images("cifar-10", root=tmp_path)
    with pytest.raises(NoSuchSplit, match="train, test"):
        open_images("mnist", "unlabeled", root=tmp_path)


@pytest.mark.parametrize("name", [name for name in NAMED if name != "digits"])
def test_a_missing_set_says_where_it_looked_and_how_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"CONTRAPOSE_DATA") as missing:
        open_images(name, root=tmp_path)
    assert str(tmp_path) in str(missing.value)
    assert ("--download" in str(missing.value)) == NAMED[name].download
    assert not any(tmp_path.iterdir())


def test_idx_files_are_read_where_torchvision_puts_them(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    pixels = random.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        head = np.array([0x803, 5, 28, 28], ">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = np.array([0x801, 5], ">i4").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + bytes([9, 0, 3, 3, 1]))
    images = open_images("fashion-mnist", "test", root=tmp_path)
    assert images.label.tolist() == [9, 0, 3, 3, 1] and images.classes[9] == "Ankle boot"
    assert (images.batch(torch.arange(5))[:, 0].numpy() == pixels).all()


def test_tiny_imagenet_as_it_is_distributed(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-imagenet-200"
    for wnid in ("n2", "n1"):
        (folder / "train" / wnid).mkdir(parents=True)
        png(folder / "train" / wnid / "images", 0, "jpeg")
    (folder / "val").mkdir()
    for k in range(2):
        png(folder / "val" / "images", k, "jpeg")
    (folder / "val/val_annotations.txt").write_text("0.jpeg\tn2\t0\t0\n1.jpeg\tn1\t0\t0\n")
    (folder / "words.txt").write_text("n1\tgoldfish\nn2\tnewt, eft\n")
    train = open_images("tiny-imagenet", root=tmp_path)
    test = open_images("tiny-imagenet", "test", root=tmp_path)
    assert train.classes == test.classes == ("goldfish", "newt, eft")
    assert train.label.tolist() == [0, 1] and test.label.tolist() == [1, 0]
    assert (train.split, test.split) == ("train", "test")


def test_mnist_is_the_official_one() -> None:
    real("MNIST")
    train, test = open_images("mnist"), open_images("mnist", "test")
    assert (len(train), len(test)) == (60_000, 10_000) == NAMED["mnist"].images
    assert train.label[:3].tolist() == [5, 0, 4] and (train.channels, train.size) == (1, 28)
    assert int(train.pixels.pixels.sum(dtype=torch.int64)) == 1_567_298_545  # mean 0.1307 of 255


def test_cifar10_from_parquet() -> None:
    real("cifar10")
    test = open_images("cifar10", "test")
    assert (len(test), test.channels, test.size) == (10_000, 3, 32)
    assert test.classes[:2] == ("airplane", "automobile") and len(test.classes) == 10
    assert torch.bincount(test.label).tolist() == [1000] * 10
    assert not test.skipped and not test.notes


@pytest.mark.slow
def test_all_of_cifar10_has_the_published_mean() -> None:
    real("cifar10")
    train = open_images("cifar10")
    assert len(train) == 50_000 and torch.bincount(train.label).tolist() == [5000] * 10
    mean = train.pixels.pixels.float().mean(dim=(0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4)


def test_tiny_imagenet_50_is_found_as_tiny_imagenet() -> None:
    real("tiny-imagenet-50")
    train, test = open_images("tiny-imagenet-50"), open_images("tiny-imagenet", "test")
    assert (len(train), len(test)) == (7500, 2500) and train.classes == test.classes
    assert train.channels == 3 and train.notes["from grey to RGB"] > 0
    assert test.name == "tiny-imagenet-50"  # what was found, not what was hoped for


def test_photographs_become_squares() -> None:
    real("coco128"), real("imagenet-sample-1000")
    coco, sample = open_images("coco128"), open_images("imagenet-sample-1000", size=64)
    assert (len(coco), coco.size, coco.label) == (128, 224, None)
    assert (len(sample), sample.size, len(sample.classes)) == (1000, 64, 1000)
    train, test = hold_out(sample)
    assert (len(train), len(test)) == (800, 200)


def test_a_slow_decoding_is_kept_and_a_changed_file_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contrapose.data.load._slow", lambda headers: True)
    monkeypatch.setenv("CONTRAPOSE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    for k in range(4):
        png(folder, k)
    (folder / "9.png").write_bytes(b"")
    first, again = (open_images(folder, max_bad_share=0.5) for _ in range(2))
    assert len(list((tmp_path / "cache/squares").iterdir())) == 1
    assert first.fingerprint == again.fingerprint and first.skipped == again.skipped
    assert torch.equal(first.batch(torch.arange(4)), again.batch(torch.arange(4)))
    with pytest.raises(ValueError, match="1 of 5 images cannot be read"):
        open_images(folder)
    png(folder, 0)
    os.utime(folder / "0.png", ns=(1, 1))
    assert open_images(folder, max_bad_share=0.5).fingerprint != first.fingerprint
    for copy in (tmp_path / "cache/squares").iterdir():
        copy.write_bytes(b"damaged")
    assert len(open_images(folder, max_bad_share=0.5)) == 4
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONTRAPOSE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be kept"):
        assert len(open_images(folder, max_bad_share=0.5)) == 4
    monkeypatch.setenv("CONTRAPOSE_CACHE", "off")
    assert len(open_images(folder, max_bad_share=0.5)) == 4


def test_few_labels_keeps_every_image_and_the_same_ones_labelled() -> None:
    digits = open_images("digits")
    few = few_labels(digits, 30)
    assert len(few) == len(digits) and digits.label is not None and few.label is not None
    known = few.label >= 0
    assert torch.equal(few.label[known], digits.label[known])
    assert torch.bincount(few.label[known]).tolist() == [3] * 10
    assert torch.equal(few.subset(known.nonzero()[:, 0]).label, balanced(digits, 30).label)
    with pytest.raises(ValueError, match="few_labels: 9999 of"):
        few_labels(digits, 9999)


def test_the_footer_of_a_shard_is_read_once_however_often_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, read = [], pq.read_metadata
    monkeypatch.setattr(pq, "read_metadata", lambda file: (count.append(file), read(file))[1])
    picture = png(tmp_path / "png", 0)
    shutil.rmtree(tmp_path / "png")
    for k in range(3):
        shard(tmp_path / f"train-{k}.parquet", [picture] * 2, [0, 1], None)
    images = open_images(tmp_path)
    assert len(images) == 6 and sorted(count) == sorted(tmp_path.glob("*.parquet"))
    shard(tmp_path / "train-1.parquet", [picture] * 5, [0, 1, 0, 1, 0], None)
    assert len(open_images(tmp_path)) == 9 and len(count) == 4  # a shard that was written anew
