"""S0: a few random bits that the views share suppress everything else.

    contrapose reproduce random_bits --scale cpu --jobs 2

Expect at scale cpu that with 8 bits a linear probe reads nothing of the image beyond guessing, a
suppression of 0.99 to 1.02, after about 11 min on 2 cores.

Bits hashed from the image are appended as constant channels, to digits, to small photographs and to
others; then, at one number of bits on CIFAR-10, batch, temperature, weight, loss and where keys
come from are varied. Supervised encoders and untrained ones are the controls. The notebook's own
table is `random_bits_notebook`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from contrapose import keys, losses
from contrapose.experiments import evidence
from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.evidence import all_of
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.suppression.protocol import (
    NT_XENT,
    READABLE,
    SIMCLR,
    SUPERVISED,
    SWD_SPHERE,
    TAU,
    UNTRAINED,
    falls_over,
    job,
    loss_of,
    more_suppressed,
    suppression_chart,
    suppression_of,
)

MOMENTUM = "momentum encoder"
DECOUPLED = "decoupled, cosine"  # NT-Xent has weight = tau in this form
UNAFFECTED = 0.05  # of accuracy
CLEARLY = 0.05  # of accuracy
SLACK = 0.01  # of accuracy: steps against the trend that are forgiven


@dataclass(frozen=True, kw_only=True)
class Setting:
    sets: Mapping[str, int | None]  # images -> px
    bits: tuple[int, ...]
    varied: str  # the set on which all else is varied
    at: int  # bits at which it is
    batch: int
    batches: tuple[int, ...]  # besides `batch`
    taus: tuple[float, ...]  # besides TAU
    weights: tuple[float, ...]  # of the decoupled form at TAU
    queue: int  # keys of the momentum encoder


SETTINGS = {
    "smoke": Setting(
        sets={"digits": None}, bits=(0, 8), varied="digits", at=8, batch=64, batches=(),
        taus=(), weights=(1.0,), queue=128,
    ),
    "cpu": Setting(
        sets={"mnist": 16, "cifar10": 16, "tiny-imagenet-50": 16},
        bits=(0, 2, 4, 8, 16), varied="cifar10", at=4, batch=128, batches=(32, 512),
        taus=(0.05, 0.1, 0.5), weights=(0.05, 1.0), queue=2048,
    ),
    "paper": Setting(
        sets={"mnist": None, "cifar10": None, "imagenet": 224},
        bits=(0, 5, 10, 15, 20), varied="cifar10", at=5, batch=128, batches=(512, 2048),
        taus=(0.05, 0.1, 0.5), weights=(0.05, 1.0), queue=65536,
    ),
}  # fmt: skip


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    at = SETTINGS[scale]
    found = []
    for seed in seeds:
        for data, size in at.sets.items():
            make = partial(_one, scale, seed, data, size)
            found += [make(bits, SIMCLR) for bits in at.bits]
            found += [make(bits, SUPERVISED) for bits in (0, at.bits[-1])]
            found += [make(bits, UNTRAINED) for bits in at.bits]
        size = at.sets[at.varied]
        vary = partial(_one, scale, seed, at.varied, size, at.at, SIMCLR)
        found += [vary(batch=batch) for batch in at.batches]
        found += [vary(tau=tau) for tau in at.taus]
        found += [vary(loss=DECOUPLED, weight=weight) for weight in at.weights]
        found += [vary(loss=SWD_SPHERE, tau=None), vary(loss=MOMENTUM)]
    return found


def _one(
    scale: str,
    seed: int,
    data: str,
    size: int | None,
    bits: int,
    method: str,
    *,
    batch: int | None = None,
    tau: float | None = TAU,
    loss: str = NT_XENT,
    weight: float | None = None,
) -> Job:
    at = SETTINGS[scale]
    batch = at.batch if batch is None and data != "imagenet" else batch
    learns = method == SIMCLR
    facts = {
        "data": data, "bits": bits, "loss": loss if learns else None,
        "tau": tau if learns else None, "weight": weight, "batch": batch if learns else None,
    }  # fmt: skip
    words = [f"{key}{value}" for key, value in facts.items() if value is not None]
    options: dict[str, Any] = {}
    if loss == MOMENTUM:
        options["keys"] = partial(keys.queue, size=at.queue, momentum=0.99)
        options["loss"] = partial(losses.info_nce, temperature=tau)
    elif loss == DECOUPLED:
        options["loss"] = partial(losses.gcl_decoupled, temperature=TAU, weight=weight or TAU)
    else:
        options["loss"] = loss_of(loss, temperature=tau)
    return job(
        scale=scale, seed=seed, name="-".join([method, *words]).replace(" ", "-"), facts=facts,
        images=f"random-bits({data}, bits={bits})", size=size, method=method,
        batch_size=batch, **options,
    )  # fmt: skip


# ---- claims --------------------------------------------------------------------------------------


def plain(results: Results, data: str, method: str = SIMCLR) -> Results:
    """The runs in which only the number of bits varies."""
    found = results.where(data=data, method=method)
    if method != SIMCLR:
        return found
    return found.where(loss=NT_XENT, tau=TAU, batch=_batch(results, data))


def images_fall(results: Results) -> Verdict:
    def test(data: str) -> Verdict:
        found = falls_over(plain(results, data), "image", "bits", slack=SLACK)
        return Verdict(found.holds, f"{data}: {found.evidence}")

    return all_of(*map(test, results.column("data")))


def labels_do_not_suffer(results: Results) -> Verdict:
    def test(data: str) -> Verdict:
        found = plain(results, data, SUPERVISED)
        flat = evidence.flat(found, "image", "bits", within=UNAFFECTED)
        return Verdict(flat.holds, f"{data}: {flat.evidence}")

    return all_of(*map(test, results.column("data")))


def image_is_suppressed(results: Results) -> Verdict:
    def test(data: str) -> Verdict:
        found = more_suppressed(results, scores(results, data), "bits")
        return Verdict(found.holds, f"{data}: {found.evidence}")

    return all_of(*map(test, results.column("data")))


def nothing_else_helps(results: Results) -> Verdict:
    """Whether accuracy with bits stays CLEARLY below that without, whatever else varies."""
    at = _setting(results)
    without = plain(results, at.varied).mean("image", bits=0)
    varied = _varied(results)
    if math.isnan(without) or not varied or any(map(math.isnan, varied.values())):
        return Verdict.not_tested("not all variations have a result")
    listed = ", ".join(f"{name} {value:.3f}" for name, value in varied.items())
    words = f"{at.varied}, {at.at} bits: {listed}; without bits {without:.3f}"
    n = len(results.column("seed"))
    words += "; 1 seed" if n == 1 else f"; means of {n} seeds"
    return Verdict(max(varied.values()) < without - CLEARLY, words)


def _varied(results: Results) -> dict[str, float]:
    """{what was varied, in words: mean accuracy of the image}."""
    at = _setting(results)
    every = results.where(data=at.varied, bits=at.at, method=SIMCLR)
    rows = [*every.rows, *every.missing]
    found = {}
    for row in rows:
        facts = {name: row[name] for name in ("loss", "tau", "weight", "batch")}
        own = [row["loss"]] if row["loss"] != NT_XENT else []
        own += [f"tau {row['tau']:g}"] if row["tau"] not in (TAU, None) else []
        own += [f"weight {row['weight']:g}"] if row["weight"] is not None else []
        own += [f"batch {row['batch']}"] if row["batch"] != at.batch else []
        found[" ".join(own) or NT_XENT] = every.mean("image", **facts)
    return found


def scores(results: Results, data: str) -> Mapping[Any, Any]:
    """{bits: suppression of the image}; the control learned the labels without bits."""
    here = results.where(data=data)
    usual = {"method": SIMCLR, "loss": NT_XENT, "tau": TAU, "batch": _batch(results, data)}
    return {
        bits: suppression_of(
            here, "image", here=usual | {"bits": bits},
            supervised={"method": SUPERVISED, "bits": 0},
            untrained={"method": UNTRAINED, "bits": bits},
        )
        for bits in plain(results, data).column("bits")
    }  # fmt: skip


def _batch(results: Results, data: str) -> int | None:
    return None if data == "imagenet" else _setting(results).batch


def _setting(results: Results) -> Setting:
    """The setting of the scale that has the data sets of the results."""
    sets = set(results.column("data"))
    return next((at for at in SETTINGS.values() if sets <= at.sets.keys()), SETTINGS["cpu"])


# ---- figures -------------------------------------------------------------------------------------


def accuracies(results: Results) -> Chart:
    traces = []
    for data in results.column("data"):
        for method, dash in ((SIMCLR, "solid"), (SUPERVISED, "dot"), (UNTRAINED, "dash")):
            runs = plain(results, data, method)
            if means := runs.means("image", "bits"):
                name = f"{data}, {method}"
                traces.append(
                    line(name, [*means], [*means.values()], line={"dash": dash}, legendgroup=data)
                )
    return chart(traces, "bits shared by the views", "linear accuracy of the image")


def suppressed(results: Results) -> Chart:
    found = {data: scores(results, data) for data in results.column("data")}
    return suppression_chart(found, "bits shared by the views")


def still_read(results: Results) -> Chart:
    """A chart of R2 of ridge regression from h to the pictures, which needs no labels."""
    traces = []
    for data in results.column("data"):
        for measure, dash in (("pixels", "solid"), ("network", "dot")):
            runs = plain(results, data)
            means = runs.means(measure, "bits")
            if means:
                name = f"{data}, {measure}"
                traces.append(
                    line(name, [*means], [*means.values()], line={"dash": dash}, legendgroup=data)
                )
    return chart(traces, "bits shared by the views", "R2")


def variations(results: Results) -> Chart:
    found = {name: value for name, value in _varied(results).items() if not math.isnan(value)}
    bars = {"type": "bar", "x": [*found], "y": [*found.values()]}
    return chart([bars] if found else [], None, "linear accuracy of the image")


EXPERIMENT = Experiment(
    name="random_bits",
    title="A few random bits crowd out the image",
    source="S0, RandBits (Chen, Luo and Li, NeurIPS 2021)",
    jobs=jobs,
    measures={
        **{k: v for k, v in READABLE.items() if k != "digit"},
        "bits_read": "test accuracy of linear probes of h for the bits, mean over bits",
    },
    claims=(
        Claim("With more bits, SimCLR's accuracy of the image falls.", "S0 [S0]", images_fall),
        Claim(
            f"The supervised control is unaffected: within {UNAFFECTED:g} of accuracy.",
            "S0 [S0]; the bound is this project's",
            labels_do_not_suffer,
        ),
        Claim(
            "Batch, temperature, weight, loss or a momentum encoder do not help: all stay "
            f"{CLEARLY:g} below the accuracy without bits.",
            "S0 [S0]; the bound is this project's",
            nothing_else_helps,
        ),
        Claim(
            "More of the image is suppressed with the most bits than without any.",
            "this project's score of S0's claim",
            image_is_suppressed,
        ),
    ),
    figures=(
        Figure(
            "Accuracy of the image by the number of bits",
            accuracies,
            "Solid: SimCLR; dotted: learned from labels; dashed: before training.",
        ),
        Figure(
            "Suppression of the image",
            suppressed,
            "0: as much is read as labels teach; 1: nothing above guessing. Bars: standard error "
            "by the test images.",
        ),
        Figure(
            "What of the picture can still be read, without labels",
            still_read,
            "R2 of ridge regression from h: to the picture, and to what an untrained network makes "
            "of it.",
        ),
        Figure("All else varied, at one number of bits", variations, "One set, see the table."),
    ),
    costs={
        "smoke": "1 min on 2 cores",
        "cpu": "11 min on 2 cores with --jobs 2",
        "paper": "33 runs of ResNet-50, 400 epochs, on GPUs (not timed)",
    },
    notes=(
        "Numbers of bits, batches, temperatures, weights and the momentum on CIFAR-10 and ImageNet "
        "were not found; those here are this project's choice.",
        "Bits are hashed from the pixels; views leave them alone, and they are there at test too: "
        "the notebook's way [C].",
        "Decoupled: alignment as minus the cosine, log-sum-exp at tau 0.2; NT-Xent is the weight "
        "0.2. The momentum encoder has momentum 0.99 and a queue.",
        "The control of the score learned from labels without bits.",
        "Scale cpu: 5,000 images of MNIST, CIFAR-10 and 50 classes of Tiny ImageNet at 16 px, a "
        "small network; with so few images more than 12 bits tell nothing new.",
    ),
)
