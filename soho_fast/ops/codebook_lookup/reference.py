"""Specification of the codebook lookup in plain torch.

Letters: N features, K codes, C channels, P pairs (feature, code), S steps of LANES channels, T nearest
codes.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

MOST_NEAREST = 16  # topk
Metric = Literal["euclidean", "cosine", "dot"]
METRICS: tuple[Metric, ...] = get_args(Metric)  # by their number in the ops
LANES = 8  # partial sums of the distance: fixed, so that every backend rounds alike
_MAX_SCORES = 1 << 22  # scores held at a time: 32 MiB of float64
_MAX_PAIR_ELEMENTS = 1 << 16  # of which the float64 temporaries stay in the cache
_MAX_SCREENED = 1 << 18  # scores, or elements of features, that are screened at a time: 1 MiB, which caches hold
_LEAST_SCREENED = 64  # rows, of a lookup and of a part of it: a product reads the codes for each


def _sum_of_channels(terms_PC: Tensor) -> Tensor:
    """Float64 (P,), in the one order of summation that every backend follows.

    Lane l of 8 adds the channels l, l+8, l+16, ... in that order, without fused multiply-add; then lane l adds lane
    l+4, lane l+2, lane l+1.
    """
    num_channels = terms_PC.shape[-1]
    # Lanes without a channel add +0, which changes no bit of a sum that began at +0. To pad by none takes a copy.
    padded_PC = torch.nn.functional.pad(terms_PC, (0, -num_channels % LANES)) if num_channels % LANES else terms_PC
    terms_PSL = padded_PC.unflatten(-1, (-1, LANES)) if num_channels else padded_PC.unsqueeze(-2)
    sum_PL = terms_PC.new_zeros(*terms_PC.shape[:-1], LANES)
    for step in range(terms_PSL.shape[-2] if num_channels else 0):
        sum_PL = sum_PL + terms_PSL[..., step, :]
    for width in (4, 2, 1):
        sum_PL = sum_PL[..., :width] + sum_PL[..., width : 2 * width]
    return sum_PL[..., 0]


def norm(vectors_PC: Tensor) -> Tensor:
    """The root of the sum of squares, 1 where it is 0."""
    square_P = _sum_of_channels(vectors_PC * vectors_PC)
    return _root(torch.where(square_P == 0.0, 1.0, square_P))


def _root(square_P: Tensor) -> Tensor:
    """The square root rounded correctly, as IEEE 754 and the kernels have it; float64.

    On some processors torch's own, MKL's, is the neighbouring number for 0.7 % of values. One step of Newton's method
    with the exact rest (Dekker 1971) gives the nearest one.
    """
    root_P = square_P.sqrt()
    high_P = root_P * 134217729.0  # 2^27 + 1: the upper half of the digits, so that products are exact
    high_P = high_P - (high_P - root_P)
    low_P = root_P - high_P
    rest_P = ((square_P - high_P * high_P) - 2 * high_P * low_P) - low_P * low_P
    return torch.where(square_P.isfinite(), root_P + rest_P / (2 * root_P), root_P)


def _similarity(features_PC: Tensor, codes_PC: Tensor, metric: str) -> Tensor:
    """What codes are compared by: the dot product, of cosine over |d|, a squared distance negated; float64 (P,)."""
    features_PC, codes_PC = features_PC.double(), codes_PC.double()
    if metric == "euclidean":
        difference_PC = features_PC - codes_PC
        return -_sum_of_channels(difference_PC * difference_PC)
    dot_P = _sum_of_channels(features_PC * codes_PC)  # products of two float32 are exact
    return dot_P / norm(codes_PC) if metric == "cosine" else dot_P


def metric_value(features_PC: Tensor, codes_PC: Tensor, metric: str) -> Tensor:
    """Of each pair the squared distance, `x.d`, or `(x.d / |d|) / |x|`; float64 (P,)."""
    similarity_P = _similarity(features_PC, codes_PC, metric)
    if metric == "euclidean":
        return -similarity_P
    return similarity_P / norm(features_PC.double()) if metric == "cosine" else similarity_P


def _of_pairs(
    function: Callable, features_NC: Tensor, codebook_KC: Tensor, row_P: Tensor, code_P: Tensor, metric: str
) -> Tensor:
    # In chunks: the differences of all pairs at once, in float64, could fill the memory.
    chunk = max(1, _MAX_PAIR_ELEMENTS // max(1, features_NC.shape[1]))
    parts = [
        function(features_NC[rows], codebook_KC[codes], metric)
        for rows, codes in zip(row_P.split(chunk), code_P.split(chunk), strict=True)
    ]
    return torch.cat(parts) if parts else features_NC.new_empty(0, dtype=torch.float64)


def _scores(features_NC: Tensor, codebook_KC: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """(N, K) in any order of summation, the largest of the nearest code, and (N,) what rounding may have added to one
    or taken from it; float64."""
    # A float64 dot product, summed in any order, is off by at most about C * 2^-53 |x| |d| (Higham 2002, section 3.1).
    # This is more than twice as much.
    unit = (features_NC.shape[1] + 16) * 2.0**-52
    if metric == "cosine":
        # The smallest float64: only a zero vector is divided by it, and stays one.
        codebook_KC = torch.nn.functional.normalize(codebook_KC, dim=-1, eps=5e-324)
    norm_N, largest = features_NC.norm(dim=-1), codebook_KC.norm(dim=-1).amax()
    score_NK, bound_N = features_NC @ codebook_KC.T, unit * norm_N * largest
    if metric == "euclidean":
        # argmin |x - d|^2 = argmax x.d - |d|^2 / 2: |x|^2 is the same for all codes.
        score_NK = score_NK - codebook_KC.square().sum(-1) / 2
        # For |d|^2 / 2, and for the float64 distances that decide in the end.
        bound_N = bound_N + unit * (largest * largest + (norm_N + largest).square())
    return score_NK, bound_N


def _finite_rows(rows_NC: Tensor) -> Tensor:
    """bool (N,). A NaN is both the largest and the smallest: faster than `isfinite` of all."""
    if rows_NC.shape[-1] == 0:
        return rows_NC.new_ones(rows_NC.shape[:-1], dtype=torch.bool)
    return rows_NC.amax(-1).isfinite() & rows_NC.amin(-1).isfinite()


def _screens(features_NC: Tensor, codebook_KC: Tensor) -> bool:
    """Whether `_screened` holds here, and pays: settings of torch may make less of float32 products."""
    return (
        features_NC.device.type == "cpu"
        and torch.float64 not in (features_NC.dtype, codebook_KC.dtype)
        and torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee")  # type: ignore[attr-defined]
        and len(features_NC) >= _LEAST_SCREENED
        and 0 < features_NC.shape[1] < 1 << 20
    )


def _screened(features_NC: Tensor, codebook_KC: Tensor, usable_K: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """(N,) a code of each row by a float32 product, and whether it is proved to be the exact one.

    The proof. Let u = 2^-24, m the codes' mean in float32 or zero, a = fl(x - m), b = fl(d - m) and h = fl(|b|^2 / 2);
    of cosines b = fl(d / |d|), of all similarities m = 0 and h = 0. Let A = |x - m|, and B the largest |d - m|. What
    is computed, a.b - h, stands for s = (x - m).(d - m) - |d - m|^2 / 2, which is largest for the nearest code.
    1. Each channel of a and b is off by a factor of 1 + u: s by 2u A B + 2u B^2 / 2.
    2. A sum of n products, in any order, in blocks, with fused multiply-add or not, is off by n u / (1 - n u) times the
       sum of their magnitudes (Higham 2002, sections 3.1 and 4.2). So the norm of b is off by (C + 2) u / 2, h by
       (C + 4) u B^2 / 2, and a.b - h, a sum of C + 1 terms, by (C + 1) u (A B + B^2 / 2).
    Together (C + 3) u A B + (C + 3.5) u B^2, times 1 + O(C u). The bound is 2 (C + 16) u (A B + B^2): below 2^20
    channels the rest covers that factor, the errors of the float32 norms A and B, and those of the bound itself.
    3. In the end distances are compared as evaluated in float64: half of one is off by (C + 3) 2^-53 |x - d|^2 / 2 at
       most, where |x - d| <= A + B. For this there is (C + 16) 2^-52 (A + B)^2; similarities are off by far less.
    4. Where numbers underflow, if only to zero, each of the 2 C operations of a squared norm or a product is off by
       2^-126 more. The 2^-50 that A and B have more is above the root of all, and adds more than that to the bound.
    5. While B (A + B) is below 2^126, no sum overflows, nor does a part of one. Other rows, also with NaN, are not
       proved.
    The code is proved where no other score comes within two bounds of its own.
    """
    num_rows, num_channels = features_NC.shape
    code_KC, middle_C = codebook_KC.float(), None
    if not usable_K.all():
        code_KC = code_KC.where(usable_K[:, None], 0.0)
    if metric == "cosine":
        code_KC = torch.nn.functional.normalize(code_KC.double(), dim=-1, eps=5e-324).float()
    norm_K = torch.linalg.vector_norm(code_KC, dim=1)
    if metric == "euclidean":
        # Without a usable code 0 / 0, which fails the comparison below.
        mean_C = code_KC.sum(0) / usable_K.sum()
        # Nearer to the origin codes and features are compared as they are: to subtract takes time.
        if len(norm_K) * mean_C.square().sum() > 0.75 * norm_K.square().sum():
            middle_C, code_KC = mean_C, (code_KC - mean_C).where(usable_K[:, None], 0.0)
            norm_K = torch.linalg.vector_norm(code_KC, dim=1)
    offset_K = (-norm_K.square() / 2 if metric == "euclidean" else torch.zeros_like(norm_K)).where(usable_K, -torch.inf)

    best_N, second_N, norm_N = norm_K.new_empty(3, num_rows)
    index_N = torch.empty(num_rows, dtype=torch.int64)
    # Both the scores (K a row) and the features (C a row) of a part are within the limit.
    chunk = min(num_rows, max(_LEAST_SCREENED, _MAX_SCREENED // max(code_KC.shape)))
    # The widths are C and K.
    row_MC, score_MK = (norm_K.new_empty(chunk, width) for width in code_KC.T.shape)  # always in the same memory
    for part in (slice(start, start + chunk) for start in range(0, num_rows, chunk)):
        rows_MC = features_NC[part].float()
        if middle_C is not None:
            rows_MC = torch.sub(rows_MC, middle_C, out=row_MC[: len(rows_MC)])
        scores_MK = torch.addmm(offset_K, rows_MC, code_KC.T, out=score_MK[: len(rows_MC)])
        torch.max(scores_MK, 1, out=(best_N[part], index_N[part]))
        # The best is struck out: the largest that is left is the second.
        scores_MK.scatter_(1, index_N[part, None], -torch.inf)
        torch.amax(scores_MK, 1, out=second_N[part])
        torch.linalg.vector_norm(rows_MC, dim=1, out=norm_N[part])
    largest, norm_N = float(norm_K.max()) + 2.0**-50, norm_N.add_(2.0**-50)
    bound_N = (num_channels + 16) * (2.0**-23 * largest * (norm_N + largest) + 2.0**-52 * (norm_N + largest).square())
    # NaN proves nothing: both comparisons are False of it.
    proved_N = (second_N < best_N - 2 * bound_N) & (largest * (norm_N + largest) < 2.0**126)
    return index_N, proved_N


def _nearest_rows(features_NC: Tensor, codebook_KC: Tensor, usable_K: Tensor, metric: str) -> Tensor:
    """Exact index of rows: by float32 where that is proved, of the others by float64."""
    rest_N, chunk = torch.arange(len(features_NC), device=features_NC.device), max(1, _MAX_SCORES // len(codebook_KC))
    index_N = torch.zeros_like(rest_N)
    if _screens(features_NC, codebook_KC):
        index_N, proved_N = _screened(features_NC, codebook_KC, usable_K, metric)
        rest_N = (~proved_N).nonzero()[:, 0]
    for row_M in rest_N.split(chunk) if len(rest_N) else ():  # torch makes a part of nothing too
        index_N[row_M] = _lookup_rows(features_NC[row_M], codebook_KC, usable_K, metric)
    return index_N


def _lookup_rows(features_NC: Tensor, codebook_KC: Tensor, usable_K: Tensor, metric: str) -> Tensor:
    """Exact index of a chunk of rows: float64 scores, then a direct comparison of what their rounding leaves open."""
    # NaN and Inf would spread through the product: zeros stand for them, and the last line has what they get.
    features = features_NC.double()
    codebook = torch.where(usable_K[:, None], codebook_KC.double(), 0.0)
    usable_N = features.isfinite().all(-1)
    features = torch.where(usable_N[:, None], features, 0.0)

    score_NK, bound_N = _scores(features, codebook, metric)
    score_NK = torch.where(usable_K, score_NK, -torch.inf)
    best_N, index_N = score_NK.max(-1)
    # Open: codes that may be the nearest, as both scores may be off by the bound. A row with a single one is decided.
    open_NK = score_NK >= (best_N - 2 * bound_N)[:, None]
    open_NK &= (open_NK.sum(-1) > 1)[:, None] & usable_K

    # Few pairs: rounding leaves a second code open only where two are almost equally near.
    row_P, code_P = open_NK.nonzero(as_tuple=True)
    similarity_P = _of_pairs(_similarity, features_NC, codebook_KC, row_P, code_P, metric)
    largest_N = torch.full((features_NC.shape[0],), -torch.inf, dtype=torch.float64, device=features_NC.device)
    # Of each row over its pairs; rows without pairs stay at minus infinity and keep their index.
    largest_N = largest_N.scatter_reduce(0, row_P, similarity_P, "amax")
    winner_P = similarity_P == largest_N[row_P]
    # K is above every code, so that amin takes the lowest of the winners.
    index_N[row_P] = codebook_KC.shape[0]
    index_N = index_N.scatter_reduce(0, row_P[winner_P], code_P[winner_P], "amin")
    return torch.where(usable_N & usable_K.any(), index_N, 0)


def _ranked_rows(features_NC: Tensor, codebook_KC: Tensor, usable_K: Tensor, metric: str, topk: int) -> Tensor:
    """Exact (N, topk) of a chunk of rows, as `_lookup_rows`: the nearest codes in turn, then those infinitely far."""
    usable_N = features_NC.isfinite().all(-1)
    usable_NK = usable_N[:, None] & usable_K
    features = torch.where(usable_N[:, None], features_NC.double(), 0.0)
    codebook = torch.where(usable_K[:, None], codebook_KC.double(), 0.0)

    score_NK, bound_N = _scores(features, codebook, metric)
    # In an unusable row all codes are equally far: the sort below leaves 0, 1, 2 and so on.
    score_NK = torch.where(usable_NK, score_NK, -torch.inf)
    # As in `_lookup_rows`, but open is what may be among the topk.
    last_N = score_NK.topk(topk).values[:, -1]
    row_P, code_P = ((score_NK >= (last_N - 2 * bound_N)[:, None]) & usable_NK).nonzero(as_tuple=True)
    cost_NK = torch.full_like(score_NK, torch.inf)
    cost_NK[row_P, code_P] = -_of_pairs(_similarity, features_NC, codebook_KC, row_P, code_P, metric)
    # A stable sort leaves equal costs in ascending order of the codes.
    return cost_NK.sort(stable=True).indices[:, :topk]


def gather(codebook: Tensor, index: Tensor) -> Tensor:
    if codebook.dim() == 2:
        return codebook[index]
    num_channels = codebook.shape[-1]
    # With topk the codes of a row are gathered like more rows.
    place = index.flatten(codebook.dim() - 2).unsqueeze(-1)
    return codebook.gather(-2, place.expand(*place.shape[:-1], num_channels)).reshape(*index.shape, num_channels)


def codebook_lookup(
    features: Tensor,
    codebook: Tensor,
    return_distance: bool,
    return_codes: bool,
    packed: Tensor | None = None,
    subspace: Tensor | None = None,
    warm_start: Tensor | None = None,
    metric: int = 0,
    topk: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """`index = argmin_j |x_i - d_j|^2` (eq. 2), or the argmax of a similarity, evaluated in float64; exact ties go to
    the lowest index.

    A distance that is not finite counts as infinite and such a similarity as minus infinity, so a row with NaN or Inf
    gets index 0, and a code with NaN or Inf is chosen only where no other is left. The returned distance is that of
    the chosen code, whatever its value.

    The similarity `dot` is x.d and `cosine` x.d / |d|; the distance returned for `cosine` is that over |x|. A norm is
    the root of the float64 sum of squares, and 1 where that is 0: a zero vector has cosine 0 with every other.

    Args:
        features: (..., N, C). codebook: (K, C) or (..., K, C). packed, subspace, warm_start: not used here. metric: a
        position in METRICS. topk: above 1 as many codes for each feature, in ascending order of distance or descending
        order of similarity, at most K and MOST_NEAREST.

    Returns:
        distance float32 (..., N), index int64 (..., N) and the chosen codes (..., N, C) in the type of codebook;
        distance and codes are empty (0,) unless asked for. With topk, another dimension of it behind N.
    """
    name = METRICS[metric]
    num_codebooks = math.prod(codebook.shape[:-2])
    # With a shared codebook all leading dimensions are rows of one lookup.
    num_rows = features.shape[-2] if codebook.dim() > 2 else math.prod(features.shape[:-1])
    features_GNC = features.reshape(num_codebooks, num_rows, features.shape[-1])
    codebook_GKC = codebook.reshape(num_codebooks, *codebook.shape[-2:])
    index_GNT = torch.zeros((*features_GNC.shape[:2], topk), dtype=torch.int64, device=features.device)
    distance_GNT = torch.zeros(index_GNT.shape if return_distance else 0, dtype=torch.float32, device=features.device)
    for group in range(num_codebooks):
        rows_NC, codebook_KC = features_GNC[group], codebook_GKC[group]
        usable_K = _finite_rows(codebook_KC)
        if topk > 1:
            chunks = rows_NC.split(max(1, _MAX_SCORES // codebook.shape[-2]))
            index_NT = torch.cat([_ranked_rows(part, codebook_KC, usable_K, name, topk) for part in chunks])
        else:
            index_NT = _nearest_rows(rows_NC, codebook_KC, usable_K, name).unsqueeze(-1)
        index_GNT[group] = index_NT
        if return_distance:
            row_P = torch.arange(num_rows, device=features.device).repeat_interleave(topk)
            distance_P = _of_pairs(metric_value, rows_NC, codebook_KC, row_P, index_NT.flatten(), name)
            distance_GNT[group] = distance_P.float().reshape(index_NT.shape)
    shape = features.shape[:-1] if topk == 1 else (*features.shape[:-1], topk)
    index, distance = index_GNT.reshape(shape), distance_GNT.reshape(shape if return_distance else (0,))
    return distance, index, gather(codebook, index) if return_codes else codebook.new_empty(0)


def straight_through(features: Tensor, codebook: Tensor, index: Tensor) -> Tensor:
    """Forward of eq. 5: the chosen code, in the type of `features`; a negative index gives zeros.

    Args:
        features: (..., N, C). codebook: (K, C) or (..., K, C). index: int64 (..., N).
    """
    num_codes = codebook.shape[-2]
    if index.device.type == "cpu" and bool((index >= num_codes).any()):
        raise ValueError(f"index: expected values below {num_codes} (codes), got {int(index.max())}")
    chosen = gather(codebook, index.clamp(min=0))
    return torch.where((index >= 0).unsqueeze(-1), chosen, 0.0).to(features.dtype)
