"""Quantisers without a codebook: a learnt projection to few channels, each rounded, and one back.

As those who use them do, the quantiser is trained by the losses alone, through the rounding's gradient; the paper's eq.
4, its start and resets have no part in it. B images, L tokens per image, C channels, E of the projection, K codes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from soho_fast import ops
from soho_fast.ops.lookup_free import fsq_bounded

from .config import SohoConfig
from .initial_values import torchs_own
from .learnt_quantiser import LearntQuantiser


class _LookupFree(LearntQuantiser):
    """Features to `num_channels` and back, with `round_channels` between."""

    def __init__(self, config: SohoConfig, num_channels: int) -> None:
        super().__init__(config)
        self.project_in = nn.Linear(config.hidden_size, num_channels)
        self.project_out = nn.Linear(num_channels, config.hidden_size)
        for linear in (self.project_in, self.project_out):
            linear.initial_values = torchs_own  # type: ignore[assignment]  # modules take any attribute

    def round_channels(self, small_BLE: Tensor) -> tuple[Tensor, Tensor]:
        """Code int64 (B, L) and rounded channels (B, L, E), with their gradient."""
        raise NotImplementedError

    def codes(self, index_K: Tensor) -> Tensor:
        """The rounded channels of codes, float32 (K, E)."""
        raise NotImplementedError

    def bounded(self, small_BLE: Tensor) -> Tensor:
        """What is rounded, in the units of what it becomes, (B, L, E)."""
        return small_BLE.tanh()

    def quantise(self, feat_BLC: Tensor) -> tuple[Tensor, Tensor]:
        """As `LearntQuantiser.quantise`; the rounding is float32."""
        index_BL, rounded_BLE = self.round_channels(self._small(feat_BLC))
        return self.project_out(rounded_BLE.to(self.project_out.weight.dtype)), index_BL

    @torch.no_grad()
    def codebook_of(self, level: int) -> Tensor:
        """As `LearntQuantiser.codebook_of`."""
        index_K = torch.arange(self.num_codes, device=self.usage.device)
        return self.project_out(self.codes(index_K).to(self.project_out.weight.dtype))

    @torch.no_grad()
    def distances(self, feat_BLC: Tensor, index_BLQ: Tensor) -> Tensor:
        """How far the channels lie from what they are rounded to, in units of these."""
        bounded_BLE = self.bounded(self._small(feat_BLC))
        return (bounded_BLE - self.codes(index_BLQ[..., 0])).norm(dim=-1, keepdim=True)

    def _small(self, feat_BLC: Tensor) -> Tensor:
        return self.project_in(feat_BLC.to(self.project_in.weight.dtype)).float()


class FiniteScalar(_LookupFree):
    """FSQ (Mentzer et al., arXiv 2309.15505), `dictionary="fsq"`: each channel takes one of few values.

    Args:
        config: `num_codes` is the product of the levels.
        levels: how many values each channel has.
    """

    def __init__(self, config: SohoConfig, levels: Sequence[int]) -> None:
        super().__init__(config, len(levels))
        self.levels = list(levels)

    def round_channels(self, small_BLE: Tensor) -> tuple[Tensor, Tensor]:
        return ops.fsq(small_BLE, self.levels)

    def codes(self, index_K: Tensor) -> Tensor:
        return ops.fsq_codes(index_K, self.levels)

    def bounded(self, small_BLE: Tensor) -> Tensor:
        return fsq_bounded(small_BLE, self.levels)


class SignBits(_LookupFree):
    """LFQ (Yu et al., arXiv 2310.05737), `dictionary="lfq"`: the sign of each channel is a bit of the code.

    Their entropy loss, which keeps both signs in use, is not here.

    Args:
        config: `num_codes` is 2 to the power of bits.
        bits: channels.
    """

    def __init__(self, config: SohoConfig, bits: int) -> None:
        super().__init__(config, bits)
        self.bits = bits

    def round_channels(self, small_BLE: Tensor) -> tuple[Tensor, Tensor]:
        return ops.lfq(small_BLE)

    def codes(self, index_K: Tensor) -> Tensor:
        return ops.lfq_codes(index_K, self.bits)
