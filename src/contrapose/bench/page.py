"""The record as files to read: Markdown, a page that opens no connection, and its plots alone."""

from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from contrapose.bench.plot import plot
from contrapose.bench.record import Record

COLUMNS = ("median", "range", "time / ours", "extra memory", "gradient error")
METHOD = (
    "Medians of interleaved repeats on the same inputs; time / ours: the median over repeats, "
    "above 1 ours is faster. Extra memory: what the peak of a fresh process grows by in one step, "
    "inputs and gradients there already; on CUDA what the allocator grows by. Gradient error: "
    "against the plain form in float64, along the sphere."
)


def pages(record: Record) -> dict[str, str]:
    """File name -> text."""
    cases = [case for case in record.cases if record.sizes(case)]
    plots = {case.name: plot(record, case) for case in cases}
    environment = Environment(
        loader=PackageLoader("contrapose.bench", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = (files("contrapose.report") / "assets" / "page.css").read_text(encoding="utf-8")
    page = environment.get_template("page.html").render(
        record=record,
        cases=cases,
        plots={name: Markup(svg) for name, svg in plots.items()},
        css=Markup(css),
        columns=COLUMNS,
        method=METHOD,
    )
    drawings = {f"{name}.svg": svg for name, svg in plots.items()}
    return {"bench.md": markdown(record), "bench.html": page, **drawings}


def markdown(record: Record) -> str:
    """One table a case, for an issue or a document."""
    lines = [f"# {record.folder.name}", "", f"{record.where()}. {METHOD}", ""]
    if not record.complete:
        lines += ["**Not complete.**", ""]
    for case in record.cases:
        if not record.sizes(case):
            continue
        lines += [f"## {case.name}", "", f"{case.about}.", ""]
        lines += [
            f"| size | contender | {' | '.join(COLUMNS)} | |",
            "|---|---|" + "---:|" * 5 + "---|",
        ]
        for size in record.sizes(case):
            for m in record.at(case, size):
                r = record.row(m)
                cells = (r.contender, r.median, r.spread, r.ratio, r.extra, r.error, r.note)
                lines.append(f"| {case.title(size)} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, *(f"{s}." for s in record.shares() + record.omitted())]) + "\n"
