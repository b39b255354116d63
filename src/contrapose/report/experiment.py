"""The report of an experiment: an HTML page and Markdown tables from experiment.json."""

import re
import statistics
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from contrapose.progress import duration
from contrapose.report.experiment_charts import themed
from contrapose.report.numbers import MISSING, leaf
from contrapose.report.page import assemble, write_text
from contrapose.report.run_folder import Json, read_record

FORMAT = 1
SHAPE: Json = {  # what the page relies on
    "contrapose": str, "written": str, "command": str | None, "name": str, "title": str,
    "source": str, "scale": str, "seeds": [int], "costs": {str: str}, "measures": {str: str},
    "claims": [{"sentence": str, "source": str, "holds": bool | None, "evidence": str}],
    "published": [{
        "measure": str, "at": {str: str | float | bool | None}, "published": float, "source": str,
        "ours": float | None, "spread": float | None, "seeds": int,         "why": str,
    }],
    "figures": [{
        "title": str, "about": str, "figure": ({"data": [dict], "layout": dict}, None), "why": str,
    }],
    "jobs": [{
        "name": str, "facts": {str: str | float | bool | None}, "seed": int, "state": str,
        "measures": dict, "seconds": float | None, "environment": str | None,
        "contrapose": str | None, "error": str | None, "traceback": str | None,
    }],
    "environments": [{"jobs": int, "threads?": int}],
    "notes": [str], "lead?": ([str], None),
}  # fmt: skip
SMOKE = (
    "Scale smoke shows that the experiment runs. On so little data a claim says little, "
    "unless it is exact."
)
NOT_PAPER = (
    "This is scale {scale}, not the protocol behind the published numbers: the distance says how "
    "far this scale is, not how well the paper reproduces."
)


@dataclass(frozen=True, kw_only=True)
class Claim:
    sentence: str
    source: str
    evidence: str
    level: str  # good, bad, warn or info, as the page colours it
    word: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A measured mean beside a published number, or the mean alone."""

    ours: str
    spread: str = ""  # "± 0.004"
    seeds: int = 0
    published: str = ""
    distance: str = ""
    source: str = ""
    why: str = ""  # there is no number of ours


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table of settings by measures; facts that are the same in all rows are above the table."""

    same: str
    facts: tuple[str, ...]
    measures: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[Cell | None, ...]], ...]

    def parted(self) -> tuple["Grid", "Grid"]:
        """(the rows with a measured number, the rows without any)."""
        ours = [any(cell is not None and not cell.why for cell in cells) for _, cells in self.rows]
        return (
            replace(self, rows=tuple(r for r, own in zip(self.rows, ours, strict=True) if own)),
            replace(self, rows=tuple(r for r, own in zip(self.rows, ours, strict=True) if not own)),
        )


def read_experiment(folder: Path) -> Json:
    """experiment.json of the folder; FileNotFoundError, or UserError with what is wrong."""
    file, command = folder / "experiment.json", "contrapose reproduce"
    return read_record(file, format=FORMAT, command=command, shape=SHAPE)


def write_experiment(folder: Path, out: Path | None = None) -> Path:
    """Write report.html (or `out`) and results.md in its folder; returns the path of the page."""
    found = read_experiment(folder)
    page = folder / "report.html" if out is None else out
    write_text(page, render(found, folder))
    write_text(page.with_name("results.md"), markdown(found))
    return page


def render(found: Json, folder: Path) -> str:
    """The page as HTML text."""
    drawn = [f["figure"] for f in found["figures"]]
    figures = {f"figure_{k}": themed(f) for k, f in enumerate(drawn) if f is not None}
    published = grid.parted() if (grid := published_grid(found)) is not None else None
    return assemble(
        "experiment.html",
        ("page.js", "experiment.js"),
        {"figures": figures, "classes": []},
        e=found,
        folder=folder,
        claims=[claim(c) for c in found["claims"]],
        lead=lead(found),
        notices=notices(found),
        published=published,
        measured=measured_grids(found),
        sources=sources(found),
        figures=figures,
        jobs=_jobs(found),
        pages=_pages(found, folder),
        failed=[job for job in found["jobs"] if job["state"] == "failed"],
        seconds=_seconds(found),
        not_paper=_not_paper(found),
    )


