"""Probes of frozen features: nearest neighbours, and logistic regression solved to convergence.

Features are computed once, without augmentation. Rows labelled -1 are left out, and the probe's
sentence about its protocol counts them.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.encoders import unit
from contrapose.errors import UserError
from contrapose.evaluation.logistic import LogisticRegression
from contrapose.progress import counted, stage
from contrapose.similarity import Pairs, topk

DECADES = tuple(10.0**k for k in range(5, -4, -1))
Labelled = tuple[Float[Tensor, "M D"], Int[Tensor, " M"]]  # rows of features and their labels
SIMCLR_PATH = tuple(10 ** (5 - 11 * k / 44) for k in range(45))  # SimCLR's transfer protocol


def knn(
    query: Float[Tensor, "N D"],
    bank: Float[Tensor, "M D"],
    bank_label: Int[Tensor, " M"],
    *,
    k: int = 200,
    temperature: float = 0.1,
    leave_one_out: bool = False,
    classes: int | None = None,
) -> Float[Tensor, "N C"]:
    """Class scores by a weighted vote of the k nearest rows of the bank (arXiv 1805.01978).

    score_c = sum over neighbours j of class c of exp(s_j / temperature), divided by the sum over
    all classes; s is the cosine (rows are brought to unit length here). Exact. leave_one_out: query
    and bank are the same rows, and none votes for itself. Where the bank holds fewer than k rows
    with a label all of them vote, with a warning. Raises UserError for a bank without labels.
    """
    _check("knn", bank, bank_label)
    if not query.isfinite().all():
        raise UserError(f"knn: some of the {len(query)} queries hold a number that is not finite")
    if not (k >= 1 and 0 < temperature < math.inf):
        raise UserError(f"knn: k={k}, temperature={temperature}; both must be positive")
    known = torch.nonzero(bank_label >= 0).flatten()
    if leave_one_out and (len(query) != len(bank) or len(known) < 2):
        raise UserError(
            f"knn: leave_one_out needs the same rows on both sides and two with a label, got "
            f"{len(query)} queries and a bank of {len(bank)} rows, {len(known)} with a label"
        )
    label = bank_label[known]
    if (voters := most_neighbours(bank_label, leave_one_out)) < k:
        warnings.warn(f"knn: k={k}, but only {voters} rows can vote: all do", stacklevel=2)
    number = int(label.max()) + 1 if classes is None else classes
    rows = torch.arange(len(query), device=query.device)
    pairs = Pairs(row_id=rows, col_id=known) if leave_one_out else Pairs()
    with stage("nearest neighbours"):
        similarity, index = topk(unit(query), unit(bank[known]), min(k, voters), pairs=pairs)
    vote = ((similarity - similarity[:, :1]) / temperature).exp()  # the nearest one weighs 1
    scores = vote.new_zeros(len(query), number).scatter_add(1, label[index], vote)
    return scores / scores.sum(dim=1, keepdim=True)


def most_neighbours(bank_label: Int[Tensor, " M"], leave_one_out: bool = False) -> int:
    """The number of rows of a bank that can vote, which is the largest k for `knn`."""
    return max(1, int((bank_label >= 0).sum()) - leave_one_out)


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on unscaled features, and how it was fitted."""

    weight: Float[Tensor, "C D"]
    bias: Float[Tensor, " C"]  # -inf for a class without a training example
    protocol: str
    path: tuple[tuple[float, float], ...] = ()  # (l2, held-out accuracy)
    chosen: str = ""  # what the protocol chose for these features, in words

    def scores(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        return x.to(self.weight) @ self.weight.T + self.bias

    def predict(self, x: Float[Tensor, "N D"]) -> Int[Tensor, " N"]:
        return self.scores(x).argmax(dim=1)


def share_right(scores: Float[Tensor, "N C"], label: Int[Tensor, " N"]) -> float:
    """The share of rows whose highest score is that of their label."""
    return float((scores.argmax(dim=1) == label).double().mean())


def linear_probe(
    x: Float[Tensor, "N D"],
    label: Int[Tensor, " N"],
    *,
    l2: float | Sequence[float] = DECADES,
    held_out: float = 0.2,
    validation: Labelled | None = None,
    judge: Callable[[Tensor, Tensor], float] = share_right,
    standardise: bool = True,
    classes: int | None = None,
    seed: int = 0,
) -> LinearProbe:
    """Multinomial logistic regression at its minimum, its l2 chosen on held-out rows.

    minimises  sum_i CE(W x_i + b, y_i) + l2 / 2 |W|^2   (scikit-learn's C = 1 / l2)

    Several values of l2 are solved from the strongest to the weakest, each from the solution before
    it, on all but a stratified `held_out` share; the one with the best accuracy there (the
    strongest of equals) is solved again on all rows. `SIMCLR_PATH` has the 45 values of SimCLR's
    transfer protocol. validation: rows that choose in place of the share, and are among all rows in
    the end. judge: what is best, a function (scores, label) of rows that choose. standardise:
    features get mean 0 and variance 1 first, folded into W and b.
    One value of l2 needs no held-out rows. Raises UserError for a single class, and for a class
    with one row where some are held out.

    The objective ends within some 1e-7 of its minimum, relative; a fit that does not get there is
    told in a warning, and in the protocol where it is the last one. See `logistic.py`.
    """
    x, label, dropped = _labelled("linear_probe", x, label)
    among: Tensor | None = None
    if validation is not None:
        more, more_label, also = _labelled("linear_probe", *validation)
        among = torch.arange(len(label) + len(more_label), device=x.device) >= len(label)
        x, label = torch.cat([x, more.to(x)]), torch.cat([label, more_label.to(label)])
        dropped += also
    path = sorted([l2] if isinstance(l2, int | float) else l2, reverse=True)
    if not path or not all(0 < value < math.inf for value in path):
        raise UserError(f"linear_probe: l2={l2}; needs positive numbers")
    present, y, count = torch.unique(label, return_inverse=True, return_counts=True)
    number = int(label.max()) + 1 if classes is None else classes
    measured: list[tuple[float, float]] = []
    best = path[0]
    if len(path) > 1:
        if among is None and (not 0 < held_out < 1 or int(count.min()) < 2):
            raise UserError(
                f"linear_probe: held_out={held_out} of every class, but classes "
                f"{present[count < 2].tolist()[:10]} have a single row; give more rows or one l2"
            )
        held = _hold_out(y, held_out, seed) if among is None else among
        if among is not None and len(torch.unique(y[~held])) < len(present):
            raise UserError("linear_probe: validation has classes that the other rows lack")
        fit = LogisticRegression(x[~held], y[~held], len(present), standardise=standardise)
        for value in counted(path, "linear probe"):
            weight, bias = _solved(fit, value)
            measured.append((value, judge(x[held] @ weight.T + bias, y[held])))
        best = max(measured, key=lambda pair: pair[1])[0]
        of = "held-out" if among is None else "validation"
        how = f"l2 the best of {len(path)} on {int(held.sum()):,} {of} rows, refitted"
        chosen = f"l2 = {best:g}; held-out accuracy by l2: "
        chosen += ", ".join(f"{value:g} {share:.3f}" for value, share in measured)
    else:
        how, chosen = f"l2 = {best:g}", ""
    fit = LogisticRegression(x, y, len(present), standardise=standardise)
    # a warm start for the last one
    for value in counted([v for v in path if v == best or v > 99 * best], "linear probe again"):
        weight, bias = _solved(fit, value)
    short = "" if fit.converged else ", not solved to its end"
    features = "standardised features" if standardise else "features as they are"
    unlabelled = f"; {dropped:,} rows without a label left out" if dropped else ""
    return LinearProbe(
        *_spread(weight, bias, present, number),
        f"logistic regression by Newton's method on {len(x):,} rows of {features}, {how}{short}"
        + unlabelled,
        tuple(measured),
        chosen,
    )


def _solved(fit: LogisticRegression, l2: float) -> tuple[Tensor, Tensor]:
    weight, bias = fit.solve(l2)
    if not fit.converged:
        warnings.warn(
            f"linear_probe: l2={l2:g} not solved to its end in {fit.newton_steps} Newton steps; "
            f"about {fit.gap:.1g} of the objective is left to gain; use a stronger l2",
            stacklevel=3,
        )
    return weight, bias


def _spread(weight: Tensor, bias: Tensor, present: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Weights for all classes; a class without training rows has score -inf."""
    all_weights = weight.new_zeros(classes, weight.shape[1]).index_copy(0, present, weight)
    return all_weights, bias.new_full((classes,), -math.inf).index_copy(0, present, bias)


def _hold_out(y: Tensor, share: float, seed: int) -> Tensor:
    """Which rows are held out: of each class the share, one at least and never all."""
    draw = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).to(y.device)
    order = draw[y[draw].argsort(stable=True)]  # classes in turn, shuffled within
    count = torch.bincount(y)
    rank = torch.arange(len(y), device=y.device) - (count.cumsum(0) - count)[y[order]]
    held = torch.zeros_like(y, dtype=torch.bool)
    held[order] = rank < (share * count).round().clamp(min=1).minimum(count - 1)[y[order]]
    return held


def _labelled(name: str, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor, int]:
    """Rows with a label, detached, and how many have none; UserError for a single class."""
    _check(name, x, label)
    known = label >= 0
    seen = torch.unique(label[known])
    if len(seen) < 2:
        raise UserError(
            f"{name}: all {int(known.sum())} labelled rows are of class {int(seen[0])}; a "
            "classifier needs two classes"
        )
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.detach()[known].to(wide), label[known], int((~known).sum())


def _check(name: str, x: Tensor, label: Tensor) -> None:
    if len(x) != len(label):
        raise UserError(f"{name}: {len(x)} rows of features, {len(label)} labels")
    if not bool((label >= 0).any()):
        raise UserError(f"{name}: none of the {len(x)} rows has a label (all are -1)")
    bad = int((~x.isfinite()).any(dim=1).sum())
    if bad:
        raise UserError(f"{name}: {bad} of {len(x)} rows hold a number that is not finite")
