"""The table of named data sets; adding a set is adding an entry.

A named set is searched as Parquet shards in ROOT/<name> or ROOT/<name>-*, then as class folders in
ROOT/<name>/train, then by its own reader in torchvision's layout under ROOT.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contrapose.data.arrays import from_array
from contrapose.data.folder import from_folder
from contrapose.data.images import NoSuchSplit
from contrapose.data.load import Listing
from contrapose.data.parquet import shards
from contrapose.data.split import stratified
from contrapose.errors import UserError

Read = Callable[[Path, str, bool], Listing]  # root, split, download
ReadParquet = Callable[[Path, str], Listing]  # folder of shards, split


@dataclass(frozen=True)
class NamedSet:
    """The description of a set for `contrapose list`, and its reader."""

    about: str
    size: int | None  # px; None = photographs of many sizes
    channels: int
    classes: int
    images: tuple[int, int]  # train, test
    read: Read
    download: bool = True  # whether `download=True` can fetch it
    splits: tuple[str, ...] = ("train", "test")


def _digits(root: Path, split: str, download: bool) -> Listing:
    from sklearn.datasets import load_digits

    digits = load_digits()
    label = torch.from_numpy(digits.target.astype(np.int64))
    kept, held = stratified(label, len(label), share=0.2, seed=0)
    index = kept if split == "train" else held
    pixels = np.rint(digits.images[index.numpy()] * (255 / 16)).astype(np.uint8)  # from 0..16
    classes = tuple(str(digit) for digit in range(10))
    return replace(from_array(pixels, what="digits"), label=label[index], classes=classes)


def _torchvision(
    reader: str, select: dict[str, Any], root: Path, split: str, download: bool
) -> Listing:
    """A set by one of torchvision's readers that have their pixels in `.data`."""
    from torchvision import datasets

    if download:
        root.mkdir(parents=True, exist_ok=True)
    found = getattr(datasets, reader)(root, **select[split], download=download)
    y = np.asarray(found.targets if hasattr(found, "targets") else found.labels, np.int64)
    classes = tuple(getattr(found, "classes", None) or map(str, range(10)))
    listing = from_array(found.data, what=reader)
    return replace(listing, label=torch.from_numpy(y), classes=classes)


_FLAG: dict[str, Any] = {"train": {"train": True}, "test": {"train": False}}
_SPLIT: dict[str, Any] = {name: {"split": name} for name in ("train", "test", "unlabeled")}


def _tiny_imagenet(root: Path, split: str, download: bool) -> Listing:
    from torchvision.datasets.utils import download_and_extract_archive

    folder = root / "tiny-imagenet-200"
    if download and not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
        md5 = "90528d7ca1a48142e341f4ef8d21d0de"
        download_and_extract_archive(url, str(root), md5=md5, remove_finished=True)
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    train = from_folder(folder, "train")
    words = dict(line.split("\t", 1) for line in (folder / "words.txt").read_text().splitlines())
    classes = tuple(words.get(wnid, wnid) for wnid in train.classes)
    if split == "train":
        return replace(train, classes=classes)
    # the labelled split is val/: images in one folder, their classes in a table
    test = from_folder(folder / "val", "train")
    lines = (folder / "val" / "val_annotations.txt").read_text().splitlines()
    wnid = {line.split("\t")[0]: line.split("\t")[1] for line in lines}
    names = [Path(test.source.name(i)).name for i in range(len(test.source))]
    label = torch.tensor([train.classes.index(wnid[name]) for name in names])
    return replace(test, label=label, classes=classes)


def _imagenet(root: Path, split: str, download: bool) -> Listing:
    return from_folder(root / "imagenet", split)


