"""The contenders of the benchmark: functions of the inputs that return the computation to time.

Other libraries are imported where they are used. Plain forms are written as by hand.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from contrapose import losses, similarity

Computation = Callable[[], Tensor]
TEMPERATURE = 0.1
MOCO = 0.07  # the temperature of banks and queues
NEAREST = 200
HARDEST = 4095


def our_nt_xent(z: Tensor, group: Tensor) -> Computation:
    return lambda: losses.nt_xent(z, group, temperature=TEMPERATURE)


def our_supcon(z: Tensor, group: Tensor) -> Computation:
    return lambda: losses.supcon(z, group, temperature=TEMPERATURE)


def our_supcon_in(z: Tensor, group: Tensor) -> Computation:
    return lambda: losses.supcon_in(z, group, temperature=TEMPERATURE)


def our_clip(image: Tensor, text: Tensor) -> Computation:
    return lambda: losses.clip(image, text, scale=1 / TEMPERATURE)


def our_info_nce(query: Tensor, key: Tensor, queue: Tensor) -> Computation:
    """A query's own key is its positive, the queue's are its negatives, as `keys.queue` has it."""
    n = len(query)
    older = torch.zeros(n + len(queue), dtype=torch.long, device=query.device)
    older[n:] = 1
    pairs = similarity.Pairs("different", row_group=older.new_zeros(n), col_group=older)
    match = torch.arange(n, device=query.device)

    def step() -> Tensor:
        every = torch.cat([key, queue])
        return losses.info_nce(query, every, match, temperature=MOCO, pairs=pairs)

    return step


def our_hard(query: Tensor, bank: Tensor, match: Tensor) -> Computation:
    return lambda: losses.hard_info_nce(query, bank, match, temperature=MOCO, k=HARDEST)


def our_uniformity(z: Tensor, group: Tensor) -> Computation:
    return lambda: losses.align_uniform_joined(z, group)


def our_topk(query: Tensor, key: Tensor) -> Computation:
    return lambda: similarity.topk(query, key, NEAREST)[0]


def in_bf16(ours: Callable[..., Computation]) -> Callable[..., Computation]:
    """The same with products of bf16."""

    def make(**inputs: Tensor) -> Computation:
        step = ours(**inputs)

        def low() -> Tensor:
            with similarity.products(torch.bfloat16):
                return step()

        return low

    return make


def plain_nt_xent(z: Tensor, group: Tensor) -> Computation:
    partner = (torch.arange(len(z), device=z.device) + len(z) // 2) % len(z)

    def step() -> Tensor:
        return cross_entropy((z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf), partner)

    return step


def plain_supcon(z: Tensor, group: Tensor) -> Computation:
    def step() -> Tensor:
        positive = (group[:, None] == group[None, :]).fill_diagonal_(False)
        logits = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        log_p = torch.where(positive, logits.log_softmax(dim=1), 0.0)
        return -(log_p.sum(dim=1) / positive.sum(dim=1)).mean()

    return step


def supcontrast(z: Tensor, group: Tensor) -> Computation:
    """The formula of SupCon's released code, step by step: exponentials, then the logarithm."""
    other = 1 - torch.eye(len(z), dtype=z.dtype, device=z.device)

    def step() -> Tensor:
        mask = torch.eq(group[:, None], group[None, :]).to(z.dtype) * other
        logits = z @ z.T / TEMPERATURE
        logits = logits - logits.max(dim=1, keepdim=True).values.detach()
        log_p = logits - (logits.exp() * other).sum(dim=1, keepdim=True).log()
        return -((mask * log_p).sum(dim=1) / mask.sum(dim=1)).mean()

    return step


def plain_supcon_in(z: Tensor, group: Tensor) -> Computation:
    def step() -> Tensor:
        positive = (group[:, None] == group[None, :]).fill_diagonal_(False)
        logits = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        inside = logits.masked_fill(~positive, -torch.inf).logsumexp(dim=1)
        return (logits.logsumexp(dim=1) - inside + positive.sum(dim=1).log()).mean()

    return step


def plain_clip(image: Tensor, text: Tensor) -> Computation:
    match = torch.arange(len(image), device=image.device)

    def step() -> Tensor:
        logits = image @ text.T / TEMPERATURE
        return (cross_entropy(logits, match) + cross_entropy(logits.T, match)) / 2

    return step


def plain_info_nce(query: Tensor, key: Tensor, queue: Tensor) -> Computation:
    """MoCo's algorithm 1: the positive's logit in front of the queue's."""
    first = torch.zeros(len(query), dtype=torch.long, device=query.device)

    def step() -> Tensor:
        own = (query * key).sum(dim=1, keepdim=True)
        return cross_entropy(torch.cat([own, query @ queue.T], dim=1) / MOCO, first)

    return step


def plain_hard(query: Tensor, bank: Tensor, match: Tensor) -> Computation:
    first = torch.zeros(len(query), dtype=torch.long, device=query.device)

    def step() -> Tensor:
        similarities = query @ bank.T
        own = similarities.gather(1, match[:, None])
        rest = similarities.scatter(1, match[:, None], -torch.inf)
        nearest = rest.topk(HARDEST, dim=1).values
        return cross_entropy(torch.cat([own, nearest], dim=1) / MOCO, first)

    return step


def plain_uniformity(z: Tensor, group: Tensor) -> Computation:
    half, n = len(z) // 2, len(z)

    def step() -> Tensor:
        align = (z[:half] - z[half:]).square().sum(dim=1).mean()
        exponents = (4 * (z @ z.T) - 4).fill_diagonal_(-torch.inf)
        uniform: Tensor = (exponents.exp().sum() / (n * (n - 1))).log()
        return align + uniform

    return step


