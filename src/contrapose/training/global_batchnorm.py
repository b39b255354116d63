"""Batch normalisation with the statistics of all ranks: one process on the joined batch.

    y = w (x - m) / sqrt(v + eps) + b,  m and v over all elements of a channel, of all ranks
    dL/dx = w / sqrt(v + eps) (g - sum g / n - x^ sum(g x^) / n),  x^ = (x - m) / sqrt(v + eps)

with sums over all ranks and their n elements; dL/dw and dL/db are each rank's own, as gradients of
weights are. Ranks may have different numbers of images, or none. On CUDA torch's SyncBatchNorm does
this; it raises on a CPU, where these classes stand in for torch's own.

One process on a CPU computes the same, by the same sums (channel_sums.py): a number of ranks could
not change nothing otherwise. torch's own sum a channel of channels-last float32 images one element
after the other, and are off by 1e-5 of the mean at 10^5 elements. What channel_sums.c does not take
(bfloat16, channels that do not lie side by side), and evaluation, is torch's own in one process.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from contrapose.encoders import Encoder
from contrapose.errors import UserError
from contrapose.similarity.sharded import Shards, all_gather, shards_in_force
from contrapose.training.channel_sums import gradient, moments, products, scaled, takes
from contrapose.training.weight_gradient import sum_first_exactly


def exactly(encoder: Encoder) -> Encoder:
    """The encoder, on a CPU with batch norm and the first convolution's gradient summed exactly.

    It is changed in place. Layers of other classes than torch's own stay as they are.
    """
    if next(encoder.parameters()).device.type == "cpu":
        for layer in encoder.modules():
            if type(layer) in EXACT:
                layer.__class__ = EXACT[type(layer)]
        sum_first_exactly(encoder)
    return encoder


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
        if type(layer) not in EXACT:
            raise UserError(
                f"batch_norm=global: {name} is a {type(layer).__name__}, whose statistics cannot "
                "be shared over ranks; use --set batch_norm=local, or another --encoder"
            )
    for name, layer in layers:
        if not cuda:
            layer.__class__ = EXACT[type(layer)]
            continue
        parent = encoder.get_submodule(name.rpartition(".")[0])
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(layer)  # type: ignore[no-untyped-call]
        setattr(parent, name.rpartition(".")[2], synchronised)


class _Exact(_BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        shards, own = shards_in_force(), input.numel() // max(1, input.shape[1])
        alone = shards is None and (own < 2 or not takes(input) or self._mixed(input))
        if alone or not (self.training or self.running_mean is None):
            return super().forward(input)
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

    def _mixed(self, input: Tensor) -> bool:
        """True where torch has a say on weights in another precision than the input's."""
        return self.weight is not None and self.weight.dtype != input.dtype


class ExactBatchNorm1d(_Exact, nn.BatchNorm1d):
    pass


class ExactBatchNorm2d(_Exact, nn.BatchNorm2d):
    pass


class ExactBatchNorm3d(_Exact, nn.BatchNorm3d):
    pass


EXACT: dict[type, type] = {
    nn.BatchNorm1d: ExactBatchNorm1d,
    nn.BatchNorm2d: ExactBatchNorm2d,
    nn.BatchNorm3d: ExactBatchNorm3d,
}
EXACT |= {kind: kind for kind in EXACT.values()}  # done before


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, shards):  # type: ignore[no-untyped-def]
        mean, var, n = statistics(x, shards)
        if n <= 1:
            raise ValueError("batch norm: fewer than two values per channel on all ranks")
        inverse = (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.n, ctx.shards, ctx.biased = n, shards, bias is not None
        a = inverse if weight is None else inverse * weight.double()
        y = scaled(x, mean, a, torch.zeros_like(mean) if bias is None else bias.double())
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var, n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g, *_):  # type: ignore[no-untyped-def]
        x, weight, mean, inverse = ctx.saved_tensors
        own = products(g, x, mean)
        own[1] *= inverse
        total = (own if ctx.shards is None else ctx.shards.sum(own)) / ctx.n
        dx = None
        if ctx.needs_input_grad[0]:
            a = inverse if weight is None else inverse * weight.double()
            dx = gradient(g, x, mean, a, a * total[0], a * total[1] * inverse)
        dw = None if weight is None else own[1].to(weight.dtype)
        db = own[0].to(weight.dtype) if ctx.biased else None
        return dx, dw, db, None, None


def statistics(
    x: Float[Tensor, "N C ..."], shards: Shards | None
) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"], float]:
    """(mean, variance, number of elements) of each channel over all ranks, in float64.

    From each rank's count n_r, mean m_r and sum of squares about it q_r: n = sum n_r,
    m = sum n_r m_r / n, and v = sum (q_r + n_r (m_r - m)^2) / n (Chan, Golub and LeVeque 1979).
    """
    own, (mean, squares) = x.numel() // x.shape[1], moments(x)
    if shards is None:
        return mean, squares / own, own
    mine = torch.stack([mean, squares, torch.full_like(mean, own)])
    every = mine.new_empty(shards.world * len(mine), mine.shape[1])
    all_gather(every, mine, shards.process_group)
    means, squares, count = every.view(shards.world, *mine.shape).unbind(dim=1)
    n = count.sum(dim=0)
    whole = (count * means).sum(dim=0) / n.clamp(min=1)
    off = (means - whole).square()
    return whole, (squares + count * off).sum(dim=0) / n.clamp(min=1), float(n[0])
