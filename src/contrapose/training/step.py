"""One optimisation step: images -> rows -> (h, z) -> loss -> update, by the run's objective.

On several ranks a step is the same, with the images that this one has (`parallel`).
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.encoders import Encoder
from contrapose.losses.checks import RowsOutOfRange
from contrapose.training.objective import Batch, Compared, Objective
from contrapose.training.parallel import Alone
from contrapose.training.recipe import Recipe


class NonFiniteError(ArithmeticError):
    """The loss or its gradient is NaN or infinite; the weights are still those before the step."""


@dataclass(frozen=True)
class Step:
    """What a step saw, for whoever measures: N rows, Q views of each of the images, view by view.

    label: the class of each row, -1 without one. h, z, label and compared are of this rank's rows;
    `of_all` has those of all.
    """

    loss: float
    gradient_norm: float
    h: Float[Tensor, "N F"]
    z: Float[Tensor, "N D"]
    images: int
    label: Int[Tensor, " N"] | None
    compared: Compared  # what the rows were held against

    def of_all(self, objective: Objective, sharing: Alone, images: int) -> "Step":
        """What all ranks saw of a batch of so many images, in the order of one process."""
        if sharing.alone:
            return self
        gather = sharing.whole(images)
        z = gather(self.z)
        label = None if self.label is None else gather(self.label)
        compared = objective.of_all(self.compared, len(z), gather)
        return replace(self, h=gather(self.h), z=z, images=images, label=label, compared=compared)


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
    sharing: Alone | None = None,
    images: int | None = None,
) -> Step:
    """Update the encoder once. Raises NonFiniteError before a bad gradient touches the weights.

    The objective is left as it was: `objective.update(encoder, seen.compared)` takes the batch in.
    label: the class of each image, for measures. sharing: with which ranks the batch of so many
    `images` is shared; None: this process has it whole.
    """
    sharing = Alone(encoder, recipe) if sharing is None else sharing
    with sharing.sharing(len(batch.image) if images is None else images):
        seen = objective.rows(batch, generator)
        rows = seen.image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=bf16):
            h, z = sharing.embed(rows)
            compared = objective.compare(encoder, seen, h, z)
        if sharing.broken(z):
            raise NonFiniteError(_where(rows, h, z) or "rows of a rank held NaN or infinity")
        torch.manual_seed(generator.initial_seed())  # what a loss draws is the same on all ranks
        try:
            loss = objective.loss(compared, z)
        except RowsOutOfRange as error:
            raise NonFiniteError(_where(rows, h, z) or str(error)) from error
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
    parameters = [p for p in encoder.parameters() if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    measured = sharing.mean(torch.stack([loss.detach().float(), norm.float()]))
    value, size = measured.tolist()  # one synchronisation
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
    h, z = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (h, z))
    return Step(value, size, h, z, count, repeated, compared)


def _where(view: Tensor, h: Tensor, z: Tensor) -> str:
    """The first of view, h and z with NaN or infinity, in words; "" if there is none."""
    for name, x in (("the views", view), ("the representation h", h), ("the embedding z", z)):
        if not x.isfinite().all():
            return f"{name} held NaN or infinity"
    return ""
