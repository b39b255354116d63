"""The figures of an experiment in the style of the page, for both themes and narrow screens.

An experiment defines what is drawn; fonts, background, axes and colours that it does not set are
set here. Names from the data are shown as they are and never interpreted as markup.
"""

from typing import Any

from contrapose.report.charts import PlotlyFigure, log_ticks, plain_layout
from contrapose.report.classes import plot_text

COLOURS = [f"var(--r{k})" for k in range(8)]
HEAT = [[0, "var(--heat-0)"], [0.5, "var(--heat-1)"], [1, "var(--heat-2)"]]
_SET_HERE = ("template", "width", "height", "paper_bgcolor", "plot_bgcolor", "font", "title")


def themed(drawn: dict[str, Any]) -> PlotlyFigure:
    """A plotly figure (data, layout) in the style of the page."""
    asked = {k: v for k, v in drawn.get("layout", {}).items() if k not in _SET_HERE}
    layout = plain_layout("")
    axes = {k: layout.pop(k) for k in ("xaxis", "yaxis")}
    named = {k for k in asked if k.startswith(("xaxis", "yaxis"))} | set(axes)
    for name in named:
        own = asked.pop(name, None)
        layout[name] = _axis(axes[name[:5]], own if isinstance(own, dict) else {})
    data = [_trace(trace) for trace in drawn["data"] if isinstance(trace, dict)]
    _share_colours(data)
    for name in named:
        if _of_words(data, name):  # "0.07" and the like are names here, not places on a line
            layout[name].setdefault("type", "category")
            layout[name].pop("nticks", None)
            layout[name].setdefault("dtick", 1)  # every name
        elif layout[name].get("type") == "log" and not {"dtick", "tickvals"} & set(layout[name]):
            layout[name] |= log_ticks(_numbers(data, name))
    shown = [t for t in data if t.get("name") and t.get("showlegend", True)]
    layout["colorway"] = COLOURS
    layout["showlegend"] = len(shown) > 1
    layout["legend"] = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    layout["margin"] |= {"t": 16 + 22 * -(-len(shown) // 4) if len(shown) > 1 else 16}
    layout["hovermode"] = "closest"
    for annotation in asked.get("annotations", []):
        annotation.setdefault("font", {}).setdefault("color", "var(--muted)")
    return {"data": data, "layout": _merged(layout, asked)}


def _axis(base: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    title = asked.get("title", "")
    text = title.get("text", "") if isinstance(title, dict) else title
    axis = {k: v for k, v in base.items() if k != "nticks" or asked.get("type") != "log"}
    if asked.get("type") == "log":
        axis["dtick"] = asked.get("dtick", None)
    axis = _merged(axis, {k: v for k, v in asked.items() if k != "title"})
    axis["title"] = {"text": str(text or ""), "standoff": 8, "font": {"size": 12}}
    if "ticktext" in axis:
        axis["ticktext"] = [plot_text(str(t)) for t in axis["ticktext"]]
    return {k: v for k, v in axis.items() if v is not None}


def _numbers(data: list[dict[str, Any]], axis: str) -> list[float]:
    return [x for values in _positions(data, axis) for x in values if isinstance(x, int | float)]


def _positions(data: list[dict[str, Any]], axis: str) -> list[list[Any]]:
    """Where the traces have points on this axis, a list a trace."""
    letter, number = axis[0], axis[5:]
    mine = [t.get(letter) for t in data if t.get(f"{letter}axis", letter)[1:] == number]
    return [v for v in mine if isinstance(v, list) and v]


def _of_words(data: list[dict[str, Any]], axis: str) -> bool:
    """True if every trace has words as positions on this axis."""
    lists = _positions(data, axis)
    return bool(lists) and all(isinstance(v, str) for values in lists for v in values)


def _trace(trace: dict[str, Any]) -> dict[str, Any]:
    trace = dict(trace)
    for name in ("x", "y", "text", "labels"):
        if isinstance(trace.get(name), list):
            trace[name] = [plot_text(v) if isinstance(v, str) else v for v in trace[name]]
    if "name" in trace:
        trace["name"] = plot_text(str(trace["name"]))
    if trace.get("type") in ("heatmap", "contour"):
        trace.setdefault("colorscale", HEAT)
        bar = {"thickness": 12, "outlinewidth": 0, "tickfont": {"color": "var(--muted)"}}
        trace["colorbar"] = _merged(bar, trace.get("colorbar") or {})
    if "text" in trace.get("mode", ""):
        trace.setdefault("cliponaxis", False)  # words above the highest point
    for bars in ("error_x", "error_y"):
        if isinstance(trace.get(bars), dict):
            trace[bars] = {"thickness": 1.4, "width": 3} | trace[bars]
    return trace


def _share_colours(data: list[dict[str, Any]]) -> None:
    """Give all traces of a legend group the same colour."""
    groups = list(dict.fromkeys(t["legendgroup"] for t in data if t.get("legendgroup")))
    for trace in data:
        if trace.get("legendgroup"):
            colour = COLOURS[groups.index(trace["legendgroup"]) % len(COLOURS)]
            for part in ("line", "marker"):
                trace[part] = {"color": colour} | trace.get(part, {})


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` updated with the values of `over`, at any depth."""
    both = base | over
    for name in base.keys() & over.keys():
        if isinstance(base[name], dict) and isinstance(over[name], dict):
            both[name] = _merged(base[name], over[name])
    return both
