"""Charts of the temperature sweep."""

from collections.abc import Callable

from contrapose.experiments.charts import Chart, Trace, chart, finished, line, on_the_plane
from contrapose.experiments.form import Results
from contrapose.experiments.temperature.claims import COLDER, SWEEP
from contrapose.experiments.temperature.protocol import (
    BANK,
    CONTRASTIVE,
    HARD,
    HARD_SIMPLE,
    IN_BATCH,
    SIMPLE,
)

MAPPED = (0.07, 0.2)  # figure 2


def against_temperature(measure: str, title: str) -> Callable[[Results], Chart]:
    """A chart with a line for the ordinary and the hard loss of each protocol and data set."""

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
    """Figure 8: similarities of the positive and of the nearest negatives."""
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
    """Every run of the sweep in the plane of uniformity and tolerance."""
    traces = []
    for protocol in (BANK, IN_BATCH):
        for loss in (CONTRASTIVE, SIMPLE, HARD, HARD_SIMPLE):
            rows = finished(results, "tau", protocol=protocol, loss=loss)
            if rows:
                look = {"mode": "markers+text"}
                traces.append(on_the_plane(f"{loss}, {protocol}", rows, "tau", **look))
    return chart(traces, "-uniformity of z", "tolerance of z")
