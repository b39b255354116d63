"""The run of all checks: each process computes its rows, the first process compares."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from contrapose import losses
from contrapose.errors import UserError
from contrapose.files import as_json_bytes, replace_file
from contrapose.machine import environment
from contrapose.partials import public_functions, unknown
from contrapose.processes import Rank, processes
from contrapose.verification.checks import (
    ARITHMETIC,
    COLD,
    LAST_PLACE,
    MANY,
    PRECISIONS,
    SMALL,
    Check,
    RankLayout,
    judged,
    layouts,
)
from contrapose.verification.problems import Outcome, Problem, problems

FORMAT = 1
LEFT_OUT = {
    "triplet_distance_weighted": "draws its negatives: others on other ranks, in other precisions"
}


class RankStopped(RuntimeError):
    """An error that ends all checks; the check it came from has failed."""

    def __init__(self, check: Check) -> None:
        self.check = check
        super().__init__(self.said(check.error))

    def said(self, why: str | None) -> str:
        rows = "+".join(map(str, self.check.rows))
        return f"{self.check.loss}, keys of {self.check.keys}, {rows} rows: {why}"


@dataclass(frozen=True)
class Record:
    """The checks, losses that were left out with reasons, and the time."""

    checks: list[Check]
    left_out: dict[str, str]
    stopped: str | None
    seconds: float
    environment: dict[str, Any]

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    @property
    def passed(self) -> bool:
        return not self.failures and not self.stopped

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "passed": self.passed,
            "stopped": self.stopped,
            "checks": [asdict(check) for check in self.checks],
            "left_out": self.left_out,
            "tolerance": {
                "arithmetic": ARITHMETIC,
                "and of a gradient, for its last me": LAST_PLACE,
                "times": "max(1, 0.05 / temperature)",
                "or": "twice the error of whole matrices in that precision",
            },
            "seconds": self.seconds,
            "environment": self.environment,
        }


def verify(
    only: Sequence[str] = (),
    *,
    quick: bool = False,
    ranks: int = 3,
    device: str = "auto",
    out: Path | None = None,
    watch: Callable[[str, int, int], None] = lambda loss, done, of: None,
) -> Record | None:
    """Check the losses named in `only`, or all; None on other processes than the first.

    Starts `ranks` processes, or joins those of torchrun. quick: 24 rows at one temperature, and
    half precision on one and on three processes only; without it all of that at a temperature of
    0.005 too, and 1,100 rows in float64. out: a JSON file of every check. Raises UserError for a
    name that is no loss, FileNotFoundError where `out` cannot be, ChildProcessError where a
    process is lost before all have joined; one that is lost later stands in the record.
    """
    names = chosen(only)
    if out is not None and not out.parent.is_dir():
        raise FileNotFoundError(f"--json {out}: there is no folder {out.parent}; make it first")
    start, checks, stopped = time.perf_counter(), list[Check](), None
    with processes(ranks, device, take_part, names, quick) as me:
        try:
            for check in work(me, names, quick, watch):
                checks.append(check)
                me.gets_on()
        except RuntimeError as error:
            if me.rank:
                raise ChildProcessError(f"verify, rank {me.rank}: {error}") from error
            why = me.lost() or str(error)
            stopped = f"while results were exchanged: {why}"
            if isinstance(error, RankStopped):
                stopped = error.said(why)
                checks.append(replace(error.check, error=why))
    if me.rank:
        return None
    left_out = {name: why for name, why in LEFT_OUT.items() if name in (only or LEFT_OUT)}
    where = environment(me.device, False) | {"ranks": me.world}
    seconds = round(time.perf_counter() - start, 1)
    record = Record(checks, left_out, stopped, seconds, where)
    if out is not None:
        replace_file(out, as_json_bytes(record.as_json()))
    return record


def chosen(only: Sequence[str]) -> list[str]:
    known = public_functions(losses)
    for name in only:
        if name not in known:
            raise UserError(f"verify --only {name}: no loss {unknown(name, known)}")
    return [name for name in known if name in (only or known) and name not in LEFT_OUT]


def work(
    me: Rank,
    names: Sequence[str],
    quick: bool,
    watch: Callable[[str, int, int], None] = lambda loss, done, of: None,
) -> Iterator[Check]:
    """This process' part of every check; on the first process what came of them."""
    for done, name in enumerate(names):
        watch(name, done, len(names))
        loss = public_functions(losses)[name]
        mine = []
        for case in cases(loss, me.world, quick):
            mine.append(solve(me, *case))
            me.gets_on()
        found = me.gathered(mine)
        if found:
            yield from judge(cases(loss, me.world, quick), found)
    watch("", len(names), len(names))


def take_part(me: Rank, names: Sequence[str], quick: bool) -> None:
    """What the processes besides the first do."""
    for _ in work(me, names, quick):
        pass


Case = tuple[Problem, RankLayout, str]


def cases(loss: Callable[..., Tensor], world: int, quick: bool) -> Iterator[Case]:
    """In one order on every process, since they go through them together."""
    for inputs in (SMALL,) if quick else (SMALL, COLD, MANY):
        for problem in problems(loss, inputs):
            for precision in PRECISIONS:
                for layout in layouts(world):
                    if wanted(problem, precision, layout, quick):
                        yield problem, layout, precision


def wanted(problem: Problem, precision: str, layout: RankLayout, quick: bool) -> bool:
    """Many rows in float64 only: some are so near each other that float32 chooses others."""
    if problem.inputs is MANY:
        return precision == "fp64"
    if problem.inputs is COLD and not {"temperature", "scale"} & problem.settings().keys():
        return False
    return not quick or precision == "fp64" or layout.name in ("1 rank", "3 ranks")


def solve(me: Rank, problem: Problem, layout: RankLayout, precision: str) -> Outcome | str | None:
    """The outcome of this process, its error as text, or None if it is not in the layout.

    Raises RankStopped for an error among several ranks, since the others may wait for this one.
    """
    ranks = len(layout.shares)
    if me.rank >= ranks:
        return None
    try:
        return problem.solved(
            PRECISIONS[precision],
            rows=layout.slices(problem.rows)[me.rank],
            group=me.groups[ranks],
            device=me.device,
        )
    except Exception as error:
        found = f"{type(error).__name__} on rank {me.rank}: {error}"
        if ranks == 1:
            return found
        raise RankStopped(judged(problem, layout, precision, found, Outcome(0.0, {}))) from error


def judge(of: Iterator[Case], found: Sequence[Sequence[Outcome | str | None]]) -> Iterator[Check]:
    """Every check of one loss, from what the processes found."""
    expected: dict[tuple[Problem, str], Outcome] = {}
    for (problem, layout, precision), *parts in zip(of, *found, strict=True):
        if (key := (problem, precision)) not in expected:
            expected[key] = problem.expected(PRECISIONS[precision])
        errors = [part for part in parts if isinstance(part, str)]
        outcomes = [part for part in parts if isinstance(part, Outcome)]
        whole = errors[0] if errors else problem.joined(outcomes)
        yield judged(problem, layout, precision, whole, expected[key])
