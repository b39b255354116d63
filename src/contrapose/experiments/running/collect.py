"""experiment.json: the results of an experiment, its published numbers and claims.

It is also written for unfinished experiments. The report is made from this file only.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plotly.utils import PlotlyJSONEncoder

from contrapose.experiments import experiment as find
from contrapose.experiments.form import (
    Claim,
    Experiment,
    Figure,
    Published,
    Results,
    Verdict,
    worded,
)
from contrapose.experiments.running.folders import JobFolder
from contrapose.experiments.running.task import Task, job_folders
from contrapose.files import as_json_bytes, replace_file
from contrapose.version import __version__

FORMAT = 1


def collect(task: Task, command: str | None = None) -> Path:
    """Write experiment.json from the finished jobs; returns its path."""
    experiment, made = find(task.experiment), job_folders(task)
    found = results(experiment, made)
    value = {
        "format": FORMAT,
        "contrapose": __version__,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "name": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "scale": task.scale,
        "seeds": list(task.seeds),
        "costs": dict(experiment.costs),
        "measures": dict(experiment.measures),
        "claims": [_claim(claim, found) for claim in experiment.claims],
        "published": [_published(number, found) for number in experiment.published],
        "figures": [_figure(figure, found) for figure in experiment.figures],
        "jobs": [_job(folder) for folder in made],
        "environments": _environments(made),
        "notes": list(experiment.notes),
        "lead": None if experiment.lead is None else list(experiment.lead(found)),
    }
    Path(task.folder).mkdir(parents=True, exist_ok=True)
    path = Path(task.folder) / "experiment.json"
    replace_file(path, as_json_bytes(value))
    return path


def results(experiment: Experiment, made: Sequence[JobFolder]) -> Results:
    """The measures of the finished jobs, and the missing jobs."""
    rows, missing = [], []
    for folder in made:
        if folder.state == "finished" and (result := folder.read("result.json")) is not None:
            rows.append(folder.job.coordinates | result["measures"])
        else:
            missing.append(folder.job.coordinates)
    return Results(rows=rows, missing=missing, measures=tuple(experiment.measures))


def _claim(claim: Claim, found: Results) -> dict[str, Any]:
    verdict = _tested(claim, found)
    return {
        "sentence": claim.sentence,
        "source": claim.source,
        "holds": verdict.holds,
        "evidence": verdict.evidence,
    }


def _tested(claim: Claim, found: Results) -> Verdict:
    if not found.rows:
        return Verdict.not_tested("no job has finished")
    try:
        verdict = claim.test(found)
    except Exception as error:  # a test may stumble over results that are not there yet
        why = f"{type(error).__name__}: {error}"
        if found.missing:
            return Verdict.not_tested(f"{len(found.missing)} jobs have no result ({why})")
        return Verdict.not_tested(f"its test failed ({why})")
    if not isinstance(verdict, Verdict):
        return Verdict.not_tested(f"its test gave {verdict!r}, which is no Verdict")
    return verdict


def _published(number: Published, found: Results) -> dict[str, Any]:
    """A published number with the measured mean, deviation and seeds, or why there are none."""
    why, ours = "", []
    try:
        ours = found.values(number.measure, **number.at)
    except ValueError as error:
        why = str(error)
    mean = sum(ours) / len(ours) if ours else None
    spread = None
    if mean is not None and len(ours) > 1:
        spread = (sum((x - mean) ** 2 for x in ours) / (len(ours) - 1)) ** 0.5
    return {
        "measure": number.measure,
        "at": dict(number.at),
        "published": number.value,
        "source": number.source,
        "ours": mean,
        "spread": spread,
        "seeds": len(ours),
        "distance": None if mean is None else mean - number.value,
        "why": why or ("" if ours else f"no result at {worded(number.at)}"),
    }


def _figure(figure: Figure, found: Results) -> dict[str, Any]:
    drawn, why = None, ""
    try:
        drawn = figure.draw(found) if found.rows else None
        why = "" if drawn is not None else "the results it needs are not there yet"
        if drawn is not None:
            drawn = json.loads(json.dumps(drawn, cls=PlotlyJSONEncoder))
            drawn = {"data": drawn["data"], "layout": drawn.get("layout", {})}
            drawn["layout"].pop("template", None)  # fonts and colours are the page's
    except Exception as error:
        drawn, why = None, f"it could not be drawn ({type(error).__name__}: {error})"
    return {"title": figure.title, "about": figure.about, "figure": drawn, "why": why}


def _job(folder: JobFolder) -> dict[str, Any]:
    result = folder.read("result.json") or {} if folder.state == "finished" else {}
    error = folder.read("error.json") or {} if folder.state == "failed" else {}
    return {
        "name": folder.job.name,
        "facts": dict(folder.job.facts),
        "seed": folder.job.seed,
        "state": folder.state,
        "measures": result.get("measures", {}),
        "seconds": result.get("seconds"),
        "environment": result.get("environment_digest"),
        "contrapose": result.get("contrapose"),
        "error": error.get("error"),
        "traceback": error.get("traceback"),
    }


def _environments(made: Sequence[JobFolder]) -> list[Mapping[str, Any]]:
    """The machines and versions of the results, each with its number of jobs."""
    found: dict[str, dict[str, Any]] = {}
    for folder in made:
        result = folder.read("result.json") if folder.state == "finished" else None
        if result is not None:
            kind = result["environment_digest"]
            found.setdefault(kind, {"digest": kind, "jobs": 0} | result["environment"])["jobs"] += 1
    return sorted(found.values(), key=lambda environment: -environment["jobs"])
