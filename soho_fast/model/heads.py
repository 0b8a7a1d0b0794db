"""The three heads of pre-training (paper section 3.4) and how their losses are averaged.

M positions, D channels, V words, K codes, P pairs.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from .config import SohoConfig
from .cpu.packed_encoder import product_dtype, recurring
from .distributed import all_reduce_sum_, world_size

# Values of a classifier that are cast at a time: 2 MiB in bfloat16.
_PART = 1 << 20


class _ClassifyByParts(torch.autograd.Function):
    """A linear classifier in another type than its weight's, of which no copy is made as a whole.

    Autocast copies the weight to its type and the gradient back: for few rows and many classes that takes longer than
    the products. With 30,522 words of 768 channels and 32 rows, forward and backward took a fifth less CPU time so.
    """

    @staticmethod
    def forward(ctx, hidden_MD, weight_VD, bias_V, dtype: torch.dtype):
        hidden_MD = hidden_MD.to(dtype)
        logits_VM = hidden_MD.new_empty(weight_VD.shape[0], hidden_MD.shape[0])
        for part in _parts(weight_VD):
            torch.mm(weight_VD[part].to(dtype), hidden_MD.T, out=logits_VM[part])
        ctx.save_for_backward(hidden_MD, weight_VD)
        return logits_VM.T + bias_V.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_MV):
        hidden_MD, weight_VD = ctx.saved_tensors
        grad_VM = grad_MV.to(hidden_MD.dtype).T.contiguous()
        grad_hidden_MD = torch.zeros_like(hidden_MD, dtype=torch.float32)
        grad_weight_VD = torch.empty_like(weight_VD)
        for part in _parts(weight_VD):
            grad_hidden_MD += torch.mm(grad_VM[part].T, weight_VD[part].to(hidden_MD.dtype))
            grad_weight_VD[part] = torch.mm(grad_VM[part], hidden_MD)
        return grad_hidden_MD, grad_weight_VD, grad_MV.sum(0, dtype=torch.float32), None


def _parts(weight_VD: Tensor) -> list[slice]:
    V, D = weight_VD.shape
    rows = max(1, _PART // D)
    return [slice(begin, min(begin + rows, V)) for begin in range(0, V, rows)]


class TokenHead(nn.Module):
    """BERT's transform (linear, activation, LayerNorm), then a linear classifier.

    Masked language modelling, eq. 6: `num_classes` words, the classifier's weight tied to the word embeddings by the
    model. Masked visual modelling, eq. 7: `num_classes` codes.
    """

    def __init__(self, config: SohoConfig, num_classes: int) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, num_classes)

    def forward(self, hidden_MD: Tensor, weight_VD: Tensor | None = None) -> Tensor:
        """(M, D) -> (M, num_classes); M may be 0. `weight_VD` stands in for the classifier's own, where given."""
        M = hidden_MD.shape[0]
        padded_RD = nn.functional.pad(hidden_MD, (0, 0, 0, recurring(M, hidden_MD) - M))
        hidden_RD = self.transform(padded_RD)
        table_VD = self.decoder.weight if weight_VD is None else weight_VD
        dtype = product_dtype(table_VD)
        if table_VD.device.type == "cpu" and dtype != table_VD.dtype and table_VD.numel() > _PART:
            return _ClassifyByParts.apply(hidden_RD, table_VD, self.decoder.bias, dtype)[:M]
        if weight_VD is None:
            return self.decoder(hidden_RD)[:M]
        return nn.functional.linear(hidden_RD, weight_VD, self.decoder.bias)[:M]


class MatchingHead(nn.Module):
    """Image-text matching, eq. 8: a binary classifier on [CLS]; index 1 is "matched"."""

    def __init__(self, config: SohoConfig) -> None:
        super().__init__()
        self.classifier = nn.Linear(config.hidden_size, 2)

    def forward(self, hidden_PD: Tensor) -> Tensor:
        """(P, D) -> (P, 2)."""
        return self.classifier(hidden_PD)


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies in float32 and their number, both (); no position gives 0 with a gradient of zeros."""
    loss = nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
    return loss, torch.full((), float(targets.numel()), device=logits.device)


def global_means(sums_and_counts: list[tuple[Tensor, Tensor]], synchronise: bool) -> list[Tensor]:
    """Means over the positions of all ranks, one collective for all losses.

    With labels spread unevenly over ranks, the mean of the ranks' means is not the mean. Here every rank gets the
    global value, and a gradient which, averaged over ranks as data-parallel training does, is that of the global mean:
    several ranks then train as one process would on the joined batch.

    Args:
        sums_and_counts: (sum, count) of each loss, float32 ().
        synchronise: all ranks make this call (training); otherwise the means are local.
    """
    if not synchronise or world_size() == 1:
        return [total / count.clamp(min=1.0) for total, count in sums_and_counts]
    packed = torch.stack([value.detach() for pair in sums_and_counts for value in pair])
    all_reduce_sum_(packed)
    means = []
    for (local_sum, _), (global_sum, global_count) in zip(sums_and_counts, packed.view(-1, 2), strict=True):
        global_count = global_count.clamp(min=1.0)
        local = local_sum * (world_size() / global_count)
        means.append(local + (global_sum / global_count - local).detach())
    return means
