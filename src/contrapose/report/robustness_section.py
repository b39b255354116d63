"""The section of a report on robustness: numbers, curves by severity, diagrams, contact sheet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from contrapose.report.charts import PlotlyFigure, plain_layout, run_colour
from contrapose.report.classes import plot_text
from contrapose.report.numbers import MISSING, Number
from contrapose.report.robustness import Bin, Robustness, ece_of, mean, pooled
from contrapose.report.run_folder import Run
from contrapose.report.sprites import Sprite, sprite

SHEET_BUDGET = 500_000  # bytes, shared by the runs of a page
# of a chart by severity: words, facts of the measurements, kind, colour, width, dash
Curve = tuple[str, dict[str, str], str, str, float, str]
FAMILY_COLOURS = {"noise": "var(--c2)", "blur": "var(--c0)", "weather": "var(--c4)"}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of a table: a cell for each severity, then the means of accuracy and other measures."""

    name: str
    accuracy: tuple[str, ...]  # in percent
    mean: str
    error: str  # 100 times the error over AlexNet's: CE, and in the row of all mCE
    ece: str
    scaled: str


@dataclass(frozen=True, kw_only=True)
class Diagram:
    """A reliability diagram."""

    figure: str  # id
    title: str
    words: str


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    name: str
    tiles: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """What the page shows of one run on one set of images."""

    of: str  # the other set, "" for the run's own
    numbers: tuple[Number, ...]
    severities: tuple[int, ...]
    by_severity: tuple[Line, ...]  # accuracy, error of calibration, that after scaling
    by_corruption: tuple[Line, ...]
    diagrams: tuple[Diagram, ...]
    notes: tuple[str, ...]
    sheet: tuple[SheetRow, ...] = ()
    sheet_sprite: Sprite | None = None
    sheet_severities: tuple[int, ...] = ()


