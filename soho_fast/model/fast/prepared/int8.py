"""Convolutions and linear layers in eight bits: torch's own kernels for x86, with ranges found on given batches.

Features are uint8 with a scale and a zero point for all of a layer's, weights int8 with a scale for each output
channel. In the CNN features stay uint8 from the first max-pool to the end, a block's sum included. In the Transformer
products are taken in int8, everything between them in floating point.

B images, C channels (I in, O out), H x W pixels of a feature map; x is always (B, C, H, W). N values.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertEncoder

from .layers import POST_OPS, Constant, FusedConv2d, FusedLinear, counted
from .visual_encoder import FusedBackbone

# Values of a layer that are looked at of each batch, evenly spaced; and the shares of the largest at which features may
# be cut off, of which the one with the least squared error is taken.
_NUM_SAMPLED = 16384
_CLIPS = [1.0 - 0.02 * step for step in range(31)]


class Scale(NamedTuple):
    """What a number of uint8 means: `scale * (number - zero_point)`."""

    scale: float
    zero_point: int


def quantised(x: Tensor, scale: Scale) -> Tensor:
    """Floating-point values as uint8, in their layout; what is out of range is cut off."""
    # To a whole number it is rounded by cutting off what is behind the point.
    numbers = torch.add(scale.zero_point + 0.5, x.float(), alpha=1.0 / scale.scale)
    return numbers.clamp_(0.0, 255.5).to(torch.uint8)


class Seen:
    """The values of a layer in the batches that were looked at."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        # The range holds 0, so that a whole number stands for it exactly.
        self.low = self.high = 0.0

    def __call__(self, x: Tensor) -> None:
        values_N = x.detach().flatten().float()
        low, high = (float(value) for value in values_N.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.parts.append(values_N[:: max(1, len(values_N) // _NUM_SAMPLED)].clone())

    def scale(self) -> Scale:
        """The range, cut off where that costs less in large values than it gains in the others."""
        values_N = torch.cat(self.parts)
        best, least = None, float("inf")
        for clip in _CLIPS:
            low, high = clip * self.low, clip * self.high
            scale = max(high - low, 1e-8) / 255
            zero_point = round(-low / scale)
            # To uint8 and back, as the layers will have the values.
            found_N = ((values_N / scale).round() + zero_point).clamp_(0, 255).sub_(zero_point).mul_(scale)
            error = float((found_N - values_N).square().mean())
            if error < least:
                best, least = Scale(scale, zero_point), error
        assert best is not None, "finite values have a range"
        return best


def _int8_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (O, ..) and float32 scales (O,), symmetric."""
    scale_O = weight.flatten(1).abs().amax(1).clamp(min=1e-8).float() / 127
    shape = (-1, *[1] * (weight.dim() - 1))
    return (weight.float() / scale_O.view(shape)).round().to(torch.int8), scale_O


class Int8Conv2d(Constant):
    """`FusedConv2d` from uint8 to uint8.

    Args:
        conv: the layer in float32.
        read, made: what numbers mean in its input and its output.
        added: what they mean in the features that are added; `None`: none are.
    """

    scale_O: Tensor
    zero_point_O: Tensor

    def __init__(self, conv: FusedConv2d, read: Scale, made: Scale, added: Scale | None = None) -> None:
        weight_OIHW, scale_O = _int8_weight(conv.weight)
        super().__init__(weight_OIHW, conv.bias, conv.activation, True)
        self.register_buffer("scale_O", counted(scale_O))
        self.register_buffer("zero_point_O", torch.zeros_like(scale_O, dtype=torch.int64))
        self.read, self.made, self.added = read, made, added
        self.form = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.kernel_size, self.stride = conv.kernel_size, conv.stride

    def packed_of(self) -> tuple[Tensor, ...]:
        return self.weight, self.scale_O

    def make_packed(self, size: torch.Size | None, weight_OIHW: Tensor, scale_O: Tensor) -> Tensor:
        return torch.ops.onednn.qconv_prepack(weight_OIHW, scale_O, *self.read, *self.form, size)

    def forward(self, x: Tensor, mask: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """As `FusedConv2d.forward`, in uint8."""
        if mask is not None and self.kernel_size != (1, 1):
            # Number 0 is 0.0 here: what a wide kernel reads comes from a ReLU, and its zero point is 0.
            x = x.mul_(mask.to(torch.uint8))
        given = (x, *self.read, self.packed(x.shape), self.scale_O, self.zero_point_O)
        made = (*self.made, torch.uint8)
        post_op = POST_OPS[self.activation]
        if added is None:
            return torch.ops.onednn.qconv2d_pointwise(*given, self.bias, *self.form, *made, *post_op)
        assert self.added is not None, "it was seen with what is added"
        return torch.ops.onednn.qconv2d_pointwise.binary(
            *given, added, self.bias, *self.form, *made, *self.added, "sum", 1.0, *post_op
        )


class Int8Linear(Constant):
    """`FusedLinear` whose product is taken in int8.

    Args:
        linear: the layer in float32.
        read: what numbers mean in its input.
        dtype: of what comes out.
    """

    scale_O: Tensor
    zero_point_O: Tensor

    def __init__(self, linear: FusedLinear, read: Scale, dtype: torch.dtype) -> None:
        weight_OI, scale_O = _int8_weight(linear.weight)
        super().__init__(weight_OI, linear.bias, linear.activation, True)
        self.register_buffer("scale_O", counted(scale_O))
        self.register_buffer("zero_point_O", torch.zeros_like(scale_O, dtype=torch.int64))
        self.read, self.dtype = read, dtype

    def make_packed(self, size: torch.Size | None, weight_OI: Tensor) -> Tensor:
        return torch.ops.onednn.qlinear_prepack(weight_OI, None)

    def forward(self, x: Tensor) -> Tensor:
        """(.., I) to (.., O)."""
        return torch.ops.onednn.qlinear_pointwise(
            quantised(x, self.read), *self.read, self.packed(), self.scale_O, self.zero_point_O, self.bias,
            1.0, 0, self.dtype, *POST_OPS[self.activation],
        )  # fmt: skip


class Boundary(nn.Module):
    """Where features become uint8, and where they are floating point again."""

    def __init__(self, scale: Scale, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.scale, self.dtype = scale, dtype

    def forward(self, x: Tensor, masks: Any, stride: int) -> tuple[Tensor, int]:
        """As the blocks of a `FusedBackbone`."""
        # Without a type the way in, with one the way out.
        if self.dtype is None:
            return quantised(x, self.scale), stride
        return x.to(self.dtype).sub_(self.scale.zero_point).mul_(self.scale.scale), stride


def to_int8(
    backbone: FusedBackbone,
    encoder: BertEncoder,
    calibration: Iterable[Mapping[str, Any]],
    run: Callable[..., Any],
    dtype: torch.dtype,
) -> None:
    """Exchanges the layers of a model that is prepared in float32, in place.

    Args:
        backbone, encoder: the model's.
        calibration: batches that `run` takes.
        run: has the model, or its visual encoder alone, compute a batch.
        dtype: of what stays in floating point: the stem of the CNN, whose input is not uint8; the 1x1 convolution after
            the CNN (float32); queries, keys and values of the last layer, whose weights scoring takes by themselves;
            and the linear layers that no batch has reached.

    Raises:
        ValueError: there is no batch.
    """
    seen: dict[nn.Module, Seen] = {}
    with ExitStack() as hooks:
        for layer in backbone.modules():
            if isinstance(layer, FusedConv2d):
                hook = layer.register_forward_hook(lambda layer, _, y: seen.setdefault(layer, Seen())(y))
                hooks.callback(hook.remove)
        for layer in encoder.modules():
            if isinstance(layer, FusedLinear):
                hook = layer.register_forward_pre_hook(lambda layer, x: seen.setdefault(layer, Seen())(x[0]))
                hooks.callback(hook.remove)
        for batch in calibration:
            run(batch)
    if not seen:
        raise ValueError("calibration: expected at least one batch of images, got none")
    scales = {layer: values.scale() for layer, values in seen.items()}
    layers: list[Any] = list(backbone)
    stem, *blocks = layers
    stem.conv.cast(dtype)
    read = scales[stem.conv]
    # Behind the stem and its max-pool, which keeps the range.
    backbone.insert(1, Boundary(read))
    for block in blocks:
        read = block.exchange(partial(_int8_conv, scales), read)
    backbone.append(Boundary(read, torch.float32))
    last = encoder.layer[-1].attention.self
    kept = {last.query, last.key, last.value}
    for parent in list(encoder.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, FusedLinear) and (layer in kept or layer not in scales):
                layer.cast(dtype)
            elif isinstance(layer, FusedLinear):
                setattr(parent, name, Int8Linear(layer, scales[layer], dtype))


def _int8_conv(
    scales: Mapping[nn.Module, Scale], conv: FusedConv2d, read: Scale, added: Scale | None = None
) -> tuple[Int8Conv2d, Scale]:
    """The layer, and what its output's numbers mean."""
    return Int8Conv2d(conv, read, scales[conv], added), scales[conv]
