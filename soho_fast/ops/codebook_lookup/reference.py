"""Specification of the codebook lookup in plain torch.

Letters: N features, K codes, C channels, P pairs (feature, code), S steps of LANES channels.
"""

import math

import torch
from torch import Tensor

LANES = 8  # partial sums of the distance: fixed, so that every backend rounds alike
_MAX_SCORES = 1 << 22  # scores held at a time: 32 MiB of float64
_MAX_PAIR_ELEMENTS = 1 << 21


def squared_distance(features_PC: Tensor, codes_PC: Tensor) -> Tensor:
    """The squared distance of each pair, float64 (P,), in the one order of summation that every backend follows.

    Lane l of 8 adds the channels l, l+8, l+16, ... in that order, without fused multiply-add; then lane l adds lane
    l+4, lane l+2, lane l+1.
    """
    num_channels = features_PC.shape[-1]
    difference_PC = features_PC.double() - codes_PC.double()
    square_PC = torch.nn.functional.pad(difference_PC * difference_PC, (0, -num_channels % LANES))
    square_PSL = square_PC.unflatten(-1, (-1, LANES)) if num_channels else square_PC.unsqueeze(-2)
    sum_PL = square_PC.new_zeros(*square_PC.shape[:-1], LANES)
    for step in range(square_PSL.shape[-2] if num_channels else 0):
        sum_PL = sum_PL + square_PSL[..., step, :]
    for width in (4, 2, 1):
        sum_PL = sum_PL[..., :width] + sum_PL[..., width : 2 * width]
    return sum_PL[..., 0]


def _distances_of_pairs(features_NC: Tensor, codebook_KC: Tensor, row_P: Tensor, code_P: Tensor) -> Tensor:
    chunk = max(1, _MAX_PAIR_ELEMENTS // max(1, features_NC.shape[1]))
    parts = [
        squared_distance(features_NC[rows], codebook_KC[codes])
        for rows, codes in zip(row_P.split(chunk), code_P.split(chunk), strict=True)
    ]
    return torch.cat(parts) if parts else features_NC.new_empty(0, dtype=torch.float64)


def _lookup_rows(features_NC: Tensor, codebook_KC: Tensor, usable_K: Tensor) -> Tensor:
    """Exact index of a chunk of rows: float64 scores, then a direct comparison of what their rounding leaves open."""
    num_rows, num_channels = features_NC.shape
    features = features_NC.double()
    codebook = torch.where(usable_K[:, None], codebook_KC.double(), 0.0)
    usable_N = features.isfinite().all(-1)
    features = torch.where(usable_N[:, None], features, 0.0)

    half_K = codebook.square().sum(-1) / 2
    score_NK = torch.where(usable_K, features @ codebook.T - half_K, -torch.inf)
    best_N, index_N = score_NK.max(-1)
    norm_N, largest = features.norm(dim=-1), codebook.norm(dim=-1).amax()
    unit = (num_channels + 16) * 2.0**-52
    bound_N = unit * (norm_N * largest + largest * largest + (norm_N + largest).square())
    open_NK = score_NK >= (best_N - 2 * bound_N)[:, None]
    open_NK &= (open_NK.sum(-1) > 1)[:, None] & usable_K

    row_P, code_P = open_NK.nonzero(as_tuple=True)
    distance_P = _distances_of_pairs(features_NC, codebook_KC, row_P, code_P)
    nearest_N = torch.full((num_rows,), torch.inf, dtype=torch.float64, device=features_NC.device)
    nearest_N = nearest_N.scatter_reduce(0, row_P, distance_P, "amin")
    winner_P = distance_P == nearest_N[row_P]
    index_N[row_P] = codebook_KC.shape[0]
    index_N = index_N.scatter_reduce(0, row_P[winner_P], code_P[winner_P], "amin")
    return torch.where(usable_N & usable_K.any(), index_N, 0)


def _gather(codebook: Tensor, index: Tensor) -> Tensor:
    if codebook.dim() == 2:
        return codebook[index]
    return codebook.gather(-2, index.unsqueeze(-1).expand(*index.shape, codebook.shape[-1]))


def chosen_distance(features: Tensor, codebook: Tensor, index: Tensor) -> Tensor:
    """The squared distance of each feature to its chosen code, float32 (..., N), with the bits of `codebook_lookup`."""
    codes = _gather(codebook, index)
    return squared_distance(features.flatten(0, -2), codes.flatten(0, -2)).float().reshape(index.shape)


def codebook_lookup(
    features: Tensor,
    codebook: Tensor,
    return_distance: bool,
    return_codes: bool,
    packed: Tensor | None = None,
    basis: Tensor | None = None,
    guess: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`index = argmin_j |x_i - d_j|^2` (eq. 2), evaluated in float64; exact ties go to the lowest index.

    A distance that is not finite counts as infinite, so a row with NaN or Inf gets index 0, and a code with NaN or Inf
    is chosen only where no other is left. The returned distance is that of the chosen code, whatever its value.

    Args:
        features: (..., N, C). codebook: (K, C) or (..., K, C). packed, basis, guess: not used here.

    Returns:
        distance float32 (..., N), index int64 (..., N) and the chosen codes (..., N, C) in the type of codebook;
        distance and codes are empty (0,) unless asked for.
    """
    num_codebooks = math.prod(codebook.shape[:-2])
    num_rows = features.shape[-2] if codebook.dim() > 2 else math.prod(features.shape[:-1])
    features_GNC = features.reshape(num_codebooks, num_rows, features.shape[-1])
    codebook_GKC = codebook.reshape(num_codebooks, *codebook.shape[-2:])
    index_GN = torch.zeros(features_GNC.shape[:2], dtype=torch.int64, device=features.device)
    shape_GN = features_GNC.shape[:2] if return_distance else (0, 0)
    distance_GN = torch.zeros(shape_GN, dtype=torch.float32, device=features.device)
    chunk = max(1, _MAX_SCORES // codebook.shape[-2])
    for group in range(features_GNC.shape[0]):
        codebook_KC = codebook_GKC[group]
        usable_K = codebook_KC.isfinite().all(-1)
        for start in range(0, features_GNC.shape[1], chunk):
            rows_NC = features_GNC[group, start : start + chunk]
            index_N = _lookup_rows(rows_NC, codebook_KC, usable_K)
            index_GN[group, start : start + chunk] = index_N
            if return_distance:
                row_N = torch.arange(rows_NC.shape[0], device=features.device)
                distance_N = _distances_of_pairs(rows_NC, codebook_KC, row_N, index_N)
                distance_GN[group, start : start + chunk] = distance_N.float()
    index = index_GN.reshape(features.shape[:-1])
    distance = distance_GN.reshape(features.shape[:-1] if return_distance else (0,))
    return distance, index, _gather(codebook, index) if return_codes else codebook.new_empty(0)


def straight_through(features: Tensor, codebook: Tensor, index: Tensor) -> Tensor:
    """Forward of eq. 5: the chosen code, in the type of `features`; a negative index gives zeros.

    Args:
        features: (..., N, C). codebook: (K, C) or (..., K, C). index: int64 (..., N).
    """
    num_codes = codebook.shape[-2]
    if index.device.type == "cpu" and bool((index >= num_codes).any()):
        raise ValueError(f"index: expected values below {num_codes} (codes), got {int(index.max())}")
    chosen = _gather(codebook, index.clamp(min=0))
    return torch.where((index >= 0).unsqueeze(-1), chosen, 0.0).to(features.dtype)
