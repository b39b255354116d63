"""The page of two videos aligned in time: matched frames side by side, and all similarities."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from contrapose.report.charts import PlotlyFigure
from contrapose.report.experiment_charts import themed
from contrapose.report.page import assemble, write_text
from contrapose.report.sprites import sprite

BUDGET = 400_000  # bytes of pictures
Json = dict[str, Any]


def write_alignment(found: Json, drawn: Mapping[str, np.ndarray], out: Path) -> Path:
    """Write the page; returns its path. found: align-NAMES.json; drawn: arrays of its pictures."""
    figures = {"matrix": _matrix(drawn), "matches": _matches(drawn, found["of"])}
    pairs = [
        (i, f"{drawn['frame_time'][i]:.2f}", f"{drawn['matched_time'][i]:.2f}")
        for i in range(len(drawn["frame"]))
    ]
    rows = [
        (
            words, f"{100 * a['error']:.1f}", f"{100 * a['random']:.1f}",
            f"{100 * a['within']:.1f} ({100 * a['low']:.1f} to {100 * a['high']:.1f})",
            f"{100 * a['random_within']:.1f}",
        )
        for words, a in found["by"].items()
    ]  # fmt: skip
    page = assemble(
        "alignment.html",
        ("page.js", "experiment.js"),
        {"figures": figures, "classes": []},
        f=found, rows=rows, pairs=pairs, several=False, runs=[],
        frames=sprite(drawn["frame"], budget=BUDGET),
        matched=sprite(drawn["matched"], budget=BUDGET),
    )  # fmt: skip
    write_text(out, page)
    return out


def _matrix(drawn: Mapping[str, np.ndarray]) -> PlotlyFigure:
    trace = {
        "type": "heatmap", "z": np.round(drawn["similarity"].astype(float), 3).tolist(),
        "x": _seconds(drawn["column_time"]), "y": _seconds(drawn["row_time"]),
        "hovertemplate": "%{y} s and %{x} s: %{z}",
    }  # fmt: skip
    axes = {
        "xaxis": {"title": {"text": "s in the second"}},
        "yaxis": {"title": {"text": "s in the first"}, "autorange": "reversed"},
    }
    return themed({"data": [trace], "layout": axes})


def _matches(drawn: Mapping[str, np.ndarray], names: list[str]) -> PlotlyFigure:
    last = [float(drawn["time"].max()), float(drawn["column_time"].max())]
    traces = [
        {
            "type": "scatter", "mode": "lines", "x": [0, round(last[0], 3)],
            "y": [0, round(last[1], 3)], "name": "in step", "line": {"color": "var(--muted)"},
        },
        {
            "type": "scatter", "mode": "markers", "x": _seconds(drawn["time"]),
            "y": _seconds(drawn["match_time"]), "name": "matches",
            "marker": {"color": "var(--accent)", "size": 5},
        },
    ]  # fmt: skip
    axes = {
        "xaxis": {"title": {"text": "s in the first"}},
        "yaxis": {"title": {"text": "s in the second, matched"}},
    }
    return themed({"data": traces, "layout": axes})


def _seconds(time: np.ndarray) -> list[float]:
    return [round(float(t), 3) for t in time]
