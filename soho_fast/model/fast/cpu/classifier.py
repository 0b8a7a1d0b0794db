"""The classifiers of words and codes on a CPU: cast by parts, in row counts that recur, one gradient for all words.

M positions, D channels, V classes, N rows of the word table.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...heads import TokenHead
from .products import product_dtype, recurring

# Values of a classifier that are cast at a time: 2 MiB in bfloat16.
_PART = 1 << 20


def classify_on_cpu(head: TokenHead, hidden_MD: Tensor, table_VD: Tensor | None = None) -> Tensor:
    """`heads.classify`, faster on a CPU."""
    M = hidden_MD.shape[0]
    # Rows of zeros, cut off again at the end; see `recurring`.
    hidden_RD = head.transform(F.pad(hidden_MD, (0, 0, 0, recurring(M, hidden_MD) - M)))
    weight_VD = head.decoder.weight if table_VD is None else table_VD
    dtype = product_dtype(weight_VD)
    # Only where autocast would copy the whole weight.
    by_parts = dtype != weight_VD.dtype and weight_VD.numel() > _PART and isinstance(head.decoder, nn.Linear)
    if weight_VD.device.type == "cpu" and by_parts:
        return _ClassifyByParts.apply(hidden_RD, weight_VD, head.decoder.bias, dtype)[:M]
    if table_VD is None:
        return head.decoder(hidden_RD)[:M]
    return F.linear(hidden_RD, table_VD, head.decoder.bias)[:M]


class _ClassifyByParts(torch.autograd.Function):
    """A linear classifier in another type than its weight's, of which no copy is made as a whole.

    Autocast copies the weight to its type and the gradient back: for few rows and many classes that takes longer than
    the products. With 30,522 words of 768 channels and 32 rows, forward and backward took a fifth less CPU time so.
    """

    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, dtype: torch.dtype) -> Tensor:
        hidden_MD = hidden_MD.to(dtype)
        # Classes first: each part's product then has rows of its own to be written to.
        logits_VM = hidden_MD.new_empty(weight_VD.shape[0], hidden_MD.shape[0])
        for part in _parts(weight_VD):
            torch.mm(weight_VD[part].to(dtype), hidden_MD.T, out=logits_VM[part])
        ctx.save_for_backward(hidden_MD, weight_VD)
        ctx.has_bias = bias_V is not None
        return logits_VM.T if bias_V is None else logits_VM.T + bias_V.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MV: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MD, weight_VD = ctx.saved_tensors
        grad_VM = grad_MV.to(hidden_MD.dtype).T.contiguous()
        # Added over the parts in float32, whatever type the products have.
        grad_hidden_MD = torch.zeros_like(hidden_MD, dtype=torch.float32)
        grad_weight_VD = torch.empty_like(weight_VD)
        for part in _parts(weight_VD):
            grad_hidden_MD += torch.mm(grad_VM[part].T, weight_VD[part].to(hidden_MD.dtype))
            # Cast to the weight's type by the assignment, part by part.
            grad_weight_VD[part] = torch.mm(grad_VM[part], hidden_MD)
        grad_bias_V = grad_MV.sum(0, dtype=torch.float32) if ctx.has_bias else None
        return grad_hidden_MD, grad_weight_VD, grad_bias_V, None


def _parts(weight_VD: Tensor) -> list[slice]:
    V, D = weight_VD.shape
    rows = max(1, _PART // D)
    return [slice(begin, min(begin + rows, V)) for begin in range(0, V, rows)]


class SharedWords(torch.autograd.Function):
    """The rows of a word table at some ids, and the table itself for whoever else uses it (a tied classifier).

    The gradients of the rows are added to that of the classifier, in place: two dense gradients would be made, and
    summed, otherwise, and with 30,522 words that takes longer than the products with them.
    """

    @staticmethod
    def forward(ctx: Any, table_VD: Tensor, id_N: Tensor, padding_id: int | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(id_N)
        ctx.padding_id, ctx.shape = padding_id, table_VD.shape
        ctx.set_materialize_grads(False)
        # A view: an output that is the input itself is another case to autograd.
        return table_VD.index_select(0, id_N), table_VD.view_as(table_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor | None, grad_VD: Tensor | None) -> tuple[Tensor | None, None, None]:
        (id_N,) = ctx.saved_tensors
        if grad_ND is None:
            return grad_VD, None, None
        if grad_VD is None:
            grad_VD = grad_ND.new_zeros(ctx.shape)
        if ctx.padding_id is not None:
            # As nn.Embedding has it: padding learns nothing as a word that is read.
            grad_ND = grad_ND.masked_fill((id_N == ctx.padding_id).unsqueeze(1), 0.0)
        # In place: this gradient was made by the classifier for here alone.
        return grad_VD.index_add_(0, id_N, grad_ND), None, None
