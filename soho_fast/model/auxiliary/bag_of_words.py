"""Caption words: which words do the captions of an image hold? An aid for small corpora; not in the paper.

The paper starts from an ImageNet ResNet and a BERT that both know the world; a small model that starts from nothing
spends most of a short run before its Transformer looks at the image at all. Here each visual token is compared with the
word embeddings, and the best match over the image says how likely a word is (multiple-instance learning, as in Fang
et al. 2015, "From Captions to Visual Concepts and Back"). The visual features come to lie near the words they show,
which is what masked language modelling and matching build on.

B images, P image-text pairs, S text tokens, L visual tokens, D channels, V words.
"""

from collections.abc import Callable
from functools import wraps
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from ..config import SohoConfig
from ..heads import LossSum, total_loss
from ..inputs import Texts
from ..outputs import SohoForPreTrainingOutput, VisualTokens
from . import Aid, captions_of


class CaptionWordHead(Aid):
    """Features to logits of words; the classifier's weight is tied to the word embeddings by the model."""

    attribute = "caption_word_head"
    weight = "caption_word_weight"
    tied_weights: ClassVar[dict[str, str]] = {
        "caption_word_head.decoder.weight": "soho.text_embeddings.word_embeddings.weight"
    }
    # Logit of a word before anything is known: a caption holds about one word in fifty of a small vocabulary.
    PRIOR_LOGIT = -4.0

    def __init__(self, config: SohoConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.full((config.vocab_size,), self.PRIOR_LOGIT))

    def reset(self) -> None:
        """The initial bias."""
        init.constant_(self.bias, self.PRIOR_LOGIT)

    def forward(self, feat_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """Returns (B, V): the best logit over the valid tokens of each image, plus the word's bias."""
        logits_BLV = self.decoder(self.norm(feat_BLD))
        return logits_BLV.masked_fill(~valid_BL.unsqueeze(-1), float("-inf")).amax(1) + self.bias

    def losses(self, model: nn.Module, visual: VisualTokens, captions: Texts) -> dict[str, LossSum]:
        """Binary cross-entropy summed over words and images, and the number of images; in training alone."""
        if not self.training:
            return {}
        logits_BV = self(visual.features, visual.valid)
        words_BV = words_of_captions(captions, *logits_BV.shape)
        loss = F.binary_cross_entropy_with_logits(logits_BV.float(), words_BV, reduction="sum")
        return {"caption_word_loss": (loss, torch.full((), float(logits_BV.shape[0]), device=logits_BV.device))}


def words_of_captions(captions: Texts, num_images: int, vocab_size: int) -> Tensor:
    """(B, V) float32, 1 where a caption of the image holds the word."""
    ids_PS, image_index_P = captions.input_ids, captions.image_index
    if image_index_P is None:
        image_index_P = torch.arange(num_images, device=ids_PS.device)
    words_BV = torch.zeros(num_images * vocab_size, device=ids_PS.device)
    place_PS = image_index_P.unsqueeze(1) * vocab_size + ids_PS
    words_BV.index_add_(0, place_PS.flatten(), captions.attention_mask.float().flatten())
    return words_BV.view(num_images, vocab_size).clamp_(max=1.0)


def may_train_caption_words_only(forward: Callable) -> Callable:
    """Decorates the pre-training forward: while the model's `caption_words_only` is set, training computes the loss of
    the caption words alone, for which neither dictionary nor Transformer runs.
    """

    @wraps(forward)
    def either(
        model: nn.Module,
        *,
        mlm_labels: Tensor | None = None,
        itm_labels: Tensor | None = None,
        **inputs,
    ) -> SohoForPreTrainingOutput:
        if not (model.caption_words_only and model.training):
            return forward(model, mlm_labels=mlm_labels, itm_labels=itm_labels, **inputs)
        texts = Texts(inputs["input_ids"], inputs.get("attention_mask"), inputs.get("image_index"))
        images = {
            name: inputs.get(name) for name in ("pixel_values", "pixel_mask", "backbone_features", "backbone_mask")
        }
        feat_BLD, grid_mask_BHW = model.soho.encode_features(**images)
        visual = VisualTokens(features=feat_BLD, valid=grid_mask_BHW.flatten(1))
        losses = model.caption_word_head.losses(model, visual, captions_of(texts, mlm_labels, itm_labels))
        return SohoForPreTrainingOutput(**total_loss(losses, model.config, synchronise=True))

    return either
