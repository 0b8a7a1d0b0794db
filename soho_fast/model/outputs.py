"""What the model returns.

B images, P image-text pairs, S text tokens, L visual tokens, D channels, K codes, M labelled positions, V words.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

# ModelOutput wants a default for every field but the first, also for those that are always given.
_REQUIRED: Any = None


@dataclass
class VisualTokens(ModelOutput):
    """Images after the visual encoder and the dictionary: what the Transformer reads with the texts.

    Args:
        features (B, L, D): the dictionary's input; zero at padding (not so in the released code's model).
        valid (B, L) bool: True at real tokens.
        position (B, L, D) float32: 2-D sine position.
        embedding (B, L, D): f(v), eq. 3, or what `fusion` makes of it; `None` without a dictionary output.
        index (B, L) int64: the code of each token, -1 at padding (in the released code's model a code there too);
            `None` without a dictionary.
        columns: of the grid of tokens, whose rows follow one another.
    """

    features: Tensor = _REQUIRED
    valid: Tensor = _REQUIRED
    position: Tensor = _REQUIRED
    embedding: Tensor | None = None
    index: Tensor | None = None
    columns: int = _REQUIRED

    @property
    def tokens(self) -> Tensor:
        """What the Transformer reads, (B, L, D): the embedding, or without a dictionary's output the features."""
        return self.features if self.embedding is None else self.embedding


@dataclass
class SohoModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state (P, S + L, D): text tokens first ([CLS] is position 0), then the visual tokens.
        text_length: S.
        index, valid (B, L): as in `VisualTokens`.
        mvm_labels (P, L) int64: the code of each visual token of a pair that was masked, -100 elsewhere; `None` when
            nothing was asked to be masked.
        hidden_states, attentions: per layer, when asked for.
    """

    last_hidden_state: Tensor = _REQUIRED
    text_length: int = _REQUIRED
    index: Tensor | None = None
    valid: Tensor = _REQUIRED
    mvm_labels: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    @property
    def text_hidden(self) -> Tensor:
        """(P, S, D)."""
        return self.last_hidden_state[:, : self.text_length]

    @property
    def visual_hidden(self) -> Tensor:
        """(P, L, D)."""
        return self.last_hidden_state[:, self.text_length :]


@dataclass
class SohoForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss (): sum of the losses below that are there, all but `mlm_loss` and `itm_loss` by their weights.
        mlm_loss, mvm_loss, itm_loss (): means over the labelled positions (pairs) of all ranks, float32; 0 without
            any, `None` where the labels were not given.
        bag_of_words_loss (): binary cross-entropy summed over the words, mean over images; training only, `None` where
            the config has no weight for it.
        contrastive_loss (): of `auxiliary/contrastive.py`, mean over images and texts; training only, `None` where the
            config has no weight for it.
        mlm_logits (M, V), mlm_targets (M,): at the labelled text positions, in the order of `mlm_labels != -100`.
        mvm_logits (M, K), mvm_targets (M,): at the masked visual tokens of the pairs that count.
        itm_logits (P, 2): index 1 is "matched".
        index, valid (B, L): as in `SohoModelOutput`.
        perplexity (), active_codes (), usage (K,): over the running usage, after this forward's update; within a step
            (`SohoPreTrainedModel.begin_step`) as it stood before.
        hidden_states, attentions: per layer, when asked for.
    """

    loss: Tensor | None = None
    mlm_loss: Tensor | None = None
    mvm_loss: Tensor | None = None
    itm_loss: Tensor | None = None
    bag_of_words_loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    mlm_logits: Tensor | None = None
    mlm_targets: Tensor | None = None
    mvm_logits: Tensor | None = None
    mvm_targets: Tensor | None = None
    itm_logits: Tensor | None = None
    index: Tensor | None = None
    valid: Tensor | None = None
    perplexity: Tensor | None = None
    active_codes: Tensor | None = None
    usage: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class SohoForImageTextRetrievalOutput(ModelOutput):
    """
    Args:
        loss (): sum of the losses below, `contrastive_loss` by its weight; `None` without labels.
        itm_loss (): cross-entropy of matching, mean over the pairs of all ranks, float32.
        contrastive_loss (): of `auxiliary/contrastive.py`, mean over images and texts; `None` where the config has no
            weight for it or `own_image` is not given.
        itm_logits (P, 2): index 1 is "matched".
        hidden_states, attentions: per layer, when asked for.
    """

    loss: Tensor | None = None
    itm_loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    itm_logits: Tensor = _REQUIRED
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
