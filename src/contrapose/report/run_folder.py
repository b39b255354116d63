"""Reading a run folder, complete or not: missing and damaged parts become notices.

Only `recipe.json` is required; it identifies the folder as a run and has the format version.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from contrapose.errors import UserError
from contrapose.files import conform, present_names, read_json, read_object, was_killed
from contrapose.report.few_labels import read_few_labels
from contrapose.report.pictures import Pictures, read_pictures
from contrapose.report.robustness import Robustness, read_robustness

FORMAT = 1  # the run-folder version that this package reads

Json = dict[str, Any]
_ROW = {"method": str, "value": float, "low": float, "high": float, "protocol": str, "right": str}
TRANSFER: Json = {  # of transfer.json
    "sets": {
        str: {
            "title": str, "metric": str, "split": str, "n": int, "images": str, "label": str,
            "labels": int, "published": {str: float}, "notes": [str], "rows": [_ROW],
        }
    }
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A sentence about a run that limits what its page shows."""

    level: Literal["info", "warn", "bad"]
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One quantity over training; a value that was not finite is None and drawn as a gap."""

    step: tuple[float, ...]
    epoch: tuple[float | None, ...]
    value: tuple[float | None, ...]

    @property
    def last(self) -> float | None:
        """The last finite value."""
        return next((v for v in reversed(self.value) if v is not None), None)


@dataclass(frozen=True, kw_only=True)
class OtherSet:
    """What was found on another set of images than the run's own."""

    scores: tuple[Json, ...] | None  # None: not evaluated
    verdict: tuple[Json, ...]  # none: not diagnosed
    signals: Json


@dataclass(frozen=True, kw_only=True)
class Run:
    """The content of a run folder, checked for display."""

    path: Path
    name: str
    recipe: Json
    data: Json
    command: str
    version: str
    environment: Json
    status: Json
    curves: Mapping[str, Curve]
    scores: tuple[Json, ...]
    others: Mapping[str, OtherSet]  # than the run's own images, by their name
    verdict: tuple[Json, ...]
    signals: Json
    robustness: Mapping[str, Robustness]  # by the name of the other set, "" for the run's own
    transfer: Mapping[str, Json]  # by the name of the set
    pictures: Pictures
    notices: tuple[Notice, ...]
    views: Json  # what views are of: views.json, {} without it
    few_labels: Mapping[str, Json]  # finetune.json, by the name of the other set, "" for the own

    @property
    def raw_recipe(self) -> str:
        return json.dumps(self.recipe, indent=2, ensure_ascii=False)


def read_run(path: Path) -> Run:
    """Read the run folder at `path`.

    Raises FileNotFoundError without the folder or its recipe.json, and UserError if recipe.json is
    damaged or of another format version. Any other file may be missing or truncated, which
    `Run.notices` reports.
    """
    path = Path(path)
    top = _recipe(path)
    notices: list[Notice] = []
    status = _object(path / "status.json", notices)
    environment = _object(path / "environment.json", notices)
    diagnosis = _object(path / "diagnosis.json", notices)
    few = _few_labels(path, notices)
    views = _object(path / "views.json", notices) if (path / "views.json").exists() else {}
    return Run(
        path=path,
        name=path.resolve().name or str(path),
        recipe=_as_object(top.get("recipe")),
        data=_as_object(top.get("data")),
        command=str(top.get("command") or ""),
        version=str(top.get("contrapose") or "unknown"),
        environment=environment,
        status=status,
        curves=_curves(path / "metrics.jsonl", notices),
        scores=_records(_read(path / "evaluation.json", notices), "evaluation.json", notices),
        others=_others(path, notices),
        verdict=_records(diagnosis.get("verdict"), "diagnosis.json: verdict", notices),
        signals=_as_object(diagnosis.get("signals")),
        robustness=_robustness(path, notices),
        transfer=_transfer(path / "transfer" / "transfer.json", notices),
        pictures=_pictures(path / "pictures.npz", notices),
        notices=(*_state(path, status), *notices),
        views=views,
        few_labels=few,
    )


