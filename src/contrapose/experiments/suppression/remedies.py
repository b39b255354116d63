"""Remedies for feature suppression, at equal compute, on S0's notebook of random bits.

    contrapose reproduce remedies --scale cpu --jobs 2

Expect at scale cpu, at 10 bits, an accuracy of the digit of 0.92 with `conditional` and of 0.29
with the plain loss, and of 0.96 with both at 0 bits, after about 75 min a seed on 2 cores.

The network, views, batches and steps are those of `random_bits_notebook` at temperature 0.1, with
batches drawn in every epoch. Bits that the views share suppress the digit. Each remedy changes the
loss or the composition of batches, and none knows which channels have the bits. A remedy is useful
if the digit can be read again at 10 bits and nothing is lost at none.

`conditional` is this project's own: see `contrapose.training.conditional`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from contrapose.experiments.charts import Chart, chart, line
from contrapose.experiments.evidence import all_of, higher, spread
from contrapose.experiments.form import Claim, Experiment, Figure, Job, Results, Verdict
from contrapose.experiments.running.folders import note_progress
from contrapose.experiments.suppression.notebook import (
    NOTEBOOK,
    Digits,
    Network,
    cropped,
    cross_view,
    optimizers_of,
    read_out,
    update,
    with_bits,
)
from contrapose.losses import hard, hcl, info_nce, supcon
from contrapose.machine import freed_memory_kept
from contrapose.training.conditional import (
    SIZES,
    conditional_info_nce,
    group_size,
    neighbour_groups,
    shared_information,
)
from contrapose.training.optim import linear

TAU = 0.1
KNOWN = 100  # one image in so many has a label, for `few labels`
PATCH = 14  # px, side of the views that a decoder paints


@dataclass(frozen=True)
class Seen:
    """The arguments of a remedy's loss: rows of one batch."""

    a: Float[Tensor, "B D"]  # z of one view
    b: Float[Tensor, "B D"]
    h: Float[Tensor, "B F"]  # of view a
    view: Float[Tensor, "B S S"]  # a
    index: Int[Tensor, " B"]
    label: Int[Tensor, " B"]
    network: Network
    decoder: nn.Module
    familiar: Float[Tensor, "B E"] | None  # the finder's z, after its epoch
    size: int | None  # of the groups that the batch consists of


Loss = Callable[[Seen], Float[Tensor, ""]]


def plain(seen: Seen, *, temperature: float = TAU) -> Float[Tensor, ""]:
    """The loss of the notebook, InfoNCE across views."""
    return cross_view(seen.a, seen.b, temperature=temperature)


def per_anchor(seen: Seen, *, perplexity: float = 20.0) -> Float[Tensor, ""]:
    """InfoNCE with a temperature for each anchor, at which its effective negatives are
    `perplexity`."""
    own = torch.arange(len(seen.a))
    one, other = (
        info_nce(x, y, own, perplexity=perplexity, per="anchor")
        for x, y in ((seen.a, seen.b), (seen.b, seen.a))
    )
    return one + other


def nearest_only(seen: Seen, *, k: int = 20) -> Float[Tensor, ""]:
    """S1's hard contrastive loss: only the k nearest negatives."""
    return 2 * hard(torch.cat([seen.a, seen.b]), _images(seen), temperature=TAU, k=k)


def reweighted(seen: Seen, *, beta: float = 1.0) -> Float[Tensor, ""]:
    """Hard negatives by weights (HCL, arXiv 2010.04592), not debiased."""
    z = torch.cat([seen.a, seen.b])
    return 2 * hcl(z, _images(seen), temperature=TAU, beta=beta, tau_plus=0.0)


def modified(seen: Seen, *, epsilon: float = 0.1) -> Float[Tensor, ""]:
    """Implicit feature modification (Robinson et al. 2021, arXiv 2106.11230).

    The mean of the plain loss and of the loss in which positives are moved away and negatives moved
    nearer by epsilon, which weakens the features that distinguish them most easily.
    """
    logits = seen.a @ seen.b.T / TAU
    away = epsilon / TAU * (1 - 2 * torch.eye(len(logits)))
    own = torch.arange(len(logits))
    losses = [F.cross_entropy(x, own) for s in (logits, logits + away) for x in (s, s.T)]
    return torch.stack(losses).sum() / 2


def within(seen: Seen) -> Float[Tensor, ""]:
    """InfoNCE within the groups of the batch; the plain loss while there are no groups."""
    if seen.size is None:
        return plain(seen)
    return conditional_info_nce(seen.a, seen.b, size=seen.size, temperature=TAU)


