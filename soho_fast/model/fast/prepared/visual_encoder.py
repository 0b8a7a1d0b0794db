"""The visual encoder with constant weights: BatchNorm inside the convolutions, channels last, masks where they matter.

B images, C channels, H x W pixels of a feature map; x is always (B, C, H, W).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import MobileNetV2, ResNet
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops.misc import Conv2dNormActivation

from ...backbones import Masks, resnet_layers
from ...inputs import refuse_gradient
from ...visual_encoder import VisualEncoder
from ..cpu.convolutions import CpuCnn
from .layers import FusedConv2d

Fuse = Callable[..., FusedConv2d]
Exchange = Callable[..., tuple[Any, Any]]
"""A convolution, what its input and what is added to it are, to another convolution and what its output is."""


class Block(nn.Module):
    """Convolutions one after another, to the last of which features may be added.

    Args:
        convs: each with what follows it.
        adds: whether the block's input is added, or that of `downsample`.
        downsample: a convolution of the input; `None`: it is added as it is.
    """

    def __init__(self, convs: Iterable[FusedConv2d], adds: bool, downsample: FusedConv2d | None = None) -> None:
        super().__init__()
        self.convs: Any = nn.ModuleList(convs)
        self.adds = adds
        self.downsample: nn.Module | None = downsample

    def forward(self, x: Tensor, masks: Masks, stride: int) -> tuple[Tensor, int]:
        """Features of `stride` to features, and the stride of these."""
        *convs, last = self.convs
        y, at = x, stride
        for conv in convs:
            # The mask of what a convolution reads, so at the stride before its own.
            y = conv(y, masks.get(at))
            at *= conv.stride[0]
        added = x if self.downsample is None else self.downsample(x)
        return last(y, masks.get(at), added if self.adds else None), at

    def exchange(self, exchange: Exchange, read: Any) -> Any:
        """Puts others in the place of the convolutions; `read` is what the input is. Returns what the output is."""
        at = added = read
        if self.downsample is not None:
            self.downsample, added = exchange(self.downsample, read)
        for number, conv in enumerate(self.convs):
            is_last = number == len(self.convs) - 1
            self.convs[number], at = exchange(conv, at, added if is_last and self.adds else None)
        return at


def _of_resnet(block: BasicBlock | Bottleneck, fuse: Fuse) -> Block:
    pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    if isinstance(block, Bottleneck):
        pairs.append((block.conv3, block.bn3))
    downsample = None if block.downsample is None else fuse(*block.downsample)
    return Block((fuse(conv, norm, "relu") for conv, norm in pairs), True, downsample)


class Plain(nn.Module):
    """A convolution, BatchNorm and activation, and for a ResNet's stem the max-pool after them."""

    def __init__(self, conv: FusedConv2d, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.conv: Any = conv
        self.pool = pool

    def forward(self, x: Tensor, masks: Masks, stride: int) -> tuple[Tensor, int]:
        """As `Block.forward`."""
        x, at = self.conv(x, masks.get(stride)), stride * self.conv.stride[0]
        if self.pool is None:
            return x, at
        # After the ReLU zero is as good as the border of the max-pool.
        return self.pool(x if at not in masks else x.mul_(masks[at])), 2 * at

    def exchange(self, exchange: Exchange, read: Any) -> Any:
        """As `Block.exchange`."""
        self.conv, at = exchange(self.conv, read)
        return at


def _of_mobilenet(block: Conv2dNormActivation | InvertedResidual, fuse: Fuse) -> Block | Plain:
    if isinstance(block, Conv2dNormActivation):
        return Plain(fuse(block[0], block[1], "relu6"))
    *inner, conv, norm = block.conv
    return Block([*(fuse(layer[0], layer[1], "relu6") for layer in inner), fuse(conv, norm)], block.use_res_connect)


class FusedBackbone(nn.Sequential):
    """What `build_backbone` gave, with constant weights; `num_features` is its number of output channels."""

    def __init__(self, net: ResNet | MobileNetV2, fuse: Fuse) -> None:
        if isinstance(net, MobileNetV2):
            super().__init__(*(_of_mobilenet(block, fuse) for block in net.features))
        else:
            blocks = (block for layer in resnet_layers(net) for block in layer)
            stem = Plain(fuse(net.conv1, net.bn1, "relu"), net.maxpool)
            super().__init__(stem, *(_of_resnet(block, fuse) for block in blocks))
        self.num_features = net.num_features

    def forward(self, x: Tensor, masks: Masks) -> Tensor:  # type: ignore[override]  # its blocks take three arguments
        """Pixels (B, 3, H, W), zero at padding, to features (B, C, h, w)."""
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
            if not isinstance(encoder.backbone, FusedBackbone):
                return encoder.run_backbone(x, masks)
            # The caller's pixels are not written to.
            return encoder.backbone(x * masks.pop(1) if masks else x, masks)

    def project(self, encoder: VisualEncoder, x_BChw: Tensor) -> Tensor:
        """As `CnnBackend.project`; ValueError: a gradient is asked for."""
        refuse_gradient(x_BChw)
        with torch.autocast(x_BChw.device.type, enabled=False):
            return encoder.projection(x_BChw.to(encoder.projection.weight.dtype, memory_format=torch.channels_last))
