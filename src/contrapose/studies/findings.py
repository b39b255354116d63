"""What the runs of a study say: the advice, its claims and its figures."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.form import Results, Verdict
from contrapose.experiments.noise import difference, standard_error
from contrapose.report.few_labels import saved_words

DEFAULT, COMBINED, UNSHARED = "default", "combined", "without what views share"
VIEWS, TEMPERATURE, LOSS, HEAD, SHORTCUTS = "views", "temperature", "loss", "head", "shortcuts"
OTHER = {
    VIEWS: "Other views are better",
    TEMPERATURE: "Another temperature is better",
    LOSS: "Another loss is better",
    HEAD: "Another head is better",
}
ACCURACY = "linear_probe"
WITHOUT_LABELS = "rotation_probe"
SHORT = {ACCURACY: "accuracy", WITHOUT_LABELS: "accuracy for quarter turns"}
SIGNALS = (
    "rotation_probe", "default_retrieval", "instance_retrieval", "effective_rank_h",
    "effective_rank_z", "lidar",
)  # fmt: skip
CLEARLY, HELD = 2.0, 0.5  # bits that views share, and R^2 with which h has it: a shortcut
ERRORS = 2.0  # standard errors beyond which a difference is no noise

LIKELY = {"sure": "beyond noise", "fairly": "likely, but within noise", "cannot tell": "noise"}
NAMED = {COMBINED: "the best changes together"}

Sure = Literal["sure", "fairly", "cannot tell"]
Candidates = Mapping[str, Mapping[str, tuple[str, ...]]]  # factor -> name -> what is set

MEASURES = {
    ACCURACY: "held-out accuracy of a linear classifier on h",
    "rotation_probe": "accuracy of a linear classifier on h for the quarter turn of an image",
    "default_retrieval": "share of views whose nearest neighbour by h shows the same image, by the "
    "default's views for all",
    "instance_retrieval": "the same by the views of the run itself",
    "effective_rank_h": "effective rank of h (RankMe), held-out images",
    "effective_rank_z": "effective rank of z",
    "lidar": "effective rank of h between images, in units of views (LiDAR)",
    "n_judged": "held-out images with a label",
    "n_turned": "held-out images that were turned",
    "n_test": "held-out images",
    "n_train": "images of training",
    "train_seconds": "s of training",
    "shared": "bits about the image that views share by an easy feature",
    "found": "share of views whose image that feature finds",
    "read": "R^2 with which h has that feature",
}
OF_LABELS = (ACCURACY, "n_judged")
WITHOUT = (
    "Without labels recipes are compared by how well a linear classifier on h names the quarter "
    "turn of an image, which is no accuracy: it was found to order augmentations of photographs as "
    "labels do (arXiv 2009.07724), and says little of images without an up and a down. No signal "
    "without labels can tell what your task needs: look at the views before you use them."
)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The recipe that a study ends in, and what it should gain over the default."""

    recommended: str
    changes: tuple[str, ...]  # to the recipe, as --set takes them
    measure: str
    default: float
    gain: float
    low: float
    high: float  # 95 % interval of the gain
    sure: Sure
    n: int  # held-out images
    sentence: str


def criterion(labelled: bool) -> str:
    """The measure by which recipes are compared."""
    return ACCURACY if labelled else WITHOUT_LABELS


