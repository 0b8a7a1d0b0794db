"""A dictionary whose lookup is in the space of the words (ours; the paper looks up features).

The bag-of-words head says of each visual token which words it shows. Features lie by looks, and so do their codes; by
what the head says of them tokens lie by what they show. Eq. 2 is asked there: the nearest code is the one whose words
are nearest to those of the token, by the Hellinger distance. Codes stay what they are (eq. 3, 4): the moving mean of
the features that are assigned to them.

B images, L tokens per image, C channels, K codes, V words of the vocabulary, W words of the lookup, X = C + W.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from soho_fast import ops
from soho_fast.ops.nn import Float32Buffers

from .auxiliary import BagOfWordsHead
from .config import SohoConfig
from .visual_dictionary import VisualDictionary

# Of a larger vocabulary the words that most captions hold.
_MOST_WORDS = 1024


class WordSpace(Float32Buffers):
    """Features to the square roots of how likely each word is shown, as the bag-of-words head said when last `read`.

    A copy, so that a dictionary looks up alike in all forwards of a step, under ZeRO 3 too, and without the head.

    Attributes:
        ids: (W,) int64 buffer, the words.
        weight, bias: (W, C) and (W,) float32 buffers: of a feature with mean 0 and variance 1 the logits.
    """

    def __init__(self, config: SohoConfig) -> None:
        super().__init__()
        num_words = min(_MOST_WORDS, config.vocab_size)
        self.ids = nn.Buffer(torch.zeros(num_words, dtype=torch.int64))
        self.weight = nn.Buffer(torch.zeros(num_words, config.hidden_size))
        self.bias = nn.Buffer(torch.zeros(num_words))

    def reset(self) -> None:
        """The first words of the vocabulary, of which nothing was said."""
        init.copy_(self.ids, torch.arange(len(self.ids)))
        init.zeros_(self.weight)
        init.zeros_(self.bias)

    @torch.no_grad()
    def choose(self, share_V: Tensor) -> None:
        """The words that the largest share of captions holds, (V,); of those held alike the first ones."""
        self.ids.copy_(share_V.sort(descending=True, stable=True).indices[: len(self.ids)].sort().values)

    @torch.no_grad()
    def read(self, head: BagOfWordsHead) -> None:
        """Takes over what the head says from here on."""
        table_WC = head.decoder.weight[self.ids].float()
        norm = head.norm
        self.weight.copy_(table_WC * norm.weight.float())
        self.bias.copy_(table_WC @ norm.bias.float() + head.bias[self.ids].float())

    def forward(self, feat_BLC: Tensor) -> Tensor:
        """(.., C) to float32 (.., W)."""
        normed_BLC = F.layer_norm(feat_BLC.float(), feat_BLC.shape[-1:])
        return F.linear(normed_BLC, self.weight, self.bias).sigmoid().sqrt()


class WordsDictionary(VisualDictionary):
    """Looks up in `places` what `words` says of the features; all else is the paper's.

    `places` moves as `codebook` does, by the same features: a code lies where the words of its features lie on average.

    Attributes:
        words: the space.
        places: (K, W) float32 buffer.
    """

    searched = "places"

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        self.words = WordSpace(config)
        self.places: Tensor = nn.Buffer(torch.zeros(self.num_codes, len(self.words.ids)))
        self.reset()

    def reset(self) -> None:
        super().reset()
        if hasattr(self, "places"):  # The base's constructor calls this one.
            self.words.reset()
            init.zeros_(self.places)

    def read(self, head: BagOfWordsHead | None) -> None:
        """Takes over what the head says by now, before a step or a training forward that is one; within a step
        nothing."""
        assert head is not None, "the config was checked"
        if not self._in_step:
            self.words.read(head)

    def rows(self, feat_BLC: Tensor) -> Tensor:
        feat_BLC = feat_BLC.detach().float()
        return torch.cat([feat_BLC, self.words(feat_BLC)], -1)

    def look_up(self, feat_BLC: Tensor, rows_BLX: Tensor) -> tuple[Tensor, Tensor]:
        index_BL = self._nearest(rows_BLX[..., self.num_channels :].contiguous(), self.places)
        return ops.straight_through(feat_BLC, self.codebook, index_BL), index_BL.unsqueeze(-1)

    def distances(self, feat_BLC: Tensor, index_BLQ: Tensor) -> Tensor:
        """How far the words of each feature are from those of its code."""
        return (self.words(feat_BLC) - self.places[index_BLQ[..., 0]]).norm(dim=-1, keepdim=True)

    def move(self, counts_K: Tensor, sums_KX: Tensor) -> None:
        for table, sums in zip((self.codebook, self.places), self._parts(sums_KX), strict=True):
            ops.codebook_ema_(table, counts_K, sums.contiguous(), self.config.ema_decay)

    def replace(self, replaced_K: Tensor, rows_KX: Tensor) -> None:
        feat_KC, words_KW = self._parts(rows_KX)
        super().replace(replaced_K, feat_KC)
        self.places.copy_(torch.where(replaced_K.unsqueeze(1), words_KW, self.places))

    def _parts(self, rows_KX: Tensor) -> tuple[Tensor, Tensor]:
        feat_KC, words_KW = rows_KX.split([self.num_channels, len(self.words.ids)], dim=1)
        return feat_KC, words_KW
