"""What views are of, for the report: pairs of crops on their images, histograms, the numbers."""

from dataclasses import dataclass

import numpy as np

from contrapose.report.charts import PlotlyFigure
from contrapose.report.experiment_charts import themed
from contrapose.report.numbers import Number, number
from contrapose.report.pictures import Crops
from contrapose.report.run_folder import Json
from contrapose.report.sprites import Sprite, sprite

BUDGET = 200_000  # bytes
MEANS = {
    "global-local": "one crop lies inside the other",
    "adjacent": "they share no pixel",
    "overlapping": "they overlap in part",
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of pair: its share in words, and the pairs that are drawn (tile, two boxes)."""

    name: str
    means: str
    share: str
    interval: str
    drawn: tuple[tuple[int, tuple[tuple[float, ...], ...]], ...]


@dataclass(frozen=True, kw_only=True)
class CropSection:
    """The content of the section for one run."""

    kinds: tuple[Kind, ...]
    sprite: Sprite
    sources: Sprite
    figures: tuple[str, str]  # ids: undistorted, as they are
    seen: Number
    undistorted: Number
    lead: str
    pairs: int
    overlap: float
    area: float
    crops: int
    chance: float


def crop_section(
    views: Json, pictures: Crops | None, k: int, figures: dict[str, PlotlyFigure]
) -> CropSection | None:
    """The section of run `k`, with its plots added to `figures`; None without pictures."""
    if pictures is None or not _whole(views):
        return None
    kinds = tuple(
        Kind(
            name=name,
            means=MEANS.get(name, ""),
            share=f"{100 * value:.1f}",
            interval=f"{100 * low:.1f} to {100 * high:.1f}",
            drawn=tuple(
                (i, tuple(tuple(map(float, box)) for box in pictures.boxes[i]))
                for i, kind in enumerate(pictures.kind)
                if kind == name
            ),
        )
        for name, (value, low, high) in views["share"].items()
    )
    ids = (f"undistorted_{k}", f"distorted_{k}")
    most = float(pictures.histogram.max())
    figures[ids[0]] = _histograms(pictures.histogram[1], most)
    figures[ids[1]] = _histograms(pictures.histogram[0], most)
    seen, alone = views["seen"]["value"], views["undistorted"]["value"]
    return CropSection(
        kinds=kinds, sprite=sprite(pictures.image, budget=BUDGET),
        sources=sprite(pictures.of, budget=BUDGET), figures=ids,
        seen=number(views["seen"]), undistorted=number(views["undistorted"]),
        lead=_lead(seen, alone, views["chance"]), pairs=views["pairs"], overlap=views["overlap"],
        area=views["area"], crops=views["crops"], chance=views["chance"],
    )  # fmt: skip


def _whole(views: Json) -> bool:
    return {"share", "seen", "undistorted", "chance", "pairs"} <= views.keys()


def _lead(seen: float, alone: float, chance: float) -> str:
    """What the two shares of found images say."""
    if alone < 5 * chance:
        return "Colours hardly tell which image a crop is of, with or without distortion."
    if seen < alone / 2:
        return "Colours alone tell which image a crop is of; distortion takes most of that away."
    return "Colours alone tell which image a crop is of, and the views leave most of that."


def _histograms(bars: np.ndarray, most: float) -> PlotlyFigure:
    """Histograms [I V bins] as lines, a colour for each image."""
    bins = bars.shape[2]
    place = [round((b + 0.5) / bins, 4) for b in range(bins)]
    traces = [
        {
            "type": "scatter", "mode": "lines", "x": place,
            "y": [round(float(v), 5) for v in bars[i, v_]], "name": f"image {i + 1}",
            "legendgroup": str(i), "showlegend": v_ == 0,
            "line": {"color": ("var(--accent)", "var(--second)")[i % 2], "width": 1.5},
            "hoverinfo": "skip",
        }
        for i in range(bars.shape[0])
        for v_ in range(bars.shape[1])
    ]  # fmt: skip
    axes = {
        "xaxis": {"title": {"text": "intensity, all channels together"}, "range": [0, 1]},
        "yaxis": {"title": {"text": "share of values"}, "range": [0, 1.05 * most]},
    }
    return themed({"data": traces, "layout": axes})
