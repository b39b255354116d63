"""Transfer: how well h, or the encoder trained further, serves for other sets of images.

    transfer("runs/mine", to=("mnist", "flowers-64"), methods=("linear", "finetuned"))

    linear      logistic regression of the frozen h, its l2 the best of 45 on validation images
    finetuned   all weights trained on by cross-entropy, rate and decay chosen there too
    scratch     the same network and search from weights drawn anew

Each set has its own metric, split and source (`transfer_sets`). The protocol is that of SimCLR
(arXiv 2002.05709, appendix B.8), whose fine-tuning takes 1.1 million steps a set; `default` takes
400 for each of three rates.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose import api
from contrapose.data import (
    NAMED,
    ImageSet,
    NoSuchSplit,
    Request,
    balanced,
    concatenated,
    hold_out,
)
from contrapose.data.cache import data_root
from contrapose.data.request import of_same_classes
from contrapose.downstream.finetune import PROTOCOLS, Protocol, logits_after, recipe_of
from contrapose.downstream.transfer_sets import CREATORS, SETS, TransferSet, described
from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.evaluation import probes, scores
from contrapose.evaluation.embed import embed as embed_images
from contrapose.evaluation.several import eleven_point, probe_of_each
from contrapose.explain.subject import Subject, with_labels
from contrapose.files import read_object
from contrapose.machine import choose_device
from contrapose.paired import numbers_as_text
from contrapose.partials import unknown
from contrapose.progress import stage
from contrapose.recipes import module
from contrapose.training import optim
from contrapose.training.recipe import Recipe
from contrapose.training.run import Run
from contrapose.training.state import Progress

METHODS = ("linear", "finetuned", "scratch")
FORMAT = 1
FILE = "transfer/transfer.json"
HELD = 0.2  # of training images, where a set has no validation split


@dataclass(frozen=True)
class Search:
    """The trainings of one method: how, and which rates and weight decays are tried."""

    words: str
    how: Callable[[float], Protocol]  # weight decay -> the protocol of one training
    rates: tuple[float, ...]
    decays: tuple[float, ...] = (1e-4,)


def published(steps: int) -> Callable[[float], Protocol]:
    """The protocol of SimCLR B.8 for so many steps, by weight decay."""

    def how(decay: float) -> Protocol:
        return Protocol(
            words="SimCLR B.8",
            optimizer=partial(optim.sgd, momentum=0.9, weight_decay=decay, nesterov=True),
            rates=(),
            batch=256,
            epochs=lambda n, batch: steps / max(1, n // batch),
        )

    return how


def _logspace(low: float, high: float, n: int) -> tuple[float, ...]:
    return tuple(float(x) for x in np.logspace(low, high, n))


DEFAULT = Search(
    words=f"{PROTOCOLS['default'].words.partition(',')[0]}, 400 steps or ten epochs, the best of "
    "three rates on validation images",
    how=lambda decay: PROTOCOLS["default"],
    rates=PROTOCOLS["default"].rates,
)
SEARCHES: Mapping[str, Mapping[str, Search]] = {
    "default": {"finetuned": DEFAULT, "scratch": DEFAULT},
    "simclr": {
        "finetuned": Search(
            words="SimCLR B.8: SGD with Nesterov momentum 0.9, 20,000 steps of 256, cosine; the "
            "best of 7 rates times 8 weight decays (divided by the rate) on validation images",
            how=published(20_000),
            rates=_logspace(-4, -1, 7),
            decays=(*_logspace(-6, -3, 7), 0.0),
        ),
        "scratch": Search(
            words="SimCLR B.8: as fine-tuning, 40,000 steps, the best of 7 rates times 8 decays",
            how=published(40_000),
            rates=_logspace(-3, 0, 7),
            decays=_logspace(-5, -1.5, 8),
        ),
    },
}


@dataclass(frozen=True)
class Parts:
    """The images of one set: what trains, what chooses, what is measured."""

    train: ImageSet
    validation: ImageSet | None  # of the creators; None: a share of train
    test: ImageSet
    words: str


def transfer(
    run: Run | Path | str,
    to: Sequence[str] = (),
    *,
    methods: Sequence[str] = ("linear",),
    protocol: str = "default",
    seed: int = 0,
    device: str = "auto",
    recipe: Any = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    begin: Callable[[Run, Recipe, ImageSet], None] = lambda run, recipe, images: None,
) -> dict[str, Any]:
    """Accuracy on each set by its own metric, with intervals; also in RUN/transfer/transfer.json,
    beside what was measured before.

    to: names of SETS, or images of the user's own; by default every one of SETS that is at hand.
    Those that are not are listed under "absent". Raises UserError for an unknown method or
    protocol, for an asked set that is not there, and for one without labels in two classes.
    """
    for name in methods:
        if name not in METHODS:
            raise UserError(f"--how {name}: there is no method {unknown(name, METHODS)}")
    if protocol not in SEARCHES:
        raise UserError(f"--protocol {protocol}: there is no {unknown(protocol, SEARCHES)}")
    run = run if isinstance(run, Run) else Run.open(run)
    code = None if recipe is None else module(recipe)
    encoder, made = Encoder.load(run.path, code), run.recipe(code)
    wanted = list(to) or [name for name in SETS if at_hand(name)]
    with run.locked():
        written = read_transfer(run.path)
        for name in wanted:
            with stage(f"transfer to {name}"):
                parts = opened(run, name, seed)
                subject = Subject(
                    run, made, encoder, parts.train, parts.test, parts.words,
                    choose_device(device), name,
                )  # fmt: skip
                found = _measured(subject, parts, methods, protocol, seed, watch=watch, begin=begin)
            written["sets"][name] = _joined(written["sets"].get(name), found)
            (run.path / FILE).parent.mkdir(exist_ok=True)
            run.write(FILE, written)
    absent = [name for name in SETS if not at_hand(name)]
    return {"sets": {n: written["sets"][n] for n in wanted}, "absent": absent}


def read_transfer(folder: Path) -> dict[str, Any]:
    """What was measured of a run so far; without any, {"format": 1, "sets": {}}."""
    file = Path(folder) / FILE
    if not file.exists():
        return {"format": FORMAT, "sets": {}}
    return read_object(
        file, {"format": int, "sets": dict}, remedy="run `contrapose transfer` again"
    )


def at_hand(name: str) -> bool:
    """Whether the images of this name are there to be opened, without reading them."""
    if (data_root() / name).exists() or Path(name).exists():
        return True
    if name not in NAMED:
        return False
    try:
        Request(name, size=8).open("test")
    except (OSError, UserError):
        return False
    return True


def opened(run: Run, name: str, seed: int) -> Parts:
    """The images of a set, read at the size and channels of the run's."""
    entry = described(name)
    if name in SETS and not at_hand(name):
        raise UserError(
            f"--to {name}: {entry.title} is not at hand; get it from {entry.source} (licence: "
            f"{entry.licence}) and put it into {data_root() / name}, as class folders in train/ "
            "and test/ or as Parquet"
        )
    request = api.request_of(run, Request(name))
    if entry.train_each is None:
        train, test, words = request.train_and_test(seed)
    else:
        whole = with_labels(request.open("train"))
        if whole is None:
            raise UserError(f"--to {name}: it has labels of fewer than two classes")
        train = _each(whole, entry.train_each, seed)
        test = whole.subset(torch.nonzero(~torch.isin(whole.index, train.index)).flatten())
        words = f"{entry.train_each} of each class train, the others are the test"
    if train.labels is None:
        labelled, known = with_labels(train), with_labels(test)
        if labelled is None or known is None:
            raise UserError(
                f"--to {name}: {train.name} has labels of fewer than two classes, in training or "
                "in test; a transfer needs some: give class subfolders"
            )
        train, test = labelled, known
    return Parts(train, _validation(run, name, entry, train), test, words)


