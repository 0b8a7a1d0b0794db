"""A quantiser as a module, over the ops.

Letters: N features, K codes, C channels.
"""

from collections.abc import Callable
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from soho_fast.ops import checks
from soho_fast.ops.codebook_lookup import codebook_lookup, straight_through
from soho_fast.ops.codebook_lookup.gradients import rotation_trick
from soho_fast.ops.codebook_lookup.subspace import MovingSubspace
from soho_fast.ops.codebook_update import codebook_stats


def _ranks(together: bool = True) -> tuple[int, int]:
    """This rank and how many there are; 0 and 1 without torch.distributed."""
    together = together and dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if together else (0, 1)


class Float32Buffers(nn.Module):
    """A module whose floating-point buffers stay float32 under `.half()`, `.bfloat16()` and `.to(dtype)`.

    Devices are followed, parameters are cast as usual, and the values keep their bits.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: b for name, b in self.named_buffers(recurse=False) if b.dtype == torch.float32}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            if getattr(self, name).dtype != torch.float32:
                setattr(self, name, buffer.to(device=getattr(self, name).device))
        return self


class VectorQuantizer(Float32Buffers):
    """A codebook that learns by VQ-VAE's moving average (van den Oord et al., arXiv 1711.00937, appendix A.1).

    A training forward answers with the codes as they are, and then moves them: running counts and sums move by
    `1 - decay` to those of the batch, and each code with features becomes `sum / count`. A code whose running count is
    at most `restart_threshold` times the mean one restarts from a feature of the batch, drawn at random, with the mean
    count. In the first step these are all codes; codes of your own go into `codebook` and `cluster_sum`, and ones into
    `cluster_size`. Padding and features that are not finite move no code.

    Codes and statistics are float32 buffers, also after `.half()` and under autocast. The module compiles in one graph.
    With `torch.distributed` every rank takes part in each training step, and all ranks end it with the same codes,
    inside `DistributedDataParallel` or not. Activation checkpointing would move the codes twice.

    Args:
        dim: C.
        codebook_size: K.
        decay: in [0, 1], of the running counts and sums.
        commitment_weight: of the loss.
        restart_threshold: at least 0; with 0 a code restarts only if nothing is left of its count.
        rotate: the gradient of features is that of `ops.rotation_trick`, else of `ops.straight_through`.
        sync_codebook: counts, sums and restarts are those of all ranks.

    Attributes:
        codebook: (K, C). cluster_size: (K,), running counts. cluster_sum: (K, C), running sums.
    """

    codebook: Tensor
    cluster_size: Tensor
    cluster_sum: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        restart_threshold: float = 0.1,
        rotate: bool = False,
        sync_codebook: bool = True,
    ) -> None:
        super().__init__()
        shape = checks.check_int("codebook_size", codebook_size, 1), checks.check_int("dim", dim, 1)
        checks.check_decay(decay)
        if not restart_threshold >= 0:
            raise ValueError(f"restart_threshold: expected a number of at least 0, got {restart_threshold}")
        self.decay, self.commitment_weight, self.restart_threshold = decay, commitment_weight, restart_threshold
        self.rotate, self.sync_codebook = rotate, sync_codebook
        self.register_buffer("codebook", torch.randn(shape, dtype=torch.float32))
        self.register_buffer("cluster_size", torch.zeros(shape[0], dtype=torch.float32))
        self.register_buffer("cluster_sum", torch.zeros(shape, dtype=torch.float32))
        self._subspace = MovingSubspace()

    def forward(self, features: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            features: (..., N, C) float32, bfloat16 or float16; images (B, C, H, W) as `images.flatten(2).mT`.
            valid: bool (..., N), True at real positions.

        Returns:
            quantized (..., N, C) in the type of features, zero at padding; index int64 (..., N), -1 at padding; and the
            commitment loss float32 (): `commitment_weight` times the mean square of what features and codes differ by.

        Raises:
            TypeError, ValueError: types or shapes that do not fit.
        """
        checks.check_type("features", features)
        if valid is not None:
            checks.check_valid(valid, features.shape[:-1], "(..., N) like features without its channels")
            # A NaN of padding would reach the gradient of the loss as 0 times NaN.
            features = features.masked_fill(~valid.unsqueeze(-1), 0.0)
        subspace = self._subspace.of(self.codebook)
        index, distance = codebook_lookup(features, self.codebook, return_distance=True, subspace=subspace)
        count: Tensor | int = index.numel()
        if valid is not None:
            index, distance, count = index.masked_fill(~valid, -1), distance.where(valid, 0.0), valid.sum()
        quantized = (rotation_trick if self.rotate else straight_through)(features, self.codebook, index)
        if self.training:
            self._update(features.detach().flatten(0, -2), index.flatten())
        # Without a feature 0 / 1.
        loss = distance.sum() / (count * features.shape[-1] + (count == 0))
        return quantized, index, self.commitment_weight * loss

    @torch.no_grad()
    def _update(self, features_NC: Tensor, index_N: Tensor) -> None:
        counts_K, sums_KC = codebook_stats(features_NC, index_N, len(self.codebook))
        # At first 0 <= 0: all.
        unused_K = self.cluster_size <= self.restart_threshold * self.cluster_size.mean()
        # The statistics of an unused code give way to a feature that one of the ranks drew.
        is_drawn_K, drawn_KC = self._draw(features_NC, index_N, unused_K)
        sums_KC, counts_K = drawn_KC.where(unused_K[:, None], sums_KC), is_drawn_K.float().where(unused_K, counts_K)
        packed = torch.cat([sums_KC, counts_K[:, None]], 1)
        if _ranks(self.sync_codebook)[1] > 1:
            dist.all_reduce(packed)
        sums_KC, counts_K = packed[:, :-1], packed[:, -1]
        self.cluster_size.lerp_(counts_K, 1 - self.decay)
        self.cluster_sum.lerp_(sums_KC, 1 - self.decay)
        # At most one rank has drawn for a code, so its sum over the ranks is that feature.
        restarts_K = unused_K & (counts_K > 0)
        self.cluster_size.copy_(self.cluster_size.mean().where(restarts_K, self.cluster_size))
        size_K1, restarts_K1 = self.cluster_size[:, None], restarts_K[:, None]
        self.cluster_sum.copy_((sums_KC * size_K1).where(restarts_K1, self.cluster_sum))
        code_KC = sums_KC.where(restarts_K1, self.cluster_sum / size_K1)
        self.codebook.copy_(code_KC.where((counts_K[:, None] > 0) & (size_K1 > 0), self.codebook))

    def _draw(self, features_NC: Tensor, index_N: Tensor, unused_K: Tensor) -> tuple[Tensor, Tensor]:
        """For each unused code whether this rank has a feature for it, bool (K,), and which, zeros without one, (K, C).
        The ranks take turns, and none gives a feature twice."""
        (rank, num_ranks), num_rows = _ranks(self.sync_codebook), len(features_NC)
        if num_rows == 0:
            return torch.zeros_like(unused_K), torch.zeros_like(self.codebook)
        place_K = unused_K.long().cumsum(0) - 1
        # The j-th unused code is the turn of rank j % num_ranks, which gives its feature number j // num_ranks.
        turn_K = place_K.div(num_ranks, rounding_mode="floor")
        order_N = torch.randperm(num_rows, device=features_NC.device)
        row_K = order_N[turn_K.clamp(0, num_rows - 1)]
        drawn_KC = features_NC[row_K].float()
        # Padding is drawn like a feature, and then is none: its code waits for the next step.
        is_usable_K = (index_N[row_K] >= 0) & drawn_KC.isfinite().all(-1)
        is_drawn_K = unused_K & (place_K % num_ranks == rank) & (turn_K < num_rows) & is_usable_K
        return is_drawn_K, drawn_KC.where(is_drawn_K[:, None], 0.0)
