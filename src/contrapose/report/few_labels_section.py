"""The section of a report on few labels: the learning curve, its table, what is saved."""

from collections.abc import Sequence
from dataclasses import dataclass

from contrapose.report.charts import PlotlyFigure
from contrapose.report.experiment_charts import themed
from contrapose.report.few_labels import Json, measured_words, saved_words

METHODS = {
    "finetuned": ("fine-tuned", "var(--accent)"),
    "scratch": ("from scratch", "var(--second)"),
    "probe": ("probe of h", "var(--muted)"),
}


@dataclass(frozen=True, kw_only=True)
class FewLabels:
    """The content of the section for one set of images; `of` is "" for the run's own."""

    of: str
    figure: str  # its id
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]  # labels, n, a cell for each method
    methods: tuple[str, ...]
    saved: tuple[str, ...]  # sentences
    words: str


def few_labels_section(found: Json, of: str, k: str, figures: dict[str, PlotlyFigure]) -> FewLabels:
    """The section of one finetune.json; its curve is added to `figures` as few_labels_k."""
    rows = found["rows"]
    figures[f"few_labels_{k}"] = _curve(rows)
    budgets = list(dict.fromkeys((row["labels"], row["n"]) for row in rows))
    methods = [m for m in METHODS if any(row["method"] == m for row in rows)]
    cells = {(row["labels"], row["method"]): row for row in rows}
    return FewLabels(
        of=of,
        figure=f"few_labels_{k}",
        rows=tuple(
            (word, f"{n:,}", tuple(_cell(cells.get((word, m))) for m in methods))
            for word, n in budgets
        ),
        methods=tuple(METHODS[m][0] for m in methods),
        saved=tuple(map(saved_words, found["saved"])),
        words=f"Test accuracy in %, {measured_words(found)}",
    )


def _cell(row: Json | None) -> str:
    if row is None:
        return ""
    return f"{100 * row['value']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def _curve(rows: Sequence[Json]) -> PlotlyFigure:
    """Accuracy by the number of labels, with its intervals, one line for each method."""
    traces: list[Json] = []
    for method, (words, colour) in METHODS.items():
        of = sorted((row for row in rows if row["method"] == method), key=lambda row: row["n"])
        if not of:
            continue
        up, down = ([abs(row[side] - row["value"]) for row in of] for side in ("high", "low"))
        traces.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": words,
                "x": [row["n"] for row in of], "y": [row["value"] for row in of],
                "text": [row["labels"] for row in of],
                "error_y": {"type": "data", "array": up, "arrayminus": down, "symmetric": False,
                            "color": colour},
                "line": {"color": colour, "width": 2}, "marker": {"color": colour, "size": 7},
                "hovertemplate": "%{text}: %{y:.1%}",
            }
        )  # fmt: skip
    ticks = sorted({row["n"] for row in rows})
    axes = {
        "xaxis": {
            "title": {"text": "labels"}, "type": "log", "tickvals": ticks,
            "ticktext": [f"{n:,}" for n in ticks],
        },
        "yaxis": {"title": {"text": "test accuracy"}, "tickformat": ".0%"},
    }  # fmt: skip
    return themed({"data": traces, "layout": axes})
