"""The visual encoder on a CPU: the layout of its features, its convolutions, and no masks where nothing is padded.

B images, C channels (I in, O out), H x W pixels of a feature map; x is always (B, C, H, W).
"""

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ...backbones import Masks, conv_norm
from ...normalization import BatchNorm2d
from ...official.visual_encoder import OfficialVisualEncoder
from ...visual_encoder import VisualEncoder
from .products import product_dtype


class PointwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` of 1 x 1 pixels and stride 1, which with the channels last is one matrix product.

    On a CPU torch takes that for the product it is only when told so: forward and backward of MobileNetV2's pointwise
    convolutions took 7 % (float32) and 16 % (bfloat16) longer as convolutions.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Conv2d`."""
        return _convolve(self, input, self.weight, self.bias)


class StridedDepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` that trains in float32 on a CPU whatever the type of its input.

    oneDNN (3.12, in torch 2.13) has no kernel for the input's gradient of a strided depthwise convolution in bfloat16
    and takes its reference instead: 90 to 280 times slower than float32 at MobileNetV2's three sizes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Conv2d`."""
        return _convolve(self, input, self.weight, self.bias)


def _convolve(conv: nn.Conv2d, x: Tensor, weight_OIHW: Tensor, bias_O: Tensor | None) -> Tensor:
    """The convolution of that form with these values."""
    on_cpu = x.device.type == "cpu"
    if isinstance(conv, PointwiseConv2d) and on_cpu and x.is_contiguous(memory_format=torch.channels_last):
        return F.linear(x.permute(0, 2, 3, 1), weight_OIHW.flatten(1), bias_O).permute(0, 3, 1, 2)
    form = (conv.stride, conv.padding, conv.dilation, conv.groups)
    if isinstance(conv, StridedDepthwiseConv2d) and on_cpu and torch.is_grad_enabled():
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
    bias_O = norm.bias.float() - norm.running_mean * scale_O
    weight_OIHW = conv.weight.float() * scale_O.view(-1, 1, 1, 1)
    x = _convolve(conv, x, weight_OIHW.to(x.dtype), bias_O.to(x.dtype))
    return x if mask is None else x.mul_(mask)


class FastVisualEncoder(VisualEncoder):
    """`VisualEncoder`, faster on a CPU."""

    conv_norm = staticmethod(folded_conv_norm)

    def backbone_output(
        self, pixel_values_B3HW: Tensor, pixel_mask_BHW: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `VisualEncoder.backbone_output`."""
        fits = pixel_mask_BHW is not None and pixel_mask_BHW.shape == pixel_values_B3HW[:, 0].shape
        return super().backbone_output(pixel_values_B3HW, _padding_alone(pixel_mask_BHW) if fits else pixel_mask_BHW)

    def run_backbone(self, x: Tensor, masks: Masks) -> Tensor:
        """As `VisualEncoder.run_backbone`."""
        return super().run_backbone(self._laid_out(x), masks)

    def tokens(self, x_BChw: Tensor, mask_Bhw: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `VisualEncoder.tokens`."""
        return super().tokens(self._laid_out(x_BChw), _padding_alone(mask_Bhw))

    def _laid_out(self, x: Tensor) -> Tensor:
        if isinstance(self.backbone, torchvision.models.MobileNetV2) or product_dtype(x) == torch.bfloat16:
            # Depthwise convolutions run about twice as fast with the channels last, on a CPU too; a ResNet in bfloat16
            # a little faster, in float32 slower.
            return x.contiguous(memory_format=torch.channels_last)
        return x


class FastOfficialVisualEncoder(FastVisualEncoder, OfficialVisualEncoder):
    """`OfficialVisualEncoder`, faster on a CPU."""


def _padding_alone(mask: Tensor | None) -> Tensor | None:
    """The mask, or none where nothing is padded."""
    # Whether all is real is a question to the device; only a CPU has the answer at hand.
    return None if mask is not None and mask.device.type == "cpu" and bool(mask.all()) else mask


def speed_up_convolutions(encoder: VisualEncoder) -> None:
    """Exchanges classes alone, in place: weights and their names stay."""
    official = isinstance(encoder, OfficialVisualEncoder)
    encoder.__class__ = FastOfficialVisualEncoder if official else FastVisualEncoder
    encoder.projection.__class__ = PointwiseConv2d
    if isinstance(encoder.backbone, torchvision.models.MobileNetV2):
        for module in encoder.backbone.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
                module.__class__ = PointwiseConv2d
            elif isinstance(module, nn.Conv2d) and module.groups > 1 and module.stride == (2, 2):
                module.__class__ = StridedDepthwiseConv2d
