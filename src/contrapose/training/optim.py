"""Optimisers, and learning rates as pure functions of progress.

Optimisers are functions of a module and a rate, so that a recipe holds `partial(lars,
weight_decay=1e-6)`. Vectors (BN scales and offsets, biases, a temperature) are not decayed unless
asked for. A schedule maps (step, steps) to a factor of the rate; steps can be in any unit, such as
epochs, if all arguments have the same one.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from contrapose.errors import UserError


def sgd(
    module: nn.Module,
    lr: float,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
    decay_vectors: bool = False,
) -> torch.optim.SGD:
    """Stochastic gradient descent with momentum.

    decay_vectors=True also decays BN parameters and biases, as plain PyTorch recipes do (Wu et
    al., MoCo, SupCon's PyTorch code).
    """
    groups = _groups("sgd", module, lr, weight_decay, decay_vectors)
    return torch.optim.SGD(
        groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=_fused(module)
    )


def adam(
    module: nn.Module,
    lr: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    decay_vectors: bool = False,
) -> torch.optim.Adam:
    """Adam (1412.6980); weight_decay w is added to the gradient, before its moments.

    Keras's l2(a), a penalty a |w|^2, is weight_decay = 2a; its eps is 1e-7.
    """
    groups = _groups("adam", module, lr, weight_decay, decay_vectors)
    return torch.optim.Adam(groups, lr=lr, betas=betas, eps=eps, fused=_fused(module))


def adamw(
    module: nn.Module,
    lr: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.05,
    eps: float = 1e-8,
    decay_vectors: bool = False,
) -> torch.optim.AdamW:
    """Adam with decoupled weight decay (1711.05101)."""
    groups = _groups("adamw", module, lr, weight_decay, decay_vectors)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=_fused(module))


def lars(
    module: nn.Module,
    lr: float,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-6,
    eta: float = 0.001,
) -> "Lars":
    """LARS (1708.03888) as SimCLR's code has it: BN parameters and biases get plain momentum."""
    decayed, vectors = _groups("lars", module, lr, weight_decay, decay_vectors=False)
    return Lars([decayed | {"adapt": True}, vectors | {"adapt": False}], lr, momentum, eta)


class Lars(torch.optim.Optimizer):
    """g <- g + weight_decay w;  v <- momentum v + lr trust g;  w <- w - v.

    trust = eta |w| / |g| with |.| over one parameter tensor, 1 where either norm is 0. The rate
    sits inside the momentum, so a change of rate does not rescale the steps already taken. Groups
    with adapt=False have trust = 1.
    """

    def __init__(self, groups: Any, lr: float, momentum: float = 0.9, eta: float = 0.001) -> None:
        defaults = {"lr": lr, "momentum": momentum, "eta": eta, "weight_decay": 0.0, "adapt": True}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _recomputed(closure)
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if weights:
                self._update(group, weights)
        return loss

    def _update(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        grads = [w.grad for w in weights if w.grad is not None]
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
        if group["adapt"]:
            weight, grad = _norms(weights), _norms(grads)
            trust = torch.where((weight > 0) & (grad > 0), group["eta"] * weight / grad, 1.0)
            grads = [g * t for g, t in zip(grads, trust.unbind(), strict=True)]
        for w in weights:
            if not self.state[w]:
                self.state[w]["velocity"] = torch.zeros_like(w)
        velocity = [self.state[w]["velocity"] for w in weights]
        torch._foreach_mul_(velocity, group["momentum"])
        torch._foreach_add_(velocity, grads, alpha=group["lr"])
        torch._foreach_sub_(weights, velocity)


def rmsprop(
    module: nn.Module,
    lr: float,
    *,
    decay: float = 0.9,
    momentum: float = 0.9,
    eps: float = 1.0,
    weight_decay: float = 1e-6,
) -> "RmsProp":
    """RMSProp as SupCon's second stage on ImageNet has it: eps 1.0 inside the root."""
    groups = _groups("rmsprop", module, lr, weight_decay, decay_vectors=False)
    return RmsProp(groups, lr, decay, momentum, eps)


class RmsProp(torch.optim.Optimizer):
    """s <- decay s + (1 - decay) g^2;  v <- momentum v + lr g / sqrt(s + eps);  w <- w - v.

    g includes weight_decay w, and s begins at 0. The rate sits inside the momentum and eps inside
    the root, as TensorFlow has both; torch's own has them outside, which at eps = 1 is another
    optimiser.
    """

    def __init__(
        self,
        groups: Any,
        lr: float,
        decay: float = 0.9,
        momentum: float = 0.9,
        eps: float = 1.0,
    ) -> None:
        defaults = {"lr": lr, "decay": decay, "momentum": momentum, "eps": eps, "weight_decay": 0.0}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _recomputed(closure)
        for group in self.param_groups:
            for w in (w for w in group["params"] if w.grad is not None):
                if not self.state[w]:
                    self.state[w] |= {n: torch.zeros_like(w) for n in ("square", "velocity")}
                square, velocity = self.state[w]["square"], self.state[w]["velocity"]
                g = w.grad + group["weight_decay"] * w if group["weight_decay"] else w.grad
                square.mul_(group["decay"]).addcmul_(g, g, value=1 - group["decay"])
                moved = g / (square + group["eps"]).sqrt()
                velocity.mul_(group["momentum"]).add_(moved, alpha=group["lr"])
                w.sub_(velocity)
        return loss


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack(list(torch._foreach_norm(tensors)))


def warmup_cosine(step: float, steps: float, warmup: float = 0, *, floor: float = 0.0) -> float:
    """Linear from 0 to 1 over `warmup`, then half a cosine down to `floor` at `steps` (SimCLR)."""
    _check("warmup_cosine", step, steps, warmup)
    if step < warmup:
        return step / warmup
    if steps == warmup:
        return 1.0
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def steps(
    step: float,
    steps: float,
    warmup: float = 0,
    *,
    milestones: Sequence[float],
    factor: float = 0.1,
) -> float:
    """factor ** (how many milestones are behind), after an optional linear warm-up.

    A milestone is a share of the run: `milestones=(160 / 200, 190 / 200)` for epochs 160 and 190
    of 200. Raises UserError for one that is not between 0 and 1.
    """
    _check("steps", step, steps, warmup)
    if not all(0 < milestone < 1 for milestone in milestones):
        raise UserError(
            f"steps: milestones={tuple(milestones)} are shares of the run; write epoch 160 of 200 "
            "as 160 / 200"
        )
    if step < warmup:
        return step / warmup
    return float(factor ** sum(step / steps >= milestone for milestone in milestones))


def constant(step: float, steps: float, warmup: float = 0) -> float:
    """1, after an optional linear warm-up."""
    _check("constant", step, steps, warmup)
    return step / warmup if step < warmup else 1.0


def linear(step: float, steps: float, warmup: float = 0) -> float:
    """Linear from 1 down to 0 at `steps`, after an optional linear warm-up."""
    _check("linear", step, steps, warmup)
    if step < warmup:
        return step / warmup
    return 1.0 if steps == warmup else (steps - step) / (steps - warmup)


def exponential(
    step: float, steps: float, warmup: float = 0, *, factor: float = 0.97, every: float = 0.5
) -> float:
    """factor ** floor(step / every), in the unit of the steps, after an optional linear warm-up.

    0.97 every half epoch is SupCon's second stage on ImageNet.
    """
    _check("exponential", step, steps, warmup)
    if not every > 0:
        raise UserError(f"exponential: every={every}; give a number of epochs above 0")
    if step < warmup:
        return step / warmup
    return float(factor ** math.floor(step / every + 1e-9))


def linear_scaling(lr: float, batch_size: int) -> float:
    """lr B / 256, B in images: the rate is given per 256 images (SimCLR)."""
    return lr * batch_size / 256


def sqrt_scaling(lr: float, batch_size: int) -> float:
    """lr sqrt(B), B in images (SimCLR B.1, with lr = 0.075)."""
    return lr * math.sqrt(batch_size)


def no_scaling(lr: float, batch_size: int) -> float:
    """lr, whatever the batch."""
    return lr


OPTIMISERS = (sgd, adam, adamw, lars, rmsprop)
SCHEDULES = (warmup_cosine, steps, constant, linear, exponential)


def _groups(
    name: str, module: nn.Module, lr: float, weight_decay: float, decay_vectors: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(matrices and kernels, with decay), (vectors and scalars, without)."""
    if not (0 <= lr < math.inf and 0 <= weight_decay < math.inf):
        raise UserError(
            f"{name}: lr={lr}, weight_decay={weight_decay}; both must be finite and at least 0"
        )
    trained = [w for w in module.parameters() if w.requires_grad]
    if not trained:
        raise UserError(f"{name}: the module has no parameter that is trained")
    return (
        {"params": [w for w in trained if w.ndim > 1], "weight_decay": weight_decay},
        {
            "params": [w for w in trained if w.ndim <= 1],
            "weight_decay": weight_decay if decay_vectors else 0.0,
        },
    )


def _fused(module: nn.Module) -> bool | None:
    """True on CUDA, where torch then updates all weights by one kernel; None is torch's default."""
    return True if all(w.device.type == "cuda" for w in module.parameters()) else None


def _check(name: str, step: float, steps: float, warmup: float) -> None:
    if not 0 <= warmup <= steps or not 0 <= step <= steps:
        raise UserError(
            f"{name}: step={step} of {steps} with warmup={warmup}; needs 0 <= step <= steps and "
            "0 <= warmup <= steps, all in one unit"
        )


def _recomputed(closure: Callable[[], Any] | None) -> Any:
    """The loss that a closure given to `step` computes anew, with gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
