"""How an encoder's kernels are stored while it trains: channel by channel, or pixel by pixel.

A convolution's kernel [O, I, h, w] is stored in this order (contiguous), or with I last (channels
last), and its feature maps go with it. The values are the same; their sums are in another order.
"""

import torch

from contrapose.encoders.backbones import last_stage
from contrapose.encoders.encoder import Encoder

SMALL = 5  # px; the widest map of a last stage that a CPU convolves faster as it is stored


def fastest_layout(encoder: Encoder, size: int, *, bf16: bool = False) -> Encoder:
    """Store the kernels as training on images of `size` px is fastest, in place; the encoder.

    Channels last, but for the last stage of a ResNet on an AVX-512 CPU in float32, where its maps
    have SMALL px or fewer: there oneDNN's kernels for channels last also multiply the padding, and
    512 channels at 4 px take 1.4 times as long, at 2 px 1.7 times, at 7 px 1.04 times (Intel Xeon
    model 207, 2 cores, batches of 128).
    """
    encoder.to(memory_format=torch.channels_last)
    weight = next(encoder.parameters())
    cpu = weight.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
    stage, side = last_stage(encoder.backbone, size)
    if stage is not None and side <= SMALL and cpu and weight.dtype == torch.float32 and not bf16:
        stage.to(memory_format=torch.contiguous_format)
    return encoder