def _each(images: ImageSet, n: int, seed: int) -> ImageSet:
    """n images of each class, drawn; UserError where a class has no more than that."""
    assert images.label is not None
    fewest = int(torch.unique(images.label, return_counts=True)[1].min())
    if fewest <= n:
        raise UserError(f"{images.name}: a class has {fewest} images; {n} train, so it needs more")
    return balanced(images, n * len(torch.unique(images.label)), seed)


def _validation(run: Run, name: str, entry: TransferSet, train: ImageSet) -> ImageSet | None:
    """The validation split of the creators, a folder val/ beside train/ and test/; or None."""
    folder = data_root() / name
    if entry.validation != CREATORS or not (
        (folder / "val").is_dir() and (folder / "test").is_dir()
    ):
        return None
    try:
        return of_same_classes(api.request_of(run, Request(folder / "val")).open("train"), train)
    except NoSuchSplit:
        return None


def _measured(
    subject: Subject,
    parts: Parts,
    methods: Sequence[str],
    protocol: str,
    seed: int,
    **watching: Any,
) -> dict[str, Any]:
    entry, test = described(subject.other), parts.test
    several = parts.train.labels is not None
    metric = "11-point mAP" if several else entry.metric
    label = torch.zeros(len(test), dtype=torch.int64) if test.label is None else test.label
    chose = "its creators'" if parts.validation is not None else f"{HELD:.0%} of training"
    found: dict[str, Any] = {
        "title": entry.title, "metric": metric, "split": entry.split, "read": parts.words,
        "validation": chose,
        "source": entry.source, "licence": entry.licence, "published": entry.published,
        "images": test.fingerprint, "n": len(test), "n_train": len(parts.train),
        "label": numbers_as_text(label.numpy()),
        "labels": len(parts.train.classes) if several else 1, "notes": [], "rows": [],
    }  # fmt: skip
    for method in methods:
        if several and method != "linear":
            note = f"{method} takes one label of each image, so it is left out"
            found["notes"].append(note)
            continue
        with stage(method):
            if method == "linear":
                logits, how, chosen = _linear(subject, parts, metric, seed)
            else:
                logits, how, chosen = _trained(
                    subject, parts, method, SEARCHES[protocol][method], metric, seed, watching
                )
        found["rows"].append(_row(method, logits, test, metric, how, chosen, parts.words, seed))
    return found


