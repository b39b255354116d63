"""Accuracy and calibration of a classifier under corruptions, and the scores made of them.

Corrupted images are made here, or read as their authors publish them (`published`). Which pixels a
corruption draws depends on the seed, its name, its severity and the place of an image in the set,
never on the batch size of the network.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from contrapose.augment import center
from contrapose.data import ImageSet, open_images
from contrapose.errors import UserError
from contrapose.evaluation.calibration import BINS, Calibration, calibration
from contrapose.evaluation.corruptions import (
    BENCHMARK,
    CORRUPTIONS,
    corrupted,
    known_corruption,
    known_severity,
)
from contrapose.evaluation.corruptions.apply import check_channels
from contrapose.progress import counted

Predict = Callable[[Tensor], Tensor]  # images [B C S S] in [0, 1] -> logits [B K]
SEVERITIES = (1, 2, 3, 4, 5)
BLOCK = 64  # images that are corrupted at once, always the same ones

# AlexNet's error on ImageNet-C, mean over severities (hendrycks/robustness and others who agree);
# its error on clean images was not found, so the relative score needs to be told it
ALEXNET = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640,
    "defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948,
    "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572, "fog": 0.819324,
    "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The calibration of a classifier on one set of images: clean (corruption "", severity 0), or
    under one corruption."""

    corruption: str
    severity: int
    before: Calibration  # with the logits as they are
    after: Calibration | None = None  # divided by the temperature that was fitted elsewhere

    @property
    def error(self) -> float:
        """Share of images that are named wrong."""
        return 1 - self.before.accuracy


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """The measurements of a classifier: on clean images, then by corruption and severity."""

    clean: Measured
    corrupted: tuple[Measured, ...]
    source: str  # made here, or where the published images are
    seed: int
    temperature: float | None
    notes: tuple[str, ...] = field(default=())

    def errors(self) -> dict[str, dict[int, float]]:
        """corruption -> severity -> error."""
        found: dict[str, dict[int, float]] = {}
        for each in self.corrupted:
            found.setdefault(each.corruption, {})[each.severity] = each.error
        return found

    def by_severity(self) -> dict[int, dict[str, float]]:
        """Means over corruptions, as Table 6 of the supervised contrastive paper: accuracy, ece,
        and scaled_ece where a temperature was given; severity 0 is the clean images.
        """
        rows: dict[int, list[Measured]] = {0: [self.clean]}
        for each in self.corrupted:
            rows.setdefault(each.severity, []).append(each)
        return {severity: _means(found) for severity, found in sorted(rows.items())}

    def by_corruption(self) -> dict[str, dict[str, float]]:
        """Means over severities, with the columns of `by_severity`."""
        rows: dict[str, list[Measured]] = {}
        for each in self.corrupted:
            rows.setdefault(each.corruption, []).append(each)
        return {name: _means(found) for name, found in rows.items()}

    def mean_error(self) -> float:
        """Mean over the corruptions of the benchmark of the mean over severities: what is reported
        for CIFAR-10-C, where there is no AlexNet to divide by.
        """
        found = [_mean(of.values()) for name, of in self.errors().items() if name in BENCHMARK]
        if not found:
            raise UserError("mean_error: none of the 15 corruptions of the benchmark was measured")
        return _mean(found)

    def as_json(self) -> dict[str, Any]:
        """The content of robustness.json."""
        rows = [
            {
                "corruption": each.corruption,
                "family": CORRUPTIONS[each.corruption].family if each.corruption else "",
                "severity": each.severity,
                "before": each.before.as_json(),
                "after": None if each.after is None else each.after.as_json(),
            }
            for each in (self.clean, *self.corrupted)
        ]
        e = self.errors()
        return {
            "source": self.source,
            "seed": self.seed,
            "temperature": self.temperature,
            "notes": list(self.notes),
            "mean_error": self.mean_error() if set(e) & set(BENCHMARK) else None,
            "mce": mce(e) if complete(e) else None,
            "ce": {n: 100 * _mean(_five(e, n)) / ALEXNET[n] for n in BENCHMARK if full(e, n)},
            "measured": rows,
        }


def complete(errors: Mapping[str, Mapping[int, float]]) -> bool:
    """Whether there are the 15 corruptions at five severities that mCE is of."""
    return all(full(errors, name) for name in BENCHMARK)


def full(errors: Mapping[str, Mapping[int, float]], name: str) -> bool:
    """Whether the corruption was measured at the five severities."""
    return set(errors.get(name, {})) >= set(SEVERITIES)


def mce(errors: Mapping[str, Mapping[int, float]]) -> float:
    """Mean corruption error: 100 mean_c (sum_s E_sc / sum_s E^AlexNet_sc) over the 15 of ImageNet-C
    (arXiv 1903.12261). Of other images than ImageNet's the divisors are still AlexNet's there, so
    compare such numbers among each other only. Raises UserError where a corruption or a severity
    is missing.
    """
    return 100 * _mean(_mean(_five(errors, name)) / ALEXNET[name] for name in BENCHMARK)


