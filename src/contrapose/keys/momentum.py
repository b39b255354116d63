"""The momentum encoder of MoCo: a moving average of the encoder that is trained."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from contrapose.errors import UserError


class MomentumEncoder(nn.Module):
    """An exponential moving average of an encoder: w <- m w + (1 - m) w_trained.

    MoCo, arXiv 1911.05722, equation 2. It starts as a copy of the encoder and has no gradient.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Any) -> Any:
        return self.encoder(x)

    @torch.no_grad()
    def update(self, encoder: nn.Module, m: float) -> None:
        """Move the weights towards those of `encoder`; buffers (BN statistics) are copied.

        Raises UserError for an m outside [0, 1] and for an encoder of another architecture.
        """
        if not 0 <= m <= 1:
            raise UserError(f"MomentumEncoder.update: m={m}; use 0 <= m <= 1")
        weights: list[Tensor] = list(self.encoder.parameters())
        trained: list[Tensor] = list(encoder.parameters())
        buffers, theirs = list(self.encoder.buffers()), list(encoder.buffers())
        if [w.shape for w in weights + buffers] != [w.shape for w in trained + theirs]:
            raise UserError("MomentumEncoder.update: give the encoder that this is a copy of")
        torch._foreach_lerp_(weights, trained, 1 - m)
        for buffer, new in zip(buffers, theirs, strict=True):
            buffer.copy_(new)


def momentum_copy(encoder: nn.Module) -> MomentumEncoder:
    """`MomentumEncoder(encoder)`."""
    return MomentumEncoder(encoder)
