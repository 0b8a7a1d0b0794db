"""2-D sine position of the visual tokens, and how they enter the Transformer (paper section 3.3).

B images, H x W positions of the token grid, L = H*W, D channels, F frequencies of an axis.
"""

import math

import torch
from torch import Tensor, nn

from .config import SohoConfig


def sine_position(grid_mask_BHW: Tensor, num_channels: int, temperature: float = 10000.0) -> Tensor:
    """2-D sine position embedding on the true, unpadded area (paper section 3.3; the form of DETR, Carion et al. 2020).

    Coordinates count the valid positions along each axis and are scaled to (0, 2*pi], so padding does not shift them.

    Args:
        grid_mask_BHW: bool, True where the position holds a real pixel.
        num_channels: D, a multiple of 4; the first half encodes y, the second x, sine and cosine interleaved.

    Returns:
        float32 (B, H*W, D).
    """
    mask_BHW = grid_mask_BHW.float()
    # Of an axis: each has half of the channels.
    num_frequencies = num_channels // 2
    step_F = torch.arange(num_frequencies, dtype=torch.float32, device=mask_BHW.device)
    # Channels 2 i and 2 i + 1 have one period: they are sine and cosine of the same angle.
    period_F = temperature ** (2.0 * (step_F / 2.0).floor() / num_frequencies)
    parts = []
    # y, then x.
    for dim in (1, 2):
        count_BHW = mask_BHW.cumsum(dim)
        # The last entry along the axis is the number of valid positions in that column or row; 1e-6 as in DETR.
        angle_BHW = count_BHW / (count_BHW.narrow(dim, -1, 1) + 1e-6) * (2.0 * math.pi)
        angle_BHWF = angle_BHW.unsqueeze(-1) / period_F
        parts.append(torch.stack([angle_BHWF[..., 0::2].sin(), angle_BHWF[..., 1::2].cos()], dim=-1).flatten(-2))
    return torch.cat(parts, dim=-1).flatten(1, 2)


class VisualEmbeddings(nn.Module):
    """Visual token + position -> LayerNorm -> dropout. No token type: the released code gives visual tokens none."""

    def __init__(self, config: SohoConfig, dropout: float) -> None:
        super().__init__()
        # The paper does not say; the released code has it, as BERT for words.
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=1e-5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, embed_BLD: Tensor, position_BLD: Tensor) -> Tensor:
        """Both (B, L, D); returns (B, L, D) in embed's type."""
        return self.dropout(self.LayerNorm(embed_BLD + position_BLD.to(embed_BLD.dtype)))
