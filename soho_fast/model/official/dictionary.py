"""The released code's visual dictionary, where it departs from eq. 2 to 4 of the paper.

B images, L tokens per image, K codes, C channels.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ..config import SohoConfig
from ..visual_dictionary import VisualDictionary
from .smoothed import smoothed_ema_


class OfficialDictionary(VisualDictionary):
    """A dictionary that answers with the codebook as it is after the update, by the assignment made before it.

    In the paper one codebook is read, and moved afterwards. Here every training forward moves it, within a step of
    gradient accumulation and in one that the optimiser leaves out too, and an image's tokens count once for each of its
    texts, padding included (`SohoModel` gives it all tokens). Codes are running sums over running counts, which start
    empty, so that a code without assigned features in the first update becomes the zero vector.

    Buffers:
        As in `VisualDictionary`; cluster_size (K,), cluster_sum (K, C): the running counts and sums; total (K,):
        assigned features of all updates, which nothing reads.
    """

    moves_in_forward = True

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        self.cluster_size = nn.Buffer(torch.zeros(self.num_codes, dtype=torch.float32))
        self.cluster_sum = nn.Buffer(torch.zeros(self.num_codes, self.num_channels, dtype=torch.float32))
        self.total = nn.Buffer(torch.zeros(self.num_codes, dtype=torch.float32))

    def reset(self) -> None:
        """Random codes, and statistics of nothing."""
        super().reset()
        for name in ("cluster_size", "cluster_sum", "total"):
            # `VisualDictionary` resets before it has them.
            if hasattr(self, name):
                init.zeros_(getattr(self, name))

    def move(self, counts_K: Tensor, sums_KC: Tensor) -> None:
        smoothed_ema_(self.codebook, self.cluster_size, self.cluster_sum, counts_K, sums_KC, self.config.ema_decay)

    def codes_replaced(self, replaced_K: Tensor) -> None:
        # Each counts once where it is now: the old sums would pull it back.
        self.cluster_size.masked_fill_(replaced_K, 1.0)
        self.cluster_sum.copy_(torch.where(replaced_K.unsqueeze(1), self.codebook, self.cluster_sum))

    def assigned_to_codes(
        self, feat_BLC: Tensor, index_BL: Tensor, usable_BL: Tensor, num_texts_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if num_texts_B is None:
            return super().assigned_to_codes(feat_BLC, index_BL, usable_BL, None)
        num_texts_B1 = num_texts_B.float().unsqueeze(1)
        weighted_BLC = feat_BLC.float() * num_texts_B1.unsqueeze(2)
        counts_K, sums_KC = super().assigned_to_codes(weighted_BLC, index_BL, usable_BL, None)
        # The sums are right by the features' weights; the counts were of rows, and are taken again by theirs.
        counts_K = torch.zeros_like(counts_K).index_add_(0, index_BL.flatten(), (usable_BL * num_texts_B1).flatten())
        return counts_K, sums_KC

    def count(self, counts_K: Tensor) -> None:
        super().count(counts_K)
        self.total.add_(counts_K)