def _others(path: Path, notices: list[Notice]) -> dict[str, OtherSet]:
    """evaluation-NAME.json and diagnosis-NAME.json, by NAME."""
    files = {
        kind: {file.stem.removeprefix(f"{kind}-"): file for file in path.glob(f"{kind}-*.json")}
        for kind in ("evaluation", "diagnosis")
    }
    found = {}
    for name in sorted({*files["evaluation"], *files["diagnosis"]}):
        scores, diagnosis = None, {}
        if (file := files["evaluation"].get(name)) is not None:
            scores = _records(_read(file, notices), file.name, notices)
        if (file := files["diagnosis"].get(name)) is not None:
            diagnosis = _object(file, notices)
        said = _records(diagnosis.get("verdict"), f"diagnosis-{name}.json: verdict", notices)
        signals = _as_object(diagnosis.get("signals"))
        found[name] = OtherSet(scores=scores, verdict=said, signals=signals)
    return found


def _few_labels(path: Path, notices: list[Notice]) -> dict[str, Json]:
    """finetune/finetune.json and finetune-NAME/finetune.json, by NAME."""
    found = {}
    for file in sorted(path.glob("finetune*/finetune.json")):
        name = file.parent.name.removeprefix("finetune").removeprefix("-")
        try:
            found[name] = read_few_labels(file)
        except (UserError, OSError) as error:
            notices.append(Notice(level="warn", sentence=f"{error}"))
    return found


def _robustness(path: Path, notices: list[Notice]) -> dict[str, Robustness]:
    """robustness.json and robustness-NAME.json, by NAME; none of them need be there."""
    found = {}
    for file in sorted(path.glob("robustness*.json")):
        name = file.stem.removeprefix("robustness").removeprefix("-")
        try:
            found[name] = read_robustness(file)
        except (ValueError, OSError) as error:
            sentence = f"{file.name} is damaged and left out ({error})"
            notices.append(Notice(level="warn", sentence=sentence))
    return found


def _transfer(file: Path, notices: list[Notice]) -> dict[str, Json]:
    """The sets of transfer.json, which need not be there."""
    if not file.exists():
        return {}
    try:
        found = read_object(file, TRANSFER, remedy="run `contrapose transfer` again")
    except (ValueError, OSError) as error:
        sentence = f"{file.name} is damaged and left out ({error})"
        notices.append(Notice(level="warn", sentence=sentence))
        return {}
    sets: dict[str, Json] = found["sets"]
    return sets


def _recipe(path: Path) -> Json:
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is not a folder; a run folder is made by `contrapose train`"
        )
    file = path / "recipe.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} is not a run folder: it has no recipe.json; "
            "pass a folder made by `contrapose train`"
        )
    top = _finite(read_json(file, remedy="restore the file or train again"))
    if not isinstance(top, dict) or "format" not in top:
        raise UserError(
            f"{file} names no run-folder format; it was not written by `contrapose train`"
        )
    if top["format"] != FORMAT:
        raise UserError(
            f"{file} is of run-folder format {top['format']!r}, written by contrapose "
            f"{top.get('contrapose', 'of unknown version')}; this one reads format {FORMAT}: "
            f"install that version to read it, or train again with this one"
        )
    return top


def _state(path: Path, status: Json) -> list[Notice]:
    """Notices about a run that did not finish."""
    state, reason = status.get("state"), status.get("reason")
    so_far = ""
    if _number(status.get("epoch")) and _number(status.get("epochs")):
        so_far = f" at epoch {status['epoch']:g} of {status['epochs']:g}"
    because = f": {reason}" if reason else ""
    if state == "failed":
        return [Notice(level="bad", sentence=f"This run failed{so_far}{because}")]
    if state == "interrupted":
        return [Notice(level="warn", sentence=f"This run was interrupted{so_far}{because}")]
    if state == "running" and was_killed(path, status):
        sentence = (
            f"This run was killed{so_far}; if nobody did that, memory ran out. What is shown is up "
            f"to then; contrapose train --resume {path} goes on"
        )
        return [Notice(level="bad", sentence=sentence)]
    if state == "running":
        host = f" (on {status['host']})" if isinstance(status.get("host"), str) else ""
        sentence = (
            f"This run had not ended{so_far} when the page was written; it may still be going{host}"
        )
        return [Notice(level="info", sentence=sentence)]
    return []


