"""S2 figure 4b to 4d: accuracy by batch size, by epochs and by temperature.

    contrapose reproduce batch_epochs_temperature --scale cpu

Expect at scale cpu, after about 5 min a seed on 2 cores, SupCon to gain from epochs (0.450, 0.477,
0.510 with 10, 20, 40), to have its best temperature at 0.5 (0.327 at 0.05, 0.443 at 1), and to be
below cross-entropy at batches of 32 and 128. By the paper it is above at every batch, and best near
0.1.
"""

from collections.abc import Sequence
from typing import Any

from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.evidence import all_of, peaks_inside, rises
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.noise import above
from contrapose.experiments.supervised.protocol import (
    CROSS_ENTROPY,
    MEASURES,
    SCALES,
    SUPCON,
    job,
)

BATCHES = {"smoke": (32, 64), "cpu": (32, 128, 512), "paper": (256, 512, 1024, 2048, 4096)}
EPOCHS = {"smoke": (0.5, 1.0), "cpu": (0.5, 1.0, 2.0), "paper": (0.1, 0.2, 0.5, 1.0)}  # times
TAUS = {
    "smoke": (0.1, 0.5),
    "cpu": (0.05, 0.1, 0.2, 0.5, 1.0),
    "paper": (0.05, 0.07, 0.1, 0.2, 0.5, 1),
}
METHODS = (SUPCON, CROSS_ENTROPY)


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    found = {}
    own, middle = int(SCALES[scale].changes["batch_size"]), SCALES[scale].tau(SUPCON)
    for seed in seeds:
        for method in METHODS:
            settings = [(batch, 1.0, middle) for batch in BATCHES[scale]]
            settings += [(own, times, middle) for times in EPOCHS[scale]]
            settings += [(own, 1.0, tau) for tau in TAUS[scale] if method == SUPCON]
            for batch, times, tau in settings:
                facts: dict[str, Any] = {"batch": batch, "epochs": times, "tau": tau}
                name = f"{method}-batch{batch}-epochs{times:g}-tau{tau:g}"
                found[name, seed] = job(
                    scale=scale, seed=seed, name=name, facts=facts, method=method,
                    batch_size=batch, epochs=times, temperature=tau,
                )  # fmt: skip
    return [*found.values()]


def _base(results: Results, but: str) -> dict[str, Any]:
    """The facts of the setting that everything is around, without one of them."""
    base: dict[str, Any] = {"epochs": 1.0}
    for name in ("batch", "tau"):
        counts = {v: len(results.where(**{name: v}).rows) for v in results.column(name)}
        base[name] = max(counts, key=lambda v: counts[v], default=None)
    return {name: value for name, value in base.items() if name != but}


def above_at_every_batch(results: Results) -> Verdict:
    if not results.rows:
        return Verdict.not_tested("no result yet")
    base = _base(results, "batch")
    return all_of(
        *(
            above(results, *({"method": m, "batch": b, **base} for m in METHODS))
            for b in results.column("batch")
        )
    )


def epochs_help(results: Results) -> Verdict:
    """From the fewest to the most epochs; the paper's curve has no numbers."""
    base, at = _base(results, "epochs"), results.column("epochs")
    if len(at) < 2:
        return Verdict.not_tested("fewer than two numbers of epochs")
    ends = ({"method": SUPCON, "epochs": e, **base} for e in (at[-1], at[0]))
    return above(results, *ends)


def temperature_inside(results: Results) -> Verdict:
    base = _base(results, "tau")
    if len(results.column("tau")) < 3:
        return Verdict.not_tested("fewer than three temperatures")
    return peaks_inside(results, "accuracy", "tau", method=SUPCON, **base)


def batches_help(results: Results) -> Verdict:
    base = _base(results, "batch")
    return rises(results, "accuracy", "batch", slack=0.01, method=SUPCON, **base)


def curve(along: str, title: str) -> Any:
    def draw(results: Results) -> Chart:
        traces = []
        if not results.rows:
            return None
        for method in METHODS[: 1 if along == "tau" else 2]:
            at = results.where(method=method, **_base(results, along))
            means = at.means("accuracy", along)
            traces += [line(method, [*means], [*means.values()])] if means else []
        return chart(traces, title, "accuracy", xaxis={"type": "log"})

    return draw


EXPERIMENT = Experiment(
    name="batch_epochs_temperature",
    title="Batch size, epochs and temperature",
    source="S2 figure 4b, 4c and 4d (Khosla et al., NeurIPS 2020)",
    jobs=jobs,
    measures=MEASURES,
    claims=(
        Claim("SupCon is above cross-entropy at every batch size.", "S2 figure 4b [P]",
              above_at_every_batch),
        Claim("A larger batch is better for SupCon.", "S2 figure 4b [P]", batches_help),
        Claim("More epochs are better for SupCon.", "S2 figure 4c [P]", epochs_help),
        Claim("The best temperature is inside the sweep, neither the lowest nor the highest.",
              "S2 figure 4d [P]", temperature_inside),
    ),
    figures=(
        Figure("Accuracy by batch size", curve("batch", "images of a batch"),
               "The rate is the same at every batch, so few steps of a large one may not suffice."),
        Figure("Accuracy by epochs", curve("epochs", "epochs, times those of the scale"),
               "Rising, ever less steeply."),
        Figure("Accuracy by temperature", curve("tau", "temperature"), "Highest near 0.1."),
    ),
    costs={
        "smoke": "40 s on 2 cores",
        "cpu": "about 5 min a seed on 2 cores",
        "paper": "20 runs of ResNet-50 on CIFAR-10, up to 1,000 epochs, on a GPU (not timed)",
    },
    notes=(
        "The values of the paper's curves and its rates were not found; the rate is the scale's, "
        "not scaled with the batch.",
    ),
)  # fmt: skip
