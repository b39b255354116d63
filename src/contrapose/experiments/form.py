"""The form of an experiment: its jobs, measures, published numbers, claims and figures.

An experiment is one file with `EXPERIMENT = Experiment(...)`. Its jobs are independent of each
other; each is a function called with keywords in a folder of its own. Claims, figures and distances
to published numbers are computed from the results of jobs. This file runs nothing.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contrapose.errors import UserError
from contrapose.partials import unknown

SCALES = {
    "smoke": "seconds, on synthetic or digits data: proves that it runs",
    "cpu": "minutes to an hour on two cores, on real data: shows the direction of the claims",
    "paper": "the protocol of the paper",
}
Row = dict[str, Any]  # facts, "seed" and measures of one job


@dataclass(frozen=True, kw_only=True)
class Job:
    """One unit of work: `call(folder)`, in a process of its own, returns measures.

    call: a partial, with keywords only, of a module-level function from a folder to a dictionary of
        numbers, lists or nested dictionaries of them. Files that it writes into the folder are
        still there if it is called again after a kill.
    facts: plain values by which claims and figures find the job.
    """

    name: str  # "cifar10-contrastive-tau0.07-seed0": the folder, unique in (experiment, scale)
    call: functools.partial[dict[str, Any]]
    facts: Mapping[str, Any]
    seed: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=,-]*", self.name) or len(self.name) > 120:
            raise UserError(
                f"job {self.name!r}: a name is a folder; use up to 120 letters, digits and . _ + = "
                ", - and begin with a letter or digit"
            )
        if not isinstance(self.call, functools.partial) or self.call.args:
            raise UserError(f"job {self.name}: call is a functools.partial with keywords only")
        if "<" in getattr(self.call.func, "__qualname__", "<object>"):
            raise UserError(
                f"job {self.name}: {self.call.func!r} is no function of a module, so another "
                "process cannot find it; move it to the top level of its file"
            )
        for name, value in self.facts.items():
            if name == "seed" or not isinstance(value, str | int | float | bool | None):
                raise UserError(
                    f"job {self.name}: fact {name}={value!r}; facts are strings, numbers, true, "
                    "false or None, and the seed stands apart"
                )

    @property
    def coordinates(self) -> Row:
        return dict(self.facts) | {"seed": self.seed}


@dataclass(frozen=True)
class Published:
    """A published number: the value of a measure, in its unit, for the jobs with these facts."""

    measure: str
    at: Mapping[str, Any]
    value: float
    source: str  # "S1 table 1 [S1]": where it stands, and its evidence tag


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds, with evidence; None if it was not tested or is undecided."""

    holds: bool | None
    evidence: str  # the numbers with n and seeds; for None, why

    @classmethod
    def not_tested(cls, why: str) -> "Verdict":
        return cls(None, f"not tested: {why}")