def _read(file: Path, notices: list[Notice]) -> Any:
    """The JSON value in `file`, or None and a notice if it is missing or damaged."""
    try:
        return _finite(read_json(file))
    except FileNotFoundError:
        notices.append(Notice(level="info", sentence=f"{file.name} is missing"))
    except (ValueError, OSError) as error:
        notices.append(
            Notice(level="warn", sentence=f"{file.name} is damaged and left out ({error})")
        )
    return None


def _object(file: Path, notices: list[Notice]) -> Json:
    value = _read(file, notices)
    if value is not None and not isinstance(value, dict):
        notices.append(
            Notice(level="warn", sentence=f"{file.name} holds no object and is left out")
        )
    return _as_object(value)


def _as_object(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _records(value: Any, source: str, notices: list[Notice]) -> tuple[Json, ...]:
    rows = value if isinstance(value, list) else []
    good = tuple(row for row in rows if isinstance(row, dict))
    if value is not None and (not isinstance(value, list) or len(good) < len(rows)):
        notices.append(
            Notice(level="warn", sentence=f"{source}: entries that are no objects are left out")
        )
    return good


def _finite(value: Any) -> Any:
    """The value with None in place of NaN and infinities, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value


def _curves(file: Path, notices: list[Notice]) -> dict[str, Curve]:
    """The curves of metrics.jsonl by quantity; of a step recorded twice (resumed) the last
    counts."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        notices.append(
            Notice(level="info", sentence="metrics.jsonl is missing, so there are no curves")
        )
        return {}
    rows: dict[float, Json] = {}
    dropped: list[int] = []
    for number, line in enumerate(lines):
        row = _metrics_row(line)
        if row is not None:
            rows[row["step"]] = row
        elif line.strip():
            dropped.append(number)
    if dropped == [len(lines) - 1]:
        sentence = "The last line of metrics.jsonl is cut off and left out"
        notices.append(Notice(level="info", sentence=sentence))
    elif dropped:
        sentence = (
            f"{len(dropped)} of {len(lines)} lines of metrics.jsonl cannot be read and are left out"
        )
        notices.append(Notice(level="warn", sentence=sentence))
    notices.extend(_not_finite(rows))
    ordered = [rows[step] for step in sorted(rows)]
    names = dict.fromkeys(name for row in ordered for name in row if name not in ("step", "epoch"))
    return {
        name: _curve([row for row in ordered if _number(row.get(name))], name) for name in names
    }


def _metrics_row(line: str) -> Json | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not _number(row.get("step")) or not math.isfinite(row["step"]):
        return None
    return present_names(row)


def _curve(rows: list[Json], name: str) -> Curve:
    epoch: list[Any] = [row.get("epoch") for row in rows]
    return Curve(
        step=tuple(float(row["step"]) for row in rows),
        epoch=tuple(float(e) if _number(e) and math.isfinite(e) else None for e in epoch),
        value=tuple(_finite(float(row[name])) for row in rows),
    )


def _not_finite(rows: Mapping[float, Json]) -> list[Notice]:
    steps: dict[str, list[float]] = {}
    for step, row in rows.items():
        for name, value in row.items():
            if _number(value) and not math.isfinite(value):
                steps.setdefault(name, []).append(step)
    return [
        Notice(
            level="warn",
            sentence=f"{name} was not finite in {len(at)} of {len(rows)} records, "
            f"first at step {min(at):g}",
        )
        for name, at in steps.items()
    ]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pictures(file: Path, notices: list[Notice]) -> Pictures:
    pictures, left_out = read_pictures(file)
    notices.extend(Notice(level="info", sentence=sentence) for sentence in left_out)
    return pictures


def read_record(file: Path, *, format: int, command: str, shape: Mapping[str, Any]) -> Json:
    """The JSON object that a command wrote, checked to have this shape (`files.conform`).

    Raises FileNotFoundError, or UserError with the name of the wrong field.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} has no {file.name}; it is written by `{command}`")
    remedy = f"run `{command}` again"
    found = _as_object(_finite(read_object(file, remedy=remedy)))
    if found.get("format") != format:
        raise UserError(
            f"{file} is not of format {format}, which this version reads; run `{command}` again"
        )
    conform(found, shape, str(file), remedy)
    return found
