"""Batch normalisation with the statistics of all ranks: one process on the joined batch.

    y = w (x - m) / sqrt(v + eps) + b,  m and v over all elements of a channel, of all ranks
    dL/dx = w / sqrt(v + eps) (g - sum g / n - x^ sum(g x^) / n),  x^ = (x - m) / sqrt(v + eps)

with sums over all ranks and their n elements; dL/dw and dL/db are each rank's own, as gradients of
weights are. Ranks may have different numbers of images, or none. On CUDA torch's SyncBatchNorm does
this; it raises on a CPU, where these classes stand in for torch's own, outside `across` like them.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.similarity.sharded import Shards, all_gather, shards_in_force


def over_ranks(encoder: Encoder, *, cuda: bool) -> None:
    """Make every batch norm layer of the encoder use the statistics of all ranks, in place.

    cuda: by torch's SyncBatchNorm, which joins all processes. Raises UserError for layers of
    another kind than torch's own.
    """
    layers = [
        (name, layer)
        for name, layer in encoder.named_modules()
        if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm)
    ]
    for name, layer in layers:
        if type(layer) not in OVER_RANKS:
            raise UserError(
                f"batch_norm=global: {name} is a {type(layer).__name__}, whose statistics cannot "
                "be shared over ranks; use --set batch_norm=local, or another --encoder"
            )
    for name, layer in layers:
        if not cuda:
            layer.__class__ = OVER_RANKS[type(layer)]
            continue
        parent = encoder.get_submodule(name.rpartition(".")[0])
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(layer)  # type: ignore[no-untyped-call]
        setattr(parent, name.rpartition(".")[2], synchronised)


class _OverRanks(_BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        shards = shards_in_force()
        if shards is None or not (self.training or self.running_mean is None):
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        y, mean, var, n = _Normalised.apply(input, self.weight, self.bias, self.eps, shards)
        if self.training and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean), share)
                unbiased = var * (n / (n - 1))
                self.running_var.lerp_(unbiased.to(self.running_var), share)
        return y  # type: ignore[no-any-return]


class BatchNorm1dOverRanks(_OverRanks, nn.BatchNorm1d):
    pass


class BatchNorm2dOverRanks(_OverRanks, nn.BatchNorm2d):
    pass


class BatchNorm3dOverRanks(_OverRanks, nn.BatchNorm3d):
    pass


OVER_RANKS: dict[type, type] = {
    nn.BatchNorm1d: BatchNorm1dOverRanks,
    nn.BatchNorm2d: BatchNorm2dOverRanks,
    nn.BatchNorm3d: BatchNorm3dOverRanks,
}
OVER_RANKS |= {kind: kind for kind in OVER_RANKS.values()}  # done before


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, shards):  # type: ignore[no-untyped-def]
        mean, var, n = statistics(x, shards)
        if n <= 1:
            raise ValueError("batch norm: fewer than two values per channel on all ranks")
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.n, ctx.shards, ctx.biased = eps, n, shards, bias is not None
        wide = _wide(x)
        y = torch.nn.functional.batch_norm(
            x.to(wide), mean, var, _in(weight, wide), _in(bias, wide), training=False, eps=eps
        )
        ctx.mark_non_differentiable(mean, var, n)
        return y.to(x.dtype), mean, var, n

    @staticmethod
    def backward(ctx, grad, *_):  # type: ignore[no-untyped-def]
        x, weight, mean, var = ctx.saved_tensors
        wide, one = _wide(x), (1, -1, *[1] * (x.ndim - 2))
        inverse = (var + ctx.eps).rsqrt()
        g = grad.to(wide)
        normal = (x.to(wide) - mean.view(one)) * inverse.view(one)
        across = [d for d in range(x.ndim) if d != 1]
        own = torch.stack([g.sum(dim=across), (g * normal).sum(dim=across)])
        total = ctx.shards.sum(own) / ctx.n
        scale = inverse if weight is None else inverse * weight.to(wide)
        dx = g - total[0].view(one)
        dx.sub_(normal.mul_(total[1].view(one))).mul_(scale.view(one))
        dw = None if weight is None else own[1].to(weight.dtype)
        db = own[0].to(weight.dtype) if ctx.biased else None
        return dx.to(x.dtype), dw, db, None, None


def statistics(
    x: Float[Tensor, "N C ..."], shards: Shards
) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"], Float[Tensor, ""]]:
    """(mean, variance, number of elements) of each channel over all ranks, in float32 at least.

    From each rank's count n_r, mean m_r and sum of squares about it q_r: n = sum n_r,
    m = sum n_r m_r / n, and v = sum (q_r + n_r (m_r - m)^2) / n (Chan, Golub and LeVeque 1979).
    """
    wide = _wide(x)
    across = [d for d in range(x.ndim) if d != 1]
    own = x.numel() // x.shape[1]
    one = (1, -1, *[1] * (x.ndim - 2))
    mean = x.sum(dim=across, dtype=wide) / max(own, 1)
    squares = (x.to(wide) - mean.view(one)).square_().sum(dim=across)
    mine = torch.stack([mean, squares, torch.full_like(mean, own)])
    every = mine.new_empty(shards.world * len(mine), mine.shape[1])
    all_gather(every, mine, shards.process_group)
    means, squares, count = every.view(shards.world, *mine.shape).unbind(dim=1)
    n = count.sum(dim=0)
    whole = (count * means).sum(dim=0) / n.clamp(min=1)
    off = (means - whole).square()
    return whole, (squares + count * off).sum(dim=0) / n.clamp(min=1), n[0]


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _in(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)