def claim(given: Json) -> Claim:
    holds, evidence = given["holds"], str(given["evidence"])
    if holds is not None:
        word, level = ("Holds", "good") if holds else ("Does not hold", "bad")
    elif evidence.startswith("not tested"):
        word, level = "Not tested", "info"
    else:
        word, level = "Undecided", "warn"
    return Claim(
        sentence=given["sentence"],
        source=given["source"],
        evidence=re.sub("^(not tested|undecided)[:,] ", "", evidence),
        level=level,
        word=word,
    )


def lead(found: Json) -> tuple[str, str, str]:
    """(level, headline, sentence) about all claims together, or the experiment's own."""
    if found.get("lead"):
        level, headline, sentence = found["lead"]
        return level, headline, sentence
    words = [claim(c).word for c in found["claims"]]
    held, finished = words.count("Holds"), [job["state"] for job in found["jobs"]].count("finished")
    if found["scale"] == "smoke" and held < len(words):
        return (
            "info",
            f"It runs: {finished} of {_plural(len(found['jobs']), 'job')} finished",
            f"{SMOKE} Here {held} of {_plural(len(words), 'claim')} {_hold(held)}.",
        )
    count = {word: words.count(word) for word in dict.fromkeys(words)}
    n = len(words)
    if not n:
        return "info", "No claims", "This experiment measures; it claims nothing."
    rest = []
    if no := count.get("Does not hold", 0):
        rest.append(f"{no} {'does' if no == 1 else 'do'} not hold")
    for word in ("Undecided", "Not tested"):
        if word in count:
            rest.append(f"{count[word]} {word.lower()}")
    untested = count.get("Not tested", 0) == n
    level = "good" if held == n else "bad" if no else "info" if untested else "warn"
    headline = f"{held} of {n} claim{'s' * (n > 1)} {_hold(held)}"
    return level, headline, ", ".join(rest) + "." if rest else ""


def notices(found: Json) -> list[tuple[str, str]]:
    """(level, sentence) of everything that limits the results, such as missing jobs."""
    jobs, said = found["jobs"], []
    states = [job["state"] for job in jobs]
    if failed := states.count("failed"):
        theirs = "its error is" if failed == 1 else "their errors are"
        said.append(("bad", f"{failed} of {_plural(len(jobs), 'job')} failed; {theirs} below."))
    if waiting := sum(state in ("waiting", "changed") for state in states):
        have = "has" if waiting == 1 else "have"
        said.append(("warn", f"{waiting} of {_plural(len(jobs), 'job')} {have} no result yet."))
    if len(found["seeds"]) == 1 and not found.get("lead"):
        said.append(("info", "One seed: no spread and no test. --seeds 3 gives both."))
    versions = sorted({str(job["contrapose"]) for job in jobs if job["contrapose"]})
    if len(versions) > 1:
        said.append(("warn", f"The results are of several versions: {', '.join(versions)}."))
    if len(found["environments"]) > 1:
        words = f"The results were made in {len(found['environments'])} environments, listed below."
        said.append(("info", words))
    return said


def published_grid(found: Json) -> Grid | None:
    """Measured beside published numbers: one row a setting, one column a measure."""
    numbers = found["published"]
    if not numbers:
        return None
    measures = list(dict.fromkeys(n["measure"] for n in numbers))
    cells: dict[tuple[Any, ...], dict[str, Cell]] = {}
    facts = list(dict.fromkeys(name for n in numbers for name in n["at"]))
    for n in numbers:
        at = tuple(n["at"].get(name) for name in facts)
        digits = max(_printed(m["published"]) for m in numbers if m["measure"] == n["measure"])
        cells.setdefault(at, {})[n["measure"]] = _beside(n, digits)
    return _grid(facts, measures, cells)


