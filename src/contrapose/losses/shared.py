"""SupCon for images with several labels: rows that share a label are positives of each other."""

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from contrapose.errors import UserError
from contrapose.losses.checks import check_groups, check_positive, mean_over_anchors
from contrapose.losses.terms import supcon_terms
from contrapose.similarity import gather_rows, others


def supcon_shared(
    z: Float[Tensor, "N D"],
    group: Int[Tensor, " N"],
    labels: Int8[Tensor, "N K"],
    *,
    temperature: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """SupCon (arXiv 2004.11362, eq. 2) whose positives share at least one of several labels.

    mean over i of  log sum_{a in A(i)} e^{s_ia/t}  -  mean_{p in P(i)} s_ip/t
    with P(i) the other rows of i's group (views of one image) and those with a label in common.
    labels: 1 = has it; 0 and -1 (unknown) are no label in common. O(N M) memory for N rows and the
    M of all processes, since rows that share labels are no partition into groups.
    Raises UserError for a matrix that is not one row of labels for each row of z.
    """
    z, group = check_groups("supcon_shared", z, group)
    check_positive("supcon_shared", temperature=temperature)
    if labels.ndim != 2 or len(labels) != len(z):
        raise UserError(
            f"supcon_shared: labels of shape {tuple(labels.shape)} for {len(z)} rows; give [N, K]"
        )
    every, rules = gather_rows(z), others(len(z), z.device)
    has = (labels > 0).to(z.dtype)
    with torch.autocast(z.device.type, enabled=False):
        positive = has @ gather_rows(has).T > 0
    positive |= group[:, None] == gather_rows(group)[None, :]
    assert rules.row_id is not None and rules.col_id is not None
    positive &= rules.row_id[:, None] != rules.col_id[None, :]
    count = positive.sum(dim=1)
    with torch.autocast(z.device.type, enabled=False):
        mean = positive.to(z.dtype) @ every / count.clamp(min=1)[:, None]
    only = None
    if z.device.type == "cpu" and len(z) and not bool((count > 1).any()):
        only = torch.where(count > 0, positive.int().argmax(dim=1), rules.row_id)
    loss, _ = supcon_terms(z, every, temperature, (z * mean).sum(dim=1), count, only)
    return mean_over_anchors("supcon_shared", loss, count > 0)