def advise(found: Results, criterion: str, final: Mapping[str, Sequence[str]]) -> Advice | None:
    """The best of the last rung, if it is above the default by a standard error at least; else the
    default. None before every run of it has a result."""
    at = {name: found.where(rung=2, candidate=name) for name in final}
    if not final or any(len(r.rows) < 2 for r in at.values()):
        return None
    own = at[DEFAULT].by_seed(criterion)
    n = int(sum(_number(row, criterion) for row in at[DEFAULT].rows))  # each seed has its own
    others = {name: r.by_seed(criterion) for name, r in at.items() if name != DEFAULT}
    default = statistics.fmean(own.values())
    best, gap, error = DEFAULT, 0.0, 0.0
    for name, values in others.items():
        one, noise = difference(values, own, n)
        if best == DEFAULT or one > gap:
            best, gap, error = name, one, noise
    sure: Sure = "sure" if gap >= 2 * error else "fairly" if gap >= error else "cannot tell"
    low, high = gap - 1.96 * error, gap + 1.96 * error
    measured = f"{gap:+.3f} ({low:+.3f} to {high:+.3f}) from {default:.3f}, n = {n:,} images"
    name = NAMED.get(best, best)
    if sure == "cannot tell" or gap <= 0:
        return Advice(
            recommended=DEFAULT, changes=(), measure=criterion, default=default, gain=0.0, low=0.0,
            high=0.0, sure="cannot tell", n=n,
            sentence=f"keep the default: with {name} {SHORT[criterion]} changes by {measured}, "
            f"{'which is noise' if abs(gap) < 2 * error else 'a loss'}",
        )  # fmt: skip
    return Advice(
        recommended=best, changes=tuple(final[best]), measure=criterion, default=default, gain=gap,
        low=low, high=high, sure=sure, n=n,
        sentence=f"{name}: {SHORT[criterion]} changes by {measured}",
    )  # fmt: skip


def _number(row: Mapping[str, Any], criterion: str) -> float:
    """The number of images that a measure of a run is of."""
    return float(row["n_judged"] if criterion == ACCURACY else row["n_turned"])


def lead(
    found: Results, *, criterion: str, final: Mapping[str, Sequence[str]]
) -> tuple[str, str, str]:
    """(level, headline, sentence): what the study recommends."""
    advice = advise(found, criterion, final)
    if advice is None:
        return "info", "Not finished", "The same command goes on."
    measured = MEASURES[criterion]
    if advice.recommended == DEFAULT:
        words = advice.sentence.partition(": ")[2]
        return "info", "Keep the default", f"{words[0].upper()}{words[1:]} ({measured})."
    words = (
        f"It gains {advice.gain:+.3f} over the default's {advice.default:.3f} (95 % interval "
        f"{advice.low:+.3f} to {advice.high:+.3f}; {measured}; n = {advice.n:,}), "
        f"{LIKELY[advice.sure]}: contrapose train DATA --recipe recipe.py"
    )
    use = NAMED.get(advice.recommended, advice.recommended)
    return "good" if advice.sure == "sure" else "warn", f"Use {use}", words


# ---- claims --------------------------------------------------------------------------------------


def recommended_is_better(
    found: Results, *, criterion: str, final: Mapping[str, Sequence[str]]
) -> Verdict:
    advice = advise(found, criterion, final)
    if advice is None:
        return Verdict.not_tested("the last rung has not finished")
    if advice.recommended == DEFAULT:
        return Verdict(None, advice.sentence)
    words = f"{advice.sentence}; {' '.join(f'--set {c}' for c in advice.changes)}; recipe.py"
    return Verdict(True if advice.sure == "sure" else None, words)


def factor_matters(found: Results, *, criterion: str, factor: str) -> Verdict:
    """The best candidate of the factor in rung 0 against the default."""
    gaps = _gaps(found, criterion, factor)
    if not gaps:
        return Verdict.not_tested("rung 0 has not finished")
    own, n = values_of(found, 0, criterion)[DEFAULT], _fewest(found, criterion)
    best = max(gaps, key=lambda name: gaps[name][0])
    gap, error = gaps[best]
    rest = [f"{name} {g:+.3f}" for name, (g, _) in _ranked(gaps) if name != best]
    words = f"{best} {own + gap:.3f}, default {own:.3f}: {gap:+.3f} (standard error {error:.3f}, "
    words += f"n = {n:,.0f} images)"
    words += f"; {', '.join(rest)}" if rest else ""
    if abs(gap) < ERRORS * error:
        return Verdict(None, f"undecided, within the noise: {words}")
    return Verdict(gap > 0, words)


