"""Convolutions and linear layers with constant weights, each with what follows it.

B images, C channels (I in, O out), H x W pixels of a feature map; x is always (B, C, H, W). M rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ...normalization import BatchNorm2d

# An activation as oneDNN's fused kernels know it: name, numbers, algorithm.
POST_OPS = {None: ("none", [], ""), "relu": ("relu", [], ""), "relu6": ("hardtanh", [0.0, 6.0], ""),
             "gelu": ("gelu", [], "none")}  # fmt: skip
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu_, "relu6": lambda x: F.hardtanh_(x, 0.0, 6.0),
                                                       "gelu": F.gelu}  # fmt: skip


def _activated(x: Tensor, activation: str | None) -> Tensor:
    return x if activation is None else _ACTIVATIONS[activation](x)


class Layout:
    """What is made of tensors, kept as long as they are the same and have not been written to.

    Not noticed are writes past torch's version counter: through `.data`, or by numpy.
    """

    _of: tuple[Tensor, ...] = ()
    _key: list[Any] | None = None
    _made: Any = None

    def get(self, make: Callable[..., Any], *tensors: Tensor, about: Any = None) -> Any:
        """`make(*tensors)`, where `about` stands for all else that it depends on."""
        # The tensors are kept too: the numbers of those that are gone may be given to others.
        key = [about]
        for tensor in tensors:
            # The address, too: the memory under a tensor may be exchanged.
            key += (id(tensor), tensor._version, tensor.data_ptr())
        if self._key != key:
            self._made, self._of, self._key = make(*tensors), tensors, key
        return self._made

    def __getstate__(self) -> None:
        """Nothing: it is of this machine, and a copy, in another process too, makes its own."""


def counted(tensor: Tensor) -> Tensor:
    """A constant whose versions torch counts, which it does not for tensors that `torch.inference_mode` made."""
    tensor = tensor.detach()
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def _refuse_to_load(layer: nn.Module, *_: Any) -> None:
    raise ValueError(
        f"load_state_dict: {type(layer).__name__} is a layer of a model that was prepared for inference; expected "
        "weights to be loaded before"
    )


class Constant(nn.Module):
    """A layer whose weight is a buffer: nothing to train, and on a CPU kept in the layout of oneDNN's kernels.

    Otherwise torch lays a weight out at each call. On an AMD Zen 5, one thread, the 1 x 1 convolutions of
    ResNet-101 took twice as long in float32 so, those in bfloat16 5 % longer; the linear layers of BERT-base 2.3 times
    (float32, where torch takes MKL's product) and 1.1 times. It refuses to load a state: the model's has other names
    and types.

    Attributes:
        weight, bias: in the type that is computed in; the bias may be `None`.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str | None, pack: bool) -> None:
        super().__init__()
        self.register_buffer("weight", counted(weight))
        self.register_buffer("bias", None if bias is None else counted(bias))
        self.activation, self.pack = activation, pack
        self._layout = Layout()
        self.register_load_state_dict_pre_hook(_refuse_to_load)

    def packed(self, size: torch.Size | None = None) -> Tensor | None:
        """The weight as oneDNN keeps it; `None` where torch's own operator is to be called.

        Args:
            size: of the features, where the layout depends on it. That of the last call is kept: laid out for another
                size, a convolution of few pixels took 20 to 400 times as long.
        """
        if not self.pack or self.weight.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        return self._layout.get(partial(self.make_packed, size), *self.packed_of(), about=size)

    def packed_of(self) -> tuple[Tensor, ...]:
        """What the layout is made of."""
        return (self.weight,)

    def make_packed(self, size: torch.Size | None, *tensors: Any) -> Tensor:
        """`packed_of()` in the layout of oneDNN's kernel for features of this size."""
        raise NotImplementedError

    def cast(self, dtype: torch.dtype) -> None:
        """Takes another type, in place."""
        self.weight, self.bias = self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)


class FusedConv2d(Constant):
    """A convolution, the BatchNorm after it, what is added to that, and the activation, in one.

    Args:
        conv: the convolution, float32.
        norm: its BatchNorm, whose running statistics become a part of weight and bias; `None`: no BatchNorm.
        activation: "relu", "relu6" or `None`.
        dtype: of weight, bias and features.
        pack: keep the weight in oneDNN's layout on a CPU.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: BatchNorm2d | None,
        activation: str | None = None,
        *,
        dtype: torch.dtype,
        pack: bool,
    ) -> None:
        weight_OIHW, bias_O = conv.weight, conv.bias
        if norm is not None:
            statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
            # In float32: the product is rounded once, by the cast below.
            weight_OIHW, bias_O = fuse_conv_bn_weights(weight_OIHW, bias_O, *statistics)
        weight_OIHW = weight_OIHW.to(dtype, memory_format=torch.channels_last)
        super().__init__(weight_OIHW, None if bias_O is None else bias_O.to(dtype), activation, pack)
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.kernel_size = conv.kernel_size

    def make_packed(self, size: torch.Size | None, weight_OIHW: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_weight(
            weight_OIHW, self.padding, self.stride, self.dilation, self.groups, size
        )

    def forward(self, x: Tensor, mask: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """
        Args:
            x: features with the channels last, of the weight's type. May be written to.
            mask: (B, 1, H, W) of x, 1 at real positions. What a window of one reads at padding reaches padding alone,
                and needs none. `None`: no padding.
            added: features that are added before the activation, which are lost.
        """
        if mask is not None and self.kernel_size != (1, 1):
            x = x.mul_(mask)
        weight_OIHW, form = self.packed(x.shape), (self.padding, self.stride, self.dilation, self.groups)
        if weight_OIHW is None:
            x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            return _activated(x if added is None else x.add_(added), self.activation)
        post_op = POST_OPS[self.activation]
        if added is None:
            return torch.ops.mkldnn._convolution_pointwise(x, weight_OIHW, self.bias, *form, *post_op)
        # Behind a sum this kernel takes None for no activation, not "none".
        unary = (None, [], None) if self.activation is None else post_op
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            added, x, weight_OIHW, self.bias, *form, "add", 1.0, *unary
        )


class FusedLinear(Constant):
    """A linear layer and the activation after it.

    Args:
        linear: the layer, float32.
        activation: "gelu" or `None`.
        dtype: of weight, bias and states.
        pack: keep the weight in oneDNN's layout on a CPU.
    """

    def __init__(self, linear: nn.Linear, activation: str | None = None, *, dtype: torch.dtype, pack: bool) -> None:
        bias_O = None if linear.bias is None else linear.bias.to(dtype)
        super().__init__(linear.weight.to(dtype), bias_O, activation, pack)

    def make_packed(self, size: torch.Size | None, weight_OI: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight_OI, None)

    def forward(self, x: Tensor) -> Tensor:
        """(.., I) to (.., O), of the weight's type."""
        weight_OI = self.packed()
        if weight_OI is None:
            return _activated(F.linear(x, self.weight, self.bias), self.activation)
        return torch.ops.mkldnn._linear_pointwise(x, weight_OI, self.bias, *POST_OPS[self.activation])
