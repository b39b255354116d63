"""WebDataset shards: tar files whose members of one name, but for what follows its first dot, are
one sample: `0001.jpg`, `0001.cls`, `0001.json`.

A tar has no table of contents, so every shard is read through once, header by header, and where
each image lies is kept in the cache, by names, sizes and times of the shards. Then any image is
read at once, in any order, without unpacking anything.

Labels are, in this order: the `.cls` of a sample (a number or a word); the entry of its `.json`
that is called label, cls, class or target, or `label_column`; the first folder in the names of the
members (`cat/0001.jpg`), if there are two or more. Other parts of a sample are not read, and
counted.
"""

import io
import json
import mmap
import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from contrapose.data.decode import SUFFIXES, BinaryFile
from contrapose.data.images import digest
from contrapose.data.labels import encode, numbers
from contrapose.data.load import Encoded, Listing
from contrapose.data.packed import Packed, Packing, printable
from contrapose.data.several import several
from contrapose.data.shards import expanded, numbering_gaps, of_split, stamp
from contrapose.data.threads import each
from contrapose.data.walk import files_with, hidden
from contrapose.errors import UserError
from contrapose.files import cache_root

LABEL = ("label", "labels", "cls", "class", "target")  # entries of a .json
_FORMAT = 1  # of the kept index
_BLOCK = tarfile.BLOCKSIZE
_BUFFER = 2**16  # bytes that an image is read in


def shards(root: Path) -> list[Path]:
    """The tar files below a folder, in order, without hidden ones."""
    return files_with(root, ".tar")