NAMED: dict[str, NamedSet] = {
    "digits": NamedSet(
        "handwritten digits that come with scikit-learn, no network needed",
        8, 1, 10, (1438, 359), _digits, download=False,
    ),
    "mnist": NamedSet(
        "handwritten digits", 28, 1, 10, (60_000, 10_000), partial(_torchvision, "MNIST", _FLAG)
    ),
    "fashion-mnist": NamedSet(
        "articles of clothing",
        28, 1, 10, (60_000, 10_000), partial(_torchvision, "FashionMNIST", _FLAG),
    ),
    "cifar10": NamedSet(
        "small photographs of animals and vehicles",
        32, 3, 10, (50_000, 10_000), partial(_torchvision, "CIFAR10", _FLAG),
    ),
    "cifar100": NamedSet(
        "small photographs of a hundred things",
        32, 3, 100, (50_000, 10_000), partial(_torchvision, "CIFAR100", _FLAG),
    ),
    "svhn": NamedSet(
        "house numbers seen from the street, one digit each",
        32, 3, 10, (73_257, 26_032), partial(_torchvision, "SVHN", _SPLIT),
    ),
    "stl10": NamedSet(
        "photographs of animals and vehicles, and 100,000 unlabelled ones in split `unlabeled`",
        96, 3, 10, (5_000, 8_000), partial(_torchvision, "STL10", _SPLIT),
        splits=("train", "test", "unlabeled"),
    ),
    "tiny-imagenet": NamedSet(
        "200 classes of ImageNet made small; its validation split is read as test",
        64, 3, 200, (100_000, 10_000), _tiny_imagenet,
    ),
    "imagenet": NamedSet(
        "ILSVRC 2012; its validation split is read as test",
        None, 3, 1000, (1_281_167, 50_000), _imagenet, download=False,
    ),
}  # fmt: skip


def from_named(
    name: str, split: str, root: Path, download: bool, read: ReadParquet
) -> tuple[str, Listing]:
    """(what was read, its listing). read: the reader of a folder of shards.

    Raises FileNotFoundError with the folders that were searched.
    """
    entry = NAMED[name]
    if split not in entry.splits:
        raise NoSuchSplit(f"{name}: no split {split!r}; it has {', '.join(entry.splits)}")
    if folder := _parquet(name, root):
        return folder.name, read(folder, split)
    if (root / name / "train").is_dir():
        return name, from_folder(root / name, split)
    if download and not entry.download:
        raise UserError(f"{name}: cannot be downloaded{_by_hand(name, root)}")
    try:
        listing = entry.read(root, split, download)
    except (FileNotFoundError, RuntimeError) as error:
        if download:
            raise _not_downloaded(name, root, error) from error
        get = "download it with download=True (--download)" if entry.download else "get it"
        raise FileNotFoundError(
            f"{name}: not found, or damaged, in {root}, neither as torchvision lays it out nor as"
            f" Parquet in {root / name}; {get}, or name the folder that holds it with root=... or"
            f" CONTRAPOSE_DATA{_by_hand(name, root) if not entry.download else ''}"
        ) from error
    except OSError as error:
        if download:
            raise _not_downloaded(name, root, error) from error
        raise
    return name, replace(listing, split=split)


def _parquet(name: str, root: Path) -> Path | None:
    """ROOT/<name>, or the only ROOT/<name>-*, if it holds Parquet shards."""
    exact = root / name
    if exact.is_dir() and shards(exact):
        return exact
    near = [p for p in sorted(root.glob(f"{name}-*")) if p.is_dir() and shards(p)]
    if len(near) > 1:
        raise UserError(
            f"{name}: several sets of that name in {root}: {', '.join(p.name for p in near)};"
            " ask for one of these"
        )
    return near[0] if near else None


def _by_hand(name: str, root: Path) -> str:
    return (
        f"; put its images into {root / name}/train/<class>/ and {root / name}/val/<class>/,"
        f" or Parquet shards into {root / name}/"
    )


def _not_downloaded(name: str, root: Path, error: Exception) -> OSError:
    return OSError(f"{name}: the download to {root} failed ({error}){_by_hand(name, root)}")
