"""Signals of training, such as alignment and uniformity; most of them need no labels."""

import statistics
import warnings
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from contrapose.data import ImageSet, evenly
from contrapose.encoders import Encoder, unit
from contrapose.evaluation import geometry, probes
from contrapose.evaluation.embed import embed
from contrapose.keys.contrast import Contrast, Grouped, Matched
from contrapose.losses.temperature import Similarities, effective_negatives, temperature_in_force
from contrapose.machine import has_float64, on_cpu
from contrapose.processes import Rank
from contrapose.similarity import Pairs, paired, positive_similarity, topk
from contrapose.training.recipe import Recipe

if TYPE_CHECKING:
    from contrapose.training.objective import Objective
    from contrapose.training.step import Step

NEUTRAL = 0.1  # temperature at which effective negatives are counted for a loss without one
WATCHED = 1000  # images that the online kNN classifies, each by the others


def step_signals(seen: "Step", objective: "Objective") -> dict[str, float]:
    """The signals of one batch: a metrics.jsonl row without its clock.

    Taken before the objective takes the batch in.
    """
    if not has_float64(seen.z.device):
        seen = on_cpu(seen)
    z, h = seen.z, seen.h
    row = {
        "loss": seen.loss,
        "gradient_norm": seen.gradient_norm,
        **objective.signals(seen.compared, z),
        "uniformity": geometry.uniformity(z),
        "effective_rank_h": geometry.effective_rank(h),
        "effective_rank_z": geometry.effective_rank(z),
    }
    if seen.label is not None:
        known = seen.label >= 0
        classes = torch.bincount(seen.label[known])
        if len(classes) and int(classes.max()) > len(z) // max(1, seen.images):
            row["tolerance"] = geometry.tolerance(z[known], seen.label[known])
    return {name: float(value) for name, value in row.items()}


def agreement(z: Float[Tensor, "N D"], contrast: Contrast) -> dict[str, float]:
    """Alignment with the positives, and how often the nearest candidate is one of them.

    With a bank or a queue the only positive is the row's key and candidates are all keys; with a
    memory candidates are the other rows and all keys. Empty if no row has a positive.
    """
    if isinstance(contrast, Matched):
        key, match = contrast.key, contrast.match
        own = unit(key[match])
        nearest, index = topk(z, key, 1, pairs=contrast.pairs)
        right = (index[:, 0] == match) | (nearest[:, 0] < paired(z, key[match]))
        apart = (unit(z) - own).square().sum(dim=1)
        return {
            "contrastive_accuracy": float(right.float().mean()),
            "alignment": float(apart.mean()),
        }
    if isinstance(contrast, Grouped):
        names = torch.cat([contrast.group, contrast.key_group])
        row_id = torch.arange(len(names), device=z.device)
        pairs = Pairs(row_id=row_id[: len(z)], col_id=row_id)
        nearest, index = topk(z, torch.cat([z, contrast.key]), 1, pairs=pairs)
        near = contrast.group == names[index[:, 0]]
        _, number, size = names.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
        some = size[number[: len(z)]] > 1
        if not some.any():
            return {}
        found = {"contrastive_accuracy": float(near[some].float().mean())}
    elif len(torch.unique(contrast.group)) == len(contrast.group):
        return {}  # frames of times of their own, each once
    else:
        each = [geometry.contrastive_accuracy(z[r], part.group) for r, part in contrast.parts()]
        found = {"contrastive_accuracy": statistics.fmean(each)}
    if len(torch.unique(contrast.group)) < len(contrast.group):
        found["alignment"] = geometry.alignment(z, contrast.group)
    return found


def temperature_signals(
    recipe: Recipe, z: Float[Tensor, "N D"], contrast: Contrast
) -> dict[str, float]:
    """The temperature on these rows, and the effective number of negatives at it.

    With a perplexity it is the temperature with this perplexity on these rows, or a higher one if
    positives are far; with a temperature for each anchor their median. For a loss without a
    temperature the effective negatives are those at NEUTRAL. Empty if there are no negatives, or
    fewer than the perplexity.
    """
    key, pairs, match = contrast.negatives(z)
    fewest = int(Similarities(z, key, pairs, match).count.min())
    t, keywords = recipe.temperature, getattr(recipe.loss, "keywords", {})
    perplexity = keywords.get("perplexity")
    if fewest <= (perplexity or 0):
        return {}
    found: float | Tensor = NEUTRAL if t is None else t
    if perplexity is not None:
        per = keywords.get("per", "batch")
        with warnings.catch_warnings(action="ignore"):  # the step itself has warned
            found = torch.as_tensor(
                temperature_in_force(
                    "signals", z, key, temperature=None, perplexity=perplexity, per=per,
                    negatives=lambda: pairs, positives=lambda: _own(z, contrast), match=match,
                )
            )  # fmt: skip
        t = float(found.median())
    effective = effective_negatives(z, key, temperature=found, pairs=pairs, match=match)
    return ({} if t is None else {"temperature": t}) | {"effective_negatives": effective}


def _own(
    z: Float[Tensor, "N D"], contrast: Contrast
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """The mean similarity of each row to its positives, and whether it has any."""
    if isinstance(contrast, Matched):
        return paired(z, contrast.key[contrast.match]), torch.ones_like(contrast.match).bool()
    similarity, count = positive_similarity(z, contrast.group)
    return similarity, count > 0


def online_knn(
    encoder: Encoder, images: ImageSet, recipe: Recipe, device: str, bf16: bool, me: Rank
) -> float:
    """kNN accuracy (k = 20) of WATCHED training images, each classified by the others.

    me: this process among those that share the images, each of which calls this.
    """
    assert images.label is not None
    known = torch.nonzero(images.label >= 0).flatten()
    chosen = known[evenly(len(known), WATCHED)]
    watched = images.subset(chosen)
    precision: Literal["bf16", "fp32"] = "bf16" if bf16 else "fp32"
    h = embed(encoder, watched, size=recipe.size, device=device, precision=precision, me=me).h
    assert watched.label is not None
    k = min(20, probes.most_neighbours(watched.label, True))
    scores = probes.knn(h, h, watched.label, k=k, leave_one_out=True)
    return float((scores.argmax(dim=1) == watched.label.to(scores.device)).float().mean())
