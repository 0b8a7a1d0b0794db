"""Caption words: which words do the captions of an image hold? An aid for small corpora; not in the paper.

The paper starts from an ImageNet ResNet and a BERT that both know the world; a small model that starts from nothing
spends most of a short run before its Transformer looks at the image at all. Here each visual token is compared with the
word embeddings, and the best match over the image says how likely a word is (multiple-instance learning, as in Fang
et al. 2015, "From Captions to Visual Concepts and Back"). The visual features come to lie near the words they show,
which is what masked language modelling and matching build on.

B images, P image-text pairs, S text tokens, L visual tokens, D channels, V words.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import SohoConfig


class CaptionWordHead(nn.Module):
    """Features to logits of words; the classifier's weight is tied to the word embeddings by the model."""

    # Logit of a word before anything is known: a caption holds about one word in fifty of a small vocabulary.
    PRIOR_LOGIT = -4.0

    def __init__(self, config: SohoConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.full((config.vocab_size,), self.PRIOR_LOGIT))

    def forward(self, feat_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """Returns (B, V): the best logit over the valid tokens of each image, plus the word's bias."""
        logits_BLV = self.decoder(self.norm(feat_BLD))
        return logits_BLV.masked_fill(~valid_BL.unsqueeze(-1), float("-inf")).amax(1) + self.bias


def caption_word_targets(
    input_ids_PS: Tensor,
    attention_mask_PS: Tensor | None,
    mlm_labels_PS: Tensor | None,
    itm_labels_P: Tensor | None,
    image_index_P: Tensor | None,
    num_images: int,
    vocab_size: int,
) -> Tensor:
    """(B, V) float32, 1 where a matched text of the image holds the word; masked words count as what they were."""
    ids_PS = input_ids_PS if mlm_labels_PS is None else torch.where(mlm_labels_PS != -100, mlm_labels_PS, input_ids_PS)
    counts_PS = torch.ones_like(ids_PS, dtype=torch.float32)
    if attention_mask_PS is not None:
        counts_PS = counts_PS * attention_mask_PS
    if itm_labels_P is not None:
        counts_PS = counts_PS * (itm_labels_P == 1).unsqueeze(1)
    if image_index_P is None:
        image_index_P = torch.arange(num_images, device=ids_PS.device)
    words_BV = torch.zeros(num_images * vocab_size, device=ids_PS.device)
    words_BV.index_add_(0, (image_index_P.unsqueeze(1) * vocab_size + ids_PS).flatten(), counts_PS.flatten())
    return words_BV.view(num_images, vocab_size).clamp_(max=1.0)


def caption_word_loss(logits_BV: Tensor, words_BV: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy summed over words and images, and the number of images, both float32 ()."""
    loss = F.binary_cross_entropy_with_logits(logits_BV.float(), words_BV, reduction="sum")
    return loss, torch.full((), float(logits_BV.shape[0]), device=logits_BV.device)
