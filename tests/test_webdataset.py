"""Tar shards as WebDataset writes them, read at any place without unpacking."""

import io
import json
import os
import shutil
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.quick_recipe import quick

import contrapose
from contrapose import augment, encoders
from contrapose.data import NoSuchSplit, open_images
from contrapose.data.webdataset import _plain_members

RANDOM = np.random.default_rng(0)


def picture(k: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(k).integers(0, 256, (24, 30, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for k, (name, content) in enumerate(members):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5 * k  # type: ignore[assignment]  # a pax header
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(first: int, count: int, **parts: Any) -> list[tuple[str, bytes]]:
    """`0007.png` and what `parts` make of 7: cls=lambda k: "3"."""
    found = []
    for k in range(first, first + count):
        found.append((f"{k:04}.png", picture(k)))
        found += [(f"{k:04}.{name}", str(make(k)).encode()) for name, make in parts.items()]
    return found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONTRAPOSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def three(tmp_path: Path, cache: Path) -> Path:
    for s in range(3):
        shard(tmp_path / f"set/a-{s:03}.tar", samples(5 * s, 5, cls=lambda k: k % 4))
    return tmp_path / "set"


def test_every_image_is_the_one_that_was_written_wherever_it_lies(three: Path, tmp_path: Path):
    (tmp_path / "files").mkdir()
    for k in range(15):
        (tmp_path / f"files/{k:04}.png").write_bytes(picture(k))
    files = open_images(tmp_path / "files")
    index = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    for memory in (2**30, 0):
        for source in (three, f"{three}/a-{{000..002}}.tar"):
            images = open_images(source, memory=memory)
            assert torch.equal(images.batch(index), files.batch(index))
            assert images.label.tolist() == [k % 4 for k in range(15)]
            assert images.classes == ("0", "1", "2", "3")
            assert images.files == [f"a-{k // 5:03}.tar/{k:04}.png" for k in range(15)]
    one = open_images(three / "a-001.tar", memory=0)
    assert torch.equal(one.batch(torch.tensor([2])), files.batch(torch.tensor([7])))


def test_labels_are_cls_or_json_or_folders(tmp_path: Path, cache: Path):
    said = lambda k: json.dumps({"label": "no" if k % 2 else "yes", "age": k, "tags": ["a"] * k})  # noqa: E731
    shard(tmp_path / "cls.tar", samples(0, 4, json=said, cls=lambda k: "xy"[k % 2]))
    shard(tmp_path / "json.tar", samples(0, 4, json=said, txt=lambda k: "words"))
    shard(
        tmp_path / "dirs.tar", [(f"./{c}/{k}.png", picture(k)) for c in ("a", "b") for k in (0, 1)]
    )
    shard(tmp_path / "none.tar", samples(0, 3))
    of = {name: open_images(tmp_path / f"{name}.tar") for name in ("cls", "json", "dirs", "none")}
    assert of["cls"].classes == ("x", "y") and of["cls"].label.tolist() == [0, 1, 0, 1]
    assert of["json"].classes == ("no", "yes") and of["json"].label.tolist() == [1, 0, 1, 0]
    assert of["json"].notes["parts of samples not read (txt)"] == 4
    assert of["dirs"].classes == ("a", "b") and of["dirs"].label.tolist() == [0, 0, 1, 1]
    assert of["none"].label is None
    age = open_images(tmp_path / "json.tar", label_column="age")
    assert age.classes == ("0", "1", "2", "3")
    tags = open_images(tmp_path / "json.tar", label_column="tags")
    assert tags.classes == ("a",) and tags.labels.flatten().tolist() == [0, 1, 1, 1]
    with pytest.raises(ValueError, match=r"'weight': no \.json of a sample"):
        open_images(tmp_path / "json.tar", label_column="weight")
    listed = open_images(tmp_path / "none.tar", labels=["u", "v", "u"])
    assert listed.classes == ("u", "v")


def test_of_several_images_in_a_sample_one_is_chosen_by_name(tmp_path: Path, cache: Path):
    both = [("0.in.png", picture(0)), ("0.out.png", picture(1)), ("1.out.png", picture(2))]
    path = shard(tmp_path / "two.tar", both)
    with pytest.raises(ValueError, match=r"two\.tar: 0\.in\.png .* --image-column in\.png"):
        open_images(path)
    images = open_images(path, image_column="out.png")
    assert images.files == ["two.tar/0.out.png", "two.tar/1.out.png"]
    only = open_images(path, image_column="in.png")
    assert len(only) == 1 and only.notes["samples without an image"] == 1


def test_shards_that_are_missing_are_named(three: Path):
    with pytest.raises(FileNotFoundError, match=r"2 of 5 shards are missing: .*a-003\.tar"):
        open_images(f"{three}/a-{{000..004}}.tar")
    (three / "a-001.tar").unlink()
    images = open_images(three)
    gap = "shards that the numbering leaves out, such as a-001.tar"
    assert len(images) == 10 and images.notes[gap] == 1
    with pytest.raises(ValueError, match="counts down"):
        open_images(f"{three}/a-{{004..000}}.tar")
    with pytest.raises(ValueError, match="only local shards"):
        open_images("https://example.org/a-{000..004}.tar")


@pytest.mark.parametrize("where", ["in a header", "in an image", "after a member"])
def test_a_shard_that_is_cut_is_named(three: Path, where: str):
    path = three / "a-001.tar"
    content = path.read_bytes()
    last = -(-len(content.rstrip(b"\0")) // 512) * 512  # the end of the last member
    left = {"in a header": 100, "in an image": 3000, "after a member": last}[where]
    path.write_bytes(content[:left])
    with pytest.raises(ValueError, match=r"a-001\.tar: not a whole tar file"):
        open_images(three, memory=0)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(tmp_path: Path, form: int):
    names = ["a.png", "./b/c.png", "d" * 90 + "/" + "e" * 80 + ".png", "köln.png"]
    names += [] if form == tarfile.USTAR_FORMAT else ["f" * 200 + ".png", "g/" * 100 + "ü.png"]
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        tar.add(tmp_path, "folder", recursive=False)
        for k, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 511 * k
            tar.addfile(info, io.BytesIO(bytes(511 * k)))
    with path.open("rb") as raw, tarfile.open(path) as tar:
        plain = _plain_members(raw)
        files = [m for m in tar.getmembers() if m.isreg()]
        found = [(m.name.removeprefix("./"), m.offset_data, m.size) for m in files]
        assert plain == found and len(found) == len(names)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)
    with path.open("rb") as raw:
        assert _plain_members(raw) is None  # left to tarfile


def test_what_is_no_plain_tar_says_so(tmp_path: Path, cache: Path):
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(ValueError, match=r"packed\.tar: a compressed tar"):
        open_images(tmp_path / "packed.tar")
    (tmp_path / "pointer.tar").write_text("version https://git-lfs.github.com/spec/v1\n" * 20)
    with pytest.raises(ValueError, match=r"pointer\.tar: .*Git LFS"):
        open_images(tmp_path / "pointer.tar")
    shard(tmp_path / "words.tar", [("a.txt", b"x"), ("b.json", b"{}")])
    with pytest.raises(ValueError, match="no image in 1 tar"):
        open_images(tmp_path / "words.tar")
    shard(tmp_path / "twice.tar", [("a.png", picture(0)), ("a.png", picture(1))])
    with pytest.raises(ValueError, match="two members of one sample"):
        open_images(tmp_path / "twice.tar")


def test_splits_have_the_names_of_their_shards_and_one_list_of_classes(tmp_path: Path, cache: Path):
    shard(tmp_path / "set/train-000.tar", samples(0, 4, cls=lambda k: "ac"[k % 2]))
    shard(tmp_path / "set/val-000.tar", samples(4, 2, cls=lambda k: "b"))
    train, test = (open_images(tmp_path / "set", split) for split in ("train", "test"))
    assert train.classes == test.classes == ("a", "b", "c")
    assert train.label.tolist() == [0, 2, 0, 2] and test.label.tolist() == [1, 1]
    assert torch.equal(open_images(tmp_path / "set", "test", memory=0).batch(torch.tensor([1])),
                       test.batch(torch.tensor([1])))  # fmt: skip
    with pytest.raises(NoSuchSplit, match="shards are of test, train"):
        open_images(tmp_path / "set", "unlabeled")


def test_the_index_is_kept_until_a_shard_changes(three: Path, cache: Path):
    def kept() -> list[Path]:
        return sorted((cache / "tar").iterdir())

    first = open_images(three, memory=0)
    assert len(kept()) == 1 and open_images(three, memory=0).fingerprint == first.fingerprint
    stat = (three / "a-002.tar").stat()
    shard(three / "a-002.tar", samples(50, 5, cls=lambda k: 9))
    os.utime(three / "a-002.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    changed = open_images(three, memory=0)
    assert changed.files[-1] == "a-002.tar/0054.png" and changed.classes[-1] == "9"
    for entry in kept():
        entry.write_bytes(entry.read_bytes()[:300])
    assert open_images(three, memory=0).fingerprint == changed.fingerprint != first.fingerprint


def test_a_run_is_trained_on_shards_and_resumed_elsewhere(three: Path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = partial(encoders.small_conv, width=8, channels=3)
    recipe = quick(batch_size=5, size=16, epochs=1, backbone=network, views=augment.simclr)
    run = contrapose.train(recipe, "set/a-{000..002}.tar", out=tmp_path / "run", device="cpu")
    assert run.status()["step"] == 3
    monkeypatch.chdir(shutil.copytree(tmp_path / "run", tmp_path / "copy"))
    again = contrapose.resume(tmp_path / "copy", recipe=recipe, device="cpu")
    assert again.status()["step"] == 3
