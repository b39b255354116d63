"""Fine-tuning with few labels, beside the same network from scratch and a probe of the frozen h.

    finetune("runs/mine", labels=("1%", "10%", "100%"))

For every number of labels, and every draw of them, three accuracies on the same test images:

    finetuned   the run's encoder and a new classifier, all weights trained by cross-entropy
    scratch     the same network from weights drawn anew, the same steps and labels, its own rate
    probe       logistic regression on h, the encoder left as it is

Draws are balanced over classes, seeded and nested: the labels of 1 % are among those of 10 %, and
no class is without one. Each training is a run of its own under RUN/finetune, with a classifier
like any other, so that a study that was stopped goes on.
"""

import dataclasses
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose import api, augment
from contrapose.data import ImageSet, balanced
from contrapose.errors import UserError
from contrapose.evaluation import probes
from contrapose.evaluation.embed import embed as embed_images
from contrapose.explain.subject import Subject, with_labels, written_about
from contrapose.partials import unknown
from contrapose.progress import stage
from contrapose.training import optim
from contrapose.training.recipe import Recipe, supervised
from contrapose.training.run import Run
from contrapose.training.state import Progress

METHODS = ("finetuned", "scratch", "probe")
SHARE, EACH = re.compile(r"(\d+\.?\d*|\.\d+)%"), re.compile(r"(\d+)-per-class")
FEWEST = 5  # labels of every class, of which one is held out to choose the rate


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a classifier and its network are trained on the labelled images."""

    words: str
    optimizer: Callable[..., Any]
    rates: tuple[float, ...]  # tried on a held-out fifth of the labels
    batch: int
    epochs: Callable[[int, int], float]  # (labels, batch)
    scaling: Callable[..., Any] = optim.no_scaling
    once: bool = False  # tried with the most labels alone, and used for all numbers of labels


STEPS = 400  # of the default, at least ten epochs
PROTOCOLS = {
    "default": Protocol(
        words="AdamW, rate chosen on a held-out fifth of the labels of the first draw, or as for "
        f"more labels where a class has fewer than {FEWEST}",
        optimizer=partial(optim.adamw, weight_decay=1e-4),
        rates=(3e-4, 1e-3, 3e-3, 1e-2),
        batch=64,
        epochs=lambda n, batch: max(10.0, STEPS * batch / n),
    ),
    "brief": Protocol(
        words="AdamW, 200 steps or ten epochs, rate chosen on a held-out fifth of the most labels",
        optimizer=partial(optim.adamw, weight_decay=1e-4),
        rates=(1e-3, 3e-3, 1e-2),
        batch=64,
        epochs=lambda n, batch: max(10.0, 200 * batch / n),
        once=True,
    ),
    "simclr": Protocol(
        words="SimCLR B.4: SGD with Nesterov momentum 0.9, rate 0.05 times batch / 256, no decay, "
        "30 epochs",
        optimizer=partial(optim.sgd, momentum=0.9, weight_decay=0.0, nesterov=True),
        rates=(0.05,),
        batch=4096,
        epochs=lambda n, batch: 30.0,
        scaling=optim.linear_scaling,
    ),
}


def finetune(
    run: Subject | Run | Path | str,
    images: Any = None,
    *,
    labels: Sequence[str] = ("1%", "10%", "100%"),
    draws: int = 5,
    seed: int = 0,
    protocol: str = "default",
    methods: Sequence[str] = METHODS,
    device: str = "auto",
    recipe: Any = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    begin: Callable[[Run, Recipe, ImageSet], None] = lambda run, recipe, images: None,
) -> dict[str, Any]:
    """Accuracies by number of labels and method, with intervals over draws; also in
    RUN/finetune/finetune.json, or in finetune-NAME for another set.

    labels: shares of the labelled training images ("10%") or "5-per-class". draws: of the labels;
    the number of 100 % is drawn once. seed: another one draws other labels. methods: some of
    METHODS; what is saved is told of the first of these that is not `scratch`. Raises UserError for
    fewer labels than classes, for images without labels and for an unknown protocol or method.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol}: there is no {unknown(protocol, PROTOCOLS)}")
    if wrong := [m for m in methods if m not in METHODS]:
        raise UserError(f"methods {wrong[0]}: there is no {unknown(wrong[0], METHODS)}")
    if draws < 1:
        raise UserError(f"--draws {draws}: use at least 1")
    with written_about(run, images, device, recipe) as subject:
        train, test = with_labels(subject.train), with_labels(subject.test)
        if train is None or test is None:
            raise UserError(
                f"{subject.train.name} has labels of fewer than two classes, in training or in "
                "test; fine-tuning needs some: give --labels, or class subfolders"
            )
        budgets = {word: budget(word, train) for word in labels}
        folder = subject.run.path / subject.file("finetune").removesuffix(".json")
        found = _study(
            subject, train, test, budgets, range(seed * draws, (seed + 1) * draws),
            PROTOCOLS[protocol], folder, methods, watch=watch, begin=begin,
        )  # fmt: skip
        found |= {"protocol": protocol, "how": PROTOCOLS[protocol].words, "split": subject.split}
        found |= {"folder": folder.name}
        subject.run.write(f"{folder.name}/finetune.json", found)
        return found


