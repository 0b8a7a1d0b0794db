"""The bag-of-words loss: which words do the captions of an image hold? For small corpora; not in the paper.

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
from transformers import initialization as init

from ..config import SohoConfig
from ..heads import LossSum
from ..inputs import Texts


class BagOfWordsHead(nn.Module):
    """Features to logits of words; the classifier's weight is tied to the word embeddings by the model."""

    # Logit of a word before anything is known: a caption holds about one word in fifty of a small vocabulary.
    PRIOR_LOGIT = -4.0

    def __init__(self, config: SohoConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.full((config.vocab_size,), self.PRIOR_LOGIT))

    def reset(self) -> None:
        """The initial bias; its layers have the initial values of their kinds."""
        init.constant_(self.bias, self.PRIOR_LOGIT)

    def resize(self, num_words: int) -> None:
        """Gives the bias, which transformers does not know of, a row for each word; new ones the initial one."""
        more = num_words - len(self.bias)
        resized_V = F.pad(self.bias.detach(), (0, more), value=self.PRIOR_LOGIT)
        self.bias = nn.Parameter(resized_V, requires_grad=self.bias.requires_grad)

    def forward(self, feat_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """Returns (B, V): the best logit over the valid tokens of each image, plus the word's bias."""
        logits_BLV = self.decoder(self.norm(feat_BLD))
        # The bias after the maximum: it is the same for all tokens.
        return logits_BLV.masked_fill(~valid_BL.unsqueeze(-1), float("-inf")).amax(1) + self.bias

    def loss(self, feat_BLD: Tensor, valid_BL: Tensor, captions: Texts) -> LossSum:
        """Binary cross-entropy summed over words and images, and the number of images.

        Args:
            feat_BLD, valid_BL: the dictionary's input of each image, and which tokens are real.
            captions: texts that describe their images. Texts without a real word are skipped.
        """
        logits_BV = self(feat_BLD, valid_BL)
        words_BV = words_of_captions(captions, *logits_BV.shape)
        loss = F.binary_cross_entropy_with_logits(logits_BV.float(), words_BV, reduction="sum")
        return loss, torch.full((), float(logits_BV.shape[0]), device=logits_BV.device)


def words_of_captions(captions: Texts, num_images: int, vocab_size: int) -> Tensor:
    """(B, V) float32, 1 where a caption of the image holds the word."""
    ids_PS, image_index_P = captions.input_ids, captions.image_index
    if image_index_P is None:
        image_index_P = torch.arange(num_images, device=ids_PS.device)
    assert captions.attention_mask is not None, "captions_of gives one"
    words_BV = torch.zeros(num_images * vocab_size, device=ids_PS.device)
    place_PS = image_index_P.unsqueeze(1) * vocab_size + ids_PS
    # Padding adds 0 to whatever word its id names.
    words_BV.index_add_(0, place_PS.flatten(), captions.attention_mask.float().flatten())
    return words_BV.view(num_images, vocab_size).clamp_(max=1.0)


def captions_of(texts: Texts, mlm_labels_PS: Tensor | None, itm_labels_P: Tensor | None) -> Texts:
    """The texts of pre-training as they were before words were masked; unmatched ones are left without a word."""
    ids_PS, real_PS = texts.input_ids, texts.attention_mask
    if mlm_labels_PS is not None:
        ids_PS = torch.where(mlm_labels_PS != -100, mlm_labels_PS, ids_PS)
    if real_PS is None:
        real_PS = torch.ones_like(ids_PS)
    if itm_labels_P is not None:
        real_PS = real_PS * (itm_labels_P == 1).unsqueeze(1)
    return Texts(ids_PS, real_PS, texts.image_index)
