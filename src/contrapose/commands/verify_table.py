"""The record of `contrapose verify` as tables for 80 columns."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from contrapose.commands.console import console
from contrapose.verification.checks import ARITHMETIC, LAST_PLACE, PRECISIONS, Check
from contrapose.verification.run import Record
from contrapose.verification.training import TOLERANCE, Law

SHOWN = 20  # failures that are listed; all are in the JSON


@contextmanager
def checking() -> Iterator[Callable[[str, int, int], None]]:
    """A context with a progress line that names the current loss."""
    columns = BarColumn(bar_width=16), TextColumn("{task.description}")
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting processes", total=None)
        yield lambda loss, done, of: bar.update(task, completed=done, total=of, description=loss)


def print_record(record: Record) -> None:
    """Print the greatest gradient errors by loss and by processes, and the failures."""
    by_loss(record.checks)
    console.print()
    by_layout(record.checks)
    for name, why in record.left_out.items():
        console.print(Text(f"not checked: {name}, which {why}"))
    for check in record.failures[:SHOWN]:
        console.print(Text("FAILED ", style="bold red") + Text(sentence(check)))
    if len(record.failures) > SHOWN:
        console.print(f"and {len(record.failures) - SHOWN} failures more; --json FILE has them all")
    if record.stopped:
        text = "; the checks after it were not run, see above for what another process says"
        console.print(Text("stopped: ", style="bold red") + Text(record.stopped + text))
    good = len(record.checks) - len(record.failures)
    style = "bold red" if record.failures else "bold green"
    where = f"{record.environment['ranks']} ranks, {record.environment['device']}"
    text = f"{good:,} of {len(record.checks):,} checks passed"
    console.print(Text(text, style=style) + Text(f" in {record.seconds:.0f} s on {where}"))


def by_loss(checks: list[Check]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("greatest gradient error", no_wrap=True)
    for precision in PRECISIONS:
        table.add_column(precision, justify="right")
    table.add_column("keys of", no_wrap=True)
    for loss in dict.fromkeys(check.loss for check in checks):
        mine = [check for check in checks if check.loss == loss]
        cells = [cell([c for c in mine if c.precision == p]) for p in PRECISIONS]
        table.add_row(loss, *cells, sources(mine))
    console.print(table)


def sources(checks: list[Check]) -> Text:
    """The sources of keys; red if a check with them failed."""
    names = dict.fromkeys(check.keys for check in checks)
    failed = {check.keys for check in checks if not check.passed}
    words = [Text(name, style="bold red" if name in failed else "") for name in names]
    return Text(" ").join(words)


def by_layout(checks: list[Check]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("rows are", no_wrap=True)
    for precision in PRECISIONS:
        table.add_column(precision, justify="right")
    table.add_column("checks", justify="right")
    for layout in dict.fromkeys(check.layout for check in checks):
        mine = [check for check in checks if check.layout == layout]
        cells = [cell([c for c in mine if c.precision == p]) for p in PRECISIONS]
        words = {"uneven": "uneven over ranks", "one empty": "on all ranks but one"}
        table.add_row(words.get(layout, f"on {layout}"), *cells, f"{len(mine):,}")
    bounds = [f"{ARITHMETIC[p] + LAST_PLACE[p]:.0e}" for p in PRECISIONS]
    table.add_row("tolerance", *bounds, style="dim")
    console.print(table)
    beyond = "times 0.05 / t at t < 0.05; or twice the error of whole matrices in that precision"
    console.print(Text(beyond, style="dim"))


def cell(checks: list[Check]) -> Text:
    """The greatest error; red if one of the checks failed."""
    if not checks:
        return Text("")
    worst = max(check.gradient_error for check in checks)
    failed = any(not check.passed for check in checks)
    return Text(f"{worst:.0e}", style="bold red" if failed else "")


def sentence(check: Check) -> str:
    rows = "+".join(map(str, check.rows))
    where = f"{check.loss}, keys of {check.keys}, {rows} rows, {check.precision}, {check.inputs}"
    if check.error:
        return f"{where}: {check.error}"
    return (
        f"{where}: loss off by {check.loss_error:.1e}, gradient in {check.worst} by "
        f"{check.gradient_error:.1e} (tolerance {check.tolerance:.0e})"
    )


def print_laws(laws: list[Law]) -> None:
    """Print how far trainings on several ranks end from those on one process."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("weights off", no_wrap=True)
    columns = sorted({(law.precision, law.ranks) for law in laws}, key=lambda c: (c[0], c[1]))
    for precision, ranks in columns:
        table.add_column(f"{precision}, {ranks} ranks", justify="right")
    halves = sorted({law.precision for law in laws} - {"fp64"})
    for precision in halves:
        table.add_column(f"{precision} alone", justify="right")
        table.add_column("ranks", justify="right")
    controls = sorted({law.precision for law in laws if law.rounding is not None}, reverse=True)
    for precision in controls:
        table.add_column(f"{precision} in parts", justify="right")
    for of in dict.fromkeys((law.data, law.case) for law in laws):
        mine = {(law.precision, law.ranks): law for law in laws if (law.data, law.case) == of}
        cells = [
            Text(f"{law.weights:.0e}", style="" if law.passed else "bold red")
            for law in (mine[column] for column in columns)
        ]
        for precision in halves:
            own = [law for law in mine.values() if law.precision == precision]
            cells += [Text(f"{max(law.alone for law in own):.0e}")]
            cells += [Text(f"{max(law.exact for law in own):.0e}")]
        for precision in controls:
            own = [law for law in mine.values() if law.precision == precision]
            parts = [law.rounding for law in own if law.rounding is not None]
            cells += [Text(f"{max(parts):.0e}" if parts else "")]
        table.add_row(" ".join(of), *cells)
    table.add_row("tolerance", *[f"{TOLERANCE[p]:.0e}" for p, _ in columns], style="dim")
    console.print(table)
    if halves:
        words = "alone, ranks: one process and ranks in that precision, from one process in float64"
        console.print(Text(words, style="dim"))
    if controls:
        words = (
            "in parts: one process that sums over a batch in parts, from one that does not; ranks "
            "that are at most twice as far pass too"
        )
        console.print(Text(words, style="dim"))
    for of in dict.fromkeys((law.data, law.precision) for law in laws):
        most = max((x for x in laws if (x.data, x.precision) == of), key=lambda x: x.weights)
        some = dict(most.growth[k] for k in (0, len(most.growth) // 3, -1))
        off = ", ".join(f"{x:.0e} after {step}" for step, x in some.items())
        words = (
            f"{most.data} {most.precision}, farthest {most.case} on {most.ranks} ranks: {off} steps"
        )
        console.print(Text(words, style="dim"))
    good = sum(law.passed for law in laws)
    style = "bold green" if good == len(laws) else "bold red"
    text = f"{good} of {len(laws)} trainings end as on one process"
    metrics = max((law.metrics for law in laws if law.precision == "fp64"), default=0.0)
    console.print(Text(text, style=style) + Text(f"; metrics of float64 within {metrics:.0e}"))
