"""Reading finetune.json: fine-tuning with few labels, and how many labels pretraining saves."""

from pathlib import Path
from typing import Any

from contrapose.errors import UserError
from contrapose.files import conform, read_object

Json = dict[str, Any]
METHODS = ("finetuned", "scratch", "probe")
SHAPE: Json = {  # what the page relies on
    "rows": [{
        "labels": str, "n": int, "method": str, "value": float, "low": float, "high": float,
        "each": [float],
    }],
    "saved": [{
        "labels": str, "n": int, "factor": float | None, "low": float | None,
        "high": float | None, "beyond": float, "not_reached": int, "draws": int,
    }],
    "n_test": int, "split": str, "how": str,
}  # fmt: skip


def read_few_labels(file: Path) -> Json:
    """finetune.json; UserError with the name of the wrong field."""
    remedy = "run `contrapose finetune` again"
    found: Json = read_object(file, remedy=remedy)
    conform(found, SHAPE, str(file), remedy)
    if unknown := {row["method"] for row in found["rows"]} - set(METHODS):
        raise UserError(f"{file}: there is no method {sorted(unknown)[0]!r}; {remedy}")
    return found


def saved_words(row: Json, what: str = "fine-tuning") -> str:
    """How many labels pretraining saves at one budget, as a sentence. what: the method that uses
    them."""
    begin = f"{row['labels']} of the labels"
    if row["labels"].endswith("class"):
        begin = f"{row['labels']} labels"
    begin = f"With {begin} ({row['n']:,})"
    if row["factor"] is None:
        rest = (
            ""
            if row["not_reached"] == row["draws"]
            else (f", in {row['not_reached']} of {row['draws']} draws")
        )
        if row["beyond"] <= 1:
            return f"{begin} training from scratch does not reach what {what} does{rest}."
        return (
            f"{begin} pretraining saves more than {_count((row['beyond'] - 1) * row['n'])} labels: "
            f"from scratch {row['beyond']:.2g} times as many do not reach it{rest}."
        )
    low, high, within = row["low"], row["high"], ""
    if low is not None and high is not None and low < high:
        within = f" (95 % interval {_times(low)} to {_times(high)})"
    saves = (row["factor"] - 1) * row["n"]
    times = f"{_times(row['factor'])} times as many{within}"
    if within and low <= 1 <= high:
        return (
            f"{begin} it cannot be told whether pretraining saves labels: from scratch it takes "
            f"{times}."
        )
    if saves < 1:
        return f"{begin} pretraining saves no labels: from scratch it takes no more, {times}."
    labels = "label" if _count(saves) == "1" else "labels"
    return f"{begin} pretraining saves {_count(saves)} {labels}: from scratch it takes {times}."


def measured_words(found: Json) -> str:
    """What the numbers of finetune.json are of: images, split, intervals, protocol."""
    drawn = sorted({len(row["each"]) for row in found["rows"]})
    over = [f"{n} draws of the labels" if n > 1 else "test images for a single draw" for n in drawn]
    return (
        f"{found['n_test']:,} images ({found['split']}); mean and 95 % interval over "
        f"{' and over '.join(reversed(over))}. {found['how']}."
    )


def _times(factor: float) -> str:
    """A factor with two significant digits: 0.83, 1.6, 850."""
    return f"{factor:.2g}" if factor < 10 else _count(factor)


def _count(n: float) -> str:
    """A number of labels with two significant digits: 3,400."""
    return f"{float(f'{n:.2g}'):,.0f}"
