"""Sums over rows, with the same bits at any number of threads.

Letters: N rows, M rows of a block, K clusters, C channels.
"""

import math

import torch
from torch import Tensor

from soho_fast import ops
from soho_fast.cluster.processes import Processes
from soho_fast.cluster.rows import Rows

_BLOCK_ROWS = 1 << 16  # with weights, whose products take memory
_ADDED = 4096


def totals_of(features_NC: Tensor, label_N: Tensor, weight_N: Tensor | None, num_clusters: int) -> Tensor:
    """float64 (K, C + 2), of each cluster: the weighted sum of its rows (C), their weight, and how many have one.
    Products with weights are not rounded, and their sums are float64."""
    if weight_N is None:
        count_K, sum_KC = ops.codebook_stats(features_NC, label_N, num_clusters, wide=True)
        # Without weights each row has weight 1: both columns are the number of rows.
        return torch.cat([sum_KC, count_K[:, None].expand(-1, 2)], 1)
    num_channels, scale = features_NC.shape[1], magnitude(weight_N)
    total = torch.zeros(num_clusters, num_channels + 2, dtype=torch.float64, device=features_NC.device)
    for rows_MC, label_M, weight_M in zip(
        *(t.split(_BLOCK_ROWS) for t in (features_NC, label_N, weight_N)), strict=True
    ):
        scaled_M1 = weight_M[:, None].double() / scale
        product_MC = rows_MC * scaled_M1  # 24 bits by 24: exact in float64, and in two float32
        high_MC = product_MC.float()
        terms = torch.cat(
            [high_MC, (product_MC - high_MC).float(), scaled_M1.float(), (scaled_M1.float() > 0).float()], 1
        )
        sums = ops.codebook_stats(terms, label_M, num_clusters, wide=True)[1]
        # Upper and lower halves of the products, each added in float64.
        total[:, :num_channels] += sums[:, :num_channels] + sums[:, num_channels:-2]
        total[:, num_channels:] += sums[:, -2:]
    # Sums and weights; the last column is a number of rows.
    total[:, :-1] *= scale
    return total


def magnitude(weight_N: Tensor) -> float:
    """A power of two of the size of the largest weight. What is divided by it loses no bit, and keeps its products with
    rows within float32."""
    return 2.0 ** math.frexp(float(weight_N.max()) if len(weight_N) else 0.0)[1]


def weighted(values_N: Tensor, weight_N: Tensor | None) -> Tensor:
    """The values, with weights times these in float64."""
    return values_N if weight_N is None else values_N.double() * weight_N


def exact_sum(values_N: Tensor) -> float:
    """The sum in float64: fixed blocks, then without rounding."""
    values_N = values_N.double()
    padded = torch.nn.functional.pad(values_N, (0, -len(values_N) % _ADDED))
    return math.fsum(padded.view(-1, _ADDED).sum(1).tolist())


def mean_variance(rows: Rows, processes: Processes) -> float:
    """Of the rows of all processes, in one pass: the mean over channels of the variance."""
    number, mean_C, squares = 0, torch.zeros(rows.num_channels, dtype=torch.float64, device="cpu"), 0.0
    parts = []
    for batch in rows.batches():
        nowhere_M = torch.zeros(len(batch.features), dtype=torch.int64, device=rows.device)
        sum_C = totals_of(batch.features, nowhere_M, None, 1)[0, :-2]
        near_C = sum_C / len(batch.features)
        center_1C = near_C.float()[None]
        distance_M = ops.codebook_lookup(batch.features, center_1C, return_distance=True)[1]
        # Distances are from the rounded mean: about another point they are more by this (Steiner).
        rounded = len(batch.features) * float((near_C - center_1C[0]).square().sum())
        parts.append((len(batch.features), near_C.cpu(), max(0.0, exact_sum(distance_M) - rounded)))
    for count, center_C, spread in (part for rank in processes.gather(parts) for part in rank):
        # Two groups joined (Chan, Golub and LeVeque 1979): the squares within, and those between the means.
        apart_C, both = center_C - mean_C, number + count
        squares += spread + float(apart_C.square().sum()) * number * count / both
        mean_C, number = mean_C + apart_C * (count / both), both
    return squares / max(1, number * rows.num_channels)
