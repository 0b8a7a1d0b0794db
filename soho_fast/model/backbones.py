"""The convolutional backbones: torchvision's networks under torchvision's parameter names, cut into stages.

A stage is what `backbone_frozen_stages` counts; a step is what activation checkpointing runs again. The padded area is
left out of BatchNorm's statistics and comes out of it as zero, which is what a convolution sees beyond the border of an
image that stands alone.

B images, C channels, H x W pixels of a feature map; x is always (B, C, H, W).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import MobileNetV2, ResNet
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops.misc import Conv2dNormActivation

from .config import BACKBONE_STRIDES, is_other_backbone
from .normalization import BatchNorm2d
from .other_backbones import build_other, other_stages

_RESNETS = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
}
# Where in MobileNetV2's `features` its stages end, those of `BACKBONE_STRIDES`.
_MOBILENET_ENDS = (4, 7, 14, 19)

Masks = dict[int, Tensor]
"""(B, 1, H/stride, W/stride), 1 at real pixels, by stride from 1 to the backbone's; empty: no padding."""

ConvNorm = Callable[[nn.Conv2d, BatchNorm2d, Tensor, Tensor | None], Tensor]
"""Features (B, C, H, W) through a convolution and the BatchNorm after it, with the mask of what comes out."""


class Step(NamedTuple):
    """One piece of a backbone: its modules, and features (B, C, H, W) and masks to features."""

    modules: tuple[nn.Module, ...]
    run: Callable[[Tensor, Masks], Tensor]


def build_backbone(name: str, stride: int = 32, tower: dict[str, Any] | None = None) -> ResNet | MobileNetV2:
    """The network without pooling and classifier, up to its stage of this stride; `num_features` is its number of
    output channels. One of a library or a user's own: see `build_other`."""
    if is_other_backbone(name):
        return build_other(name, stride, tower)
    num_stages = BACKBONE_STRIDES.index(stride) + 1
    if name == "mobilenet_v2":
        net = torchvision.models.mobilenet_v2(norm_layer=BatchNorm2d)
        del net.classifier
        del net.features[_MOBILENET_ENDS[num_stages - 1] :]
        last = net.features[-1]
        net.num_features = last.out_channels
        return net
    block, depths = _RESNETS[name]
    net = ResNet(block, depths, norm_layer=BatchNorm2d)
    del net.fc, net.avgpool
    for number in range(num_stages + 1, 5):
        delattr(net, f"layer{number}")
    net.num_features = 64 * 2 ** (num_stages - 1) * block.expansion
    return net


def conv_norm(conv: nn.Conv2d, norm: BatchNorm2d, x: Tensor, mask: Tensor | None) -> Tensor:
    """Convolution, then BatchNorm of the real positions; zero at padding."""
    return norm(conv(x), mask)


def backbone_stages(net: ResNet | MobileNetV2, conv_norm: ConvNorm = conv_norm) -> list[list[Step]]:
    """The steps of the stages, in order; the stem belongs to the first.

    Args:
        net: what `build_backbone` gave.
        conv_norm: how a convolution and the BatchNorm after it are computed in torchvision's networks.
    """
    if hasattr(net, "stage_names"):
        return [[Step((module,), run) for module, run in stage] for stage in other_stages(net)]
    if isinstance(net, MobileNetV2):
        return _mobilenet_stages(net, conv_norm)
    stages = [[Step((net.conv1, net.bn1), partial(_run_resnet_stem, net, conv_norm))]]
    stride = 4
    for layer in resnet_layers(net):
        if layer is not net.layer1:
            stages.append([])
        for block in layer:
            stride_out = stride * block.stride
            stages[-1].append(Step((block,), partial(_run_residual_block, block, conv_norm, stride, stride_out)))
            stride = stride_out
    return stages


def resnet_layers(net: ResNet) -> list[Any]:
    """Its stages after the stem, as many as `build_backbone` has left."""
    return [getattr(net, name) for name in ("layer1", "layer2", "layer3", "layer4") if hasattr(net, name)]


def _mobilenet_stages(net: MobileNetV2, conv_norm: ConvNorm) -> list[list[Step]]:
    stages: list[list[Step]] = []
    stride = 1
    for number, block in enumerate(net.features):
        if number in (0, *_MOBILENET_ENDS):
            stages.append([])
        halves = any(conv.stride == (2, 2) for conv in block.modules() if isinstance(conv, nn.Conv2d))
        stride_out = stride * (1 + halves)
        run = _run_conv_norm if isinstance(block, Conv2dNormActivation) else _run_inverted_residual
        stages[-1].append(Step((block,), partial(run, block, conv_norm, stride, stride_out)))
        stride = stride_out
    return stages


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _run_resnet_stem(net: ResNet, conv_norm: ConvNorm, x: Tensor, masks: Masks) -> Tensor:
    # What stands at padding may be anything; the first convolution is to read zero.
    x = conv_norm(net.conv1, net.bn1, _masked(x, masks.get(1)), masks.get(2))
    # A padded zero is never above a real value after the ReLU, so it is as good as the border of the max-pool.
    return _masked(net.maxpool(net.relu(x)), masks.get(4))


def _run_residual_block(
    block: BasicBlock | Bottleneck, conv_norm: ConvNorm, stride: int, stride_out: int, x: Tensor, masks: Masks
) -> Tensor:
    mask_in, mask_out = masks.get(stride), masks.get(stride_out)
    identity = x if block.downsample is None else conv_norm(block.downsample[0], block.downsample[1], x, mask_out)
    if isinstance(block, Bottleneck):
        # torchvision strides in the 3x3 convolution: after the first one the size is still that of the input.
        x = block.relu(conv_norm(block.conv1, block.bn1, x, mask_in))
        x = block.relu(conv_norm(block.conv2, block.bn2, x, mask_out))
        x = conv_norm(block.conv3, block.bn3, x, mask_out)
    else:
        x = block.relu(conv_norm(block.conv1, block.bn1, x, mask_out))
        x = conv_norm(block.conv2, block.bn2, x, mask_out)
    # In place: BatchNorm's backward does not read what it gave.
    return block.relu(x.add_(identity))


def _run_conv_norm(
    block: Conv2dNormActivation, conv_norm: ConvNorm, stride: int, stride_out: int, x: Tensor, masks: Masks
) -> Tensor:
    conv, norm, relu = block
    return relu(conv_norm(conv, norm, _masked(x, masks.get(stride)), masks.get(stride_out)))


def _run_inverted_residual(
    block: InvertedResidual, conv_norm: ConvNorm, stride: int, stride_out: int, x: Tensor, masks: Masks
) -> Tensor:
    identity, at = x, stride
    *expand_and_depthwise, conv, norm = block.conv
    for inner_conv, inner_norm, relu in expand_and_depthwise:
        # The depthwise convolution is the one that strides.
        at = stride_out if inner_conv.groups > 1 else at
        x = relu(conv_norm(inner_conv, inner_norm, x, masks.get(at)))
    x = conv_norm(conv, norm, x, masks.get(stride_out))
    return identity + x if block.use_res_connect else x


def grid_mask(pixel_mask_BHW: Tensor, stride: int) -> Tensor:
    """Which squares of `stride` x `stride` pixels hold a real one: bool (B, ceil(H/stride), ceil(W/stride))."""
    return F.max_pool2d(pixel_mask_BHW.float().unsqueeze(1), stride, stride, ceil_mode=True).squeeze(1) > 0