def named(pattern: str, where: Path) -> list[Path]:
    """The shards of a pattern such as `set/train-{000..999}.tar`, in this folder or in `where`.

    Raises FileNotFoundError with the names of those that are missing.
    """
    if "://" in pattern or pattern.startswith("pipe:"):
        raise UserError(f"{pattern}: only local shards are read; fetch them first")
    names = expanded(os.path.expanduser(pattern))
    found = [Path(name) for name in names]
    if not any(path.is_file() for path in found):
        found = [where / name for name in names]
    if missing := [k for k, path in enumerate(found) if not path.is_file()]:
        listed = ", ".join(names[k] for k in missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise FileNotFoundError(
            f"{pattern}: {len(missing):,} of {len(names):,} shards are missing: {listed}"
        )
    return found


def from_tars(
    files: Sequence[Path],
    root: Path,
    split: str,
    *,
    label_column: str | None = None,
    image_column: str | None = None,
) -> Listing:
    """The images of `split` in tar shards. root: their folder, or the only shard.

    label_column: the entry of each sample's .json. image_column: the part of a sample that is the
    image, such as `jpg`, where it has several.
    """
    by_split = of_split(files, root, split)
    chosen = by_split.get(split) or by_split["all"]
    index = _index(list(files), root, label_column, image_column)
    number = {file: k for k, file in enumerate(files)}
    mine = index.of([number[file] for file in chosen])
    above = root if root.is_dir() else root.parent
    source = Encoded(
        _Members(chosen, mine), mine.opener(chosen), stamp(chosen), place=str(root.resolve()),
        stored=int(mine.size.sum()),
    )  # fmt: skip
    shown = _Members([Path(os.path.relpath(file, above)) for file in chosen], mine)
    found = split if chosen is by_split.get(split) and len(by_split) > 1 else "all"
    notes = dict(index.notes)
    if gaps := numbering_gaps(files):
        listed = ", ".join(gaps[:3]) + (" ..." if len(gaps) > 3 else "")
        notes[f"shards that the numbering leaves out, such as {listed}"] = len(gaps)
    if found != "all" and "all" in by_split:
        lost = index.of([number[file] for file in by_split["all"]])
        which = printable(by_split["all"][0].name)
        notes[f"samples not read: no split has the name of their shard ({which})"] = len(lost.size)
    told, rest = mine.label, (part for part in by_split.values() if part is not chosen)
    others = [index.of([number[file] for file in part]).label for part in rest]
    if told is None:
        return Listing(source, found, notes=notes, names=shown)
    what = f"{root}: {index.labels_from}"
    more = several(told, len(mine.size), also=others, what=what)
    if more is not None:
        return Listing(source, found, None, more[1], notes=notes, names=shown, labels=more[0])
    label, classes = encode(_typed(told), len(told), also=[_typed(o) for o in others], what=what)
    if without := int((label < 0).sum()):
        notes["without a label"] = without
    return Listing(source, found, label, classes, notes=notes, names=shown)


def _typed(told: list[Any] | None) -> Any:
    return numbers(["" if word is None else word for word in told or []])


@dataclass(frozen=True, eq=False)
class _Index:
    """Where the images lie in the shards."""

    names: Packed  # of the members
    shard: Int64[np.ndarray, " N"]  # which one
    offset: Int64[np.ndarray, " N"]  # bytes from its beginning
    size: Int64[np.ndarray, " N"]  # bytes
    label: list[Any] | None = None  # as the samples have them; None: there are none
    labels_from: str = ""
    notes: dict[str, int] = field(default_factory=dict)

    def of(self, shards: list[int]) -> "_Index":
        """Those in these shards, which are numbered anew."""
        place = np.full(int(self.shard.max(initial=0)) + 1, -1)
        place[[k for k in shards if k < len(place)]] = [
            i for i, k in enumerate(shards) if k < len(place)
        ]
        kept = np.flatnonzero(place[self.shard] >= 0)
        label = None if self.label is None else [self.label[i] for i in kept.tolist()]
        names = self.names if len(kept) == len(self.shard) else Packed.of(
            self.names[i] for i in kept.tolist()
        )  # fmt: skip
        return _Index(
            names, place[self.shard[kept]], self.offset[kept], self.size[kept], label,
            self.labels_from,
        )  # fmt: skip

    def opener(self, files: Sequence[Path]) -> Any:
        def opened(i: int) -> BinaryFile:
            span = _Span(files[self.shard[i]], int(self.offset[i]), int(self.size[i]))
            return io.BufferedReader(span, min(_BUFFER, max(1, int(self.size[i]))))

        return opened


@dataclass(frozen=True, eq=False)
class _Members(Sequence[str]):
    """Names of members, with the shard that they lie in."""

    files: Sequence[Path]
    lies: _Index

    def __len__(self) -> int:
        return len(self.lies.size)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return printable(f"{self.files[self.lies.shard[i]]}/{self.lies.names[i]}")


class _Span(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._file = os.open(path, os.O_RDONLY)
        self._offset, self._size, self._at = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, to: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, to + {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence, self._size))
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._at))
        content = os.pread(self._file, wanted, self._offset + self._at)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()


@dataclass
class _Shard:
    """What one shard holds."""

    names: Packing = field(default_factory=Packing)
    spans: list[tuple[int, int]] = field(default_factory=list)
    cls: list[str | None] = field(default_factory=list)  # of each image
    said: list[Any] = field(default_factory=list)  # by its .json
    folder: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


def _index(files: list[Path], root: Path, label: str | None, image: str | None) -> _Index:
    """The index of all shards, from the cache or read through."""
    kept = _place(files, root, label, image)
    if kept is not None and (known := _recall(kept)) is not None:
        return known
    found = each(
        lambda file: _through(file, label, image), files, f"indexing {len(files):,} shards"
    )
    names = Packed.of(name for shard in found for name in shard.names.packed())
    if not len(names):
        raise UserError(f"{root}: no image in {len(files):,} tar files")
    spans = np.array([span for shard in found for span in shard.spans], np.int64).reshape(-1, 2)
    number = np.repeat(np.arange(len(found)), [len(shard.spans) for shard in found])
    told, labels_from = _labels(found, label, root)
    notes: Counter[str] = Counter()
    for shard in found:
        notes.update(shard.notes)
    index = _Index(names, number, spans[:, 0], spans[:, 1], told, labels_from, dict(notes))
    if kept is not None:
        _keep(kept, index)
    return index


