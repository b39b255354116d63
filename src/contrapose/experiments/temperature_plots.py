"""Charts of the experiments on temperature."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from contrapose.experiments.form import Results
from contrapose.experiments.temperature_claims import COLDER, SWEEP
from contrapose.experiments.wang_liu import BANK, CONTRASTIVE, HARD, HARD_SIMPLE, IN_BATCH, SIMPLE

MAPPED = (0.07, 0.2)  # figure 2

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
        [row["uniformity"] for row in rows],
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


# ---- the sweep -----------------------------------------------------------------------------------


def against_temperature(measure: str, title: str) -> Callable[[Results], Chart]:
    """A line for the ordinary and the hard loss of each protocol, and of each data set."""

    def draw(results: Results) -> Chart:
        traces = []
        for data in results.column("data"):
            for protocol in (BANK, IN_BATCH):
                for loss, dash in ((CONTRASTIVE, "solid"), (HARD, "dot")):
                    at = {"data": data, "protocol": protocol, "loss": loss}
                    means = results.where(**at).means(measure, "tau", (*COLDER, *SWEEP))
                    if means:
                        name = f"{loss}, {data}, {protocol}"
                        traces.append(line(name, [*means], [*means.values()], line={"dash": dash}))
        return chart(traces, "temperature", title)

    return draw


def separation(results: Results) -> Chart:
    """Figure 8."""
    data = "cifar100" if "cifar100" in results.column("data") else results.column("data")[0]
    names = ["pos", *(f"n{i}" for i in range(1, 11))]
    at = {"data": data, "protocol": BANK, "loss": CONTRASTIVE}
    curves = {t: results.curve("local_separation", **at, tau=t) for t in SWEEP}
    traces = [line(f"{t:g}", names, y) for t, y in curves.items() if y]
    return chart(traces, None, f"mean similarity, {data}")


def maps(results: Results) -> Chart:
    """Figure 2: one map for each temperature, side by side."""
    traces: list[Trace] = []
    for axis, t in zip(("", "2"), MAPPED, strict=True):
        rows = results.where(protocol=BANK, loss=CONTRASTIVE, tau=t).rows
        row = next((row for row in rows if row.get("map_x")), None)
        if row is None:
            return None
        for c in sorted(set(row["map_class"])):
            here = [i for i, label in enumerate(row["map_class"]) if label == c]
            x, y = ([row[name][i] for i in here] for name in ("map_x", "map_y"))
            places = {"xaxis": f"x{axis}", "yaxis": f"y{axis}", "legendgroup": str(c)}
            looks = {"mode": "markers", "marker": {"size": 4}, "showlegend": not axis}
            traces.append(line(f"class {c}", x, y, **places, **looks))
    bare = {"showticklabels": False, "zeroline": False}
    layout = {
        "xaxis": {"domain": [0, 0.48], "title": {"text": f"temperature {MAPPED[0]:g}"}} | bare,
        "xaxis2": {"domain": [0.52, 1], "title": {"text": f"temperature {MAPPED[1]:g}"}} | bare,
        "yaxis": bare,
        "yaxis2": {"anchor": "x2"} | bare,
    }
    return {"data": traces, "layout": layout}


def tradeoff(results: Results) -> Chart:
    """Every run of the sweep on the plane."""
    traces = []
    for protocol in (BANK, IN_BATCH):
        for loss in (CONTRASTIVE, SIMPLE, HARD, HARD_SIMPLE):
            rows = finished(results, "tau", protocol=protocol, loss=loss)
            if rows:
                look = {"mode": "markers+text"}
                traces.append(on_the_plane(f"{loss}, {protocol}", rows, "tau", **look))
    return chart(traces, "uniformity", "tolerance")
