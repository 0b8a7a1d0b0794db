"""How the Transformer is run (section 3.3): the one seam of `SohoModel`, its attribute `transformer`.

There are three: `TransformerBackend` runs BERT's layers as they are ("plain"), `fast/cpu/packed_encoder.py` without
padding ("packed"), `fast/prepared/` in the types of a model that was prepared for inference ("prepared"). A backend
holds no weights, so whichever runs, names and values in a checkpoint are the same; to choose another is to replace the
attribute.

P image-text pairs of B images, S text tokens, L visual tokens, T = S + L places of a pair, D channels.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder

from .config import SohoConfig
from .embeddings import VisualEmbeddings
from .inputs import Texts
from .outputs import VisualTokens
from .pair_encoder import encode_pairs


class TransformerParts(Protocol):
    """What a backend runs: the modules of a `SohoModel`."""

    config: SohoConfig
    text_embeddings: BertEmbeddings
    visual_embeddings: VisualEmbeddings
    encoder: BertEncoder
    encoder_compiled: bool


@dataclass
class Reads:
    """Whose last hidden states a model with heads reads: [CLS] of all pairs, and of these more.

    Args:
        words_PS: bool, words; `None`: none.
        masked_P: bool, pairs of which the masked visual tokens are read; `None`: none.
        word_table: where a backend puts the word table for a classifier that is tied to it, so that one gradient
            serves both; `None`: the classifier's own weight is the table.
    """

    words_PS: Tensor | None = None
    masked_P: Tensor | None = None
    word_table: Tensor | None = None


@dataclass
class Pairs:
    """What the Transformer reads.

    Args:
        visual, texts: images, and texts each with the number of its image.
        real_PT: bool, False at padding; a pair's words come first, then its visual tokens.
        mvm_labels_PL: int64, -100 where a visual token is not masked; `None`: nothing is.
        reads: what of the result is read, all else may be zero; `None`: everything.
    """

    visual: VisualTokens
    texts: Texts
    real_PT: Tensor
    mvm_labels_PL: Tensor | None
    reads: Reads | None


class TransformerBackend:
    """BERT's layers as transformers has them."""

    name = "plain"

    def __call__(self, soho: TransformerParts, pairs: Pairs, **kwargs: Any) -> Tensor:
        """The last hidden states of pairs, (P, T, D).

        Args:
            soho: the modules that are run.
            pairs: what they read.
            kwargs: what the attention takes.
        """
        visual, texts = pairs.visual, pairs.texts
        # Images become pairs before the dropout, which then draws for each pair.
        visual_PLD = soho.visual_embeddings(texts.of_images(visual.tokens), texts.of_images(visual.position))
        # Token type 0 is BERT's default; visual tokens get no type.
        text_PSD = soho.text_embeddings(input_ids=texts.input_ids)
        states_PTD = torch.cat([text_PSD, visual_PLD.to(text_PSD.dtype)], dim=1)
        return self.encode(soho, states_PTD, pairs.real_PT, **kwargs)

    def encode(self, soho: TransformerParts, states_PTD: Tensor, real_PT: Tensor, **kwargs: Any) -> Tensor:
        """The last hidden states (P, T, D) of embedded tokens, of which those are read that are real."""
        # Whether all are real is a question to the device, which nobody waits to have answered.
        mask = create_bidirectional_mask(soho.config, states_PTD, real_PT, allow_is_bidirectional_skip=False)
        # Tuple or `ModelOutput`: both begin with the last hidden state.
        return soho.encoder(states_PTD, attention_mask=mask, **kwargs)[0]

    def encode_pairs(self, soho: TransformerParts, *states_and_index: Tensor) -> Tensor:
        """[CLS] of many pairs of few texts and images, packed by every backend; see `pair_encoder.py`."""
        return encode_pairs(soho.encoder, *states_and_index)

    def __repr__(self) -> str:
        return self.name