def is_budget(words: str) -> bool:
    """True for `1%` and `5-per-class`."""
    return bool(SHARE.fullmatch(words) or EACH.fullmatch(words))


def budget(words: str, images: ImageSet) -> int:
    """The number of labels that `1%` or `5-per-class` stands for, of images that all have one."""
    classes = len(torch.unique(images.label))
    share, each = SHARE.fullmatch(words), EACH.fullmatch(words)
    if share is not None:
        n = round(len(images) * float(share[1]) / 100)
    elif each is not None:
        n = int(each[1]) * classes
    else:
        raise UserError(f"--budgets {words}: write 1%, 10% or 5-per-class, with commas between")
    if n > len(images) or n < classes:
        least = math.ceil(1000 * classes / len(images)) / 10
        raise UserError(
            f"--budgets {words}: that are {n:,} labels of {len(images):,} for {classes} classes; "
            f"use 1-per-class or {least:g}% at least, and 100% at most"
        )
    return n


def _study(
    subject: Subject,
    train: ImageSet,
    test: ImageSet,
    budgets: Mapping[str, int],
    draws: range,
    how: Protocol,
    folder: Path,
    methods: Sequence[str],
    **watching: Any,
) -> dict[str, Any]:
    seeds = {w: draws if n < len(train) else draws[:1] for w, n in budgets.items()}
    seen: dict[str, dict[str, list[float]]] = {w: {m: [] for m in methods} for w in budgets}
    rates: dict[str, dict[str, float]] = {}
    frozen, frozen_test = subject.embed(train).h, subject.embed(test).h
    trained = [m for m in methods if m != "probe"]
    rate = dict.fromkeys(trained, how.rates[len(how.rates) // 2])
    for k, word in enumerate(sorted(budgets, key=lambda w: -budgets[w])):
        if len(how.rates) > 1 and not (how.once and k):
            few = balanced(train, budgets[word], seed=draws[0])
            rate = {
                m: _rate(
                    folder / f"{word}-rate{draws[0] or ''}", m, few, how, subject, watching, rate[m]
                )
                for m in trained
            }
        rates[word] = rate
    for word, n in budgets.items():
        made = {m: partial(recipe_of, subject, m, how, n) for m in trained}
        for k, seed in enumerate(seeds[word], 1):
            few = balanced(train, n, seed=seed)
            with stage(f"{word} of the labels, draw {k} of {len(seeds[word])}"):
                for m, make in made.items():
                    of = make(rate=rates[word][m], seed=seed)
                    place = folder / f"{word}-draw{seed}" / m
                    seen[word][m].append(_accuracy(place, of, few, test, subject, watching))
                if "probe" in methods:
                    index = _chosen(train, few)
                    assert few.label is not None
                    fitted = probes.linear_probe(frozen[index], few.label, l2=_l2(few), seed=seed)
                    seen[word]["probe"].append(_share(fitted.predict(frozen_test), test))
    rows = [
        {
            "labels": word, "n": budgets[word], "method": m, **_interval(seen[word][m], len(test)),
            "each": seen[word][m], "rate": rates[word].get(m),
        }
        for word in budgets for m in methods
    ]  # fmt: skip
    found: dict[str, Any] = {"rows": rows, "n_test": len(test), "saved": []}
    others = [m for m in methods if m != "scratch"]
    if others and "scratch" in methods:
        found["saved"] = saved(budgets, seen, others[0])
    return found


def recipe_of(
    subject: Subject, method: str, how: Protocol, n: int, *, rate: float, seed: int
) -> Recipe:
    """Cross-entropy of the run's network on n labelled images, from its weights or from new ones.

    Views are crops and flips, as in SimCLR's fine-tuning; crops alone for one channel.
    """
    batch = min(how.batch, n)
    small = subject.recipe.size <= 64
    crops = partial(augment.crop_flip, area=(0.2 if small else 0.08, 1.0))
    return dataclasses.replace(
        supervised(subject.recipe),
        name=method,
        views=partial(augment.digits) if subject.encoder.channels == 1 else crops,
        number_of_views=1,
        start=str(subject.run.path) if method == "finetuned" else None,
        freeze=(),
        optimizer=how.optimizer,
        schedule=partial(optim.warmup_cosine),
        scaling=how.scaling,
        lr=rate,
        warmup=0,
        epochs=how.epochs(n, batch),
        batch_size=batch,
        chunk=None,
        clip=None,
        seed=seed,
    )


def _rate(
    folder: Path,
    method: str,
    few: ImageSet,
    how: Protocol,
    subject: Subject,
    watching: Mapping[str, Any],
    otherwise: float,
) -> float:
    """The rate that names most of a held-out fifth of these labels; `otherwise` where a class has
    too few to hold one out."""
    assert few.label is not None
    if int(torch.unique(few.label, return_counts=True)[1].min()) < FEWEST:
        return otherwise
    make = partial(recipe_of, subject, method, how, len(few))
    held = balanced(few, len(few) // 5, seed=1)
    kept = few.subset(_others(few, held))
    with stage(f"choosing the rate of {method}, {len(few):,} labels"):
        scores = {
            rate: _accuracy(
                folder / f"{method}-{rate:g}", make(rate=rate, seed=0), kept, held, subject,
                watching,
            )
            for rate in how.rates
        }  # fmt: skip
    middle = how.rates[len(how.rates) // 2]
    return max(scores, key=lambda rate: (scores[rate], -abs(math.log(rate / middle))))


def _accuracy(
    folder: Path,
    recipe: Recipe,
    train: ImageSet,
    test: ImageSet,
    subject: Subject,
    watching: Mapping[str, Any],
) -> float:
    """Test accuracy of the classifier after training in `folder`."""
    logits = logits_after(folder, recipe, train, test, subject, watching)
    return _share(logits.argmax(dim=1), test)  # classes are numbered as in training


def logits_after(
    folder: Path,
    recipe: Recipe,
    train: ImageSet,
    test: ImageSet,
    subject: Subject,
    watching: Mapping[str, Any],
) -> Float[Tensor, "M C"]:
    """Logits of the test images by the classifier that training in `folder` makes."""
    recipe = dataclasses.replace(recipe, batch_size=min(recipe.batch_size, len(train)))
    encoder = api.encoder_in(folder, recipe, train, subject.device, **watching).to(subject.device)
    h = embed_images(encoder, test, size=recipe.size, device=subject.device).h
    with torch.no_grad():
        return encoder.logits(h.to(subject.device)).cpu()


def _share(named: Int[Tensor, " N"], test: ImageSet) -> float:
    """Share of the images whose class is named."""
    assert test.label is not None
    return float(torch.eq(named, test.label).double().mean())


def _interval(values: Sequence[float], n: int) -> dict[str, float]:
    """Mean, and a 95 % interval: Student's t over draws, or of n test images for a single draw."""
    mean = statistics.fmean(values)
    if len(values) > 1:
        from scipy import stats  # a second to import

        t = float(stats.t.ppf(0.975, len(values) - 1))
        half = t * statistics.stdev(values) / math.sqrt(len(values))
    else:
        half = 1.96 * math.sqrt(mean * (1 - mean) / n)
    return {"value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half)}


def saved(
    budgets: Mapping[str, int],
    seen: Mapping[str, Mapping[str, Sequence[float]]],
    method: str = "finetuned",
) -> list[dict[str, Any]]:
    """How many labels training from scratch needs for what the method reaches, over those that
    the method had: for each budget a factor, its geometric mean over the draws, and a 95 %
    interval of it (Student's t of the logarithms), from two draws on.

    By a straight line between budgets on a logarithmic axis of labels. Where scratch does not reach
    it with all of the budgets, in some draw, there is no factor: it is more than `beyond`, the
    largest budget over this one. least, most: the extremes over draws that reach it.
    """
    order = sorted(budgets, key=lambda w: budgets[w])
    found = []
    for word in order:
        factors = []
        for seed, value in enumerate(seen[word][method]):
            curve = [
                (budgets[w], seen[w]["scratch"][min(seed, len(seen[w]["scratch"]) - 1)])
                for w in order
            ]
            needed = reached(curve, value)
            factors.append(None if needed is None else needed / budgets[word])
        known = [f for f in factors if f is not None]
        mean, low, high = _geometric(known) if len(known) == len(factors) else (None, None, None)
        found.append(
            {
                "labels": word, "n": budgets[word], "factor": mean, "low": low, "high": high,
                "least": min(known, default=None), "most": max(known, default=None),
                "beyond": max(budgets.values()) / budgets[word], "not_reached": factors.count(None),
                "draws": len(factors),
            }
        )  # fmt: skip
    return found


def _geometric(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Geometric mean, and its 95 % interval from two values on."""
    logs = [math.log(v) for v in values]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return math.exp(mean), None, None
    from scipy import stats  # a second to import

    half = float(stats.t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def reached(curve: Sequence[tuple[int, float]], value: float) -> float | None:
    """Labels at which the curve first reaches the value; None where it never does."""
    before: tuple[int, float] | None = None
    for n, accuracy in curve:
        if accuracy >= value:
            if before is None:
                return float(n)
            share = (value - before[1]) / (accuracy - before[1])
            return math.exp(math.log(before[0]) + share * math.log(n / before[0]))
        before = (n, accuracy)
    return None


def _l2(few: ImageSet) -> float | Sequence[float]:
    assert few.label is not None
    least = int(torch.unique(few.label, return_counts=True)[1].min())
    return 1.0 if least < FEWEST else probes.DECADES


def _chosen(images: ImageSet, few: ImageSet) -> Int[Tensor, " n"]:
    """Positions among the images of those in `few`, which are some of them."""
    return torch.nonzero(torch.isin(images.index, few.index)).flatten()


def _others(few: ImageSet, held: ImageSet) -> Int[Tensor, " n"]:
    """Positions in `few` of the images that are not held out."""
    return torch.nonzero(~torch.isin(few.index, held.index)).flatten()
