"""One optimisation step: images -> rows -> (h, z) -> loss -> update, by the run's objective."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.encoders import Encoder
from contrapose.keys import chunked
from contrapose.losses.checks import RowsOutOfRange
from contrapose.training.objective import Batch, Compared, Objective
from contrapose.training.recipe import Recipe


class NonFiniteError(ArithmeticError):
    """The loss or its gradient is NaN or infinite; the weights are still those before the step."""


@dataclass(frozen=True)
class Step:
    """What a step saw, for whoever measures: N rows, Q views of each of the images, view by view.

    label: the class of each row, -1 without one.
    """

    loss: float
    gradient_norm: float
    h: Float[Tensor, "N F"]
    z: Float[Tensor, "N D"]
    images: int
    label: Int[Tensor, " N"] | None
    compared: Compared  # what the rows were held against


def step(
    encoder: Encoder,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batch: Batch,
    recipe: Recipe,
    generator: torch.Generator,
    *,
    label: Int[Tensor, " B"] | None = None,
    bf16: bool = False,
) -> Step:
    """Update the encoder once. Raises NonFiniteError before a bad gradient touches the weights.

    The objective is left as it was: `objective.update(encoder, seen.compared)` takes the batch in.
    label: the class of each image, for measures.
    """
    seen = objective.rows(batch, generator)
    rows = seen.image.contiguous(memory_format=torch.channels_last)
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=bf16):
        h, z = encoder(rows) if recipe.chunk is None else chunked(encoder, rows, chunk=recipe.chunk)
        compared = objective.compare(encoder, seen, h, z)
    try:
        loss = objective.loss(compared, z)
    except RowsOutOfRange as error:
        raise NonFiniteError(_where(rows, h, z) or str(error)) from error
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [p for p in encoder.parameters() if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    value, size = torch.stack([loss.detach().float(), norm.float()]).tolist()  # one synchronisation
    if not (math.isfinite(value) and math.isfinite(size)):
        reason = f"the loss was {value} and the norm of its gradient {size}"
        raise NonFiniteError(_where(rows, h, z) or reason)
    if recipe.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, recipe.clip, norm)
    optimizer.step()
    compared = replace(
        compared, classified={name: x.detach() for name, x in compared.classified.items()}
    )
    count = len(batch.image)
    repeated = None if label is None else label.repeat(len(rows) // count)
    return Step(value, size, h.detach().float(), z.detach().float(), count, repeated, compared)


def _where(view: Tensor, h: Tensor, z: Tensor) -> str:
    """The first of view, h and z with NaN or infinity, in words; "" if there is none."""
    for name, x in (("the views", view), ("the representation h", h), ("the embedding z", z)):
        if not x.isfinite().all():
            return f"{name} held NaN or infinity"
    return ""