def relative_mce(
    errors: Mapping[str, Mapping[int, float]], clean: float, alexnet_clean: float
) -> float:
    """100 mean_c (sum_s (E_sc - E_clean) / sum_s (E^AlexNet_sc - E^AlexNet_clean)): how much worse
    corruption makes things. `alexnet_clean` was not found in a source, so it has no default.
    Raises UserError where a corruption or a severity is missing.
    """
    return 100 * _mean(
        (_mean(_five(errors, name)) - clean) / (ALEXNET[name] - alexnet_clean) for name in BENCHMARK
    )


def robustness(
    predict: Predict,
    images: ImageSet,
    *,
    size: int,
    names: Sequence[str] = BENCHMARK,
    severities: Sequence[int] = SEVERITIES,
    temperature: float | None = None,
    seed: int = 0,
    bins: int = BINS,
    device: torch.device | str = "cpu",
) -> Robustness:
    """Accuracy and calibration of `predict` on the labelled images, clean and under each corruption
    at each severity, made here: the centre crop of `size` px is corrupted, then classified.

    temperature: what `fitted_temperature` found on other images; calibration is then measured both
    ways. Raises UserError for an unknown corruption or severity, one that these images' channels
    do not allow, and images without labels.
    """
    for name in names:
        check_channels(name, known_corruption(name), images.channels)
    for severity in severities:
        known_severity(severity)
    label, index = labelled(images)

    def crops() -> Iterator[tuple[int, Tensor]]:
        for block, rows in enumerate(torch.split(index, BLOCK)):
            yield block, center(images.batch(rows).to(device), size)

    def measured(name: str, severity: int) -> Measured:
        return judged(
            classified(predict, crops(), name, severity, seed=seed, device=device), label,
            name, severity, temperature=temperature, seed=seed, bins=bins,
        )  # fmt: skip

    pairs = [(name, severity) for name in names for severity in severities]
    return Robustness(
        clean=measured("", 0),
        corrupted=tuple(
            measured(*pair) for pair in counted(pairs, f"{len(label):,} images, corrupted")
        ),
        source="made here; frost's pictures are synthesised" if "frost" in names else "made here",
        seed=seed,
        temperature=temperature,
        notes=_notes(images, len(label)),
    )


@torch.no_grad()
def classified(
    predict: Predict,
    blocks: Iterator[tuple[int, Tensor]],
    name: str,
    severity: int,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "N K"]:
    """Logits of images under one corruption, or as they are (name "")."""
    found = []
    for block, x in blocks:
        if name:
            generator = Generator(device).manual_seed(seed_of(seed, name, severity, block))
            x = corrupted(x, name, severity, generator)
        found.append(predict(x).float().cpu())
    return torch.cat(found)


def seed_of(seed: int, name: str, severity: int, block: int) -> int:
    """A seed of its own for each corruption, severity and block of images, the same everywhere."""
    return crc32(f"{seed} {name} {severity} {block}".encode())


def judged(
    logits: Float[Tensor, "N K"],
    label: Int[Tensor, " N"],
    name: str,
    severity: int,
    *,
    temperature: float | None,
    seed: int,
    bins: int,
) -> Measured:
    """The calibration of these logits, before and after temperature scaling."""
    before = calibration(logits, label, bins=bins, seed=seed)
    after = None
    if temperature is not None:
        after = calibration(logits, label, temperature=temperature, bins=bins, seed=seed)
    return Measured(corruption=name, severity=severity, before=before, after=after)