def views_destroy(found: Results) -> Verdict:
    """The views with which labels are told less well than with the default's, beyond noise."""
    gaps = _gaps(found, ACCURACY, VIEWS)
    if not gaps:
        return Verdict.not_tested("rung 0 has not finished")
    worse = {n: g for n, g in gaps.items() if g[0] < -ERRORS * g[1]}
    better = {n: g for n, g in gaps.items() if g[0] > ERRORS * g[1]}
    words = [
        f"{what}: {', '.join(f'{n} {g:+.3f} ({e:.3f})' for n, (g, e) in _ranked(some))}"
        for what, some in (("destroys", worse), ("helps", better))
        if some
    ]
    rest = [n for n, _ in _ranked(gaps) if n not in worse and n not in better]
    words += [f"no difference beyond noise: {', '.join(rest)}"] if rest else []
    return Verdict(True if worse else None, "; ".join(words))


def shortcut(found: Results, *, criterion: str) -> Verdict:
    """Whether no easy feature is shared by views and held by h; what training without it does."""
    rows = found.where(factor=SHORTCUTS).rows
    if not rows:
        return Verdict.not_tested("not looked at yet")
    shared: Mapping[str, Any] = rows[0]["shared"]
    if not shared:
        return Verdict.not_tested("what it looks at is of 32 images or more, in grey or colours")
    read = _read(found)
    words = []
    for name in sorted(shared, key=lambda name: -shared[name]["value"]):
        held = f", R² of h {read[name]:.2f}" if name in read else ""
        words.append(f"{name} {shared[name]['value']:.1f} bits{held}")
    present = [n for n, at in shared.items() if at["low"] >= CLEARLY and read.get(n, 0) >= HELD]
    words = [f"of {math.log2(rows[0]['n_test']):.1f} bits that name an image: {', '.join(words)}"]
    for rung in (1, 0):
        values = values_of(found, rung, criterion)
        if DEFAULT in values and UNSHARED in values:
            n = _fewest(found, criterion, rung)
            gap, error = difference({0: values[UNSHARED]}, {0: values[DEFAULT]}, n)
            words.append(f"trained {UNSHARED}: {gap:+.3f} ({error:.3f}), rung {rung}")
            break
    if not read:
        return Verdict(None, f"undecided: h was not asked yet; {'; '.join(words)}")
    if present:
        words.insert(0, f"{', '.join(present)} can stand for the image")
    return Verdict(not present, "; ".join(words))


def saves_labels(found: Results, *, counted: bool) -> Verdict:
    """Whether training from scratch needs more labels, at the fewest. counted: it is measured."""
    rows = found.where(factor="labels").rows
    if not counted:
        return Verdict.not_tested("it takes more --minutes than were given")
    if not rows:
        return Verdict.not_tested("the last job has not finished")
    saved = rows[0]["saved"]
    words = " ".join(saved_words(row, "a linear classifier on h") for row in saved)
    first = saved[0]
    least = first["beyond"] if first["factor"] is None else first["low"]
    if first["factor"] is not None and first["high"] is not None and first["high"] < 1:
        return Verdict(False, words)
    return Verdict(True if least is not None and least > 1 else None, words)


def signals_agree(found: Results) -> Verdict:
    """Spearman's correlation of each signal without labels with accuracy, over rung 0."""
    from scipy import stats  # a second to import

    right = values_of(found, 0, ACCURACY)
    if len(right) < 5:
        return Verdict.not_tested("rung 0 has not finished")
    words = []
    for name in SIGNALS:
        values = values_of(found, 0, name)
        both = sorted(right.keys() & values.keys())
        rho = stats.spearmanr([right[n] for n in both], [values[n] for n in both]).statistic
        words.append((float(rho), name))
    words.sort(reverse=True)
    best = words[0][0]
    said = ", ".join(f"{name.replace('_', ' ')} {rho:.2f}" for rho, name in words)
    said = f"Spearman's correlation with accuracy over {len(right)} recipes: {said}"
    gap, error = difference(
        {0: max(right.values())}, {0: min(right.values())}, _fewest(found, ACCURACY)
    )
    if gap < ERRORS * error:
        return Verdict(None, f"undecided: accuracies differ by no more than noise; {said}")
    return Verdict(True if best >= 0.8 else False if best < 0.3 else None, said)


# ---- figures -------------------------------------------------------------------------------------