def _labels(found: list[_Shard], asked: str | None, root: Path) -> tuple[list[Any] | None, str]:
    """(the label of each image as it is told, where from); None if nothing tells any."""
    cls, said, folder = (
        [value for shard in found for value in getattr(shard, name)]
        for name in ("cls", "said", "folder")
    )
    if asked is not None and all(value is None for value in said):
        raise UserError(f"label_column={asked!r}: no .json of a sample in {root} has that entry")
    if asked is None and any(value is not None for value in cls):
        return cls, "the .cls of its samples"
    if any(value is not None for value in said):
        return said, "the .json of its samples"
    if len({*folder} - {""}) > 1:
        return [name or None for name in folder], "the folders in its shards"
    return None, ""


def _through(file: Path, label: str | None, image: str | None) -> _Shard:
    """Read one shard through. UserError with its name where it is not whole."""
    found = _Shard()
    key, parts = "", dict[str, tuple[int, int, str]]()  # of the sample: suffix -> where, member
    with file.open("rb") as raw:
        for name, offset, size in _members(file, raw, found.notes):
            folder, _, base = name.rpartition("/")
            stem, dot, suffix = base.partition(".")
            if not dot or hidden(base) or (base.startswith("__") and "__" in base[2:]):
                found.notes["members of tar files that belong to no sample, ignored"] += 1
                continue
            if f"{folder}/{stem}" != key:
                _sample(file, raw, parts, label, image, found)
                key, parts = f"{folder}/{stem}", {}
            if suffix.lower() in parts:
                raise UserError(f"{file}: two members of one sample are called {name}")
            parts[suffix.lower()] = (offset, size, name)
        _sample(file, raw, parts, label, image, found)
    return found


def _members(file: Path, raw: Any, notes: Counter[str]) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of the plain files in a tar; UserError if it is cut or compressed."""
    start = raw.read(8)
    raw.seek(0)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise UserError(
            f"{file}: a compressed tar, in which no image can be read alone; decompress it"
        )
    if (plain := _plain_members(raw)) is not None:
        yield from plain
        return
    try:
        with tarfile.open(fileobj=raw, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
                if member.isreg() and not member.issparse():
                    yield member.name.removeprefix("./"), member.offset_data, member.size
                elif not member.isdir():
                    notes["links and the like in tar files, ignored"] += 1
            raw.seek(tar.offset)
            if raw.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError(f"it ends, or is damaged, at byte {tar.offset:,}")
    except tarfile.TarError as error:
        why = "a Git LFS pointer; fetch the file itself" if start[:7] == b"version" else str(error)
        raise UserError(f"{file}: not a whole tar file ({why}); fetch it again") from None


def _plain_members(raw: Any) -> list[tuple[str, int, int]] | None:
    """As `_members`, five times as fast as tarfile, for a whole tar of plain files and folders with
    names as ustar, pax or GNU have them; None for any other, to be read by tarfile."""
    found: list[tuple[str, int, int]] = []
    told: dict[bytes, bytes] = {}  # by the headers before a member
    try:
        with mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            at = 0
            while (block := whole[at : at + _BLOCK]) != bytes(_BLOCK):
                size, check = (
                    int(block[a:b].strip(b"\0 "), 8) for a, b in ((124, 136), (148, 156))
                )
                if sum(block) - sum(block[148:156]) + 256 != check:
                    return None
                kind, start = block[156:157], at + _BLOCK
                if kind == b"x":
                    told |= _pax(whole[start : start + size])
                elif kind == b"L":
                    told[b"path"] = whole[start : start + size].rstrip(b"\0")
                elif kind in b"0\0" or kind == b"5":
                    name = block[:100].partition(b"\0")[0]
                    if prefix := block[345:500].partition(b"\0")[0]:
                        name = prefix + b"/" + name
                    name = told.get(b"path", name)
                    size = int(told.get(b"size", size))
                    if kind == b"\0" and name.endswith(b"/"):
                        return None
                    if kind != b"5":
                        text = name.decode("utf-8", "surrogateescape")
                        found.append((text.removeprefix("./"), start, size))
                    told = {}
                else:
                    return None
                at = start + -(-size // _BLOCK) * _BLOCK
                if at > len(whole):
                    return None
    except ValueError:  # no number where there should be one, or an empty file
        return None
    return found


def _pax(content: bytes) -> dict[bytes, bytes]:
    """The records of a pax header, such as `12 path=a/b`; ValueError for sparse files."""
    found = {}
    while content:
        length = int(content[: content.index(b" ")])
        key, _, value = content[content.index(b" ") + 1 : length - 1].partition(b"=")
        if key.startswith(b"GNU.sparse") or length < 5:
            raise ValueError(key)
        found[key] = value
        content = content[length:]
    return found


def _sample(
    file: Path,
    raw: Any,
    parts: dict[str, tuple[int, int, str]],
    label: str | None,
    image: str | None,
    found: _Shard,
) -> None:
    """Note where a sample's image lies, and its labels."""
    if not parts:
        return
    pictures = [suffix for suffix in parts if "." + suffix.rpartition(".")[2] in SUFFIXES]
    if image is not None:
        pictures = [suffix for suffix in parts if suffix == image.lower().lstrip(".")]
    if len(pictures) > 1:
        raise UserError(
            f"{file}: {parts[pictures[0]][2]} is a sample of several images, "
            f"{', '.join(pictures)}; say which with --image-column {pictures[0]}"
        )
    other = {*parts} - {*pictures, "cls", "json"}
    if other:
        found.notes[f"parts of samples not read ({', '.join(sorted(other)[:3])})"] += 1
    if not pictures:
        found.notes["samples without an image"] += 1
        return
    offset, size, name = parts[pictures[0]]
    found.names.append(name)
    found.spans.append((offset, size))
    found.folder.append(name.partition("/")[0] if "/" in name else "")
    cls = _text(raw, parts["cls"]) if "cls" in parts else None
    found.cls.append(cls)
    said = None
    if "json" in parts and (label is not None or cls is None):
        said = _said(file, parts["json"][2], _text(raw, parts["json"]), label)
    found.said.append(said)


