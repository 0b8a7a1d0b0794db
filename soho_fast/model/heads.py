"""The three heads of pre-training and the arithmetic of their losses (paper section 3.3, eq. 6-9).

M positions, D channels, V words, K codes, P pairs, S tokens, X whatever stands for a token.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from soho_fast.common.spelling import did_you_mean

from .config import SohoConfig
from .distributed import all_reduce_sum_, world_size
from .whole_step import WholeStep

LossSum = tuple[Tensor, Tensor]
"""A loss summed over its positions, and their number, both float32 ()."""


def classify(head: "TokenHead", hidden_MD: Tensor, table_VD: Tensor | None = None) -> Tensor:
    """`TokenHead.forward` by torch's own linear layers."""
    hidden_MD = head.transform(hidden_MD)
    return head.decoder(hidden_MD) if table_VD is None else F.linear(hidden_MD, table_VD, head.decoder.bias)


class TokenHead(nn.Module):
    """BERT's transform (linear, activation, LayerNorm), then a linear classifier.

    Masked language modelling, eq. 6: `num_classes` words, the classifier's weight tied to the word embeddings by the
    model. Masked visual modelling, eq. 7: `num_classes` codes.

    Attributes:
        classify: how it is computed; `fast/cpu/classifier.py` has another one.
    """

    classify: Callable[["TokenHead", Tensor, Tensor | None], Tensor] = staticmethod(classify)

    def __init__(self, config: SohoConfig, num_classes: int) -> None:
        super().__init__()
        self.transform: nn.Module = BertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, num_classes)

    def forward(self, hidden_MD: Tensor, table_VD: Tensor | None = None) -> Tensor:
        """(M, D) -> (M, num_classes); M may be 0. `table_VD`: the classifier's weight as another user has it."""
        return self.classify(self, hidden_MD, table_VD)


class ItmHead(nn.Module):
    """Image-text matching, eq. 8: a binary classifier on [CLS]; index 1 is "matched"."""

    def __init__(self, config: SohoConfig, *, bias: bool = True) -> None:
        super().__init__()
        self.classifier = nn.Linear(config.hidden_size, 2, bias=bias)

    def forward(self, hidden_PD: Tensor) -> Tensor:
        """(P, D) -> (P, 2)."""
        return self.classifier(hidden_PD)


class ClassificationHead(nn.Sequential):
    """Linear, activation, dropout, linear: the MLP of VQA (768-3072-answers in the paper), and of NLVR2."""

    def __init__(self, config: SohoConfig, in_features: int, num_labels: int) -> None:
        dropout = config.hidden_dropout_prob if config.head_dropout is None else config.head_dropout
        super().__init__(
            nn.Linear(in_features, config.intermediate_size),
            ACT2FN[config.head_act or config.hidden_act],
            nn.Dropout(dropout),
            nn.Linear(config.intermediate_size, num_labels),
        )


def labelled_places(labels_PS: Tensor) -> Tensor:
    """Where in the flattened table there are labels (other than -100), int64 (M,). The host waits for a GPU."""
    return (labels_PS != -100).flatten().nonzero().squeeze(1)


def at_places(table_PSX: Tensor, place_M: Tensor) -> Tensor:
    """What stands at these places of the first two dimensions, as `labelled_places` counts them, (M, ..)."""
    num_columns = table_PSX.shape[1]
    # By two indices: the hidden states of a part of the places are no whole table, and `flatten` would copy them.
    return table_PSX[place_M // num_columns, place_M % num_columns]


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> LossSum:
    """Sum of the cross-entropies in float32 and their number, without targets of -100; none gives 0 with a gradient of
    zeros."""
    loss = F.cross_entropy(logits.float(), targets, reduction="sum")
    return loss, (targets != -100).sum().float()


def global_means(sums_and_counts: list[LossSum], synchronise: bool) -> list[Tensor]:
    """Means over the positions of all ranks, one collective for all losses.

    With labels spread unevenly over ranks, the mean of the ranks' means is not the mean. Here every rank gets the
    global value, and a gradient which, averaged over ranks as data-parallel training does, is that of the global mean:
    several ranks then train as one process would on the joined batch.

    Args:
        sums_and_counts: of each loss.
        synchronise: all ranks make this call (training); otherwise the means are local.
    """
    if not synchronise or world_size() == 1:
        # Without labels 0 / 1: a loss of 0.
        return [total / count.clamp(min=1.0) for total, count in sums_and_counts]
    # Detached: the gradient goes through the local sum alone.
    packed = torch.stack([value.detach() for pair in sums_and_counts for value in pair])
    all_reduce_sum_(packed)
    means = []
    for (local_sum, _), (global_sum, global_count) in zip(sums_and_counts, packed.view(-1, 2), strict=True):
        global_count = global_count.clamp(min=1.0)
        # The mean of this over the ranks is the global mean, and so is the mean of its gradients.
        local = local_sum * (world_size() / global_count)
        # The value is the global mean, the gradient that of `local`.
        means.append(local + (global_sum / global_count - local).detach())
    return means


# The field of SohoConfig that weighs each loss; None: it counts as it is, in the paper too.
WEIGHTS = {
    "itm_loss": None,
    "mlm_loss": None,
    "mvm_loss": "mvm_weight",
    "bag_of_words_loss": "bag_of_words_weight",
    "contrastive_loss": "contrastive_weight",
}


def step_means(losses: dict[str, LossSum], synchronise: bool, whole_step: WholeStep | None) -> dict[str, Tensor]:
    """Means by name: `global_means`, or where the whole step was surveyed this forward's part of its means, which is so
    large that the mean over all its forwards, of values as of gradients, is the step's."""
    if whole_step is None:
        return dict(zip(losses, global_means(list(losses.values()), synchronise), strict=True))
    counts, means = whole_step.counts, {}
    for name, (total, count) in losses.items():
        # What a survey knows nothing of is a mean over the forward's own labels.
        parts, of_count = (whole_step.num_parts, counts[name]) if name in counts else (1, count)
        means[name] = total * (parts / of_count.clamp(min=1.0))
    return means


def total_loss(
    losses: dict[str, LossSum], config: SohoConfig, synchronise: bool, whole_step: WholeStep | None = None
) -> dict[str, Tensor]:
    """`step_means` by name, and under "loss" their sum: eq. 9, to which the configuration can add weights.

    Args:
        losses: by the names of `WEIGHTS`.
        synchronise: as in `global_means`.
        whole_step: as in `step_means`.

    Returns:
        Float32 () each; empty without losses.

    Raises:
        ValueError: a loss of another name, whose weight is not known.
    """
    if not losses:
        return {}
    for name in losses:
        if name not in WEIGHTS:
            raise ValueError(f"total_loss: {name} has no weight{did_you_mean(name, WEIGHTS) or '; see WEIGHTS'}")
    means = step_means(losses, synchronise, whole_step)
    weights = {name: 1.0 if (field := WEIGHTS[name]) is None else getattr(config, field) for name in means}
    total = sum(weights[name] * mean for name, mean in means.items())
    assert isinstance(total, Tensor), "there are losses"
    return {"loss": total, **means}
