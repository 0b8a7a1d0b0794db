"""The Transformer for scoring: [CLS] of many pairs of few texts and few images, with nothing computed twice or unread.

Of a pair only the last hidden state of [CLS] is read. The first layer's projections of words and of visual tokens are
taken once for each text and each image instead of once for each pair. In the last layer [CLS] is the only query, so its
keys and values are not computed either: (W_k' q) . h = q . (W_k h), and the values' weight is applied after the mean
over the tokens. The modules and their weights are the encoder's own, the mathematics is unchanged.

I images, T texts, P pairs, S words of a text, L visual tokens of an image, N = S + L, H heads of E channels, D = H*E.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertEncoder, BertLayer

from .heads import ItmHead
from .inputs import check_text_length
from .outputs import VisualTokens


def encode_pairs(
    encoder: BertEncoder, words_TSD: Tensor, visual_ILD: Tensor, text_index_P: Tensor, image_index_P: Tensor
) -> Tensor:
    """The last hidden state of the first word of each pair, as the encoder in evaluation mode gives it.

    Args:
        encoder: BERT's.
        words_TSD: embedded texts, all of one length.
        visual_ILD: embedded visual tokens, the same number for each image.
        text_index_P, image_index_P: int64, the text and the image of each pair.

    Returns:
        (P, D).
    """
    *layers, last = encoder.layer
    # A prepared model's layers may be of another type than its embeddings.
    dtype = last.attention.self.query.weight.dtype
    words_TSD, visual_ILD = words_TSD.to(dtype), visual_ILD.to(dtype)
    # The only layer is the last one, which takes no keys and values.
    if not layers:
        hidden_PND = _join(words_TSD, visual_ILD, text_index_P, image_index_P)
        return _first_of_last(last, hidden_PND)
    # F = 4 D: states and their three projections side by side, so that one gather makes pairs of all.
    text_TSF, visual_ILF = (_with_projections(layers[0], states) for states in (words_TSD, visual_ILD))
    hidden_PND, *projected = _join(text_TSF, visual_ILF, text_index_P, image_index_P).chunk(4, dim=-1)
    hidden_PND = _attend(layers[0], hidden_PND, *projected)
    for layer in layers[1:]:
        projected = [project(hidden_PND) for project in _projections(layer)]
        hidden_PND = _attend(layer, hidden_PND, *projected)
    return _first_of_last(last, hidden_PND)


class PairMatching:
    """How well texts fit images, for models with a `SohoModel` (`soho`) and an `ItmHead` (`itm_head`)."""

    soho: Any  # A `SohoModel`: its module imports this one.
    itm_head: ItmHead

    def embed_images(self, visual: VisualTokens) -> Tensor:
        """Visual tokens as the Transformer reads them, (B, L, D); those that are not valid are to be left out."""
        return self.soho.visual_embeddings(visual.tokens, visual.position)

    def matching_logits(
        self, visual_ILD: Tensor, input_ids_TS: Tensor, text_index_P: Tensor, image_index_P: Tensor
    ) -> Tensor:
        """Logit difference of "matched", (P,), in evaluation mode.

        Args:
            visual_ILD: what `embed_images` gave of images with the same number of tokens.
            input_ids_TS: int64, texts of one length.
            text_index_P, image_index_P: int64, the text and the image of each pair.

        Raises:
            ValueError: texts have no token, or more than the model has positions.
        """
        check_text_length(input_ids_TS, self.soho.config.max_position_embeddings)
        words_TSD = self.soho.text_embeddings(input_ids=input_ids_TS)
        first_PD = self.soho.transformer.encode_pairs(self.soho, words_TSD, visual_ILD, text_index_P, image_index_P)
        logits_P2 = self.itm_head(first_PD.to(self.itm_head.classifier.weight.dtype))
        return logits_P2[:, 1] - logits_P2[:, 0]


def _join(text_TSX: Tensor, visual_ILX: Tensor, text_index_P: Tensor, image_index_P: Tensor) -> Tensor:
    return torch.cat([text_TSX.index_select(0, text_index_P), visual_ILX.index_select(0, image_index_P)], dim=1)


def _projections(layer: BertLayer) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    attention = layer.attention.self
    return attention.query, attention.key, attention.value


def _with_projections(layer: BertLayer, states: Tensor) -> Tensor:
    """(.., D) -> (.., 4 D): the states, their queries, keys and values."""
    return torch.cat([states, *(project(states) for project in _projections(layer))], dim=-1)


def _attend(layer: BertLayer, hidden_PND: Tensor, query_PND: Tensor, key_PND: Tensor, value_PND: Tensor) -> Tensor:
    """The layer, given its queries, keys and values."""
    num_heads = layer.attention.self.num_attention_heads
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query_PND, key_PND, value_PND))
    # No mask: texts have one length, and images the same number of tokens.
    context_PND = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return layer.feed_forward_chunk(layer.attention.output(context_PND, hidden_PND))


def _first_of_last(layer: BertLayer, hidden_PND: Tensor) -> Tensor:
    """The layer's output at the first place alone, (P, D)."""
    attention = layer.attention.self
    heads = (attention.num_attention_heads, -1)
    first_PD = hidden_PND[:, 0]
    query, key, value = _projections(layer)
    if key.weight.numel() == 0 or [*key.children(), *value.children()]:
        # ZeRO 3 holds the weights in parts, and brings them together only where a module is called, and adapters (peft)
        # compute beside them.
        first_P1D = first_PD[:, None]
        return _attend(layer, first_P1D, query(first_P1D), key(hidden_PND), value(hidden_PND))[:, 0]
    # A key's bias adds the same to all scores of a query, which softmax does not see.
    query_HPE = query(first_PD).unflatten(-1, heads).transpose(0, 1)
    # W_k' q by heads: rows h E to (h + 1) E of the weight (out, in) are head h's, so each head asks in all D channels.
    asked_PHD = torch.bmm(query_HPE, key.weight.unflatten(0, heads).to(query_HPE.dtype)).transpose(0, 1)
    # Under autocast the product has come out in its lower type.
    hidden_PND = hidden_PND.to(asked_PHD.dtype)
    # The scale is that of the head's E channels, though D are multiplied. Softmax is over the N tokens.
    share_PHN = (torch.bmm(asked_PHD, hidden_PND.transpose(1, 2)) * query_HPE.shape[-1] ** -0.5).softmax(-1)
    # First the mean of the states, then the values' weight on one row for each head instead of on N.
    seen_HPD = torch.bmm(share_PHN.to(hidden_PND.dtype), hidden_PND).transpose(0, 1)
    value_HDE = value.weight.unflatten(0, heads).transpose(1, 2).to(seen_HPD.dtype)
    # The shares add up to 1 (there is no dropout here), so the bias is added as it is.
    context_PD = torch.bmm(seen_HPD, value_HDE).transpose(0, 1).flatten(1) + value.bias
    return layer.feed_forward_chunk(layer.attention.output(context_PD, first_PD))
