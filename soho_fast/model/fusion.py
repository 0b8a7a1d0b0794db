"""The gate of the released code between the dictionary's output and its input. The paper feeds the output alone.

B images, L tokens per image, D channels.
"""

import torch
from torch import Tensor, nn

from .all_token_batch_norm import AllTokenBatchNorm
from .config import SohoConfig
from .initial_values import he_fan_out, identity


class GatedFusion(nn.Module):
    """g0 * Linear(q) + g1 * x, where g = softmax(BatchNorm(W [Linear(q), x])) of each token.

    q is the dictionary's output (`align` is the linear layer), x its input, W (`gate`) without a bias. At the start
    `align` is the identity: a code and its features lie together, which a Transformer from nothing reads sooner than
    what a random layer makes of codes; in the released code it is random.
    """

    def __init__(self, config: SohoConfig) -> None:
        super().__init__()
        self.align = nn.Linear(config.hidden_size, config.hidden_size)
        self.gate = nn.Linear(2 * config.hidden_size, 2, bias=False)
        self.norm = AllTokenBatchNorm(2)
        self.align.initial_values = identity  # type: ignore[assignment]  # modules take any attribute
        self.gate.initial_values = he_fan_out  # type: ignore[assignment]  # modules take any attribute

    def forward(self, embed_BLD: Tensor, feat_BLD: Tensor, num_texts_B: Tensor | None = None) -> Tensor:
        """
        Args:
            embed_BLD: the dictionary's output.
            feat_BLD: its input.
            num_texts_B: how often each image counts in BatchNorm; `None`: once.

        Returns:
            (B, L, D) in feat's type, computed without autocast.
        """
        with torch.autocast(feat_BLD.device.type, enabled=False):
            dtype = self.align.weight.dtype
            aligned_BLD, x_BLD = self.align(embed_BLD.to(dtype)), feat_BLD.to(dtype)
            logits_BL2 = self.gate(torch.cat([aligned_BLD, x_BLD], dim=-1))
            share_BL2 = self.norm(logits_BL2, num_texts_B=num_texts_B).softmax(-1)
            aligned_BL1, x_BL1 = share_BL2.split(1, dim=-1)
            return (aligned_BL1 * aligned_BLD + x_BL1 * x_BLD).to(feat_BLD.dtype)
