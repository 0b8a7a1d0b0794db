"""BERT's layers in one call forward and one backward: the kernels of `csrc/kernels/encoder`, in float32.

They take the place of some thousand calls of a step of recipe `mini`, whose products are small, and their own products
are as fast at these sizes as the processor's vectors allow (torch's BLAS takes AVX2 on an AMD processor with AVX-512).

P pairs, S text tokens, L visual tokens, T = S + L places, D channels, N real tokens (pair by pair), U words and visual
tokens with those of each image once, M tokens that are read.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from transformers.activations import GELUActivation
from transformers.models.bert.modeling_bert import BertEncoder, BertLayer

from soho_fast import ops  # noqa: F401  # loads the compiled extension where there is one

from .products import product_dtype

_PARAMETERS_OF_A_LAYER = 16
_MODULES = ("transformers.models.bert.", "torch.nn.modules.")


def can_run_natively(encoder: BertEncoder, real_PT: Tensor, read_PT: Tensor) -> bool:
    """Whether the kernels compute what these layers would.

    Not without the compiled extension, in other types than float32 (autocast), under a functional transform or forward
    mode, with dropout, another activation than GELU, modules that are not BERT's own (adapters) or were given another
    `forward`; nor where padding is read.
    """
    if not hasattr(torch.ops.soho_fast, "encoder_forward_cpu"):
        return False
    layers = list(encoder.layer)
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    return (
        product_dtype(parameters[0]) == torch.float32
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and all(map(_is_plain, layers))
        and len({(layer.attention.output.LayerNorm.eps, layer.output.LayerNorm.eps) for layer in layers}) == 1
        and all(
            type(p) in (Tensor, nn.Parameter) and p.dtype == torch.float32 and p.is_contiguous() for p in parameters
        )
        and not bool((read_PT & ~real_PT).any())
    )


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is as transformers made it, and computes without dropout."""
    modules = list(layer.modules())
    if type(layer) is not BertLayer or sum(1 for _ in layer.parameters()) != _PARAMETERS_OF_A_LAYER:
        return False
    activation = layer.intermediate.intermediate_act_fn
    return (
        type(activation) is GELUActivation
        and activation.act is F.gelu
        and all(type(m).__module__.startswith(_MODULES) or m is activation for m in modules)
        and not any("forward" in vars(module) for module in modules)
        and not any(isinstance(module, nn.Dropout) and module.training and module.p for module in modules)
    )


def encode_natively(
    encoder: BertEncoder,
    words_ND: Tensor,
    visual_BLD: Tensor,
    image_index_P: Tensor,
    real_PT: Tensor,
    read_PT: Tensor,
) -> Tensor:
    """The last hidden states at the places that are read.

    Args:
        encoder: for which `can_run_natively` holds.
        words_ND: embedded words, those of the first pair first.
        visual_BLD: embedded visual tokens of each image.
        image_index_P: int64, the image of each pair.
        real_PT, read_PT: as in `packed_encode`.

    Returns:
        (P, T, D), zero where nothing is read.
    """
    (P, T), (_, L, D), num_words = real_PT.shape, visual_BLD.shape, len(words_ND)
    shared_UD = torch.cat([words_ND, visual_BLD.flatten(0, 1)])
    word_PS = real_PT[:, : T - L].flatten().cumsum(0).view(P, T - L) - 1
    visual_PL = num_words + image_index_P[:, None] * L + torch.arange(L)
    rows = [
        F.pad(real_PT.sum(1).cumsum(0), (1, 0)),
        F.pad(read_PT.sum(1).cumsum(0), (1, 0)),
        torch.cat([word_PS, visual_PL], dim=1)[real_PT],
        read_PT[real_PT].nonzero().squeeze(1),
    ]
    layer = encoder.layer[0]
    sizes = [len(encoder.layer), layer.intermediate.dense.out_features, encoder.config.num_attention_heads]
    epsilons = (layer.attention.output.LayerNorm.eps, layer.output.LayerNorm.eps)
    # Layer by layer: layers may share their weights.
    parameters = [parameter for layer in encoder.layer for parameter in layer.parameters()]
    hidden_MD = _Encode.apply(shared_UD, rows, sizes, epsilons, *parameters)
    hidden_RD = hidden_MD.new_zeros(P * T, D).index_copy(0, read_PT.flatten().nonzero().squeeze(1), hidden_MD)
    return hidden_RD.view(P, T, D)


class _Encode(torch.autograd.Function):
    """All layers, from (U, D) to (M, D); `rows` as `EncoderRows` of encoder.h has them."""

    @staticmethod
    def forward(
        ctx: Any,
        shared_UD: Tensor,
        rows: list[Tensor],
        sizes: list[int],
        epsilons: tuple[float, float],
        *parameters: Tensor,
    ) -> Tensor:
        given = [parameter.detach() for parameter in parameters]
        hidden_MD, kept = torch.ops.soho_fast.encoder_forward_cpu(shared_UD.detach(), rows, given, sizes, *epsilons)
        ctx.save_for_backward(shared_UD, *parameters, *kept)
        ctx.rows, ctx.sizes, ctx.epsilons = rows, sizes, epsilons
        return hidden_MD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor | None, ...]:
        (shared_UD, *tensors), num_layers = ctx.saved_tensors, ctx.sizes[0]
        parameters, kept = tensors[:-num_layers], tensors[-num_layers:]
        grad_UD, grads = torch.ops.soho_fast.encoder_backward_cpu(
            grad_MD.contiguous(), shared_UD, ctx.rows, parameters, kept, ctx.sizes, *ctx.epsilons
        )
        return grad_UD, None, None, None, *grads