def _said(file: Path, member: str, text: str, label: str | None) -> Any:
    """The label in a sample's .json: a word, a list of words, or None."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{file}: {member} is no JSON ({error})") from None
    if isinstance(value, dict):
        names = (label,) if label is not None else LABEL
        value = next((value[name] for name in names if value.get(name) is not None), None)
    if isinstance(value, list):
        return [_word(one) for one in value]
    return _word(value)


def _word(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int | float) else None


def _text(raw: Any, part: tuple[int, int, str]) -> str:
    # beside the reader's own position, which tarfile sets before each header
    return os.pread(raw.fileno(), part[1], part[0]).decode("utf-8", "replace").strip()


def _place(files: list[Path], root: Path, label: str | None, image: str | None) -> Path | None:
    try:
        folder = cache_root()
    except RuntimeError:  # nobody's home: there is no ~
        return None
    if folder is None:
        return None
    asked = repr((_FORMAT, label, image, str(root.resolve()))).encode("utf-8", "surrogateescape")
    return folder / "tar" / f"{digest(stamp(files), asked)}.npz"


def _recall(path: Path) -> _Index | None:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            said = json.loads(str(file["said"]))
            names = Packed(file["block"].tobytes(), file["ends"])
            columns = file["shard"], file["offset"], file["size"]
        if not len(names) == len(columns[0]) == len(columns[1]) == len(columns[2]):
            return None
        return _Index(names, *columns, *said)
    except Exception:  # none, or whatever a damaged one raises: read through again
        return None


def _keep(path: Path, index: _Index) -> None:
    said = json.dumps((index.label, index.labels_from, index.notes))
    with suppress(OSError):  # as before: read through again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            np.savez(
                file, shard=index.shard, offset=index.offset, size=index.size,
                block=np.frombuffer(index.names.block, np.uint8), ends=index.names.ends,
                said=np.array(said),
            )  # fmt: skip
        Path(file.name).replace(path)