def pdist_uniformity(z: Tensor, group: Tensor) -> Computation:
    """As the authors released it, over all rows."""
    half = len(z) // 2

    def step() -> Tensor:
        align: Tensor = (z[:half] - z[half:]).norm(dim=1).pow(2).mean()
        uniform: Tensor = torch.pdist(z).pow(2).mul(-2).exp().mean().log()
        return align + uniform

    return step


def plain_topk(query: Tensor, key: Tensor) -> Computation:
    return lambda: (query @ key.T).topk(NEAREST, dim=1).values


def compiled(plain: Callable[..., Computation]) -> Callable[..., Computation]:
    """torch.compile of the plain form."""

    def make(**inputs: Tensor) -> Computation:
        step: Computation = torch.compile(plain(**inputs))
        return step

    return make


class _AttentionLogSumExp(torch.autograd.Function):
    """log sum_j e^(scale q_i.k_j) as attention computes it on the way, with values k.

    d lse_i / d q_i = scale sum_j p_ij k_j is the attention's result; d / d k_j =
    scale sum_i p_ij g_i q_i is what its backward pass gives the values for g q as gradient.
    """

    @staticmethod
    def forward(ctx, query, key, scale):  # type: ignore[no-untyped-def]
        q, k = query[None, None], key[None, None]
        ops = torch.ops.aten
        if query.device.type == "cpu":
            out, lse = ops._scaled_dot_product_flash_attention_for_cpu(q, k, k, scale=scale)
            rest = []
        else:
            out, lse, *rest = ops._scaled_dot_product_flash_attention(q, k, k, scale=scale)
        ctx.save_for_backward(q, k, out, lse)
        ctx.rest, ctx.scale = rest[:6], scale
        return lse[0, 0, : len(query)].float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, out, lse = ctx.saved_tensors
        weight = (ctx.scale * grad[None, None, :, None]).to(q.dtype)
        given = weight * q, q, k, k, out, lse
        ops = torch.ops.aten
        if q.device.type == "cpu":
            backward = ops._scaled_dot_product_flash_attention_for_cpu_backward
            dvalue = backward(*given, 0.0, False, scale=ctx.scale)[2]
        else:
            backward = ops._scaled_dot_product_flash_attention_backward
            seed = ctx.rest[4:6]
            dvalue = backward(*given, *ctx.rest[:4], 0.0, False, *seed, scale=ctx.scale)[2]
        return (weight * out)[0, 0], dvalue[0, 0], None


def attention_nt_xent(z: Tensor, group: Tensor) -> Computation:
    """The row itself stands in attention's sum and is taken out of it afterwards."""
    half, scale = len(z) // 2, 1 / TEMPERATURE

    def step() -> Tensor:
        lse: Tensor = _AttentionLogSumExp.apply(z, z, scale)
        wide = z.float()
        self = wide.square().sum(dim=1) * scale
        lse = lse + torch.log1p(-(self - lse).exp())
        return (lse - (wide * wide.roll(half, 0)).sum(dim=1) * scale).mean()

    return step


def attention_clip(image: Tensor, text: Tensor) -> Computation:
    scale = 1 / TEMPERATURE

    def step() -> Tensor:
        rows: Tensor = _AttentionLogSumExp.apply(image, text, scale)
        columns: Tensor = _AttentionLogSumExp.apply(text, image, scale)
        match = (image.float() * text.float()).sum(dim=1)
        return ((rows + columns) / 2 - match * scale).mean()

    return step


def flex_nt_xent(z: Tensor, group: Tensor) -> Computation:
    from torch.nn.attention.flex_attention import flex_attention

    attention: Any = torch.compile(flex_attention)
    half, scale = len(z) // 2, 1 / TEMPERATURE

    def others(score: Tensor, _b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return torch.where(i == j, -torch.inf, score)

    def step() -> Tensor:
        rows = z[None, None]
        _, lse = attention(rows, rows, rows, score_mod=others, scale=scale, return_lse=True)
        wide = z.float()
        loss: Tensor = (lse[0, 0] - (wide * wide.roll(half, 0)).sum(dim=1) * scale).mean()
        return loss

    return step


def lightly_nt_xent(z: Tensor, group: Tensor) -> Computation:
    from lightly.loss import NTXentLoss

    loss, half = NTXentLoss(temperature=TEMPERATURE), len(z) // 2
    return lambda: loss(z[:half], z[half:])


def lightly_info_nce(query: Tensor, key: Tensor, queue: Tensor) -> Computation:
    from lightly.loss import NTXentLoss

    loss = NTXentLoss(temperature=MOCO, memory_bank_size=tuple(queue.shape)).to(queue.device)
    loss.memory_bank.bank.copy_(queue)
    return lambda: loss(query, key)


def lightly_uniformity(z: Tensor, group: Tensor) -> Computation:
    from lightly.loss.hypersphere_loss import HypersphereLoss

    loss, half = HypersphereLoss(t=2.0), len(z) // 2
    return lambda: loss(z[:half], z[half:])


def metric_learning_nt_xent(z: Tensor, group: Tensor) -> Computation:
    from pytorch_metric_learning.losses import NTXentLoss

    loss = NTXentLoss(temperature=TEMPERATURE)
    return lambda: loss(z, group)


def metric_learning_supcon(z: Tensor, group: Tensor) -> Computation:
    from pytorch_metric_learning.losses import SupConLoss

    loss = SupConLoss(temperature=TEMPERATURE)
    return lambda: loss(z, group)


def faiss_topk(query: Tensor, key: Tensor) -> Computation:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(key.shape[1])
    index.add(key.numpy())
    return lambda: torch.from_numpy(index.search(query.numpy(), NEAREST)[0])
