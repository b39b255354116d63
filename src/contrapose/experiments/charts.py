"""Charts of experiments as plotly dicts: traces, titled axes."""

from collections.abc import Mapping, Sequence
from typing import Any

from contrapose.experiments.form import Results

Trace = dict[str, Any]
Chart = dict[str, Any] | None


def line(name: str, x: Sequence[Any], y: Sequence[float], **more: Any) -> Trace:
    trace = {"type": "scatter", "mode": "lines+markers", "name": name, "x": list(x), "y": list(y)}
    return trace | more


def chart(traces: Sequence[Trace], x: str | None, y: str, **axes: Mapping[str, Any]) -> Chart:
    """The traces with titles on their axes (xaxis=..., yaxis=...: more); None without traces."""
    layout: dict[str, Any] = {"yaxis": {"title": {"text": y}}}
    layout["xaxis"] = {} if x is None else {"title": {"text": x}}
    for name, more in axes.items():
        layout[name] |= more
    return {"data": list(traces), "layout": layout} if traces else None


def on_the_plane(name: str, rows: Sequence[Mapping[str, Any]], fact: str, **more: Any) -> Trace:
    """Runs by uniformity and tolerance, a fact beside each, its accuracy when pointed at."""
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
    """Rows with these facts that have an accuracy, in order of other facts (None first)."""
    rows = [row for row in results.where(**facts).rows if row.get("accuracy") is not None]
    return sorted(rows, key=lambda row: [row[name] or 0 for name in sort_by])
