"""Probes for images with several labels: mean average precision, with the prevalence as chance.

One logistic regression for each label on standardised features (scikit-learn), as for PASCAL VOC:
the average precision of a label is the area under precision over recall of its scores, and that of
scores without information is the label's share of the test images.
"""

import numpy as np
from jaxtyping import Float, Int8
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

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
    found = []
    for k in usable:
        known = wanted[:, k] >= 0
        if (wanted[known, k] == 1).any():
            found.append(average_precision_score(wanted[known, k], scores[known, k]))
    return float(np.mean(found)) if found else float("nan")
