"""Reading pictures.npz: map, neighbours, views, similarities and confusion matrix for the report.

Every part is optional. A damaged part is left out, with a sentence that gives the reason.
"""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt8

from contrapose.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Map:
    """M embeddings in two dimensions; label -1 is none; `index` is the position in the set."""

    xy: Float32[np.ndarray, "M 2"]
    label: Int64[np.ndarray, " M"]
    thumb: UInt8[np.ndarray, "M h w ch"]
    index: Int64[np.ndarray, " M"]
    method: str
    file: tuple[str, ...]  # of each point; () where the run did not note it
    left_out: int  # points beyond MAX_POINTS or without finite coordinates


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """K nearest images of each of Q queries, nearest first."""

    query: UInt8[np.ndarray, "Q h w ch"]
    query_label: Int64[np.ndarray, " Q"]
    image: UInt8[np.ndarray, "Q K h w ch"]
    label: Int64[np.ndarray, "Q K"]
    similarity: Float32[np.ndarray, "Q K"]
    query_file: Shaped[np.ndarray, " Q"] | None = None  # names of the files, where they were noted
    file: Shaped[np.ndarray, "Q K"] | None = None


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Histograms of cosine similarity: counts of pairs between successive edges."""

    edges: Float32[np.ndarray, " n_plus_1"]
    counts: Mapping[str, Int64[np.ndarray, " n"]]  # "positive", "negative", "same_class"


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Counts [true class, predicted class]; `of` names the classifier and the split."""

    counts: Int64[np.ndarray, "C C"]
    of: str


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """One image as it is, then at each severity, for each of K corruptions; `of`: which images."""

    image: UInt8[np.ndarray, "K S_plus_1 h w ch"]
    names: tuple[str, ...]
    severities: tuple[int, ...]
    of: str


@dataclass(frozen=True, kw_only=True)
class Crops:
    """K images with two crops of each, as shares (top, left, height, width), by kind; histograms
    of V crops of I images: as views are, and without what comes after the crop."""

    image: UInt8[np.ndarray, "K h w ch"]
    boxes: Float32[np.ndarray, "K 2 4"]
    kind: tuple[str, ...]
    of: UInt8[np.ndarray, "I h w ch"]
    histogram: Float32[np.ndarray, "2 I V bins"]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    classes: tuple[str, ...] = ()
    views: UInt8[np.ndarray, "R V_plus_1 H W ch"] | None = None
    map: Map | None = None
    neighbours: Neighbours | None = None
    similarity: Similarity | None = None
    confusion: Confusion | None = None
    corrupted: Corrupted | None = None
    crops: Crops | None = None


Arrays = Mapping[str, np.ndarray]
T = TypeVar("T")
MAX_POINTS = 4000  # more than this makes hovering slow on a phone


def read_pictures(file: Path) -> tuple[Pictures, list[str]]:
    """(the readable parts, sentences about those that were left out)."""
    if not file.is_file():
        return Pictures(), ["pictures.npz is missing, so there are no pictures"]
    arrays, left_out = _load(file)

    def part(make: Callable[[Arrays], T | None]) -> T | None:
        try:
            return make(arrays)
        except (ValueError, IndexError, TypeError) as error:
            left_out.append(f"pictures.npz: {error}")
            return None

    pictures = Pictures(
        classes=tuple(str(name) for name in arrays.get("classes", np.empty(0, str)).ravel()),
        views=part(_views),
        map=part(_map),
        neighbours=part(_neighbours),
        similarity=part(_similarity),
        confusion=part(_confusion),
        corrupted=part(_corrupted),
        crops=part(crops_in),
    )
    return pictures, left_out


