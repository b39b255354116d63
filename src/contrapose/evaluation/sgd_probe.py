"""The linear probe as papers run it: stochastic gradient descent for a fixed number of epochs.

Here on features computed once, where the papers crop and flip the images anew in each epoch; the
protocol sentence says so. For the best linear classifier on the features use `linear_probe`.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrapose.errors import UserError
from contrapose.evaluation.probes import LinearProbe, _labelled, _spread
from contrapose.progress import counted


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """SGD with momentum 0.9 and no weight decay, from a classifier of zeros."""

    name: str
    lr: float  # for this batch size
    batch_size: int
    epochs: int
    milestones: tuple[int, ...] = ()  # epochs after which lr is multiplied by `factor`;
    factor: float = 0.1  #             without milestones, half a cosine down to zero
    nesterov: bool = False

    def rate(self, epoch: int) -> float:
        if not self.milestones:
            return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return float(self.lr * self.factor ** sum(epoch >= m for m in self.milestones))


SIMCLR = Protocol(  # 2002.05709, B.6; schedule as in its code
    name="SimCLR", lr=1.6, batch_size=4096, epochs=90, nesterov=True
)
SIMCLR_CIFAR = Protocol(  # the CIFAR-10 command of SimCLR's code: 0.1 per 256 images
    name="SimCLR CIFAR", lr=0.2, batch_size=512, epochs=100, nesterov=True
)
WANG_LIU = Protocol(  # 2012.09740, experiments
    name="Wang & Liu",
    lr=30.0,
    batch_size=256,
    epochs=100,
    milestones=(40, 60, 80),
    factor=0.2,
)
SUPCON = Protocol(  # 2004.11362, the PyTorch code for CIFAR
    name="SupCon",
    lr=5.0,
    batch_size=512,
    epochs=100,
    milestones=(60, 75, 90),
    factor=0.2,
)
MOCO = Protocol(  # 1911.05722
    name="MoCo",
    lr=30.0,
    batch_size=256,
    epochs=100,
    milestones=(60, 80),
    factor=0.1,
)
PROTOCOLS = {
    "simclr": SIMCLR,
    "simclr_cifar": SIMCLR_CIFAR,
    "wang_liu": WANG_LIU,
    "supcon": SUPCON,
    "moco": MOCO,
}


def sgd_probe(
    x: Float[Tensor, "N D"],
    label: Int[Tensor, " N"],
    protocol: Protocol,
    *,
    classes: int | None = None,
    seed: int = 0,
) -> LinearProbe:
    """A linear classifier trained by a published protocol on features as they are.

    g = mean over the batch of (softmax(W x + b) - one-hot) x;  v <- 0.9 v + g;  w <- w - lr v, or
    w - lr (g + 0.9 v) with Nesterov. The last batch of an epoch may be smaller. Raises UserError
    for a single class, and where training diverges.
    """
    x, label, dropped = _labelled("sgd_probe", x, label)
    present, y = torch.unique(label, return_inverse=True)
    number = int(label.max()) + 1 if classes is None else classes
    generator = torch.Generator().manual_seed(seed)
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # the last column carries the bias
    weight = x.new_zeros(len(present), x.shape[1])
    velocity = torch.zeros_like(weight)
    for epoch in counted(range(protocol.epochs), f"linear probe as {protocol.name}"):
        lr = protocol.rate(epoch)
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for batch in torch.split(order, protocol.batch_size):
            rows = x[batch]
            residual = (rows @ weight.T).softmax(dim=1)
            residual[torch.arange(len(batch), device=x.device), y[batch]] -= 1
            gradient = residual.T @ rows / len(batch)
            velocity = velocity.mul_(0.9).add_(gradient)
            step = gradient + 0.9 * velocity if protocol.nesterov else velocity
            weight -= lr * step
    if not weight.isfinite().all():
        raise UserError(
            f"sgd_probe: {protocol.name} with lr={protocol.lr:g} diverged on these features "
            f"(mean length {float(x[:, :-1].norm(dim=1).mean()):.3g}); use linear_probe"
        )
    unlabelled = f"; {dropped:,} rows without a label left out" if dropped else ""
    return LinearProbe(
        *_spread(weight[:, :-1], weight[:, -1], present, number),
        f"linear classifier by SGD as {protocol.name} (lr {protocol.lr:g}, batch "
        f"{protocol.batch_size}, {protocol.epochs} epochs, no weight decay) on {len(x):,} rows of "
        f"features as they are, computed once without augmentation{unlabelled}",
    )
