"""The page of `contrapose show --recipe`: what the views of a recipe are of, for one set."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from contrapose.report.charts import PlotlyFigure
from contrapose.report.crops import crop_section
from contrapose.report.page import assemble, write_text
from contrapose.report.pictures import crops_in
from contrapose.report.run_folder import Json


def write_views(
    found: Json,
    arrays: Mapping[str, np.ndarray],
    out: Path,
    *,
    data: str,
    recipe: str,
    policy: str,
    command: str | None = None,
) -> Path:
    """Write the page; returns its path.

    found: what views.json has. arrays: the crops of pictures.npz. data, recipe, policy: in words.
    """
    figures: dict[str, PlotlyFigure] = {}
    section = crop_section(found, crops_in(arrays), 0, figures)
    page = assemble(
        "views.html",
        ("page.js", "experiment.js"),
        {"figures": figures, "classes": []},
        crops=section, several=False, runs=[], of=data, recipe=recipe, policy=policy,
        command=command,
    )  # fmt: skip
    write_text(out, page)
    return out