def _linear(
    subject: Subject, parts: Parts, metric: str, seed: int
) -> tuple[Float[Tensor, "M C"], str, str]:
    """Scores of test images, the protocol, and the l2 that was chosen."""

    def h(images: ImageSet) -> Tensor:
        return embed_images(
            subject.encoder, images, size=subject.recipe.size, device=subject.device
        ).h

    of_test = h(parts.test)
    if parts.train.labels is not None:
        kept, held = parts.train, parts.validation
        if held is None:
            kept, held = hold_out(parts.train, HELD, seed)
        assert kept.labels is not None and held.labels is not None
        each = probe_of_each(h(kept), kept.labels, (h(held), held.labels))
        how = "one logistic regression a label, l2 the best of 45 by 11-point mAP on validation"
        return each.scores(of_test), f"{how} rows, refitted", f"l2 = {each.l2:g}"
    assert parts.train.label is not None
    validation = None
    if parts.validation is not None:
        assert parts.validation.label is not None
        validation = h(parts.validation), parts.validation.label
    count = torch.unique(parts.train.label, return_counts=True)[1]
    single = validation is None and int(count.min()) < 2
    probe = probes.linear_probe(
        h(parts.train), parts.train.label, l2=1.0 if single else probes.SIMCLR_PATH,
        validation=validation, held_out=HELD, seed=seed, judge=partial(value_of, metric=metric),
        classes=len(parts.train.classes),
    )  # fmt: skip
    return probe.scores(of_test), probe.protocol, probe.chosen.partition(";")[0]


