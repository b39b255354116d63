"""One case as a person reads it in the terminal, in 80 columns."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from contrapose.bench.cases import Case
from contrapose.bench.record import Record
from contrapose.commands.console import console


@contextmanager
def measuring() -> Iterator[Callable[[str], None]]:
    """A line that says what is being measured."""
    columns = SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")
        yield lambda doing: bar.update(task, description=doing[:60])


def print_case(record: Record, case: Case) -> None:
    console.print()
    console.print(Text(case.name, style="bold") + Text(f"  {case.about}", style="not bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("median", "range", "/ ours", "memory", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    notes = []
    for size in record.sizes(case):
        table.add_row(Text(case.title(size), style="cyan"))
        for m in record.at(case, size):
            row = record.row(m)
            style = "bold" if record.contender(m).ours else ""
            style = "bold red" if record.disagrees(m) else style
            cells = (row.median, row.spread, row.ratio, row.extra, row.error)
            if m.seconds:
                table.add_row(Text(f"  {row.contender}", style=style), *cells)
            if row.note:
                notes.append(f"{row.contender}, {case.title(size)}: {row.note}")
    console.print(table)
    for note in dict.fromkeys(notes):
        console.print(Text(f"  {note}", style="red" if "DISAGREES" in note else "dim"))


def print_end(record: Record) -> None:
    console.print()
    for sentence in record.shares() + record.omitted():
        console.print(Text(sentence))
    console.print(
        Text(
            f"On {record.where()}. Medians of interleaved repeats; / ours: time over ours; memory: "
            "peak beyond the inputs; error: of the gradient, against float64."
        )
    )
    for m in record.disagreements():
        where = record.case(m).title(m.size)
        console.print(Text(f"{m.contender} disagrees on {m.case}, {where}", style="bold red"))
    console.print(f"Written: {record.folder}/bench.json, bench.md, bench.html")
