"""The classes of all runs on a page: a class name has the same colour and filter in every run."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contrapose.report.run_folder import Run

COLOURS = 10  # --c0 ... --c9 of page.css; further classes repeat the colours with another marker
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")


@dataclass(frozen=True, kw_only=True)
class Class:
    """A class on the page; `id` is its position in the list of the page."""

    id: int
    name: str
    count: int  # images of the class on the maps

    @property
    def colour(self) -> str:
        return f"var(--c{self.id % COLOURS})"

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.id // COLOURS % len(SYMBOLS)]


class Classes:
    """The classes of all runs, merged by name, in the order of the runs' lists."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._names = [_names(run) for run in runs]
        ids = {name: i for i, name in enumerate(dict.fromkeys(n for ns in self._names for n in ns))}
        self._ids = [np.array([ids[name] for name in names] + [-1]) for names in self._names]
        counts = np.zeros(len(ids) + 1, np.int64)
        for k, run in enumerate(runs):
            if run.pictures.map is not None:
                np.add.at(counts, self.of(k, run.pictures.map.label), 1)
        self.all = tuple(Class(id=i, name=name, count=int(counts[i])) for name, i in ids.items())

    def of(self, run: int, label: np.ndarray) -> np.ndarray:
        """The id of the class of each label of one run; -1 for none."""
        return np.asarray(self._ids[run][np.where(label < 0, -1, label)])

    def names(self, run: int) -> list[str]:
        """The class names of one run, by its own label numbers."""
        return self._names[run]

    def name(self, id: int) -> str:
        return self.all[id].name if id >= 0 else "no label"


def plot_text(text: str) -> str:
    """Text escaped for plotly, which interprets some HTML tags in labels."""
    return html.escape(text, quote=False)


def _names(run: Run) -> list[str]:
    """The names of all classes of a run; classes without a name get a number."""
    pictures = run.pictures
    names = list(pictures.classes) or [str(name) for name in _listed(run.data.get("classes"))]
    largest = [pictures.confusion.counts.shape[0] - 1] if pictures.confusion is not None else []
    if pictures.map is not None:
        largest.append(int(pictures.map.label.max(initial=-1)))
    if pictures.neighbours is not None:
        largest.append(int(pictures.neighbours.query_label.max(initial=-1)))
        largest.append(int(pictures.neighbours.label.max(initial=-1)))
    named = len(names)
    names += [
        f"class {i}" for i in range(named, min(max(largest, default=-1) + 1, named + 100_000))
    ]
    taken: dict[str, int] = {}
    for i, name in enumerate(names):  # two classes of one name stay two classes
        taken[name] = taken.get(name, 0) + 1
        names[i] = name if taken[name] == 1 else f"{name} ({taken[name]})"
    return names


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []
