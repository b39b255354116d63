"""The figures of a run as plotly dictionaries; colours are CSS variables, resolved by page.js."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from contrapose.report.classes import Classes, plot_text
from contrapose.report.pictures import Confusion, Similarity
from contrapose.report.run_folder import Curve, Run

PlotlyFigure = dict[str, Any]
MAX_RECORDS = 600  # per curve; more cannot be told apart on a screen
MAX_MATRIX = 60  # classes of a confusion matrix; beyond, those with the most mistakes


def run_colour(index: int) -> str:
    """The colour of a run in curves of several runs."""
    return f"var(--r{index % 8})"


def curve_chart(
    runs: Sequence[Run],
    lines: Sequence[tuple[str, str, str]],
    *,
    log: bool = False,
    share: bool = False,
) -> PlotlyFigure:
    """Curves of all runs over epochs, a colour for each run. lines: (metric, words, dash) each."""
    several = len(runs) > 1
    by_epoch = all(
        all(e is not None for e in run.curves[name].epoch)
        for run in runs
        for name, _, _ in lines
        if name in run.curves
    )
    traces = []
    for r, run in enumerate(runs):
        for k, (name, words, dash) in enumerate(lines):
            if name not in run.curves:
                continue
            x, y = _thinned(run.curves[name], by_epoch=by_epoch)
            colour = (
                "var(--muted)"
                if name == "loss_at_chance"
                else run_colour(r)
                if several or k == 0
                else "var(--second)"
            )
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines" if len(x) > 1 else "markers",
                    "x": x,
                    "y": y,
                    "name": plot_text(f"{run.name}: {words}" if several else words),
                    "line": {
                        "color": colour,
                        "width": 1.2 if name == "loss_at_chance" else 2,
                        "dash": dash,
                    },
                    "marker": {"color": colour, "size": 7},
                    "hovertemplate": "%{y:.1%}" if share else "%{y:.4g}",
                }
            )
    layout = plain_layout("epoch" if by_epoch else "step")
    layout["hovermode"] = "x unified"
    if log:
        layout["yaxis"] |= {"type": "log"} | log_ticks(y for t in traces for y in t["y"])
    elif level := _level(traces):
        layout["yaxis"] |= {"range": level}
    if share:
        layout["yaxis"] |= {"tickformat": ".0%", "range": [0, 1.02]}
    return {"data": traces, "layout": layout}


def similarity_chart(similarity: Similarity) -> PlotlyFigure:
    """Histograms of cosine similarity as outlines, each scaled to area one."""
    edges = similarity.edges.astype(float)
    styles = (
        ("negative", "negatives", "var(--muted)", "var(--muted-fill)"),
        ("same_class", "same class", "var(--second)", "var(--second-fill)"),
        ("positive", "positives", "var(--accent)", "var(--accent-fill)"),
    )
    traces = []
    for kind, words, colour, fill in styles:
        if kind not in similarity.counts:
            continue
        counts = similarity.counts[kind]
        density = counts / counts.sum() / np.diff(edges)
        text = [
            f"{words}: {share:.1%} of pairs between {low:.2f} and {high:.2f}"
            for share, low, high in zip(counts / counts.sum(), edges[:-1], edges[1:], strict=True)
        ]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "line": {"shape": "hv", "color": colour, "width": 2},
                "fill": "tozeroy",
                "fillcolor": fill,
                "x": _rounded(edges),
                "y": _rounded([*density, density[-1]]),
                "name": words,
                "text": [*text, text[-1]],
                "hoverinfo": "text",
            }
        )
    layout = plain_layout("cosine similarity")
    layout["yaxis"] |= {
        "rangemode": "tozero",
        "showticklabels": False,
        "ticks": "",
        "title": {"text": "density", "font": {"size": 11}},
    }
    layout["xaxis"] |= {"zeroline": True, "zerolinecolor": "var(--rule)"}
    layout["legend"] = {
        "orientation": "h",
        "x": 0,
        "y": 1.02,
        "yanchor": "bottom",
        "font": {"size": 12},
    }
    layout["showlegend"] = True
    layout["margin"]["t"] = 34
    return {"data": traces, "layout": layout}


def path_chart(
    runs: Sequence[Run], *, x: str, y: str, x_title: str, y_title: str, x_sign: int = 1
) -> PlotlyFigure | None:
    """The path of each run in the plane of two quantities, from a hollow to a filled marker."""
    traces = []
    for r, run in enumerate(runs):
        if x not in run.curves or y not in run.curves:
            continue
        at = dict(zip(run.curves[y].step, run.curves[y].value, strict=True))
        points = [
            (step, epoch, x_sign * v, at[step])
            for step, epoch, v in zip(
                run.curves[x].step, run.curves[x].epoch, run.curves[x].value, strict=True
            )
            if v is not None and at.get(step) is not None
        ]
        if not points:
            continue
        points = [points[i] for i in _kept(len(points), 40)]
        last = len(points) - 1
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": _rounded([p[2] for p in points]),
                "y": _rounded([p[3] for p in points]),
                "line": {"color": run_colour(r), "width": 1.4, "shape": "spline", "smoothing": 0.4},
                "marker": {
                    "opacity": 1,
                    "color": ["var(--bg)" if i == 0 else run_colour(r) for i in range(last + 1)],
                    "size": [11 if i in (0, last) else 4 for i in range(last + 1)],
                    "line": {
                        "color": run_colour(r),
                        "width": [2 if i in (0, last) else 0 for i in range(last + 1)],
                    },
                },
                "name": plot_text(run.name),
                "text": [
                    f"epoch {epoch:.3g}" if epoch is not None else f"step {step:g}"
                    for step, epoch, _, _ in points
                ],
                "hovertemplate": "%{text}<br>"
                + x_title
                + " %{x:.3f}<br>"
                + y_title
                + " %{y:.3f}<extra></extra>",
            }
        )
    if not traces:
        return None
    layout = plain_layout(x_title)
    layout["yaxis"]["title"] = {"text": y_title, "standoff": 8, "font": {"size": 11}}
    layout["hovermode"] = "closest"
    return {"data": traces, "layout": layout}


def confusion_chart(confusion: Confusion, names: list[str]) -> tuple[PlotlyFigure, int]:
    """(the confusion matrix, shaded by shares of each row; the number of omitted classes)."""
    counts = confusion.counts
    mistakes = counts.sum(axis=1) - counts.diagonal()
    shown = list(range(len(counts)))
    if len(counts) > MAX_MATRIX:
        shown = sorted(np.argsort(-mistakes, kind="stable")[:MAX_MATRIX].tolist())
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    counts, shares = counts[np.ix_(shown, shown)], shares[np.ix_(shown, shown)]
    labels = [plot_text(names[i]) for i in shown]
    places = list(range(len(shown)))
    trace = {
        "type": "heatmap",
        "x": places,
        "y": places,
        "z": [_rounded(row) for row in shares],
        "zmin": 0,
        "zmax": 1,
        "text": counts.tolist(),
        "customdata": [
            [f"{row} \N{RIGHTWARDS ARROW} {column}" for column in labels] for row in labels
        ],
        "colorscale": [[0, "var(--heat-0)"], [0.5, "var(--heat-1)"], [1, "var(--heat-2)"]],
        "xgap": 1,
        "ygap": 1,
        "showscale": False,
        "hovertemplate": "%{customdata}<br>%{text} images, %{z:.1%} of the row<extra></extra>",
    }
    if len(shown) <= 12:
        trace |= {"texttemplate": "%{text}", "textfont": {"size": 11}}
    ticks = {
        "tickvals": places,
        "ticktext": [plot_text(_short(names[i])) for i in shown],
        "showgrid": False,
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "range": [-0.5, len(shown) - 0.5],
        "tickfont": {"size": 11 if len(shown) <= 20 else 8},
    }
    layout = plain_layout("predicted")
    layout["xaxis"] |= ticks | {"tickangle": -45}
    layout["yaxis"] |= ticks | {
        "range": [len(shown) - 0.5, -0.5],
        "title": {"text": "true", "font": {"size": 11}},
        "automargin": True,
    }
    return {"data": [trace], "layout": layout}, len(confusion.counts) - len(shown)


def map_chart(runs: Sequence[Run], run: int, classes: Classes) -> PlotlyFigure | None:
    """The points of a map with their classes on the page; map.js makes the traces."""
    points = runs[run].pictures.map
    if points is None:
        return None
    ids = classes.of(run, points.label)
    layout = plain_layout("")
    bare = {
        "showgrid": False,
        "zeroline": False,
        "showticklabels": False,
        "showline": False,
        "ticks": "",
    }
    layout["xaxis"] |= bare
    layout["yaxis"] |= bare | {"scaleanchor": "x"}
    layout["hovermode"] = "closest"
    layout["dragmode"] = "pan"
    layout["margin"] = {"l": 4, "r": 4, "t": 4, "b": 4}
    point = {
        "x": _rounded(points.xy[:, 0]),
        "y": _rounded(points.xy[:, 1]),
        "class": ids.tolist(),
        "index": points.index.tolist(),
        **({"file": list(points.file)} if points.file else {}),
    }
    return {"points": point, "layout": layout}


def plain_layout(x_title: str) -> dict[str, Any]:
    axis = {
        "gridcolor": "var(--grid)",
        "zeroline": False,
        "linecolor": "var(--rule)",
        "tickcolor": "var(--rule)",
        "tickfont": {"color": "var(--muted)", "size": 11},
        "automargin": True,
        "nticks": 6,
    }
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "inherit", "size": 12, "color": "var(--muted)"},
        "margin": {"l": 40, "r": 10, "t": 8, "b": 36},
        "showlegend": False,
        "hoverlabel": {
            "bgcolor": "var(--raised)",
            "bordercolor": "var(--rule)",
            "font": {"color": "var(--ink)", "size": 12},
            "namelength": 40,
        },
        "xaxis": {
            **axis,
            "title": {"text": x_title, "standoff": 4, "font": {"size": 11}},
            "showgrid": False,
            "showline": True,
        },
        "yaxis": {**axis},
    }


def _thinned(curve: Curve, *, by_epoch: bool) -> tuple[list[float | None], list[float | None]]:
    at: Sequence[float | None] = curve.epoch if by_epoch else curve.step
    kept = _kept(len(at), MAX_RECORDS)
    return _rounded([at[i] for i in kept]), _rounded([curve.value[i] for i in kept])


def _kept(n: int, most: int) -> list[int]:
    """At most `most` of n positions, evenly spaced, including the first and the last."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, most))}) if n else []


def _short(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}…"


def _level(traces: Sequence[PlotlyFigure]) -> list[float]:
    """An axis range for values that are all equal, half of the value to each side; else empty.

    By default plotly shows one unit around such values, however small they are.
    """
    values = {v for trace in traces for v in trace["y"] if v is not None}
    if len(values) != 1:
        return []
    (value,) = values
    return [value - (abs(value) / 2 or 1.0), value + (abs(value) / 2 or 1.0)]


def log_ticks(shown: Iterable[Any]) -> dict[str, list[Any]]:
    """Ticks of a log axis as plain numbers: powers of ten, and 2 and 5 times them if few."""
    values = [v for v in shown if v is not None and v > 0]
    if not values:
        return {}
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    apart = 1 + (high - low) // 6  # decades
    ticks = [step * 10.0**power for power in range(low, high + 1, apart) for step in steps]
    return {"tickvals": ticks, "ticktext": [f"{tick:.6g}" for tick in ticks]}


def _rounded(values: Any) -> list[float | None]:
    """Values rounded to five significant digits, enough for a screen in a third of the bytes."""
    return [None if v is None else float(f"{float(v):.5g}") for v in values]
