"""The page of a study of shortcuts: one HTML file from shortcuts.json and its pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contrapose.report.charts import PlotlyFigure
from contrapose.report.experiment_charts import themed
from contrapose.report.page import assemble, write_text
from contrapose.report.run_folder import Json, read_record
from contrapose.report.sprites import Sprite, sprite

FORMAT = 1
SCORE: Json = {
    "value": float | None, "low": float | None, "high": float | None, "n": int, "protocol": str,
}  # fmt: skip
SHAPE: Json = {  # what the page relies on
    "request": {
        "data": str, "images": int, "size": int, "recipe": str, "run": str | None,
        "encoder": str | None, "steps": int | None, "seed": int,
    },
    "command": str | None, "contrapose": str, "of": str, "split": str, "compared": int,
    "at_most": float, "brief": bool, "recipe_file": str | None,
    "candidates": [{
        "name": str, "title": str, "level": str, "state": str, "sentence": str, "instead": str,
        "suggestion": str, "suggested": bool, "found": SCORE, "bits": SCORE, "h": SCORE,
        "untrained": SCORE, "found_after": SCORE, "bits_after": SCORE, "h_after": (SCORE, None),
    }],
    "duplicates": {"level": str, "state": str, "sentence": str, "suggestion": str},
}  # fmt: skip
BUDGET = 400_000  # bytes of each feature's pictures


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Query views and the views found for them, as positions in the sprite."""

    words: str
    rows: tuple[tuple[int, tuple[tuple[int, bool], ...]], ...]  # query, (found, is it the image)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One feature on the page."""

    row: Json
    sprite: Sprite | None
    evidence: tuple[Evidence, ...]


def read_shortcuts(folder: Path) -> Json:
    """shortcuts.json of the folder; FileNotFoundError, or UserError with what is wrong."""
    file, command = folder / "shortcuts.json", "contrapose shortcuts"
    return read_record(file, format=FORMAT, command=command, shape=SHAPE)


def write_shortcuts(folder: Path, out: Path | None = None) -> Path:
    """Write report.html into the folder, or `out`; returns its path."""
    found = read_shortcuts(folder)
    page = folder / "report.html" if out is None else out
    write_text(page, render(found, _arrays(folder / "shortcuts.npz"), folder))
    return page


def render(found: Json, arrays: dict[str, np.ndarray], folder: Path) -> str:
    """The page as HTML text."""
    rows = found["candidates"]
    pairs = arrays.get("duplicates")
    return assemble(
        "shortcuts.html",
        ("page.js", "experiment.js"),
        {"figures": {"bits": _bits(rows), "read": _read(rows)}, "classes": []},
        f=found,
        folder=folder,
        lead=lead(found),
        complete=_complete,
        shown=[_shown(row, arrays) for row in rows],
        pairs=None if pairs is None else sprite(pairs.reshape(-1, *pairs.shape[2:]), budget=BUDGET),
        count=0 if pairs is None else len(pairs),
    )


def lead(found: Json) -> tuple[str, str, str]:
    """(level, headline, sentence) about all features together."""
    shared = [row for row in found["candidates"] if row["suggested"]]
    held = [row for row in shared if row["level"] == "bad"]
    if not shared:
        looked = ", ".join(row["title"].lower() for row in found["candidates"])
        return "good", "No easy feature is shared", f"Looked for: {looked}."
    names = _listed([row["title"].lower() for row in shared])
    level = "bad" if held else "warn"
    headline = f"Views share {names}"
    if held:
        return level, headline, f"h holds on to {_listed([r['title'].lower() for r in held])}."
    return level, headline, "h does not hold on to any of it for long, or it is little."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _bits(rows: Sequence[Json]) -> PlotlyFigure:
    """A chart of the bits that views share by each feature, with and without its suggestion."""
    return _bars(
        rows,
        (("bits", "views as they are"), ("bits_after", "with its suggestion")),
        "bits about the image",
    )


def _read(rows: Sequence[Json]) -> PlotlyFigure:
    """A chart of how well each feature is predicted from h."""
    names = (("h", "h"), ("untrained", "untrained"), ("h_after", "h, with all suggestions"))
    return _bars(rows, names, "R² of the feature read from h")


def _bars(rows: Sequence[Json], names: Sequence[tuple[str, str]], title: str) -> PlotlyFigure:
    traces = []
    for name, words in names:
        scores = [(row["title"], row[name]) for row in reversed(rows)]
        known = [(t, s) for t, s in scores if s is not None and _complete(s)]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": words,
                "y": [t for t, _ in known],
                "x": [s["value"] for _, s in known],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [s["high"] - s["value"] for _, s in known],
                    "arrayminus": [s["value"] - s["low"] for _, s in known],
                },
            }
        )
    layout = {"xaxis": {"title": {"text": title}, "rangemode": "tozero"}, "barmode": "group"}
    return themed({"data": traces, "layout": layout | {"yaxis": {"automargin": True}}})


def _complete(score: Json) -> bool:
    """True if the score has a number and an interval; NaN is written as null."""
    return all(score[name] is not None for name in ("value", "low", "high"))


def _shown(row: Json, arrays: dict[str, np.ndarray]) -> Shown:
    tiles: list[np.ndarray] = []
    evidence = []
    for when, words in (("before", "Views as they are"), ("after", f"With {row['suggestion']}")):
        names = [f"{row['name']}_{when}_{part}" for part in ("query", "found", "right")]
        if not all(name in arrays for name in names):
            continue
        query, found, right = (arrays[name] for name in names)
        lines = []
        for q in range(len(query)):
            at = sum(map(len, tiles))
            tiles += [query[q : q + 1], found[q]]
            ours = tuple((at + 1 + k, bool(right[q, k])) for k in range(len(found[q])))
            lines.append((at, ours))
        evidence.append(Evidence(words=words, rows=tuple(lines)))
    packed = sprite(np.concatenate(tiles), budget=BUDGET) if tiles else None
    return Shown(row=row, sprite=packed, evidence=tuple(evidence))


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """The pictures; empty if the file is missing or damaged, so that numbers are still shown."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError):
        return {}