def weighted(seen: Seen, *, bandwidth: float = TAU) -> Float[Tensor, ""]:
    """Conditional negatives by weights: negative j of anchor i weighs exp((s_ij - 1) / bandwidth).

    s_ij is the similarity under the finder, so its logits are added to those of z.
    """
    if seen.familiar is None:
        return plain(seen)
    logits = seen.a @ seen.b.T / TAU + (seen.familiar @ seen.familiar.T - 1) / bandwidth
    own = torch.arange(len(logits))
    return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)


def reconstructing(seen: Seen, *, weight: float = 30.0) -> Float[Tensor, ""]:
    """The plain loss, plus that of a linear decoder from h to the view at 14 px."""
    return plain(seen) + weight * _painted(seen, seen.h)


def split(seen: Seen, *, weight: float = 30.0) -> Float[Tensor, ""]:
    """Separation of what views share from what they do not.

    z is computed from one half of h only; a decoder reconstructs the view from both halves, without
    a gradient to the first.
    """
    half = seen.h.shape[1] // 2
    rest = torch.cat([seen.h[:, :half].detach(), seen.h[:, half:]], dim=1)
    return plain(seen) + weight * _painted(seen, rest)


def few_labels(seen: Seen) -> Float[Tensor, ""]:
    """SupCon in which one image in KNOWN has a label; the positives of others are their views."""
    known = seen.index % KNOWN == 0
    group = torch.where(known, seen.label, 10 + torch.arange(len(seen.label)))
    return 2 * supcon(torch.cat([seen.a, seen.b]), group.repeat(2), temperature=TAU)


def _images(seen: Seen) -> Int[Tensor, " N"]:
    return torch.arange(len(seen.a)).repeat(2)


