"""Losses of a linear classifier: logits against labels. Contrast is not involved."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import log_softmax

from contrapose.errors import UserError
from contrapose.losses.checks import check_lengths, mean_over_anchors
from contrapose.similarity import whole_numbers, widen


def cross_entropy(
    logits: Float[Tensor, "N C"],
    label: Int[Tensor, " N"] | Float[Tensor, "N C"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Softmax cross-entropy, the mean over rows i of  -sum_c q_ic log(e^{f_ic} / sum_d e^{f_id}).

    logits: f, of any size. label: the class of each row, so that q is 1 there and 0 elsewhere, or q
    itself, the shares of each class that MixUp and CutMix give; a row's shares sum to 1.
    label_smoothing: s in q <- (1 - s) q + s / C (arXiv 1512.00567, section 7). Rows without a label
    (below 0, or shares of 0) are counted and left out. Raises UserError for a label that is no
    class, and for a smoothing outside [0, 1).
    """
    name = "cross_entropy"
    if logits.ndim != 2 or label.shape not in (logits.shape[:1], logits.shape):
        raise UserError(
            f"{name}: logits of shape {tuple(logits.shape)} and labels of {tuple(label.shape)}; "
            "give logits [N, C] with classes [N] or with shares of them [N, C]"
        )
    if not 0 <= label_smoothing < 1:
        raise UserError(f"{name}: label_smoothing={label_smoothing}; use 0 <= label_smoothing < 1")
    check_lengths(name, logits, unit=False)
    logits = widen(logits)
    count = logits.shape[1]
    if label.ndim == 1:
        label = whole_numbers(name, "labels", label)
        if label.device.type == "cpu" and len(label) and int(label.max()) >= count:
            raise UserError(
                f"{name}: label {int(label.max())} among {count} classes; use 0 to {count - 1}, or "
                "-1 for no label"
            )
        known = label >= 0
        share = torch.nn.functional.one_hot(label.clamp(min=0), count).to(logits)
    else:
        share = label.to(logits)
        known = share.sum(dim=1) > 0
    share = (1 - label_smoothing) * share + label_smoothing / count
    loss = -(share * log_softmax(logits, dim=1)).sum(dim=1)
    return mean_over_anchors(name, loss, known, lacking="a label")