def measured_grids(found: Json) -> list[Grid]:
    """Tables of the mean and standard deviation over seeds of the declared measures.

    Settings stand in one table if at least half of the measures of both together are of both, so
    that jobs of other kinds have tables of their own; so have the measures that fewer than half of
    the settings of a table have.
    """
    facts = list(dict.fromkeys(name for job in found["jobs"] for name in job["facts"]))
    numbers = [scalars(job["measures"]) for job in found["jobs"]]
    names = list(
        dict.fromkeys(
            name
            for measure in found["measures"]
            for row in numbers
            for name in row
            if name == measure or name.startswith(f"{measure}.")
        )
    )
    values: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for job, row in zip(found["jobs"], numbers, strict=True):
        setting = values.setdefault(tuple(job["facts"].get(name) for name in facts), {})
        for name in names:
            if name in row:
                setting.setdefault(name, []).append(row[name])
    kinds: list[list[tuple[Any, ...]]] = []
    for at in filter(values.__getitem__, values):
        alike = (kind for kind in kinds if _alike(values[kind[0]].keys(), values[at].keys()))
        if (kind := next(alike, None)) is None:
            kinds.append([at])
        else:
            kind.append(at)
    kinds.sort(key=len, reverse=True)
    grids = []
    for k, kind in enumerate(kinds):
        count = {name: sum(name in values[at] for at in kind) for name in names}
        common = [name for name in names if 2 * count[name] >= len(kind)]
        rare = [name for name in names if 0 < 2 * count[name] < len(kind)]
        waiting = [at for at in values if not (k or values[at])]  # in the first table
        some = [at for at in kind if any(name in values[at] for name in rare)]
        for columns, settings in ((common, {*kind, *waiting}), (rare, some)):
            cells = {
                at: {name: _ours(values[at][name]) for name in columns if name in values[at]}
                for at in values
                if at in settings
            }
            grids += [_grid(facts, columns, cells)] if columns else []
    return grids


def _alike(one: Set[str], other: Set[str]) -> bool:
    """True if two sets share at least half of what is in either."""
    return 2 * len(one & other) >= len(one | other)


def _not_paper(found: Json) -> str:
    """A note if the published numbers are of another protocol than the measured ones.

    Only the largest scale has the protocol of the paper; that is `cpu` if two cores suffice for it.
    """
    papers = "paper" if "paper" in found["costs"] else "cpu"
    return "" if found["scale"] == papers else NOT_PAPER.format(scale=found["scale"])


def sources(found: Json) -> list[str]:
    return list(dict.fromkeys(str(n["source"]) for n in found["published"]))


def scalars(measures: Mapping[str, Any], path: str = "") -> dict[str, float]:
    """The numbers of nested measures by dotted path, without lists, which figures show."""
    found: dict[str, float] = {}
    for name, value in measures.items():
        if isinstance(value, dict):
            found |= scalars(value, f"{path}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{path}{name}"] = float(value)
    return found


def markdown(found: Json) -> str:
    """The report as Markdown for docs/results: claims, published numbers, means, notes."""
    jobs = found["jobs"]
    done = sum(job["state"] == "finished" for job in jobs)
    machines = "; ".join(_machine(m) for m in found["environments"])
    lines = [
        f"# {_md(found['title'])}",
        "",
        f"{_md(found['source'])}. Scale {found['scale']}, {_plural(len(found['seeds']), 'seed')}, "
        f"{done} of {len(jobs)} jobs, {duration(_seconds(found))} of computing"
        + (f" on {machines}." if machines else "."),
        "",
    ]
    if found["command"]:
        lines += ["```sh", str(found["command"]), "```", ""]
    lines += [f"{words}\n" for level, words in notices(found) if level != "info"]
    if found["scale"] == "smoke":
        lines += [SMOKE, ""]
    if found["claims"]:
        lines += ["## Claims", "", "| verdict | claim | evidence |", "|---|---|---|"]
        for c in map(claim, found["claims"]):
            evidence = "<br>".join(map(_md, c.evidence.splitlines()))
            lines.append(f"| {c.word} | {_md(c.sentence)} ({_md(c.source)}) | {evidence} |")
        lines.append("")
    if (grid := published_grid(found)) is not None:
        lines += ["## Ours beside the published numbers", ""]
        lines += [f"{_md(grid.same)}.", ""] if grid.same else []
        ours, others = grid.parted()
        lines += [*_md_grid(ours, with_published=True), ""] if ours.rows else []
        if others.rows:
            left = _plural(len(others.rows), "published setting")
            lines += [f"Not run at this scale: {left}.", ""]
        published = f"Published: {_md('; '.join(sources(found)))}."
        lines += [f"{published} {_not_paper(found)}".rstrip(), ""]
    if grids := measured_grids(found):
        lines += ["## Measured", ""]
    for grid in grids:
        lines += [f"{_md(grid.same)}.", ""] if grid.same else []
        lines += [*_md_grid(grid, with_published=False), ""]
    lines += [f"- {_md(name)}: {_md(about)}" for name, about in found["measures"].items()]
    if found["notes"]:
        lines += ["", "## Choices", "", *(f"- {_md(note)}" for note in found["notes"])]
    return "\n".join(lines).rstrip() + "\n"