def _load(file: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    arrays: dict[str, np.ndarray] = {}
    damage = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            left_out = []
            for name in archive.files:
                try:
                    arrays[name] = archive[name]
                except damage as error:
                    left_out.append(f"pictures.npz: {name} is damaged and left out ({error})")
            return arrays, left_out
    except (*damage, AttributeError, TypeError) as error:  # a bare .npy is no archive
        return {}, [f"pictures.npz is damaged and left out ({error})"]


def _views(arrays: Arrays) -> np.ndarray | None:
    if "views" not in arrays:
        return None
    return _images(arrays, "views", ndim=5)


def _map(arrays: Arrays) -> Map | None:
    if "map_xy" not in arrays:
        return None
    xy = np.asarray(arrays["map_xy"], np.float32)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise UserError(f"map_xy has shape {list(xy.shape)} instead of [M 2]")
    m = len(xy)
    label = _labels(arrays, "map_label", (m,))
    index = np.asarray(arrays.get("map_index", np.arange(m)), np.int64)
    thumb = _images(arrays, "map_thumb", ndim=4)
    if len(thumb) != m or index.shape != (m,):
        raise UserError(
            f"map_thumb and map_index hold {len(thumb)} and {len(index)} entries for {m} points"
        )
    finite = np.flatnonzero(np.isfinite(xy).all(axis=1))
    keep = finite[np.linspace(0, len(finite) - 1, min(len(finite), MAX_POINTS)).astype(np.int64)]
    method = str(arrays.get("map_method", ""))
    return Map(
        xy=xy[keep],
        label=label[keep],
        thumb=thumb[keep],
        index=index[keep],
        method=method,
        file=tuple(map(str, file[keep]))
        if (file := _names(arrays, "map_file", (m,))) is not None
        else (),
        left_out=m - len(keep),
    )


def _neighbours(arrays: Arrays) -> Neighbours | None:
    if "neighbour_image" not in arrays or "neighbour_query" not in arrays:
        return None
    query = _images(arrays, "neighbour_query", ndim=4)
    image = _images(arrays, "neighbour_image", ndim=5)
    q, k = image.shape[:2]
    similarity = np.asarray(arrays.get("neighbour_similarity", np.full((q, k), np.nan)), np.float32)
    if len(query) != q or similarity.shape != (q, k):
        raise UserError(
            f"neighbour_query {list(query.shape)}, neighbour_image {list(image.shape)} and "
            f"neighbour_similarity {list(similarity.shape)} disagree"
        )
    return Neighbours(
        query=query,
        query_label=_labels(arrays, "neighbour_query_label", (q,)),
        image=image,
        label=_labels(arrays, "neighbour_label", (q, k)),
        similarity=similarity,
        query_file=_names(arrays, "neighbour_query_file", (q,)),
        file=_names(arrays, "neighbour_file", (q, k)),
    )


def _similarity(arrays: Arrays) -> Similarity | None:
    if "similarity_edges" not in arrays:
        return None
    edges = np.asarray(arrays["similarity_edges"], np.float32)
    counts = {}
    for kind in ("positive", "negative", "same_class"):
        if f"similarity_{kind}" in arrays:
            count = np.asarray(arrays[f"similarity_{kind}"], np.int64)
            if count.shape != (len(edges) - 1,):
                raise UserError(f"similarity_{kind} has {count.size} counts for {len(edges)} edges")
            if count.sum() > 0:
                counts[kind] = count
    return Similarity(edges=edges, counts=counts) if counts else None


def _confusion(arrays: Arrays) -> Confusion | None:
    if "confusion" not in arrays:
        return None
    counts = np.asarray(arrays["confusion"], np.int64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise UserError(f"confusion has shape {list(counts.shape)} instead of [C C]")
    return Confusion(counts=counts, of=str(arrays.get("confusion_of", "")))


def _corrupted(arrays: Arrays) -> Corrupted | None:
    if "corrupted" not in arrays:
        return None
    image = _images(arrays, "corrupted", ndim=5)
    names = tuple(str(n) for n in np.asarray(arrays.get("corrupted_names", [])).ravel())
    severities = tuple(int(s) for s in np.asarray(arrays.get("corrupted_severities", [])).ravel())
    if image.shape[:2] != (len(names), len(severities) + 1):
        raise UserError(
            f"corrupted holds {list(image.shape[:2])} pictures for {len(names)} corruptions at "
            f"{len(severities)} severities"
        )
    of = str(arrays.get("corrupted_of", ""))
    return Corrupted(image=image, names=names, severities=severities, of=of)


def crops_in(arrays: Arrays) -> Crops | None:
    """The crops among the arrays, or None; UserError where they disagree."""
    if "crop_boxes" not in arrays:
        return None
    boxes = np.asarray(arrays["crop_boxes"], np.float32)
    kind = tuple(str(k) for k in np.asarray(arrays.get("crop_kind", [])).ravel())
    image, of = (_images(arrays, name, ndim=4) for name in ("crop_image", "crop_of"))
    histogram = np.asarray(arrays.get("crop_histogram", np.empty(0)), np.float32)
    if boxes.shape != (len(image), 2, 4) or len(kind) != len(image):
        raise UserError(f"crop_boxes has shape {list(boxes.shape)} for {len(image)} pictures")
    if histogram.ndim != 4 or histogram.shape[:2] != (2, len(of)):
        raise UserError(f"crop_histogram has shape {list(histogram.shape)} for {len(of)} pictures")
    if not (np.isfinite(boxes).all() and np.isfinite(histogram).all()):
        raise UserError("crop_boxes or crop_histogram is not finite")
    return Crops(image=image, boxes=boxes, kind=kind, of=of, histogram=histogram)


def _images(arrays: Arrays, name: str, *, ndim: int) -> np.ndarray:
    """uint8 pictures whose last axis has 1 or 3 channels."""
    if name not in arrays:
        raise UserError(f"{name} is missing")
    images = arrays[name]
    if images.dtype != np.uint8 or images.ndim != ndim or images.shape[-1] not in (1, 3):
        raise UserError(
            f"{name} is {images.dtype} {list(images.shape)}, not uint8 with 1 or 3 channels last"
        )
    if 0 in images.shape:
        raise UserError(f"{name} has shape {list(images.shape)}, which holds no picture")
    return images


def _labels(arrays: Arrays, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The labels, or -1 everywhere if the run has none."""
    label = np.asarray(arrays.get(name, np.full(shape, -1)), np.int64)
    if label.shape != shape:
        raise UserError(f"{name} has shape {list(label.shape)} instead of {list(shape)}")
    return label


def _names(arrays: Arrays, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The names of files, or None for runs that did not record them."""
    if name not in arrays:
        return None
    names = arrays[name]
    if names.dtype.kind != "U" or names.shape != shape:
        raise UserError(
            f"{name} is {names.dtype} {list(names.shape)} instead of text {list(shape)}"
        )
    return names
