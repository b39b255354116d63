"""The page of a report: from run folders by a template to one HTML file, written atomically.

Nothing in a run folder can be executed: the template escapes all text, the data block escapes `<`,
and the content-security policy of the page allows only its own two scripts, by their hashes, and no
connections.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from contrapose.errors import UserError
from contrapose.files import replace_file, said_of
from contrapose.progress import duration
from contrapose.report.charts import PlotlyFigure
from contrapose.report.classes import Classes
from contrapose.report.crops import crop_section
from contrapose.report.few_labels_section import few_labels_section
from contrapose.report.numbers import (
    compare_recipes,
    compare_scores,
    leaf,
    number,
    over_seeds,
    short,
)
from contrapose.report.panels import geometry_panels, training_panels
from contrapose.report.robustness_section import robustness_sections
from contrapose.report.run_folder import Run, read_run
from contrapose.report.sections import run_pictures
from contrapose.report.transfer import transfer_rows

SCRIPTS = ("page.js", "map.js")


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one HTML page about a run, or about several runs side by side; returns its path.

    out: by default report.html in the run folder, for several runs ./report.html. Raises
    FileNotFoundError for a folder that is not a run, UserError for no run and for a run folder of
    another format version.
    """
    if not runs:
        raise UserError("report: no run folder given; pass at least one")
    read = _distinct([read_run(Path(run)) for run in runs])
    if out is None:
        out = read[0].path / "report.html" if len(read) == 1 else Path("report.html")
    write_text(out, render(read))
    return out


def render(runs: Sequence[Run]) -> str:
    """The page as HTML text."""
    classes = Classes(runs)
    figures: dict[str, PlotlyFigure] = {}
    pictures = [run_pictures(runs, k, classes, figures) for k in range(len(runs))]
    robustness = robustness_sections(runs, figures)
    few_labels = [
        [
            few_labels_section(found, of, f"{k}_{i}", figures)
            for i, (of, found) in enumerate(sorted(run.few_labels.items()))
        ]
        for k, run in enumerate(runs)
    ]
    crops = [crop_section(r.views, r.pictures.crops, k, figures) for k, r in enumerate(runs)]
    training, geometry = training_panels(runs), geometry_panels(runs)
    figures |= {panel.id: panel.figure for panel in (*training, *geometry) if panel.figure}
    data = {
        "figures": figures,
        "classes": [{"name": c.name, "colour": c.colour, "symbol": c.symbol} for c in classes.all],
    }
    return assemble(
        "page.html",
        SCRIPTS,
        data,
        runs=runs,
        several=len(runs) > 1,
        classes=classes,
        pictures=pictures,
        crops=crops,
        few_labels=few_labels,
        robustness=robustness,
        transfer=transfer_rows(runs),
        training=training,
        geometry=geometry,
        numbers=[[number(score) for score in run.scores] for run in runs],
        other_numbers=[
            {
                name: [number(score) for score in other.scores or ()]
                for name, other in run.others.items()
            }
            for run in runs
        ],
        over_seeds=over_seeds(runs),
        score_rows=compare_scores(runs) if len(runs) > 1 else [],
        recipe_rows=compare_recipes(runs) if len(runs) > 1 else [],
    )


def assemble(template: str, scripts: Sequence[str], data: dict[str, Any], **values: Any) -> str:
    """A page from a template with the styles, these scripts, and their data."""
    plotly = get_plotlyjs()
    script = "\n".join(_own(name) for name in scripts)
    return (
        _templates()
        .get_template(template)
        .render(
            css=Markup(_own("page.css")),
            script=Markup(script),
            data=json_block(data),
            plotly=Markup(_packed(plotly)),
            hashes=[_hash(script), _hash(plotly)],
            **values,
        )
    )


def json_block(value: Any) -> Markup:
    """JSON for a <script> element, without `<`, `>`, `&` and U+2028."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII: U+2028 is escaped
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _distinct(runs: list[Run]) -> list[Run]:
    """The runs, with their full paths as names if folder names are equal."""
    names = [run.name for run in runs]
    return [replace(run, name=str(run.path)) if names.count(run.name) > 1 else run for run in runs]


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("contrapose.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": short, "duration": duration, "leaf": leaf, "words": _words}
    return environment


def _words(name: object) -> str:
    """effective_rank_h -> effective rank h"""
    return str(name).replace("_", " ")


def _own(name: str) -> str:
    return (files("contrapose.report") / "assets" / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _packed(text: str) -> str:
    """Text compressed (deflate, base64) to 2.0 of 4.8 MB; page.js decompresses it."""
    return base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def write_text(out: Path, text: str) -> None:
    """Write a page atomically; OSError with its name if it cannot be written."""
    with said_of(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, text.encode("utf-8", "replace"))
