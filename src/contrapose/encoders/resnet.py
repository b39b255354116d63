"""Residual networks on torchvision's, in a file of their own: that takes a second to import."""

from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models import resnet

BLOCKS = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}


class ResNet(resnet.ResNet):  # type: ignore[misc]
    """torchvision's ResNet (same parameter names) with a stem, a width and no classifier."""

    def __init__(
        self,
        block: Literal["basic", "bottleneck"],
        layers: tuple[int, int, int, int],
        channels: int,
        stem: Literal["imagenet", "cifar"],
        width_multiple: int,
        zero_init: bool,
    ) -> None:
        self.width_multiple = width_multiple  # read by _make_layer while ResNet builds itself
        super().__init__(BLOCKS[block], list(layers), num_classes=1, zero_init_residual=zero_init)
        first = 64 * width_multiple
        if stem == "cifar":
            self.conv1 = nn.Conv2d(channels, first, 3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, first, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(first)
        self.fc = nn.Identity()
        self.width = self.inplanes
        self.reduced = 8 if stem == "cifar" else 32  # px of an image for one of the last stage

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        if self.layer4[-1].conv2.weight.is_contiguous():  # maps are stored as kernels are
            x = x.contiguous()
        h: Tensor = self.avgpool(self.layer4(x)).flatten(1)
        return h

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == 64:  # the first stage: its input comes from the widened stem
            self.inplanes *= self.width_multiple
        stage: nn.Sequential = super()._make_layer(
            block, planes * self.width_multiple, *args, **kwargs
        )
        return stage
