"""What was measured, and how it is said."""

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contrapose.bench.cases import DIM, OURS, Case, Contender
from contrapose.bench.measure import Measured, Settings

FORMAT = 1
AGREE = {False: 1e-4, True: 2e-2}  # relative difference of losses: float32, bf16 operands


@dataclass(frozen=True)
class Row:
    """One line of a table, as text."""

    contender: str
    median: str
    spread: str
    ratio: str
    extra: str
    error: str
    note: str


@dataclass
class Record:
    """All that was measured, as far as it has come."""

    folder: Path
    cases: list[Case]
    settings: Settings
    environment: dict[str, Any]
    results: list[Measured] = field(default_factory=list)
    ceiling: dict[str, float] = field(default_factory=dict)  # FLOP/s of a product, by precision
    native: dict[str, dict[str, float]] = field(default_factory=dict)  # see compiler
    complete: bool = False

    def at(self, case: Case, size: int) -> list[Measured]:
        return [m for m in self.results if (m.case, m.size) == (case.name, size)]

    def sizes(self, case: Case) -> list[int]:
        return sorted({m.size for m in self.results if m.case == case.name})

    def of(self, case: Case, contender: str) -> list[Measured]:
        """One contender's results, by size."""
        mine = [m for m in self.results if (m.case, m.contender) == (case.name, contender)]
        return sorted(mine, key=lambda m: m.size)

    def ours(self, m: Measured) -> Measured | None:
        """Ours in float32 at the same size."""
        same = (o for o in self.results if (o.case, o.size, o.contender) == (m.case, m.size, OURS))
        return next(same, None)

    def ratio(self, m: Measured) -> float | None:
        """Its time over ours in the same repeat, the median; above 1 ours is faster."""
        ours = self.ours(m)
        pairs = list(zip(m.seconds, ours.seconds if ours else (), strict=False))
        return statistics.median(a / b for a, b in pairs) if pairs else None

    def disagrees(self, m: Measured) -> bool:
        """Another loss than ours, though by the same definition."""
        ours, contender = self.ours(m), self.contender(m)
        if ours is None or ours.loss is None or m.loss is None or contender.differs:
            return False
        return not abs(m.loss - ours.loss) <= AGREE[contender.low] * max(1e-3, abs(ours.loss))

    def disagreements(self) -> list[Measured]:
        return [m for m in self.results if self.disagrees(m)]

    def case(self, m: Measured) -> Case:
        return next(c for c in self.cases if c.name == m.case)

    def contender(self, m: Measured) -> Contender:
        return next(c for c in self.case(m).contenders if c.name == m.contender)

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "complete": self.complete,
            "environment": self.environment,
            "settings": vars(self.settings),
            "flops_of_a_matrix_product": self.ceiling,
            "seconds_by_library_and_by_torch": self.native,
            "results": [self.line(m) for m in self.results],
        }

    def line(self, m: Measured) -> dict[str, Any]:
        contender = self.contender(m)
        return vars(m) | {
            "median": statistics.median(m.seconds) if m.seconds else None,
            "ratio_to_ours": self.ratio(m),
            "definition": contender.differs or "the same",
            "agrees": not self.disagrees(m),
            "predicted_bytes": contender.bytes(self.case(m).pairs(m.size)),
        }

    def row(self, m: Measured) -> Row:
        contender, ratio = self.contender(m), self.ratio(m)
        ours = self.ours(m)
        note = m.skipped or (f"computes {contender.differs}" if contender.differs else "")
        if self.disagrees(m) and ours is not None:
            note = f"DISAGREES: loss {m.loss:.6g}, ours {ours.loss:.6g}"
        return Row(
            m.contender,
            in_seconds(statistics.median(m.seconds)) if m.seconds else "",
            _spread(m.seconds),
            "" if ratio is None or m.contender == OURS else _times(ratio),
            in_bytes(m.extra) if m.extra is not None else "",
            "" if m.gradient_error is None or contender.differs else f"{m.gradient_error:.0e}",
            note,
        )

    def shares(self) -> list[str]:
        """How much of a plain matrix product's speed ours reaches on the largest NT-Xent.

        The least work: s_ij once a pair and pass, two products in the backward pass: 4 N^2 D.
        """
        found = []
        for m in self.results:
            precision = m.contender.rpartition(" ")[2]
            if m.case != "nt_xent" or precision not in self.ceiling or not m.seconds:
                continue
            if m.size != max(n for n in self.sizes(self.case(m))):
                continue
            flop = 4 * m.size**2 * DIM
            speed = flop / statistics.median(m.seconds)
            found.append(
                f"{m.contender}, {self.case(m).title(m.size)}: {flop / 1e9:,.0f} GFLOP at "
                f"{speed / 1e9:,.0f} GFLOP/s, {speed / self.ceiling[precision]:.0%} of what a "
                f"{precision} matrix product reaches here ({self.ceiling[precision] / 1e9:,.0f})"
            )
        for precision, took in self.native.items():
            faster = took["torch"] / took["native"]
            which = "that library" if faster >= 1 else "those operations"
            found.append(
                f"The library compiled for this processor is {faster:.1f} times as fast as torch's "
                f"operations with products in {precision}: {which} served"
            )
        return found

    def omitted(self) -> list[str]:
        """What is not measured on this machine at all."""
        if self.environment["precision"] == "bf16":
            return []
        return ["contrapose bf16 is not measured: nothing multiplies bf16 here but emulation"]

    def where(self) -> str:
        """The machine in one line."""
        at = self.environment
        unit = at["device"] if self.settings.device != "cpu" else at["cpu"]
        return f"{unit}, {self.settings.threads} threads, torch {at['torch']}"


def in_seconds(t: float) -> str:
    """Three digits: 0.52 ms, 41.9 ms, 1.55 s."""
    digits, word = (t, "s") if t >= 1 else (t * 1e3, "ms")
    places = 2 if digits < 10 else 1 if digits < 100 else 0
    return f"{digits:,.{places}f} {word}"


def in_bytes(n: float) -> str:
    for word in ("B", "KB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {word}"
        n /= 1000
    return f"{n:,.3g} TB"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 100 else f"{ratio:,.0f}x"


def _spread(seconds: tuple[float, ...]) -> str:
    if len(seconds) < 2:
        return "once" if seconds else ""
    low, high = in_seconds(min(seconds)), in_seconds(max(seconds))
    return f"{low.split()[0]}-{high}" if low.split()[1] == high.split()[1] else f"{low}-{high}"