def _md_grid(grid: Grid, *, with_published: bool) -> list[str]:
    head = (*grid.facts, *grid.measures)
    lines = ["| " + " | ".join(map(_md, head)) + " |", "|" + "---|" * len(head)]
    for facts, cells in grid.rows:
        words = []
        for cell in cells:
            if cell is None:
                words.append("")
            elif with_published:
                ours = f"{cell.ours} {cell.spread}".strip() if not cell.why else MISSING
                away = f", {cell.distance}" if cell.distance else ""
                words.append(f"{ours} (published {cell.published}{away})")
            else:
                words.append(f"{cell.ours} {cell.spread}".strip())
        lines.append("| " + " | ".join(map(_md, (*facts, *words))) + " |")
    return lines


def _grid(
    facts: Sequence[str], measures: Sequence[str], cells: Mapping[tuple[Any, ...], dict[str, Cell]]
) -> Grid:
    columns = list(zip(*cells, strict=True))
    varies = [k for k, column in enumerate(columns) if len(set(column)) > 1]
    varies = varies or list(range(len(facts)))[:1]
    same = [f"{facts[k]} {leaf(columns[k][0])}" for k in range(len(facts)) if k not in varies]
    return Grid(
        same=", ".join(same),
        facts=tuple(facts[k] for k in varies),
        measures=tuple(measures),
        rows=tuple(
            (tuple(_fact(at[k]) for k in varies), tuple(row.get(m) for m in measures))
            for at, row in cells.items()
        ),
    )


def _printed(value: float) -> int:
    """The number of decimals with which a number was published, at most five."""
    text = repr(value)
    return 5 if "e" in text else min(len(text.partition(".")[2]), 5)


def _beside(number: Json, digits: int) -> Cell:
    """A measured mean beside a published one, with as many decimals as the most precise of
    these."""
    published = _fixed(number["published"], _printed(number["published"]))
    if number["ours"] is None:
        return Cell(ours=MISSING, published=published, source=number["source"], why=number["why"])
    spread = number["spread"]
    return Cell(
        ours=_fixed(number["ours"], digits),
        spread="" if spread is None else f"± {_fixed(spread, digits)}",
        seeds=number["seeds"],
        published=published,
        distance=_fixed(number["ours"] - number["published"], digits, sign=True),
        source=number["source"],
    )


def _ours(values: Sequence[float]) -> Cell:
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Cell(ours=_short(mean), seeds=1)
    spread = statistics.stdev(values)  # exact: 0 where all are equal
    return Cell(ours=_short(mean), spread=f"± {_short(spread, 2)}", seeds=len(values))


def _jobs(found: Json) -> list[tuple[str, str, str, dict[str, str]]]:
    """(name, state, seconds, every number) of each job."""
    return [
        (
            job["name"],
            job["state"],
            MISSING if job["seconds"] is None else duration(job["seconds"]),
            {name: _short(v) for name, v in scalars(job["measures"]).items()},
        )
        for job in found["jobs"]
    ]


def _pages(found: Json, folder: Path) -> list[tuple[str, str]]:
    """(words, relative link) of every page that a job wrote into its folder."""
    return [
        (f"{path.stem}, {job['name']}", quote(f"{job['name']}/{path.name}"))
        for job in found["jobs"]
        for path in sorted((folder / job["name"]).glob("*.html"))
    ]


def _seconds(found: Json) -> float:
    return float(sum(job["seconds"] or 0 for job in found["jobs"]))


def _machine(environment: Mapping[str, Any]) -> str:
    device = environment.get("device")
    name = environment.get("cpu") if device == "cpu" else device
    return (
        f"{name}, {_plural(int(environment.get('threads', 1)), 'thread')} a job, "
        f"{environment.get('precision')}, torch {environment.get('torch')}"
    )


def _fact(value: Any) -> str:
    return MISSING if value is None else leaf(value)


def _short(value: float, digits: int = 4) -> str:
    """A number with four significant digits, since settings often differ in the third."""
    text = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.{digits}g}"
    return text.replace("-", "−").replace("e−0", "e−")


def _fixed(value: float, digits: int, sign: bool = False) -> str:
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "−")


def _hold(n: int) -> str:
    return "holds" if n == 1 else "hold"


def _plural(n: int, word: str) -> str:
    return f"{n} {word}{'s' * (n != 1)}"


def _md(text: str) -> str:
    """Text escaped for a cell of a Markdown table."""
    text = " ".join(str(text).split())
    for character in "\\|<*`[":
        text = text.replace(character, f"\\{character}")
    return text
