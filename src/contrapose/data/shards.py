"""Sets in several files: the split that a shard belongs to, and patterns of shards in braces."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from contrapose.data.folder import SPLITS
from contrapose.data.images import NoSuchSplit, digest
from contrapose.data.packed import printable
from contrapose.errors import UserError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST = 1_000_000  # shards that a pattern may name


def of_split(files: Sequence[Path], root: Path, split: str) -> dict[str, list[Path]]:
    """Split -> its shards; those without the name of a split are of `all`, which serves as train.

    Raises NoSuchSplit if no shard serves as `split`.
    """
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(split_of(file, root), []).append(file)
    if split not in by_split and (split != "train" or "all" not in by_split):
        raise NoSuchSplit(
            f"{root}: no {split!r} split; its shards are of {', '.join(sorted(by_split))}"
        )
    return by_split


def split_of(file: Path, root: Path) -> str:
    """The split of a shard by its name or folder: train-00000-of-00001.parquet,
    train/0000.parquet; `all` without one."""
    known = {name: split for split, names in SPLITS.items() for name in names}
    words = [file.stem.replace("_", "-").split("-")[0].lower()]
    words += [part.lower() for part in file.parent.parts[len(root.parts) :]]
    return next((known[word] for word in words if word in known), "all")


def is_pattern(text: str) -> bool:
    return _BRACES.search(text) is not None


def expanded(text: str) -> list[str]:
    """The names of a pattern as a shell writes them: `a-{000..002}.tar`, `{train,val}.tar`.

    Raises UserError for braces that are neither a range of numbers nor words between commas.
    """
    parts = _BRACES.split(text)
    choices = [[part] if k % 2 == 0 else _choices(part, text) for k, part in enumerate(parts)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MOST:
        raise UserError(f"{text}: names {count:,} files, more than {MOST:,}; is a range mistyped?")
    return ["".join(each) for each in itertools.product(*choices)]


def _choices(inside: str, text: str) -> list[str]:
    if found := _RANGE.fullmatch(inside):
        first, last = found.groups()
        if int(first) > int(last):
            raise UserError(f"{text}: {{{inside}}} counts down; write {{{last}..{first}}}")
        return [str(k).zfill(len(first)) for k in range(int(first), int(last) + 1)]
    if "," in inside:
        return inside.split(",")
    raise UserError(f"{text}: write {{000..999}} for numbers or {{a,b}} for words between braces")


def numbering_gaps(files: Sequence[Path]) -> list[str]:
    """Names of shards that a numbering leaves out: `a-001.tar` between `a-000.tar` and
    `a-002.tar`."""
    series: dict[tuple[Path, str, str, int], list[int]] = {}
    for file in files:
        if found := re.fullmatch(r"(.*?)(\d+)(\D*)", file.name):
            key = (file.parent, found[1], found[3], len(found[2]))
            series.setdefault(key, []).append(int(found[2]))
    return [
        printable(f"{before}{str(k).zfill(width)}{after}")
        for (_, before, after, width), there in series.items()
        if max(there) - min(there) < 10 * len(there)  # else the digits are no numbering
        for k in sorted({*range(min(there), max(there))} - {*there})
    ]


def stamp(files: Sequence[Path]) -> bytes:
    """A digest of the names, sizes and times of shards."""
    stats = [(file.name, (s := file.stat()).st_size, s.st_mtime_ns) for file in files]
    return digest(repr(stats).encode()).encode()