def _painted(seen: Seen, h: Tensor) -> Tensor:
    small = F.adaptive_avg_pool2d(seen.view[:, None], PATCH).flatten(1)
    return F.mse_loss(seen.decoder(h), small)


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A loss, and the composition of batches.

    groups: "none" draws batches. "renewed" makes groups in every epoch, from the current encoder.
        "kept" makes them once, from the finder, which is the encoder after one plain epoch. "asked"
        makes them from the finder with the size that `group_size` finds, or none if it finds none.
    """

    loss: Loss = plain
    groups: Literal["none", "renewed", "kept", "asked"] = "none"
    half: bool = False  # z sees one half of h
    order: Literal["drawn", "notebook"] = "drawn"


REMEDIES = {
    "plain": Remedy(),
    "notebook's batches": Remedy(order="notebook"),
    "low temperature": Remedy(loss=partial(plain, temperature=0.03)),
    "per-anchor temperature": Remedy(loss=per_anchor),
    "nearest negatives": Remedy(loss=nearest_only),
    "reweighted negatives": Remedy(loss=reweighted),
    "implicit modification": Remedy(loss=modified),
    "groups renewed": Remedy(loss=within, groups="renewed"),
    "groups kept": Remedy(loss=within, groups="kept"),
    "conditional": Remedy(loss=within, groups="asked"),
    "weights in the loss": Remedy(loss=weighted),
    "shared against not": Remedy(loss=split, half=True),
    "reconstruction": Remedy(loss=reconstructing),
    "few labels": Remedy(loss=few_labels),
}


# ---- a cell --------------------------------------------------------------------------------------


@freed_memory_kept()
def cell(
    folder: Path,
    *,
    remedy: str,
    bits: int,
    seed: int,
    images: str = "mnist",
    epochs: int = 10,
    batch_size: int = 1000,
    size: int = 40,
) -> dict[str, float]:
    """Train and test one remedy. size: of a group, for remedies that do not look for it."""
    chosen = REMEDIES[remedy]
    train, test = (with_bits(images, part, bits) for part in ("train", "test"))
    torch.manual_seed(seed)
    network = Network(bits, len(train.classes))
    decoder = nn.Linear(128, PATCH**2)
    generator = Generator().manual_seed(seed)
    optimizers = [*optimizers_of(network, NOTEBOOK), torch.optim.Adam(decoder.parameters())]
    per_epoch = len(train.pixel) // batch_size
    steps, start = epochs * per_epoch, time.process_time()
    familiar: Tensor | None = None
    groups: Tensor | None = None
    found: int | None = size
    for step in range(steps):
        epoch, at = divmod(step, per_epoch)
        if at == 0:
            if epoch and _looks(chosen) and (familiar is None or chosen.groups == "renewed"):
                familiar = _embedded(network, train)
                if chosen.groups == "asked":
                    easy = _untrained(train, bits, seed)
                    found = _size(network, train, familiar, generator, batch_size, easy)
                if chosen.groups != "none" and found is not None:
                    groups = neighbour_groups(familiar, found, generator)
            if groups is not None:
                groups = groups[torch.randperm(len(groups), generator=generator)]
            order = _order(chosen, len(train.pixel), groups, generator)
        index = order[at * batch_size : (at + 1) * batch_size]
        views = [cropped(train.pixel[index], NOTEBOOK, generator) for _ in range(2)]
        h, other = (network.represent(view, train.bits[index]) for view in views)
        a, b = (network.embed(_visible(x, chosen)) for x in (h, other))
        seen = Seen(
            a, b, h, views[0], index, train.label[index], network, decoder,
            None if familiar is None else familiar[index], None if groups is None else found,
        )  # fmt: skip
        named = F.cross_entropy(network.classifier(h.detach()), seen.label)
        update(optimizers, chosen.loss(seen) + named, 1e-3 * linear(step, steps), step)
        note_progress(folder, step / steps)
    seconds = time.process_time() - start
    used = 0 if groups is None or found is None else found
    return read_out(network, train, test, seed) | {"cpu_seconds": seconds, "group": float(used)}


def _looks(remedy: Remedy) -> bool:
    return remedy.groups != "none" or remedy.loss is weighted


def _visible(h: Float[Tensor, "B F"], remedy: Remedy) -> Float[Tensor, "B F"]:
    if not remedy.half:
        return h
    half = h.shape[1] // 2
    return torch.cat([h[:, :half], torch.zeros_like(h[:, half:])], dim=1)


def _order(
    remedy: Remedy, n: int, groups: Int[Tensor, "G s"] | None, generator: Generator
) -> Int[Tensor, " M"]:
    """The order of images in an epoch: group by group, drawn, or that of the set."""
    if groups is not None:
        rest = torch.ones(n, dtype=torch.bool)
        rest[groups] = False
        return torch.cat([groups.flatten(), torch.nonzero(rest).flatten()])
    if remedy.order == "notebook":
        return torch.arange(n)
    return torch.randperm(n, generator=generator)


@torch.no_grad()
def _embedded(
    network: Network, images: Digits, generator: Generator | None = None
) -> Float[Tensor, "N D"]:
    """z of every image as it is, or of a view, by the statistics of its batch; the running ones,
    which follow slowly in the first epochs, stay."""
    kept = {name: x.clone() for name, x in network.state_dict().items()}
    z = torch.empty(len(images.pixel), 64)
    for index in torch.split(torch.arange(len(z)), 1000):  # the same batches for every view
        pixel = images.pixel[index]
        view = pixel / 255 if generator is None else cropped(pixel, NOTEBOOK, generator)
        z[index] = network.embed(network.represent(view, images.bits[index]))
    network.load_state_dict(kept)
    return z


@torch.no_grad()
def _size(
    network: Network,
    images: Digits,
    z: Tensor,
    generator: Generator,
    batch_size: int,
    untrained: float,
) -> int | None:
    """The size of groups that `group_size` finds on views of all images."""
    views = [_embedded(network, images, generator) for _ in range(2)]
    possible = [s for s in SIZES if batch_size % s == 0]
    a, b = views
    return group_size(z, a, b, generator, untrained=untrained, sizes=possible)


def _untrained(images: Digits, bits: int, seed: int) -> float:
    """`shared_information` of an untrained network on 8,000 of the images."""
    generator = Generator().manual_seed(seed)
    index = torch.randperm(len(images.pixel), generator=generator)[:8000]
    few = Digits(images.pixel[index], images.bits[index], images.label[index], images.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(bits, len(images.classes))
    a, b = (_embedded(network, few, generator) for _ in range(2))
    return shared_information(a, b)


# ---- the table -----------------------------------------------------------------------------------


def jobs(scale: str, seeds: Sequence[int]) -> list[Job]:
    smoke = scale == "smoke"
    small: dict[str, Any] = (
        {"images": "digits", "epochs": 2, "batch_size": 200, "size": 20} if smoke else {}
    )
    few = [] if smoke else [(name, 15) for name in ("conditional", "groups kept", "plain")]
    cells = [(name, 10) for name in REMEDIES] + few  # 15 bits: as many codes as images
    cells += [(name, 0) for name in REMEDIES]
    first = {(name, bits) for name in ("plain", "conditional") for bits in (10, 0)}
    every = [(seed, *cell) for seed in seeds for cell in cells]
    every.sort(key=lambda one: one[1:] not in first)  # so that the main claims are decided early
    return [
        Job(
            name=f"{remedy.replace(' ', '-').replace(chr(39), '')}-bits{bits}-seed{seed}",
            call=partial(cell, remedy=remedy, bits=bits, seed=seed, **small),
            facts={"data": "digits" if smoke else "mnist", "remedy": remedy, "bits": bits},
            seed=seed,
        )
        for seed, remedy, bits in every
    ]


def brings_back(results: Results, *, measure: str) -> Verdict:
    """Holds if by this measure `conditional` reads the digit above 0.80 at 10 bits, and within 0.01
    of the plain loss at 0 bits."""
    with_bits_, without = (
        results.by_seed(measure, remedy="conditional", bits=bits) for bits in (10, 0)
    )
    usual = results.by_seed(measure, remedy="plain", bits=0)
    seeds = sorted(set(with_bits_) & set(without) & set(usual))
    if not seeds:
        return Verdict.not_tested("conditional and plain at 0 and 10 bits are not all there")
    back = [with_bits_[s] for s in seeds]
    cost = [usual[s] - without[s] for s in seeds]
    words = f"{measure}: {spread(back)} at 10 bits; {spread(cost)} less than plain at 0 bits"
    holds = [b > 0.8 and c <= 0.01 for b, c in zip(back, cost, strict=True)]
    return Verdict(all(holds) if all(holds) or not any(holds) else None, words)


def suppressed(results: Results) -> Verdict:
    """Holds if the plain loss reads less of the digit at 10 bits than at none."""
    return higher(
        results, "readable", {"remedy": "plain", "bits": 0}, {"remedy": "plain", "bits": 10},
        by=0.1,
    )  # fmt: skip


def kept_beat_renewed(results: Results) -> Verdict:
    """Holds if groups kept from the finder beat renewed groups, and both beat the plain loss."""
    at = {"bits": 10}
    return all_of(
        higher(
            results, "readable", at | {"remedy": "groups kept"}, at | {"remedy": "groups renewed"}
        ),
        higher(results, "readable", at | {"remedy": "groups renewed"}, at | {"remedy": "plain"}),
    )


def no_other_does(results: Results) -> Verdict:
    """Holds if no remedy without the finder reads the digit above 0.80 at 10 bits."""
    others = [n for n, r in REMEDIES.items() if not _looks(r) and n != "few labels"]
    found = {n: results.mean("readable", remedy=n, bits=10) for n in others}
    known = {n: v for n, v in found.items() if v == v}
    if len(known) < len(others):
        return Verdict.not_tested(f"{len(known)} of {len(others)} remedies have a result")
    words = ", ".join(f"{n} {v:.3f}" for n, v in sorted(known.items(), key=lambda item: -item[1]))
    return Verdict(max(known.values()) <= 0.8, f"readable at 10 bits: {words}")


def draw(results: Results) -> Chart:
    """A chart of the accuracy of the digit for each remedy, at 0, 10 and 15 bits."""
    means = {bits: results.where(bits=bits).means("readable", "remedy") for bits in (10, 0, 15)}
    best = sorted(means[10], key=lambda name: -means[10][name])
    traces = []
    for bits, found in means.items():
        names = [name for name in best if name in found]
        marks = line(f"{bits} bits", names, [found[n] for n in names], mode="markers")
        traces += [marks] if names else []
    return chart(traces, None, "digit read from h")


EXPERIMENT = Experiment(
    name="remedies",
    title="Remedies for feature suppression: random bits on MNIST at equal compute",
    source="S0 (Chen, Luo and Li, NeurIPS 2021) leaves it open; the bench is this project's",
    jobs=jobs,
    measures={
        "accuracy": "test accuracy of the digit by the linear classifier that is trained along",
        "readable": "test accuracy of the digit by logistic regression on h, solved on 10,000",
        "bits_readable": "share of the bits of test images that least squares reads from h",
        "group": "images in a group at the end, 0 without groups",
        "cpu_seconds": "processor time of training, groups included, s",
    },
    claims=(
        Claim("Ten shared bits crowd the digit out of plain SimCLR.", "S0 [S0]", suppressed),
        Claim(
            "Conditional negatives bring the digit back above 0.80 at 10 bits and cost at most a "
            "point at none, by a solved classifier.",
            "this project's target",
            partial(brings_back, measure="readable"),
        ),
        Claim(
            "The same by the classifier that is trained along.",
            "this project's target",
            partial(brings_back, measure="accuracy"),
        ),
        Claim(
            "Groups must come from the finder and be kept: made anew every epoch they help less.",
            "this project",
            kept_beat_renewed,
        ),
        Claim(
            "No remedy that does not ask what an encoder confuses reaches 0.80 without labels.",
            "this project",
            no_other_does,
        ),
    ),
    figures=(
        Figure(
            "What each remedy brings back, and costs",
            draw,
            "By a classifier solved on h. At 0 bits what is below the plain loss is harm.",
        ),
    ),
    costs={"smoke": "75 s", "cpu": "75 min a seed on 2 cores with --jobs 2"},
    notes=(
        "Equal compute: as many steps on as many images with the same network for every remedy; "
        "the finder's epoch is one of them. The decoder and the search for groups come on top, in "
        "`cpu_seconds`.",
        "One setting of each remedy, chosen beforehand, none tuned: temperature 0.03, perplexity "
        "20, 20 nearest negatives, beta 1, epsilon 0.1, groups of 40, decoders that weigh 30.",
        "Images are drawn anew every epoch. The notebook's fixed batches, which suppress the "
        "digit more, are a row of their own.",
    ),
)