def by_candidate(found: Results, *, criterion: str, factor: str) -> Chart:
    values = values_of(found, 0, criterion)
    names = [n for n in (*_of_factor(found, factor), DEFAULT) if n in values]
    names.sort(key=lambda n: values[n])
    if len(names) < 2:
        return None
    n = _fewest(found, criterion)
    noise = [ERRORS * standard_error(values[name], n) for name in names]
    trace = {
        "type": "scatter", "mode": "markers", "x": [values[name] for name in names],
        "y": [f"{name}: {values[name]:.3f}" for name in names],
        "error_x": {"type": "data", "array": noise, "color": "var(--muted)"},
        "marker": {
            "size": 9,
            "color": ["var(--muted)" if name == DEFAULT else "var(--r0)" for name in names],
        },
    }  # fmt: skip
    return chart([trace], SHORT[criterion], "")


def last_rung(found: Results, *, criterion: str) -> Chart:
    rows = [row for row in found.where(rung=2).rows if row.get(criterion) is not None]
    trace = {
        "type": "scatter", "mode": "markers", "x": [row["candidate"] for row in rows],
        "y": [row[criterion] for row in rows], "marker": {"size": 10}, "name": "seeds",
    }  # fmt: skip
    return chart([trace] if rows else [], None, SHORT[criterion])


def shared_bits(found: Results) -> Chart:
    rows = found.where(factor=SHORTCUTS).rows
    if not rows or not rows[0]["shared"]:
        return None
    shared = rows[0]["shared"]
    names = sorted(shared, key=lambda name: shared[name]["value"])
    trace = {
        "type": "bar", "orientation": "h", "x": [shared[n]["value"] for n in names], "y": names,
        "text": [f"{shared[n]['value']:.1f}" for n in names], "textangle": 0,
    }  # fmt: skip
    most = math.log2(rows[0]["n_test"])
    axis = {"range": [0, most]}
    return chart([trace], f"bits about the image, of {most:.1f}", "", xaxis=axis)


def label_curves(found: Results) -> Chart:
    rows = found.where(factor="labels").rows
    if not rows:
        return None
    traces = []
    for method, name in (("probe", "linear classifier on h"), ("scratch", "from scratch")):
        of = [row for row in rows[0]["rows"] if row["method"] == method]
        traces.append(line(name, [row["n"] for row in of], [row["value"] for row in of]))
    return chart(traces, "labels", "held-out accuracy", xaxis={"type": "log"})


# ---- numbers -------------------------------------------------------------------------------------


def values_of(found: Results, rung: int, criterion: str) -> dict[str, float]:
    """{candidate: criterion} of the finished runs of a rung."""
    rows = found.where(rung=rung).rows
    return {r["candidate"]: float(r[criterion]) for r in rows if r.get(criterion) is not None}


def _gaps(found: Results, criterion: str, factor: str) -> dict[str, tuple[float, float]]:
    """{candidate of the factor: (distance from the default in rung 0, its standard error)}."""
    values = values_of(found, 0, criterion)
    if DEFAULT not in values:
        return {}
    n, own = _fewest(found, criterion), {0: values[DEFAULT]}
    names = [name for name in _of_factor(found, factor) if name in values]
    return {name: difference({0: values[name]}, own, n) for name in names}


def _ranked(gaps: Mapping[str, tuple[float, float]]) -> list[tuple[str, tuple[float, float]]]:
    return sorted(gaps.items(), key=lambda item: -item[1][0])


def _fewest(found: Results, criterion: str, rung: int = 0) -> float:
    return min(_number(row, criterion) for row in found.where(rung=rung).rows)


def _read(found: Results) -> dict[str, float]:
    """R^2 of each easy feature from h, the mean over the default's runs of the last rung."""
    rows = [row["read"] for row in found.where(rung=2, candidate=DEFAULT).rows if row.get("read")]
    names = set.intersection(*(set(row) for row in rows)) if rows else set()
    some = {n: [row[n] for row in rows if row[n] is not None] for n in names}
    return {n: statistics.fmean(values) for n, values in some.items() if values}


def _of_factor(found: Results, factor: str) -> list[str]:
    every = [*found.rows, *found.missing]
    return list(
        dict.fromkeys(r["candidate"] for r in every if r["factor"] == factor and r["rung"] == 0)
    )