@dataclass(frozen=True, kw_only=True)
class Results:
    """The measures of the finished jobs, and which jobs are missing."""

    rows: Sequence[Row]
    missing: Sequence[Row] = ()  # facts and seed of jobs without a result
    measures: Iterable[str] = field(default=(), repr=False)  # the experiment's; other names err

    def where(self, **facts: Any) -> "Results":
        """The jobs with these facts (or this seed); UserError for a fact that no job has."""
        every = [*self.rows, *self.missing]
        for name in facts:
            if every and not any(name in row for row in every):
                raise UserError(f"no job has the fact {unknown(name, self._facts())}")
        return Results(
            rows=[row for row in self.rows if _has(row, facts)],
            missing=[row for row in self.missing if _has(row, facts)],
            measures=self.measures,
        )

    def values(self, measure: str, **facts: Any) -> list[float]:
        """The measure of the jobs with these facts, one per seed, in the order of the seeds.

        "a.b" is b inside a. Jobs without a finite value are left out. Raises UserError if jobs with
        these facts differ in more than the seed, since means over settings have no meaning.
        """
        return [float(value) for value in self.by_seed(measure, **facts).values()]

    def by_seed(self, measure: str, **facts: Any) -> dict[int, Any]:
        """{seed: measure}, for comparisons paired by seed."""
        self._check(measure)
        found: dict[int, Any] = {}
        rows = [row for row in self.where(**facts).rows if _at(row, measure) is not None]
        for row in sorted(rows, key=lambda row: int(row["seed"])):
            if row["seed"] in found:
                raise UserError(
                    f"{measure} at {worded(facts)} leaves open {self._open(rows)}; name one of each"
                )
            found[row["seed"]] = _at(row, measure)
        return found

    def mean(self, measure: str, **facts: Any) -> float:
        """The mean over seeds; NaN without a value."""
        found = self.values(measure, **facts)
        return sum(found) / len(found) if found else math.nan

    def means(
        self, measure: str, along: str, values: Sequence[Any] | None = None
    ) -> dict[Any, float]:
        """{value of the fact `along`: mean over seeds}, without values that were not measured."""
        values = self.column(along) if values is None else values
        found = {value: self.mean(measure, **{along: value}) for value in values}
        return {value: mean for value, mean in found.items() if not math.isnan(mean)}

    def curve(self, measure: str, **facts: Any) -> list[float]:
        """The mean over seeds of a measure that is a list; [] without a value."""
        found = list(self.by_seed(measure, **facts).values())
        return [sum(column) / len(found) for column in zip(*found, strict=True)]

    def column(self, name: str) -> list[Any]:
        """The distinct values of a fact over all jobs, sorted, numbers before words."""
        every = [*self.rows, *self.missing]
        if every and not any(name in row for row in every):
            raise UserError(f"no job has the fact {unknown(name, self._facts())}")
        values = {row[name] for row in every if name in row}
        return sorted(values, key=lambda v: (v is None, isinstance(v, str), v if v else 0))

    def _facts(self) -> list[str]:
        names = {name for row in (*self.rows, *self.missing) for name in row}
        return sorted(names - set(self.measures))

    def _open(self, rows: Sequence[Row]) -> str:
        words = []
        for name in self._facts():
            values = dict.fromkeys(str(row.get(name)) for row in rows)
            if name != "seed" and len(values) > 1:
                words.append(f"{name} ({', '.join(list(values)[:6])})")
        return "; ".join(words) or "two jobs of one seed"

    def _check(self, measure: str) -> None:
        known = set(self.measures)
        if known and measure not in known and measure.partition(".")[0] not in known:
            raise UserError(f"the experiment has no measure {unknown(measure, known)}")


@dataclass(frozen=True)
class Claim:
    """A sentence and its test, which is also called with results of unfinished experiments."""

    sentence: str
    source: str
    test: Callable[[Results], Verdict]


@dataclass(frozen=True)
class Figure:
    """A figure of the paper: `draw` returns a plotly figure (or its dict), or None without results.

    Do not set fonts, background and, if possible, colours: the page sets them for both themes.
    """

    title: str
    draw: Callable[[Results], Any]
    about: str  # what to look for


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A figure or table of a paper, with all that `contrapose reproduce` needs."""

    name: str  # that of its file
    title: str
    source: str  # "S1 figures 4 and 5"
    jobs: Callable[[str, Sequence[int]], list[Job]]  # (scale, seeds)
    measures: Mapping[str, str]  # name -> what it is, with its unit
    costs: Mapping[str, str]  # scale -> "12 s", "55 min on 2 cores"; the scales there are
    published: tuple[Published, ...] = ()
    claims: tuple[Claim, ...] = ()
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()  # what the paper does not say, and what was chosen
    lead: Callable[[Results], tuple[str, str, str]] | None = None  # (level, headline, sentence)

    def __post_init__(self) -> None:
        for scale in self.costs:
            if scale not in SCALES:
                raise UserError(f"experiment {self.name}: no scale {unknown(scale, SCALES)}")
        for number in self.published:
            if number.measure not in self.measures:
                raise UserError(
                    f"experiment {self.name}: published {number.source} is of no measure "
                    f"{unknown(number.measure, self.measures)}"
                )


def worded(facts: Mapping[str, Any]) -> str:
    """The facts as text, such as `data=cifar10, tau=0.07`."""
    return ", ".join(f"{name}={value}" for name, value in facts.items()) or "all jobs"


def _has(row: Row, facts: Mapping[str, Any]) -> bool:
    return all(name in row and row[name] == value for name, value in facts.items())


def _at(row: Row, measure: str) -> Any:
    """The value of "a.b" in nested dictionaries; None if it is missing or not finite."""
    value: Any = row
    for part in [measure] if measure in row else measure.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return None if isinstance(value, float) and not math.isfinite(value) else value
