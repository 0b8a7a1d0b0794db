"""The visual encoder on a CPU: the layout of its features, its convolutions, and no masks where nothing is padded.

B images, C channels (I in, O out), H x W pixels of a feature map; x is always (B, C, H, W).
"""

from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ...backbones import Masks, conv_norm
from ...normalization import BatchNorm2d
from ...visual_encoder import CnnBackend, VisualEncoder
from .products import product_dtype


class CpuConv2d(nn.Conv2d):
    """`nn.Conv2d` of 1 x 1 pixels and stride 1, or depthwise with a stride.

    Of 1 x 1 pixels it is one matrix product, with the channels last. On a CPU torch takes that for the product it is
    only when told so: forward and backward of MobileNetV2's pointwise convolutions took 7 % (float32) and 16 %
    (bfloat16) longer as convolutions.

    A depthwise one trains in float32 on a CPU whatever the type of its input. oneDNN (3.12, in torch 2.13) has no
    kernel for the input's gradient of a strided depthwise convolution in bfloat16 and takes its reference instead: 90
    to 280 times slower than float32 at MobileNetV2's three sizes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Conv2d`."""
        return _convolve(self, input, self.weight, self.bias)


def _convolve(conv: nn.Conv2d, x: Tensor, weight_OIHW: Tensor, bias_O: Tensor | None) -> Tensor:
    """The convolution of that form with these values."""
    own_way = isinstance(conv, CpuConv2d) and x.device.type == "cpu"
    if own_way and conv.groups == 1 and x.is_contiguous(memory_format=torch.channels_last):
        # With the channels last both permutations are views: each pixel is a row of the product.
        return F.linear(x.permute(0, 2, 3, 1), weight_OIHW.flatten(1), bias_O).permute(0, 3, 1, 2)
    form: tuple[Any, ...] = (conv.stride, conv.padding, conv.dilation, conv.groups)
    if own_way and conv.groups > 1 and torch.is_grad_enabled():
        with torch.autocast("cpu", enabled=False):
            bias_O = None if bias_O is None else bias_O.float()
            return F.conv2d(x.float(), weight_OIHW.float(), bias_O, *form).to(x.dtype)
    return F.conv2d(x, weight_OIHW, bias_O, *form)


def folded_conv_norm(conv: nn.Conv2d, norm: BatchNorm2d, x: Tensor, mask: Tensor | None) -> Tensor:
    """Convolution and BatchNorm; one convolution where the statistics are fixed and no gradient is asked for."""
    # ZeRO stage 3 holds the weights elsewhere until the modules are called.
    if norm.training or torch.is_grad_enabled() or hasattr(conv.weight, "ds_id"):
        return conv_norm(conv, norm, x, mask)
    scale_O = norm.weight.float() * torch.rsqrt(norm.running_var + norm.eps)
    # The convolutions before torchvision's BatchNorm have no bias of their own.
    bias_O = norm.bias.float() - norm.running_mean * scale_O
    weight_OIHW = conv.weight.float() * scale_O.view(-1, 1, 1, 1)
    x = _convolve(conv, x, weight_OIHW.to(x.dtype), bias_O.to(x.dtype))
    return x if mask is None else x.mul_(mask)


class CpuCnn(CnnBackend):
    """The CNN on a CPU."""

    name = "cpu"
    conv_norm = staticmethod(folded_conv_norm)

    def run(self, encoder: VisualEncoder, x: Tensor, masks: Masks) -> Tensor:
        """As `CnnBackend.run`."""
        return encoder.run_backbone(_laid_out(encoder, x), masks)

    def project(self, encoder: VisualEncoder, x_BChw: Tensor) -> Tensor:
        """As `CnnBackend.project`."""
        return encoder.projection(_laid_out(encoder, x_BChw))

    def padding(self, mask: Tensor | None) -> Tensor | None:
        """As `CnnBackend.padding`."""
        # Whether all is real is a question to the device; only a CPU has the answer at hand.
        return None if mask is not None and mask.device.type == "cpu" and bool(mask.all()) else mask


def _laid_out(encoder: VisualEncoder, x: Tensor) -> Tensor:
    if isinstance(encoder.backbone, torchvision.models.MobileNetV2) or product_dtype(x) == torch.bfloat16:
        # Depthwise convolutions run about twice as fast with the channels last, on a CPU too; a ResNet in bfloat16
        # a little faster, in float32 slower.
        return x.contiguous(memory_format=torch.channels_last)
    return x


def speed_up_convolutions(encoder: VisualEncoder) -> None:
    """Puts `CpuCnn` on an encoder, and convolutions of other forms in the place of its own, with the same weights."""
    encoder.cnn = CpuCnn()
    parents = [encoder]
    if isinstance(encoder.backbone, torchvision.models.MobileNetV2):
        parents += encoder.backbone.modules()
    for parent in parents:
        for name, conv in list(parent.named_children()):
            if type(conv) is nn.Conv2d and (conv.kernel_size == (1, 1) or (conv.groups > 1 and conv.stride == (2, 2))):
                setattr(parent, name, _with_weights_of(conv))


def _with_weights_of(conv: nn.Conv2d) -> CpuConv2d:
    form = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation", "groups")}
    # No values are drawn there: those of a run's start depend on the seed alone.
    made = CpuConv2d(conv.in_channels, conv.out_channels, **form, bias=conv.bias is not None, device="meta")
    made.weight, made.bias = conv.weight, conv.bias
    return made.train(conv.training)
