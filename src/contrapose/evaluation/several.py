"""Probes for images with several labels: mean average precision, with the prevalence as chance.

One logistic regression for each label on standardised features (scikit-learn), as for PASCAL VOC:
the average precision of a label is the area under precision over recall of its scores, and that of
scores without information is the label's share of the test images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from contrapose.errors import UserError
from contrapose.evaluation.logistic import LogisticRegression as Newton
from contrapose.evaluation.probes import SIMCLR_PATH
from contrapose.evaluation.scores import Features, Score
from contrapose.progress import counted

DRAWS = 200  # of the test images, for the interval
PROTOCOL = (
    "logistic regression (l2, C = 1) of each label on standardised features; area under precision "
    "over recall, mean over the labels that some test images have and some have not; interval by "
    f"{DRAWS} draws of the test images"
)


def mean_average_precision(
    train: Float[Tensor, "N F"],
    train_labels: Int8[Tensor, "N K"],
    test: Float[Tensor, "M F"],
    test_labels: Int8[Tensor, "M K"],
    *,
    features: Features,
    split: str,
    seed: int,
    images: str = "",
) -> Score | None:
    """Mean over labels of the average precision on test images; None where no label can be probed.

    labels: 1, 0, and -1 for unknown, which neither trains nor counts.
    """
    from sklearn.linear_model import LogisticRegression  # a second to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    given, wanted = train_labels.numpy(), test_labels.numpy()
    scores = np.zeros(wanted.shape)
    usable = [
        k for k in range(wanted.shape[1]) if {0, 1} <= {*given[:, k]} and {0, 1} <= {*wanted[:, k]}
    ]
    for k in counted(usable, "a linear probe of each label"):
        known = given[:, k] >= 0
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        probe.fit(train.numpy()[known], given[known, k])
        scores[:, k] = probe.decision_function(test.numpy())
    return _score(scores, wanted, usable, "mean average precision", features, split, seed, images)


def prevalence(
    labels: Int8[Tensor, "M K"], *, split: str, seed: int, images: str = ""
) -> Score | None:
    """The mean average precision of scores that know nothing: the mean share of the labels."""
    wanted = labels.numpy()
    usable = [k for k in range(wanted.shape[1]) if {0, 1} <= {*wanted[:, k]}]
    name = "mean average precision of chance"
    return _score(np.zeros(wanted.shape), wanted, usable, name, "none", split, seed, images)


def _score(
    scores: np.ndarray, wanted: np.ndarray, usable: list[int], metric: str, features: Features,
    split: str, seed: int, images: str,
) -> Score | None:  # fmt: skip
    if not usable:
        return None
    random = np.random.default_rng(seed)
    drawn = [random.integers(len(wanted), size=len(wanted)) for _ in range(DRAWS)]
    drawing = counted(drawn, "interval of mean average precision")
    again = [_mean(scores[rows], wanted[rows], usable) for rows in drawing]
    low, high = np.nanquantile(again, (0.025, 0.975))
    return Score(
        metric=metric,
        value=_mean(scores, wanted, usable),
        low=float(low),
        high=float(high),
        n=int((wanted >= 0).any(axis=1).sum()),
        protocol=f"{PROTOCOL}; {len(usable)} of {wanted.shape[1]} labels",
        split=split,
        seed=seed,
        features=features,
        images=images,
        draws=tuple(again),
    )


def _mean(scores: np.ndarray, wanted: np.ndarray, usable: list[int]) -> float:
    from sklearn.metrics import average_precision_score

    found = []
    for k in usable:
        known = wanted[:, k] >= 0
        if (wanted[known, k] == 1).any():
            found.append(average_precision_score(wanted[known, k], scores[known, k]))
    return float(np.mean(found)) if found else float("nan")


def eleven_point(score: Float[np.ndarray, " N"], wanted: Bool[np.ndarray, " N"]) -> float:
    """Average precision of PASCAL VOC 2007: the mean over recalls t = 0, 0.1 ... 1 of the highest
    precision at a recall of t or more. Equal scores are ranked together. NaN without a positive.
    """
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # of rows of equal score
    found = np.cumsum(wanted[order])[last]
    if not len(found) or not found[-1]:
        return float("nan")
    precision, recall = found / (last + 1), found / found[-1]
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or more
    at = np.searchsorted(recall, np.arange(11) / 10 - 1e-12)
    return float(best[at].mean())


@dataclass(frozen=True)
class ProbeOfEach:
    """A logistic regression of each of K labels on h, with one l2 for all of them."""

    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, " K"]
    l2: float

    def scores(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        """The log-odds of each label."""
        return x.to(self.weight) @ self.weight.T + self.bias


def probe_of_each(
    x: Float[Tensor, "N D"],
    labels: Int8[Tensor, "N K"],
    validation: tuple[Float[Tensor, "M D"], Int8[Tensor, "M K"]],
    path: Sequence[float] = SIMCLR_PATH,
) -> ProbeOfEach:
    """The regressions with the l2 whose mean 11-point average precision on validation is highest
    (the strongest of equals), solved again on all rows: SimCLR's transfer to VOC 2007.

    labels: 1, 0, and -1 for unknown, which neither trains nor counts. A label that training or
    validation never has or always has is left out of the choice. Raises UserError where that leaves
    none.
    """
    held, told = validation
    both = [k for k in range(labels.shape[1]) if {0, 1} <= {*labels[:, k].tolist()}]
    judged = [k for k in both if 1 in told[:, k].tolist()]
    if not judged:
        raise UserError("probe_of_each: no label is there and is not there, in both parts")
    values = sorted(path, reverse=True)
    total = torch.zeros(len(values), dtype=torch.float64)
    for k in counted(judged, "a linear probe of each label"):
        known, seen = labels[:, k] >= 0, told[:, k] >= 0
        fit = Newton(x[known], labels[known, k].long(), 2)
        wanted = told[seen, k].numpy() == 1
        for i, value in enumerate(values):
            weight, bias = _log_odds(fit, value)
            total[i] += eleven_point((held[seen] @ weight + bias).double().numpy(), wanted)
    best = values[int(total.argmax())]
    rows, every = torch.cat([x, held]), torch.cat([labels, told])
    fitted = []
    for k in range(labels.shape[1]):
        known = every[:, k] >= 0
        if k not in both:
            fitted.append((x.new_zeros(x.shape[1]), x.new_zeros(())))
            continue
        fit = Newton(rows[known], every[known, k].long(), 2)
        for value in [v for v in values if v == best or v > 99 * best]:  # each from the one before
            solution = _log_odds(fit, value)
        fitted.append(solution)
    weights, biases = zip(*fitted, strict=True)
    return ProbeOfEach(torch.stack(weights), torch.stack(biases), best)


def _log_odds(fit: Newton, l2: float) -> tuple[Float[Tensor, " D"], Float[Tensor, ""]]:
    """Weight and bias of the logit of class 1 against class 0."""
    weight, bias = fit.solve(l2)
    return weight[1] - weight[0], bias[1] - bias[0]
