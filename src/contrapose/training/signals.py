"""What can be seen while training, most of it without a label."""

import warnings
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.data import ImageSet, evenly
from contrapose.encoders import Encoder
from contrapose.evaluation import geometry, probes
from contrapose.evaluation.embed import embed
from contrapose.losses.temperature import entropy, temperature_at
from contrapose.similarity import negatives
from contrapose.training.recipe import Recipe
from contrapose.training.step import Step

NEUTRAL = 0.1  # temperature at which effective negatives are counted for a loss without one
WATCHED = 1000  # images that the online kNN classifies, each by the others


def measure(seen: Step, recipe: Recipe) -> dict[str, float]:
    """The signals of one batch: a metrics.jsonl row without its clock."""
    z, group, h = seen.z, seen.group, seen.h
    row = {
        "loss": seen.loss,
        "chance": chance(recipe, z, group),
        "gradient_norm": seen.gradient_norm,
        "contrastive_accuracy": geometry.contrastive_accuracy(z, group),
        "alignment": geometry.alignment(z, group),
        "uniformity": geometry.uniformity(z),
        "effective_rank_h": geometry.effective_rank(h),
        "effective_rank_z": geometry.effective_rank(z),
    }
    if bool((group != group[0]).any()):
        row |= heat(recipe, z, group)
    if seen.label is not None:
        known = seen.label >= 0
        classes = torch.bincount(seen.label[known])
        if len(classes) and int(classes.max()) > recipe.number_of_views:
            row["tolerance"] = geometry.tolerance(z[known], seen.label[known])
    return {name: float(value) for name, value in row.items()}


def heat(recipe: Recipe, z: Float[Tensor, "N D"], group: Int[Tensor, " N"]) -> dict[str, float]:
    """The temperature in force on these rows, and the effective negatives that it gives.

    With a perplexity the temperature is the one that gives it here; where every anchor has its own,
    their median. For a loss without one, effective negatives are those at NEUTRAL. Nothing where
    the perplexity is more than there are negatives here.
    """
    pairs, t = negatives(group), recipe.temperature
    found: float | Tensor = NEUTRAL if t is None else t
    keywords = getattr(recipe.loss, "keywords", {})
    if (perplexity := keywords.get("perplexity")) is not None:
        if len(group) - int(torch.unique(group, return_counts=True)[1].max()) <= perplexity:
            return {}
        with warnings.catch_warnings(action="ignore"):  # the step itself has warned
            per = keywords.get("per", "batch")
            found = temperature_at(z, z, perplexity=perplexity, per=per, pairs=pairs)
        t = float(found.median())
    felt = float(entropy(z, z, scale=1 / found, pairs=pairs).exp().mean())
    return ({} if t is None else {"temperature": t}) | {"effective_negatives": felt}


def chance(recipe: Recipe, z: Float[Tensor, "N D"], group: Int[Tensor, " N"]) -> float:
    """The loss of an encoder that gives every image the same embedding: ln(2B-1) for NT-Xent."""
    same = torch.zeros_like(z)
    same[:, 0] = 1.0
    with warnings.catch_warnings(action="ignore"):  # equal embeddings have every temperature
        return float(recipe.loss(same, group))


def online_knn(
    encoder: Encoder, images: ImageSet, recipe: Recipe, device: str, bf16: bool
) -> float:
    """Share of WATCHED training images whose class their neighbours among them name (k = 20)."""
    assert images.label is not None
    known = torch.nonzero(images.label >= 0).flatten()
    chosen = known[evenly(len(known), WATCHED)]
    watched = images.subset(chosen)
    precision: Literal["bf16", "fp32"] = "bf16" if bf16 else "fp32"
    h = embed(encoder, watched, size=recipe.size, device=device, precision=precision).h
    assert watched.label is not None
    k = min(20, probes.most_neighbours(watched.label, True))
    scores = probes.knn(h, h, watched.label, k=k, leave_one_out=True)
    return float((scores.argmax(dim=1) == watched.label.to(scores.device)).float().mean())