def _trained(
    subject: Subject,
    parts: Parts,
    method: str,
    search: Search,
    metric: str,
    seed: int,
    watching: Mapping[str, Any],
) -> tuple[Float[Tensor, "M C"], str, str]:
    """As `_linear`, of the best rate and decay on validation images, trained again on all."""
    kept, held, whole = parts.train, parts.validation, parts.train
    if held is None:
        kept, held = hold_out(parts.train, HELD, seed)
    else:
        whole = concatenated(kept, held)
    folder = subject.run.path / "transfer" / subject.file("of").removesuffix(".json")

    def make(images: ImageSet, rate: float, decay: float) -> Recipe:
        how = search.how(decay / rate if len(search.decays) > 1 else decay)
        return recipe_of(subject, method, how, len(images), rate=rate, seed=seed)

    assert held.label is not None
    tried = {}
    for rate in search.rates:
        for decay in search.decays:
            place = folder / f"{method}-rate{rate:.3g}-decay{decay:.3g}"
            logits = logits_after(place, make(kept, rate, decay), kept, held, subject, watching)
            tried[rate, decay] = value_of(logits, held.label, metric=metric)
    middle = search.rates[len(search.rates) // 2]
    best = max(tried, key=lambda at: (tried[at], -abs(math.log(at[0] / middle))))
    place = folder / f"{method}-chosen-rate{best[0]:.3g}-decay{best[1]:.3g}"
    logits = logits_after(place, make(whole, *best), whole, parts.test, subject, watching)
    chosen = f"rate {best[0]:.3g}" + (f", decay {best[1]:.3g}" if len(search.decays) > 1 else "")
    return logits, search.words, chosen


def value_of(logits: Float[Tensor, "M C"], label: Int[Tensor, " M"], *, metric: str) -> float:
    """The metric, top-1 or mean per class, of these scores."""
    right = (logits.argmax(dim=1) == label).double()
    if metric != "mean per class":
        return float(right.mean())
    n = torch.bincount(label).double()
    return float((torch.bincount(label, weights=right) / n)[n > 0].mean())


def _row(
    method: str,
    logits: Float[Tensor, "M C"],
    test: ImageSet,
    metric: str,
    how: str,
    chosen: str,
    split: str,
    seed: int,
) -> dict[str, Any]:
    """A row of the record: value, interval, protocol, and what is right of each example."""
    told: dict[str, Any] = {"metric": metric, "protocol": how, "split": split, "seed": seed}
    if test.labels is not None:
        wanted = test.labels.numpy()
        value, low, high = _mean_average_precision(logits.double().numpy(), wanted, seed)
        right = (((logits > 0).numpy() == (wanted == 1)) & (wanted >= 0)).sum(axis=1)
    else:
        assert test.label is not None
        by = scores.accuracy if metric == "top-1" else scores.mean_per_class_accuracy
        score = by(logits, test.label, features="h", **told)
        value, low, high = score.value, score.low, score.high
        right = (logits.argmax(dim=1) == test.label).long().numpy()
    return {
        "method": method, "value": value, "low": low, "high": high, "protocol": how,
        "chosen": chosen, "right": numbers_as_text(right),
    }  # fmt: skip


def _mean_average_precision(
    score: Float[np.ndarray, "M K"], wanted: Int[np.ndarray, "M K"], seed: int, draws: int = 200
) -> tuple[float, float, float]:
    """11-point mean average precision over labels, and an interval by draws of the images."""

    def mean(rows: np.ndarray) -> float:
        each = [
            eleven_point(score[rows, k][known], wanted[rows, k][known] == 1)
            for k in range(wanted.shape[1])
            if (known := wanted[rows, k] >= 0).any()
        ]
        return float(np.nanmean(each))

    random, n = np.random.default_rng(seed), len(wanted)
    drawn = [mean(random.integers(n, size=n)) for _ in range(draws)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return mean(np.arange(n)), float(low), float(high)


def _joined(before: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """What was found, with the rows of other methods from before where the images are the same."""
    if before is None or before.get("images") != found["images"]:
        return found
    mine = {row["method"] for row in found["rows"]}
    kept = [row for row in before["rows"] if row["method"] not in mine]
    order = sorted([*found["rows"], *kept], key=lambda row: METHODS.index(row["method"]))
    return found | {"rows": order}
