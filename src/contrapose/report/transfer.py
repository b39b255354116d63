"""The section of a report on transfer: accuracy on other sets, and a test between two runs."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from contrapose import paired
from contrapose.report.numbers import MISSING, Number, number
from contrapose.report.run_folder import Json, Run


@dataclass(frozen=True, kw_only=True)
class TransferRow:
    """One set and method: a cell for each run, the test between two runs, published numbers."""

    title: str
    method: str
    metric: str
    n: str
    split: str
    cells: tuple[Number | None, ...]
    note: str
    published: str


def transfer_rows(runs: Sequence[Run]) -> list[TransferRow]:
    """The rows of all sets that one of the runs was transferred to; none without any."""
    names = dict.fromkeys(name for run in runs for name in run.transfer)
    found = []
    for name in names:
        entries = [run.transfer.get(name) for run in runs]
        first = next(e for e in entries if e is not None)
        methods = dict.fromkeys(r["method"] for e in entries if e is not None for r in e["rows"])
        for method in methods:
            found.append(
                TransferRow(
                    title=first["title"],
                    method=method,
                    metric=first["metric"],
                    n=f"{first['n']:,}",
                    split=first["split"],
                    cells=tuple(_cell(e, method) for e in entries),
                    note=_difference(entries, method),
                    published=_published(first["published"], method),
                )
            )
    return found


def _cell(entry: Json | None, method: str) -> Number | None:
    row = next((r for r in (entry or {}).get("rows", []) if r["method"] == method), None)
    if entry is None or row is None:
        return None
    # a share by its name, so that it is shown in percent
    return number({"n": entry["n"], "confidence": 0.95, **row, "metric": "accuracy"})


def _published(values: Json, method: str) -> str:
    """ResNet-50 trained on ImageNet, without and with labels; drawn weights have one number."""
    numbers = [v for name, v in values.items() if name.partition(",")[0] == method]
    return " / ".join(f"{v:.1f}" for v in numbers) or MISSING


def _difference(entries: Sequence[Json | None], method: str) -> str:
    if len(entries) != 2 or entries[0] is None or entries[1] is None:
        return ""
    try:
        found = paired.of_transfer(entries[0], entries[1], method)
    except (ValueError, TypeError, zlib.error):  # of a damaged file
        return ""
    if found is None:
        return ""
    points, low, high = (100 * x for x in (found.value, found.low, found.high))
    text = f"first less second {points:+.1f} points ({low:+.1f} to {high:+.1f}), p = {found.p:.2g}"
    return text.replace("-", "\N{MINUS SIGN}")