def robustness_sections(
    runs: Sequence[Run], figures: dict[str, PlotlyFigure]
) -> list[list[Section]]:
    """The sections of each run, its own images first; plots are added to `figures`."""
    own = [(run, run.robustness[""]) for run in runs if "" in run.robustness]
    if own:
        figures["accuracy_by_severity"] = _by_severity(runs, own, "accuracy")
        figures["ece_by_severity"] = _by_severity(runs, own, "ece")
    return [
        [
            _section(run, f"{k}_{i}", name, seen, figures, SHEET_BUDGET // len(runs))
            for i, (name, seen) in enumerate(sorted(run.robustness.items()))
        ]
        for k, run in enumerate(runs)
    ]


def _section(
    run: Run,
    id: str,
    name: str,
    seen: Robustness,
    figures: dict[str, PlotlyFigure],
    budget: int,
) -> Section:
    strongest = max(seen.severities, default=0)
    shown = [("clean images", [seen.clean])]
    if strongest:
        shown.append((f"severity {strongest}, all corruptions", seen.where(severity=strongest)))
    diagrams: list[Diagram] = []
    for where, measured in shown:
        before, after = pooled(measured), pooled(measured, "after")
        figure = f"reliability_{id}_{len(diagrams)}"
        figures[figure] = reliability(before, after)
        words = f"ECE {ece_of(before):.3f}" + (f", {ece_of(after):.3f} scaled" if after else "")
        diagrams.append(Diagram(figure=figure, title=where.capitalize(), words=words))
    found = Section(
        of=name,
        numbers=_numbers(seen),
        severities=tuple(seen.severities),
        by_severity=_severities(seen),
        by_corruption=_corruptions(seen),
        diagrams=tuple(diagrams),
        notes=tuple(seen.record["notes"]),
    )
    sheet = run.pictures.corrupted
    if name or sheet is None or sheet.of != seen.of:
        return found
    rows, columns = sheet.image.shape[:2]
    flat = sheet.image.reshape(rows * columns, *sheet.image.shape[2:])
    tiles = [tuple(range(r * columns, (r + 1) * columns)) for r in range(rows)]
    return replace(
        found,
        sheet=tuple(SheetRow(name=n, tiles=t) for n, t in zip(sheet.names, tiles, strict=True)),
        sheet_sprite=sprite(flat, budget=budget),
        sheet_severities=sheet.severities,
    )


def _numbers(seen: Robustness) -> tuple[Number, ...]:
    """Accuracy clean and corrupted, mCE, calibration before and after scaling."""
    clean, n = seen.clean["before"], seen.clean["before"]["n"]
    split, seed = seen.record.get("split", MISSING), str(seen.record["seed"])

    def card(metric: str, value: str, unit: str, interval: str, protocol: str) -> Number:
        facts = {
            "protocol": protocol,
            "split": split,
            "seed": seed,
            "n": f"{n:,}",
            "features": "logits",
        }
        return Number(
            metric=metric, value=value, unit=unit, plus_minus="", interval=interval, track=None,
            facts=facts,
        )  # fmt: skip

    bins = f"{clean['bins']} bins"
    cards = [card("accuracy, clean", _percent(clean["accuracy"]), "%", "", "the run's classifier")]
    if seen.corrupted:
        how = f"mean over {len(seen.corruptions)} corruptions and {len(seen.severities)} severities"
        under = mean(seen.corrupted, "accuracy")
        cards.append(card("accuracy, corrupted", _percent(under), "%", "", how))
    if (mce := seen.record["mce"]) is not None:
        how = "100 times the error over AlexNet's on ImageNet-C, mean over the 15 corruptions"
        cards.append(card("mCE", f"{mce:.1f}", "", "", how))
    interval = f"95 % interval {clean['low']:.3f} to {clean['high']:.3f}"
    cards.append(card("ECE, clean", f"{clean['ece']:.3f}", "", interval, f"{bins}, bootstrap"))
    after = seen.clean["after"]
    if after is not None:
        interval = f"95 % interval {after['low']:.3f} to {after['high']:.3f}"
        how = f"{bins}, logits divided by {seen.record['temperature']:.3g}"
        cards.append(card("ECE, clean, scaled", f"{after['ece']:.3f}", "", interval, how))
    return tuple(cards)


def _severities(seen: Robustness) -> tuple[Line, ...]:
    """One row for each measure, clean and by severity, as table 6 of the SupCon paper."""
    columns = [[seen.clean], *(seen.where(severity=s) for s in seen.severities)]
    rows = (
        ("accuracy, %", "accuracy", "before"), ("ECE", "ece", "before"),
        ("ECE, scaled", "ece", "after"),
    )  # fmt: skip
    found = []
    for name, measure, kind in rows:
        values = [mean(column, measure, kind) for column in columns]
        cells = [_percent(v) if measure == "accuracy" else _three(v) for v in values]
        if any(v is not None for v in values):
            found.append(
                Line(name=name, accuracy=tuple(cells), mean="", error="", ece="", scaled="")
            )
    return tuple(found)


def _corruptions(seen: Robustness) -> tuple[Line, ...]:
    """One row for each corruption, and one for all."""
    errors = seen.record.get("ce", {})
    lines = []
    for name in [*seen.corruptions, ""]:
        measured = seen.where(corruption=name) if name else seen.corrupted
        error = errors.get(name) if name else seen.record["mce"]
        at = (
            mean([m for m in measured if m["severity"] == s], "accuracy") for s in seen.severities
        )
        lines.append(
            Line(
                name=name.replace("_", " ") or "mean",
                accuracy=tuple(_percent(v) for v in at),
                mean=_percent(mean(measured, "accuracy")),
                error=MISSING if error is None else f"{error:.1f}",
                ece=_three(mean(measured, "ece")),
                scaled=_three(mean(measured, "ece", "after")),
            )
        )
    return tuple(lines) if seen.corrupted else ()


def _by_severity(
    runs: Sequence[Run], own: Sequence[tuple[Run, Robustness]], measure: str
) -> PlotlyFigure:
    """The mean over corruptions by severity, 0 for clean images; of one run also by family
    (accuracy), or after temperature scaling (ECE)."""
    several, traces = len(runs) > 1, []
    for run, seen in own:
        colour = run_colour(runs.index(run))
        curves: list[Curve] = [("mean", {}, "before", colour, 2.5, "solid")]
        if several:
            curves = [(run.name, {}, "before", colour, 2, "solid")]
        elif measure == "accuracy":
            for family in seen.families:
                shade = FAMILY_COLOURS.get(family, "var(--c6)")
                curves.append((family, {"family": family}, "before", shade, 1.3, "solid"))
        else:
            curves[0] = ("as it is", {}, "before", colour, 2.5, "solid")
            curves.append(("after temperature scaling", {}, "after", "var(--second)", 2, "dash"))
        for words, facts, kind, shade, width, dash in curves:
            at = {0: [seen.clean]} | {s: seen.where(severity=s, **facts) for s in seen.severities}
            values = {s: mean(measured, measure, kind) for s, measured in at.items()}
            points = {s: round(v, 5) for s, v in values.items() if v is not None}
            if points:
                traces.append(
                    {
                        "type": "scatter", "mode": "lines+markers", "x": [*points],
                        "y": [*points.values()], "name": plot_text(words),
                        "line": {"color": shade, "width": width, "dash": dash},
                        "marker": {"color": shade, "size": 6},
                        "hovertemplate": "%{y:.1%}" if measure == "accuracy" else "%{y:.3f}",
                    }
                )  # fmt: skip
    layout = plain_layout("severity")
    layout["hovermode"] = "x unified"
    ticks = sorted({0, *(s for _, seen in own for s in seen.severities)})
    named = ["clean" if t == 0 else str(t) for t in ticks]
    layout["xaxis"] |= {"tickvals": ticks, "ticktext": named}
    layout["yaxis"] |= {"rangemode": "tozero"}
    if measure == "accuracy":
        layout["yaxis"] |= {"tickformat": ".0%", "range": [0, 1.02]}
    _add_legend(layout)
    return {"data": traces, "layout": layout}


def reliability(before: Sequence[Bin], after: Sequence[Bin]) -> PlotlyFigure:
    """Accuracy by confidence, as the logits are and after temperature scaling; points on the
    diagonal are calibrated, and larger ones are of more images."""
    traces: list[PlotlyFigure] = [
        {
            "type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "name": "calibrated",
            "line": {"color": "var(--muted)", "width": 1, "dash": "dot"}, "hoverinfo": "skip",
        }
    ]  # fmt: skip
    kinds = [
        ("as it is", before, "var(--accent)", "circle"),
        ("after temperature scaling", after, "var(--second)", "diamond"),
    ]
    for name, bins, colour, symbol in kinds:
        if not bins:
            continue
        n = sum(b.count for b in bins)
        traces.append(
            {
                "type": "scatter", "mode": "markers", "name": name,
                "x": [round(b.confidence, 4) for b in bins],
                "y": [round(b.accuracy, 4) for b in bins],
                "text": [f"{b.count:,} images ({b.count / n:.1%})" for b in bins],
                "marker": {
                    "color": colour, "symbol": symbol, "opacity": 0.85,
                    "size": [round(5 + 16 * (b.count / n) ** 0.5, 1) for b in bins],
                },
                "hovertemplate": f"{name}<br>confidence %{{x:.2f}}, accuracy %{{y:.2f}}<br>"
                "%{text}<extra></extra>",
            }
        )  # fmt: skip
    layout = plain_layout("confidence")
    layout["xaxis"] |= {"range": [-0.03, 1.05]}
    layout["yaxis"] |= {
        "range": [-0.03, 1.05], "title": {"text": "accuracy", "standoff": 8, "font": {"size": 11}}
    }  # fmt: skip
    layout["hovermode"] = "closest"
    _add_legend(layout)
    return {"data": traces, "layout": layout}


def _add_legend(layout: PlotlyFigure) -> None:
    """A row of names above the plot."""
    layout["showlegend"] = True
    layout["legend"] = {
        "orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}
    }  # fmt: skip
    layout["margin"]["t"] = 34


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def _three(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"
