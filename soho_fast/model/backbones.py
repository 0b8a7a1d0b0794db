"""The convolutional backbones: torchvision's networks under torchvision's parameter names, cut into stages.

A stage is what `backbone_frozen_stages` counts; a step is what activation checkpointing recomputes. The padded area is
set to zero after every BatchNorm, which is what a convolution sees beyond the border of an image that stands alone.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops.misc import Conv2dNormActivation

from .normalization import BatchNorm2d

_RESNETS = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
}
# The modules of MobileNetV2's `features` that end at stride 4, 8, 16 and 32.
_MOBILENET_STAGES = (slice(0, 4), slice(4, 7), slice(7, 14), slice(14, 19))


class PointwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` of 1 x 1 pixels, which with the channels last is one matrix product.

    On a CPU torch takes that for the product it is only when told so: forward and backward of MobileNetV2's pointwise
    convolutions took 7 % (float32) and 16 % (bfloat16) longer as convolutions.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.device.type != "cpu" or not input.is_contiguous(memory_format=torch.channels_last):
            return super()._conv_forward(input, weight, bias)
        return F.linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class StridedDepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` that trains in float32 on a CPU whatever the type of its input.

    oneDNN (3.12, in torch 2.13) has no kernel for the input's gradient of a strided depthwise convolution in bfloat16
    and takes its reference instead: 90 to 280 times slower than float32 at MobileNetV2's three sizes.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.device.type != "cpu" or not torch.is_grad_enabled():
            return super()._conv_forward(input, weight, bias)
        with torch.autocast("cpu", enabled=False):
            return super()._conv_forward(input.float(), weight.float(), bias).to(input.dtype)


Masks = dict[int, Tensor]
"""(B, 1, H/stride, W/stride), 1 at real pixels, by stride 1 to 32; empty: no padding."""


class Step(NamedTuple):
    """One piece of a backbone: its modules, and features (B, C, H, W) and masks to features."""

    modules: tuple[nn.Module, ...]
    run: Callable[[Tensor, Masks], Tensor]


def build_backbone(name: str) -> nn.Module:
    """The network without pooling and classifier; `num_features` is its number of output channels (stride 32)."""
    if name == "mobilenet_v2":
        net = torchvision.models.mobilenet_v2(norm_layer=BatchNorm2d)
        net.num_features = net.last_channel
        del net.classifier
        for module in net.modules():
            # The class alone is exchanged: weights, their names and their first values stay.
            if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
                module.__class__ = PointwiseConv2d
            elif isinstance(module, nn.Conv2d) and module.groups > 1 and module.stride == (2, 2):
                module.__class__ = StridedDepthwiseConv2d
        return net
    block, depths = _RESNETS[name]
    net = torchvision.models.ResNet(block, depths, norm_layer=BatchNorm2d)
    net.num_features = net.fc.in_features
    del net.fc, net.avgpool
    return net


def backbone_stages(net: nn.Module) -> list[list[Step]]:
    """The steps of the four stages, in order; the stem belongs to the first."""
    if isinstance(net, torchvision.models.MobileNetV2):
        return _mobilenet_stages(net)
    stages = [[Step((net.conv1, net.bn1), partial(_run_resnet_stem, net))]]
    stride = 4
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        if layer is not net.layer1:
            stages.append([])
        for block in layer:
            stride_out = stride * block.stride
            stages[-1].append(Step((block,), partial(_run_residual_block, block, stride, stride_out)))
            stride = stride_out
    return stages


def _mobilenet_stages(net: nn.Module) -> list[list[Step]]:
    stages, stride = [], 1
    for part in _MOBILENET_STAGES:
        stages.append([])
        for block in net.features[part]:
            stride_out = stride * (2 if _halves(block) else 1)
            run = _run_conv_norm if isinstance(block, Conv2dNormActivation) else _run_inverted_residual
            stages[-1].append(Step((block,), partial(run, block, stride, stride_out)))
            stride = stride_out
    return stages


def _halves(block: nn.Module) -> bool:
    return any(conv.stride == (2, 2) for conv in block.modules() if isinstance(conv, nn.Conv2d))


def _masked(x: Tensor, mask: Tensor | None, inplace: bool = True) -> Tensor:
    if mask is None:
        return x
    return x.mul_(mask) if inplace else x * mask


def _conv_norm(conv: nn.Conv2d, norm: BatchNorm2d, x: Tensor) -> Tensor:
    """Convolution and BatchNorm; one convolution where the statistics are fixed and no gradient is asked for."""
    # ZeRO stage 3 holds the weights elsewhere until the modules are called.
    if norm.training or torch.is_grad_enabled() or hasattr(conv.weight, "ds_id"):
        return norm(conv(x))
    scale_C = norm.weight.float() * torch.rsqrt(norm.running_var + norm.eps)
    bias_C = norm.bias.float() - norm.running_mean * scale_C
    weight_CIHW = conv.weight.float() * scale_C.view(-1, 1, 1, 1)
    return conv._conv_forward(x, weight_CIHW.to(x.dtype), bias_C.to(x.dtype))


def _run_resnet_stem(net: nn.Module, x: Tensor, masks: Masks) -> Tensor:
    x = _conv_norm(net.conv1, net.bn1, _masked(x, masks.get(1), inplace=False))
    # A padded zero is never above a real value after the ReLU, so it is as good as the border of the max-pool.
    return _masked(net.maxpool(net.relu(_masked(x, masks.get(2)))), masks.get(4))


def _run_residual_block(block: nn.Module, stride: int, stride_out: int, x: Tensor, masks: Masks) -> Tensor:
    mask_in, mask_out = masks.get(stride), masks.get(stride_out)
    identity = x if block.downsample is None else _masked(_conv_norm(*block.downsample, x), mask_out)
    if isinstance(block, Bottleneck):
        x = block.relu(_masked(_conv_norm(block.conv1, block.bn1, x), mask_in))
        x = block.relu(_masked(_conv_norm(block.conv2, block.bn2, x), mask_out))
        x = _masked(_conv_norm(block.conv3, block.bn3, x), mask_out)
    else:
        x = block.relu(_masked(_conv_norm(block.conv1, block.bn1, x), mask_out))
        x = _masked(_conv_norm(block.conv2, block.bn2, x), mask_out)
    return block.relu(x.add_(identity))


def _run_conv_norm(block: nn.Module, stride: int, stride_out: int, x: Tensor, masks: Masks) -> Tensor:
    conv, norm, relu = block
    x = relu(_conv_norm(conv, norm, _masked(x, masks.get(stride), inplace=False)))
    return _masked(x, masks.get(stride_out), inplace=False)


def _run_inverted_residual(block: nn.Module, stride: int, stride_out: int, x: Tensor, masks: Masks) -> Tensor:
    identity, at = x, stride
    *expand_and_depthwise, conv, norm = block.conv
    for inner_conv, inner_norm, relu in expand_and_depthwise:
        at = stride_out if inner_conv.groups > 1 else at
        x = _masked(relu(_conv_norm(inner_conv, inner_norm, x)), masks.get(at), inplace=False)
    x = _masked(_conv_norm(conv, norm, x), masks.get(stride_out), inplace=False)
    return identity + x if block.use_res_connect else x


def grid_mask(pixel_mask_BHW: Tensor, stride: int) -> Tensor:
    """Which cells of `stride` x `stride` pixels hold a real one: bool (B, ceil(H/stride), ceil(W/stride))."""
    return F.max_pool2d(pixel_mask_BHW.float().unsqueeze(1), stride, stride, ceil_mode=True).squeeze(1) > 0