def labelled(images: ImageSet) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Labels, and positions, of the images that have one. Raises UserError where none has."""
    if images.label is None or not bool((images.label >= 0).any()):
        raise UserError(f"robustness: {images.name} ({images.split}) has no labels")
    index = (images.label >= 0).nonzero()[:, 0]
    return images.label[index], index


@dataclass(frozen=True)
class Published:
    """Corrupted images as their authors serve them: which there are, and how each is opened."""

    path: Path
    sets: Mapping[tuple[str, int], Callable[[], ImageSet]]  # (corruption, severity) -> images


def published(path: Path | str, *, size: int | None = None) -> Published:
    """The sets of a folder of CIFAR-10-C (NAME.npy of all severities one after another, labels.npy)
    or ImageNet-C (NAME/SEVERITY/CLASS/*.JPEG, or below the name of a family: noise/NAME/...).

    size: px, to which images of files are resized. Raises UserError where the folder is neither.
    """
    folder = Path(path)
    arrays = {p.stem: p for p in sorted(folder.glob("*.npy")) if p.stem in CORRUPTIONS}
    if arrays:
        return Published(folder, _of_arrays(folder, arrays))
    found = {
        (level.parent.name, int(level.name)): _opener(level, size)
        for pattern in ("*/*", "*/*/*")
        for level in sorted(folder.glob(pattern))
        if level.is_dir() and level.parent.name in CORRUPTIONS and level.name in "12345"
    }
    if not found:
        raise UserError(
            f"{path}: neither NAME.npy with labels.npy (CIFAR-10-C) nor folders NAME/SEVERITY/CLASS"
            f" (ImageNet-C) of a corruption such as {BENCHMARK[0]}"
        )
    return Published(folder, found)


def robustness_of_published(
    predict: Predict,
    clean: ImageSet,
    there: Published,
    *,
    size: int,
    rows: Int[Tensor, " M"] | None = None,
    names: Sequence[str] | None = None,
    temperature: float | None = None,
    seed: int = 0,
    bins: int = BINS,
    device: torch.device | str = "cpu",
) -> Robustness:
    """The same measurements on published images; `clean` are those of the classifier's own test.

    rows: which of the clean images are measured, and of published ones where there are as many in
    a set; None: all. Classes of folders are matched by name with those of `clean`. Raises UserError
    for a corruption that the folder lacks, and for a class that `clean` lacks.
    """
    wanted = [pair for pair in there.sets if names is None or pair[0] in names]
    for name in names or ():
        known_corruption(name)
        if not any(pair[0] == name for pair in wanted):
            has = sorted({pair[0] for pair in there.sets})
            raise UserError(f"{there.path} has no {name}; it has {', '.join(has)}")

    def measured(name: str, severity: int, images: ImageSet) -> Measured:
        if rows is not None and len(images) == len(clean):
            images = images.subset(rows)
        label, index = labelled(images)
        label = _as_classes_of(clean, images, label)
        blocks = (
            (k, center(images.batch(some).to(device), size))
            for k, some in enumerate(torch.split(index, BLOCK))
        )
        logits = classified(predict, blocks, "", 0, seed=seed, device=device)
        return judged(logits, label, name, severity, temperature=temperature, seed=seed, bins=bins)

    return Robustness(
        clean=measured("", 0, clean),
        corrupted=tuple(
            measured(*pair, there.sets[pair]()) for pair in counted(wanted, "published images")
        ),
        source=str(there.path),
        seed=seed,
        temperature=temperature,
        notes=_notes(clean, int((clean.label >= 0).sum()) if clean.label is not None else 0),
    )


def _of_arrays(
    folder: Path, arrays: Mapping[str, Path]
) -> dict[tuple[str, int], Callable[[], ImageSet]]:
    if not (folder / "labels.npy").is_file():
        raise UserError(
            f"{folder}: labels.npy is missing beside {next(iter(arrays.values())).name}"
        )
    label = np.load(folder / "labels.npy")

    def opener(path: Path, severity: int) -> Callable[[], ImageSet]:
        def opened() -> ImageSet:
            x = np.load(path, mmap_mode="r")
            n = len(x) // 5
            if len(x) != 5 * n or len(label) not in (n, 5 * n):
                raise UserError(
                    f"{path}: {len(x)} images and {len(label)} labels; expected five severities of "
                    "as many images each, one after another"
                )
            part = slice((severity - 1) * n, severity * n)
            own = label[part] if len(label) == 5 * n else label
            return open_images((np.ascontiguousarray(x[part]), own))

        return opened

    return {(name, s): opener(path, s) for name, path in arrays.items() for s in SEVERITIES}


def _opener(level: Path, size: int | None) -> Callable[[], ImageSet]:
    return lambda: open_images(str(level), "train", size=size)


def _as_classes_of(clean: ImageSet, images: ImageSet, label: Int[Tensor, " N"]) -> Tensor:
    """Labels as numbers of the clean set's classes, by name where the sets name them otherwise."""
    if images.classes == clean.classes:
        return label
    place = {name: k for k, name in enumerate(clean.classes)}
    numbered = all(name.isdigit() and int(name) < len(place) for name in images.classes)
    if numbered and not place.keys() >= set(images.classes):  # numbers of classes that have names
        place = {str(k): k for k in range(len(place))}
    missing = [name for name in images.classes if name not in place]
    if missing:
        raise UserError(
            f"{images.name}: class {missing[0]!r} is none of the classifier's "
            f"({', '.join(clean.classes[:5])}, ...)"
        )
    return torch.tensor([place[name] for name in images.classes])[label]


def _notes(images: ImageSet, labelled: int) -> tuple[str, ...]:
    left = len(images) - labelled
    return (f"{left:,} images without a label left out",) if left else ()


def _five(errors: Mapping[str, Mapping[int, float]], name: str) -> list[float]:
    if not full(errors, name):
        raise UserError(f"mCE needs {name} at the five severities; measure it first")
    return [errors[name][severity] for severity in SEVERITIES]


def _means(rows: Sequence[Measured]) -> dict[str, float]:
    found = {
        "accuracy": _mean(each.before.accuracy for each in rows),
        "ece": _mean(each.before.ece for each in rows),
    }
    after = [each.after.ece for each in rows if each.after is not None]
    return found | ({"scaled_ece": _mean(after)} if after else {})


def _mean(values: Any) -> float:
    found = list(values)
    return float(sum(found) / len(found))
