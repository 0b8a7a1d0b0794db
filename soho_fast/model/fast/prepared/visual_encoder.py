"""The visual encoder with constant weights: BatchNorm inside the convolutions, channels last, masks where they matter.

B images, C channels, H x W pixels of a feature map; x is always (B, C, H, W).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import MobileNetV2, ResNet, mobilenetv2
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops.misc import Conv2dNormActivation

from ...backbones import Masks
from ...inputs import refuse_gradient
from ...visual_encoder import VisualEncoder
from ..cpu.convolutions import CpuCnn
from .layers import FusedConv2d

Fuse = Callable[..., FusedConv2d]
Exchange = Callable[..., tuple[Any, Any]]
"""A convolution, what its input and what is added to it are, to another convolution and what its output is."""


class Residual(nn.Module):
    """A block of a ResNet: its convolutions, to the last of which its input, or that of `downsample`, is added."""

    def __init__(self, block: BasicBlock | Bottleneck, fuse: Fuse) -> None:
        super().__init__()
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        self.convs: Any = nn.ModuleList(fuse(conv, norm, "relu") for conv, norm in pairs)
        self.downsample: nn.Module | None = None if block.downsample is None else fuse(*block.downsample)

    def forward(self, x: Tensor, masks: Masks, stride: int) -> tuple[Tensor, int]:
        """Features of `stride` to features, and the stride of these."""
        *convs, last = self.convs
        y, at = x, stride
        for conv in convs:
            y = conv(y, masks.get(at))
            at *= conv.stride[0]
        identity = x if self.downsample is None else self.downsample(x)
        return last(y, masks.get(at), identity), at

    def exchange(self, exchange: Exchange, read: Any) -> Any:
        """Puts others in the place of the convolutions; `read` is what the input is. Returns what the output is."""
        at = identity = read
        if self.downsample is not None:
            self.downsample, identity = exchange(self.downsample, read)
        for number, conv in enumerate(self.convs):
            is_last = number == len(self.convs) - 1
            self.convs[number], at = exchange(conv, at, identity if is_last else None)
        return at


class InvertedResidual(nn.Module):
    """A block of MobileNetV2."""

    def __init__(self, block: mobilenetv2.InvertedResidual, fuse: Fuse) -> None:
        super().__init__()
        *inner, conv, norm = block.conv
        self.convs: Any = nn.ModuleList(fuse(layer[0], layer[1], "relu6") for layer in inner)
        self.convs.append(fuse(conv, norm))
        self.adds = block.use_res_connect

    def forward(self, x: Tensor, masks: Masks, stride: int) -> tuple[Tensor, int]:
        """As `Residual.forward`."""
        *convs, last = self.convs
        y, at = x, stride
        for conv in convs:
            y = conv(y, masks.get(at))
            at *= conv.stride[0]
        return last(y, masks.get(at), x if self.adds else None), at

    def exchange(self, exchange: Exchange, read: Any) -> Any:
        """As `Residual.exchange`."""
        at = read
        for number, conv in enumerate(self.convs):
            is_last = number == len(self.convs) - 1
            self.convs[number], at = exchange(conv, at, read if is_last and self.adds else None)
        return at


class Plain(nn.Module):
    """A convolution, BatchNorm and activation, and for a ResNet's stem the max-pool after them."""

    def __init__(self, conv: FusedConv2d, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.conv: Any = conv
        self.pool = pool

    def forward(self, x: Tensor, masks: Masks, stride: int) -> tuple[Tensor, int]:
        """As `Residual.forward`."""
        x, at = self.conv(x, masks.get(stride)), stride * self.conv.stride[0]
        if self.pool is None:
            return x, at
        # After the ReLU zero is as good as the border of the max-pool.
        return self.pool(x if at not in masks else x.mul_(masks[at])), 2 * at

    def exchange(self, exchange: Exchange, read: Any) -> Any:
        """As `Residual.exchange`."""
        self.conv, at = exchange(self.conv, read)
        return at


class FusedBackbone(nn.Sequential):
    """What `build_backbone` gave, with constant weights; `num_features` is its number of output channels."""

    def __init__(self, net: ResNet | MobileNetV2, fuse: Fuse) -> None:
        if isinstance(net, MobileNetV2):
            super().__init__(*(self._of_mobilenet(block, fuse) for block in net.features))
        else:
            blocks = (block for layer in (net.layer1, net.layer2, net.layer3, net.layer4) for block in layer)
            stem = Plain(fuse(net.conv1, net.bn1, "relu"), net.maxpool)
            super().__init__(stem, *(Residual(block, fuse) for block in blocks))
        self.num_features = net.num_features

    @staticmethod
    def _of_mobilenet(block: Conv2dNormActivation | mobilenetv2.InvertedResidual, fuse: Fuse) -> nn.Module:
        if isinstance(block, Conv2dNormActivation):
            return Plain(fuse(block[0], block[1], "relu6"))
        return InvertedResidual(block, fuse)

    def forward(self, x: Tensor, masks: Masks) -> Tensor:  # type: ignore[override]  # its blocks take three arguments
        """Pixels (B, 3, H, W), zero at padding, to features (B, C, H/32, W/32)."""
        stride = 1
        for block in self:
            x, stride = block(x, masks, stride)
        return x


class PreparedCnn(CpuCnn):
    """The CNN of an encoder whose `backbone` is a `FusedBackbone`; its projection, and so what comes out, is float32.

    Args:
        dtype: of the backbone's weights and features.
    """

    name = "prepared"

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def run(self, encoder: VisualEncoder, x: Tensor, masks: Masks) -> Tensor:
        """As `CnnBackend.run`; ValueError: a gradient is asked for."""
        refuse_gradient(x)
        x = x.to(self.dtype, memory_format=torch.channels_last)
        masks = {stride: mask.to(self.dtype) for stride, mask in masks.items()}
        with torch.autocast(x.device.type, enabled=False):
            # The caller's pixels are not written to.
            return encoder.backbone(x * masks.pop(1) if masks else x, masks)

    def project(self, encoder: VisualEncoder, x_BChw: Tensor) -> Tensor:
        """As `CnnBackend.project`; ValueError: a gradient is asked for."""
        refuse_gradient(x_BChw)
        with torch.autocast(x_BChw.device.type, enabled=False):
            return encoder.projection(x_BChw.to(encoder.projection.weight.dtype, memory_format=torch.channels_last))
