"""Vector-quantisation ops for any codebase: codebook lookup, codebook update, grouped masking.

Every op has a reference in plain torch (its specification), a CPU kernel where the compiled extension is present, and
Triton kernels for GPUs where Triton is. Of `rotation_trick`'s gradient plain torch is all there is.
One convention everywhere: `valid` is True at real positions, and a negative index marks a position without a code.

Letters in tensor names: N feature vectors, K codes, C channels, B images, L tokens per image.
"""

from soho_fast.ops import nn
from soho_fast.ops.backends import available_backends, build_info, set_cpu_level
from soho_fast.ops.codebook_lookup import codebook_lookup, straight_through
from soho_fast.ops.codebook_lookup.gradients import rotation_trick
from soho_fast.ops.codebook_lookup.prepared import PreparedCodebook, prepare_codebook
from soho_fast.ops.codebook_lookup.subspace import MovingSubspace, codebook_subspace
from soho_fast.ops.codebook_update import codebook_ema_, codebook_stats, scatter_mean_ema_
from soho_fast.ops.group_mask import group_mask, sample_group
from soho_fast.ops.residual_lookup import residual_lookup

__all__ = [
    "MovingSubspace",
    "PreparedCodebook",
    "available_backends",
    "build_info",
    "codebook_ema_",
    "codebook_lookup",
    "codebook_stats",
    "codebook_subspace",
    "group_mask",
    "nn",
    "prepare_codebook",
    "residual_lookup",
    "rotation_trick",
    "sample_group",
    "scatter_mean_ema_",
    "set_cpu_level",
    "straight_through",
]
