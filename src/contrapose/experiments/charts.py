"""Charts of experiments as plotly dictionaries: traces, and axes with titles."""

from collections.abc import Mapping, Sequence
from typing import Any

from contrapose.experiments.form import Results

Trace = dict[str, Any]
Chart = dict[str, Any] | None


def line(name: str, x: Sequence[Any], y: Sequence[float], **more: Any) -> Trace:
    trace = {"type": "scatter", "mode": "lines+markers", "name": name, "x": list(x), "y": list(y)}
    return trace | more


def chart(traces: Sequence[Trace], x: str | None, y: str, **axes: Mapping[str, Any]) -> Chart:
    """A chart of the traces with titles of its axes; None without traces. axes: xaxis=...,
    yaxis=..."""
    layout: dict[str, Any] = {"yaxis": {"title": {"text": y}}}
    layout["xaxis"] = {} if x is None else {"title": {"text": x}}
    for name, more in axes.items():
        layout[name] |= more
    return {"data": list(traces), "layout": layout} if traces else None


def bars(results: Results, measure: str, along: str, title: str) -> Chart:
    """The mean over seeds of a measure for every value of a fact, highest first."""
    means = results.means(measure, along)
    order = sorted(means, key=lambda name: means[name])
    trace = {
        "type": "bar", "orientation": "h", "x": [means[n] for n in order],
        "y": [str(n) for n in order], "text": [f"{means[n]:.3f}" for n in order],
    }  # fmt: skip
    return chart([trace] if means else [], title, "")


def on_the_plane(name: str, rows: Sequence[Mapping[str, Any]], fact: str, **more: Any) -> Trace:
    """A trace of runs by uniformity and tolerance, labelled by a fact, with accuracy on
    hovering."""
    return line(
        name,
        [row["minus_uniformity"] for row in rows],
        [row["tolerance"] for row in rows],
        text=["" if row[fact] is None else f"{row[fact]:g}" for row in rows],
        textposition="top center",
        hovertext=[f"accuracy {row['accuracy']:.3f}" for row in rows],
        **{"mode": "lines+markers+text"} | more,
    )


def finished(results: Results, *sort_by: str, **facts: Any) -> list[dict[str, Any]]:
    """The rows with these facts and an accuracy, sorted by other facts (None first)."""
    rows = [row for row in results.where(**facts).rows if row.get("accuracy") is not None]
    return sorted(rows, key=lambda row: [row[name] or 0 for name in sort_by])
