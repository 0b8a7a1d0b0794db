"""Sums over rows, with the same bits at any number of threads.

Letters: N rows, M rows of a block, K clusters, C channels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from soho_fast import ops
from soho_fast.cluster.processes import Processes
from soho_fast.cluster.rows import Rows

_BLOCK_ROWS = 1024
_ROWS_A_CLUSTER = 32  # of a block: adding K x C float64 sums then costs a fraction of reading the rows
_ADDED = 4096


class Totals(NamedTuple):
    """Of each cluster: the weighted sum of its members (K, C), their weight (K,) and their number (K,), in float64.
    A member is a row whose weight is above zero."""

    sums: Tensor
    weight: Tensor
    members: Tensor


def totals_of(features_NC: Tensor, label_N: Tensor, weight_N: Tensor | None, num_clusters: int) -> Tensor:
    """float64 (K, C + 2): what `as_totals` names.

    Blocks of rows are added in float32 by `ops.codebook_stats`, in ascending position, blocks in float64: a sum is off
    by at most (members in a block) * 2^-24 of the sum of magnitudes.
    """
    num_channels = features_NC.shape[1]
    scale = 1.0 if weight_N is None else magnitude(weight_N)
    total = torch.zeros(num_clusters, num_channels + 2, dtype=torch.float64, device=features_NC.device)
    block = max(_BLOCK_ROWS, _ROWS_A_CLUSTER * num_clusters)
    for first in range(0, len(features_NC), block):
        rows_MC, label_M = features_NC[first : first + block], label_N[first : first + block]
        if weight_N is None:
            count_K, sum_KC = ops.codebook_stats(rows_MC, label_M, num_clusters)
            total[:, :num_channels] += sum_KC
            total[:, num_channels:] += count_K[:, None]
            continue
        weight_M1 = weight_N[first : first + block, None]
        scaled_M1 = (weight_M1.double() / scale).float()
        terms = torch.cat([rows_MC.float() * scaled_M1, scaled_M1, (weight_M1 > 0).float()], 1)
        total += ops.codebook_stats(terms, label_M, num_clusters)[1]
    total[:, :-1] *= scale
    return total


def magnitude(weight_N: Tensor) -> float:
    """A power of two of the size of the largest weight. What is divided by it loses no bit, and keeps its products with
    rows within float32."""
    return 2.0 ** math.frexp(float(weight_N.max()) if len(weight_N) else 0.0)[1]


def weighted(values_N: Tensor, weight_N: Tensor | None) -> Tensor:
    """The values, with weights times these in float64."""
    return values_N if weight_N is None else values_N.double() * weight_N


def as_totals(total: Tensor) -> Totals:
    return Totals(total[:, :-2], total[:, -2], total[:, -1])


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
        center_1C = (sum_C / len(batch.features)).float()[None]
        distance_M = ops.codebook_lookup(batch.features, center_1C, return_distance=True)[1]
        parts.append((len(batch.features), center_1C[0].double().cpu(), exact_sum(distance_M)))
    for count, center_C, spread in (part for rank in processes.gather(parts) for part in rank):
        apart_C, both = center_C - mean_C, number + count
        squares += spread + float(apart_C.square().sum()) * number * count / both
        mean_C, number = mean_C + apart_C * (count / both), both
    return squares / max(1, number * rows.num_channels)
