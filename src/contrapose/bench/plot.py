"""Time and memory against size, both axes logarithmic, as an SVG that needs nothing else."""

import html
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from contrapose.bench.cases import Case
from contrapose.bench.record import Record, in_bytes

WIDTH, HEIGHT, LEFT, TOP, GAP, LEGEND = 330, 250, 62, 26, 76, 24
COLOURS = ("2457c5", "b4540a", "14734a", "832db6", "a3195b", "007785", "7a6a00", "5a6070", "bd1f01")
DARK = ("8db2ff", "f5a65b", "63d09c", "c78cf0", "ff8fc0", "5fd3e0", "d8c64a", "c3c9d4", "ee5a3d")
MARKS = "circle", "square", "diamond"


@dataclass(frozen=True)
class Line:
    """One contender: (size, value) where it was measured."""

    name: str
    style: int
    points: tuple[tuple[float, float], ...]


def style() -> str:
    """Colours for light and for dark surroundings."""
    light = [f".c{i}{{--c:#{c}}}" for i, c in enumerate(COLOURS)]
    dark = [f".c{i}{{--c:#{c}}}" for i, c in enumerate(DARK)]
    return (
        ".plot{font:12px system-ui,sans-serif;--ink:#191c22;--grid:#dde0e6}"
        + "".join(light)
        + ".plot text{fill:var(--ink)}.plot .g{stroke:var(--grid)}"
        ".plot .l{stroke:var(--c);fill:none;stroke-width:2}.plot .m{fill:var(--c)}"
        "@media(prefers-color-scheme:dark){.plot{--ink:#e8eaee;--grid:#343841}"
        + "".join(dark)
        + "}"
    )


def plot(record: Record, case: Case) -> str:
    """The two panels of one case, side by side, with a legend below."""
    names = [c.name for c in case.contenders if any(m.seconds for m in record.of(case, c.name))]
    time, memory = [], []
    for style_, name in enumerate(names):
        mine = record.of(case, name)
        seconds = tuple((m.size, statistics.median(m.seconds)) for m in mine if m.seconds)
        extra = tuple((m.size, max(1e5, m.extra)) for m in mine if m.extra is not None)
        time.append(Line(name, style_, seconds))
        memory.append(Line(name, style_, extra))
    rows = math.ceil(len(names) / 3)
    width, height = 2 * WIDTH + GAP + LEFT + 12, HEIGHT + TOP + 64 + LEGEND * rows
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{_text(case.about)}">',
        f"<style>{style()}</style>",
        _panel("time of a step", case.unit, time, LEFT, _round_seconds),
        _panel("memory beyond the inputs", case.unit, memory, LEFT + WIDTH + GAP, in_bytes),
    ]
    for k, name in enumerate(names):
        x, y = LEFT + (k % 3) * 240, HEIGHT + TOP + 66 + LEGEND * (k // 3)
        parts.append(f'<g class="c{k % len(COLOURS)}"><path class="l" d="M{x} {y}h26"/>')
        parts.append(
            _mark(x + 13, y, k) + f'</g><text x="{x + 34}" y="{y + 4}">{_text(name)}</text>'
        )
    return "".join([*parts, "</svg>"])


def _panel(
    title: str, unit: str, lines: Sequence[Line], left: int, say: Callable[[float], str]
) -> str:
    points = [p for line in lines for p in line.points]
    if not points:
        return ""
    sizes = sorted({x for x, _ in points})
    low, high = _decades([y for _, y in points])
    x0, x1 = math.log10(sizes[0]) - 0.08, math.log10(sizes[-1]) + 0.08

    def at(x: float, y: float) -> tuple[float, float]:
        right = (math.log10(x) - x0) / (x1 - x0)
        up = (math.log10(y) - low) / (high - low)
        return round(left + WIDTH * right, 1), round(TOP + HEIGHT * (1 - up), 1)

    parts = [f'<text x="{left}" y="14" font-weight="600">{_text(title)}</text>']
    for power in range(low, high + 1):
        _, y = at(sizes[0], 10.0**power)
        parts.append(f'<path class="g" d="M{left} {y}h{WIDTH}"/>')
        parts.append(
            f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{say(10.0**power)}</text>'
        )
    for size in sizes:
        x, _ = at(size, 10.0**low)
        parts.append(f'<path class="g" d="M{x} {TOP}v{HEIGHT}"/>')
        parts.append(
            f'<text x="{x}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{size:,.0f}</text>'
        )
    x, y = left + WIDTH / 2, TOP + HEIGHT + 36
    parts.append(f'<text x="{x}" y="{y}" text-anchor="middle">{_text(unit)}</text>')
    for line in lines:
        spots = [at(*point) for point in line.points]
        path = "M" + "L".join(f"{x} {y}" for x, y in spots)
        marks = "".join(_mark(x, y, line.style) for x, y in spots)
        parts.append(f'<g class="c{line.style % len(COLOURS)}"><title>{_text(line.name)}</title>')
        parts.append((f'<path class="l" d="{path}"/>' if len(spots) > 1 else "") + marks + "</g>")
    return "".join(parts)


def _round_seconds(t: float) -> str:
    return f"{t:g} s" if t >= 1 else f"{t * 1e3:g} ms"


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Powers of ten below and above all of them."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _mark(x: float, y: float, style: int) -> str:
    shape = MARKS[style % len(MARKS)]
    if shape == "circle":
        return f'<circle class="m" cx="{x}" cy="{y}" r="4"/>'
    turn = f' transform="rotate(45 {x} {y})"' if shape == "diamond" else ""
    return f'<rect class="m" x="{x - 3.5}" y="{y - 3.5}" width="7" height="7"{turn}/>'


def _text(words: str) -> str:
    return html.escape(words, quote=True)
