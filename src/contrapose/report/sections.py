"""The picture sections of a run for the template: sprites, neighbours, map, confusion matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from contrapose.report.charts import PlotlyFigure, confusion_chart, map_chart, similarity_chart
from contrapose.report.classes import Classes
from contrapose.report.pictures import Confusion, Neighbours
from contrapose.report.run_folder import Run
from contrapose.report.sprites import Sprite, sprite

MAP_BUDGET, NEIGHBOUR_BUDGET, VIEW_BUDGET = (
    900_000,
    500_000,
    500_000,
)  # bytes, shared by the runs of a page


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    tile: int
    name: str
    similarity: float | None
    same: bool | None  # None: one of the two has no label
    file: str  # "" where the run did not note it


@dataclass(frozen=True, kw_only=True)
class Query:
    tile: int
    id: int  # page-wide class
    name: str
    file: str
    neighbours: tuple[Neighbour, ...]

    @property
    def agreement(self) -> str:
        same = [n.same for n in self.neighbours if n.same is not None]
        return f"{sum(same)} of {len(same)} of its class" if same else ""


@dataclass(frozen=True, kw_only=True)
class RunPictures:
    """The content of the picture sections of one run; None for pictures that it does not have."""

    map: str | None = None  # figure id
    map_sprite: Sprite | None = None
    queries: tuple[Query, ...] = ()
    neighbour_sprite: Sprite | None = None
    per_row: int = 1  # neighbours beside each other: all of few, half of many
    agreement: str = ""
    views: tuple[tuple[int, ...], ...] = ()  # tiles of each row: original, then its views
    view_sprite: Sprite | None = None
    similarity: str | None = None
    confusion: str | None = None
    confusion_left_out: int = 0
    mistakes: tuple[
        tuple[str, str, int, float], ...
    ] = ()  # true, predicted, count, share of the true class
    recalls: tuple[tuple[str, float, int], ...] = ()  # class, share found, images; the worst first


def run_pictures(
    runs: Sequence[Run], k: int, classes: Classes, figures: dict[str, PlotlyFigure]
) -> RunPictures:
    """The pictures of run `k`; its plots are added to `figures` under the returned ids."""
    pictures = runs[k].pictures
    found: dict[str, Any] = {}
    if (points := map_chart(runs, k, classes)) is not None and pictures.map is not None:
        found["map"] = f"map_{k}"
        found["map_sprite"] = sheet = sprite(pictures.map.thumb, budget=MAP_BUDGET // len(runs))
        figures[f"map_{k}"] = points | {"sprite": _grid(sheet)}
    if pictures.neighbours is not None:
        found |= _neighbours(pictures.neighbours, k, classes, NEIGHBOUR_BUDGET // len(runs))
    if pictures.views is not None:
        r, v = pictures.views.shape[:2]
        found["views"] = tuple(tuple(range(i * v, (i + 1) * v)) for i in range(r))
        flat = pictures.views.reshape(r * v, *pictures.views.shape[2:])
        found["view_sprite"] = sprite(flat, budget=VIEW_BUDGET // len(runs))
    if pictures.similarity is not None:
        found["similarity"] = f"similarity_{k}"
        figures[f"similarity_{k}"] = similarity_chart(pictures.similarity)
    if pictures.confusion is not None:
        found["confusion"] = f"confusion_{k}"
        names = classes.names(k)
        figures[f"confusion_{k}"], left_out = confusion_chart(pictures.confusion, names)
        found["confusion_left_out"] = left_out
        found["mistakes"] = _mistakes(pictures.confusion, names)
        found["recalls"] = _recalls(pictures.confusion, names)
    return RunPictures(**found)


def _grid(sheet: Sprite) -> dict[str, object]:
    return {"columns": sheet.columns, "rows": sheet.rows, "pixelated": sheet.pixelated}


def _neighbours(n: Neighbours, k: int, classes: Classes, budget: int) -> dict[str, object]:
    q, count = n.label.shape
    query_ids, ids = classes.of(k, n.query_label), classes.of(k, n.label)
    known = (ids >= 0) & (query_ids >= 0)[:, None]
    same = known & (ids == query_ids[:, None])
    queries = []
    for i in range(q):
        row = [
            Neighbour(
                tile=q + i * count + j,
                name=classes.name(int(ids[i, j])),
                similarity=float(n.similarity[i, j]) if np.isfinite(n.similarity[i, j]) else None,
                same=bool(same[i, j]) if known[i, j] else None,
                file="" if n.file is None else str(n.file[i, j]),
            )
            for j in range(count)
        ]
        name = classes.name(int(query_ids[i]))
        file = "" if n.query_file is None else str(n.query_file[i])
        queries.append(
            Query(tile=i, id=int(query_ids[i]), name=name, file=file, neighbours=tuple(row))
        )
    images = np.concatenate([n.query, n.image.reshape(q * count, *n.image.shape[2:])])
    agreement = ""
    if known.any():
        agreement = (
            f"{same.sum():,} of the {known.sum():,} neighbours shown are of the query's class "
            f"({same.sum() / known.sum():.0%})."
        )
    return {
        "queries": tuple(queries),
        "per_row": count if count <= 5 else min((count + 1) // 2, 6),
        "neighbour_sprite": sprite(images, budget=budget),
        "agreement": agreement,
    }


def _mistakes(
    confusion: Confusion, names: Sequence[str], most: int = 8
) -> tuple[tuple[str, str, int, float], ...]:
    """The pairs of classes that are confused most often."""
    off = confusion.counts - np.diag(confusion.counts.diagonal())
    total = np.maximum(confusion.counts.sum(axis=1), 1)
    order = np.argsort(-off, axis=None, kind="stable")[:most]
    pairs = [divmod(int(i), len(off)) for i in order]
    return tuple(
        (names[i], names[j], int(off[i, j]), float(off[i, j] / total[i]))
        for i, j in pairs
        if off[i, j] > 0
    )


def _recalls(
    confusion: Confusion, names: Sequence[str], most: int = 5
) -> tuple[tuple[str, float, int], ...]:
    """The classes with the lowest recall."""
    total = confusion.counts.sum(axis=1)
    recall = confusion.counts.diagonal() / np.maximum(total, 1)
    order = [i for i in np.argsort(recall, kind="stable") if total[i] > 0][:most]
    return tuple((names[i], float(recall[i]), int(total[i])) for i in order)
