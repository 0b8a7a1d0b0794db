"""Steps by mini-batches: what `MiniBatchKMeans` is made of, and what `KMeans` may start from.

Letters: N rows of this process, M rows of a batch, K clusters, C channels.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from soho_fast import ops
from soho_fast.cluster.lloyd import means
from soho_fast.cluster.processes import Processes
from soho_fast.cluster.rows import Rows, uniform
from soho_fast.cluster.statistics import exact_sum, totals_of

# Measured on 20,000 rows of 64 channels and 256 centres: groups of equal and of Zipf's sizes, windows of photographs.
_ROWS_A_CENTRE = 4  # of a batch; 2 take a sixth longer and end as low, 8 end up to 2 % higher
_LEAST_ROWS = 512  # of a batch, unless its size is given
_FIRST_RATE = 0.15  # for each row that a batch has for a centre; 0.3 ends up to 2 % higher, 0.08 up to 3 %
_SPLIT_EACH = 2  # steps, in the first half of them; up to three quarters, photographs end 1 % higher
_SPLIT_ROWS = 8  # that batches have for each centre between two splits, at least; fewer say little of a cluster
_UNUSED = 0.1  # of a cluster's inertia: a centre that could go at less splits it; 0.02 ends up to 3 % higher
_APART = 0.25  # standard deviations of a cluster, from its centre to its halves
_UPDATED_EACH = 16  # steps: of the subspace of the lookups


def moved(
    rows: Rows,
    centers_KC: Tensor,
    processes: Processes,
    *,
    seed: int,
    passes: int,
    batch_size: int | str = "auto",
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[Tensor, int]:
    """float32 (K, C): the centres after passes of mini-batches over the rows; and how many batches these were.

    Raises:
        ValueError: ranks have other numbers of batches, where batches come as X gives them.
    """
    num_rows, num_clusters = processes.gather(rows.num_rows), len(centers_KC)
    size = max(_LEAST_ROWS, _ROWS_A_CENTRE * num_clusters) if isinstance(batch_size, str) else batch_size
    of_pass = rows.num_batches if rows.memory is None else max(1, sum(num_rows) // size)
    if len(set(processes.gather(of_pass))) > 1:
        raise ValueError(f"X: expected as many batches on every rank, got {processes.gather(of_pass)}")
    num_steps, of_center = passes * of_pass, sum(num_rows) / (of_pass * num_clusters)
    split_each = max(_SPLIT_EACH, math.ceil(_SPLIT_ROWS / of_center))
    first_rate = min(1.0, _FIRST_RATE * of_center)
    most = sum(processes.gather(_weight(rows))) / min(sum(num_rows), of_pass * num_clusters)
    subspace, first, step = ops.MovingSubspace(_UPDATED_EACH), sum(num_rows[: processes.rank]), 0
    moving, of_last_pass = centers_KC.new_zeros(2, num_clusters, rows.num_channels + 2, dtype=torch.float64)
    recent_K2 = moving.new_zeros(num_clusters, 2)
    for number in range(passes):
        for features_MC, weight_M in _batches(rows, of_pass, most, first, seed, number):
            # Not prepared: a codebook for one batch is packed faster in the lookup.
            within_CD = subspace.of(centers_KC)
            may_split = num_clusters > 1 and 2 * (step + 1) <= num_steps
            if may_split:
                label_M, squared_M = ops.codebook_lookup(
                    features_MC, centers_KC, subspace=within_CD, return_distance=True
                )
            else:
                label_M = ops.codebook_lookup(features_MC, centers_KC, subspace=within_CD)
            total = processes.sum(totals_of(features_MC, label_M, weight_M, num_clusters))
            if step == 0:
                # As if each centre had the same share of the first batch's weight, all of it where the centre is.
                moving = torch.nn.functional.pad(centers_KC.double(), (0, 2), value=1)
                moving *= exact_sum(total[:, -2]) / len(total)
            moving.lerp_(total, first_rate * (0.5 + 0.5 * math.cos(math.pi * step / num_steps)))
            moving[:, -1] = total[:, -1]  # a centre without a row in the batch stays
            step += 1
            if number == passes - 1:
                of_last_pass += total
            if may_split:
                # Distances as rows of one channel: columns are a cluster's inertia, its weight and its rows.
                apart = processes.sum(totals_of(squared_M[:, None], label_M, weight_M, num_clusters))
                # Over a whole pass it lags behind the centres, and photographs end 1.5 % higher.
                recent_K2.lerp_(apart[:, :2], 1 / min(step, 2 * split_each))
                if step % split_each == 0:
                    # What was added before belonged to another cluster.
                    of_last_pass[_split(moving, recent_K2, centers_KC, within_CD, seed, step)] = 0
            centers_KC = means(moving, centers_KC, rows.unit)
        tell(f"pass {number + 1} of {passes}: {of_pass} batches")
    return means(of_last_pass, centers_KC, rows.unit), step


def _weight(rows: Rows) -> float:
    """Of all rows of this process, where they are in memory."""
    weight_N = rows.memory and rows.memory.weight
    return rows.num_rows if weight_N is None else exact_sum(weight_N)


def _batches(
    rows: Rows, of_pass: int, most: float, first: int, seed: int, number: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows (M, C) and weights of each batch of a pass; rows in memory in an order drawn for the pass. There a row of
    more than twice the weight `most` is in several batches, in each with a part of its weight."""
    if rows.memory is None:
        for batch in rows.batches():
            yield batch.features, batch.weight
        return
    features_NC, weight_N, _ = rows.memory
    row_R = torch.arange(rows.num_rows, device=rows.device)
    key_R = uniform(seed, number, first + row_R)
    if weight_N is not None:
        times_N = (weight_N.double() / most).long().clamp(1, of_pass)
        row_R, begin_N = row_R.repeat_interleave(times_N), times_N.cumsum(0) - times_N
        part_R = (torch.arange(len(row_R), device=rows.device) - begin_N[row_R]) / times_N[row_R]
        # The parts of a row lie evenly on the circle of keys, and so mostly in different batches.
        key_R, weight_N = (key_R[row_R] + part_R) % 1, weight_N / times_N
    for row_M in row_R[key_R.argsort()].tensor_split(of_pass):
        yield features_NC.index_select(0, row_M), None if weight_N is None else weight_N[row_M]


def _split(
    moving: Tensor, recent_K2: Tensor, centers_KC: Tensor, within_CD: Tensor | None, seed: int, step: int
) -> Tensor:
    """Each centre whose rows the nearest other centre could take at little cost moves to one half of the cluster with
    the largest inertia. Changes the moving totals (K, C + 2) and each cluster's inertia and weight in recent batches
    (K, 2); returns the clusters that have changed. `within_CD`: the subspace of the lookup."""
    inertia_K, weight_K = recent_K2.unbind(1)
    near_K2, squared_K2 = ops.codebook_lookup(centers_KC, centers_KC, subspace=within_CD, topk=2, return_distance=True)
    is_itself_K = near_K2[:, 0] == torch.arange(len(near_K2), device=moving.device)
    # A centre that coincides with a lower one finds that one first, and itself perhaps second.
    near_K = torch.where(is_itself_K, near_K2[:, 1], near_K2[:, 0])
    cost_K = squared_K2[:, 1] * weight_K
    rank_K = cost_K.argsort(stable=True).argsort()
    # Not where its nearest would cost less: of two that lie close the cheaper one goes.
    cost_K = cost_K.masked_fill((rank_K > rank_K[near_K]) & (weight_K > 0), torch.inf)
    costs, unused = cost_K.sort(stable=True)
    # The cheapest is set against the largest inertia, the next one against the next.
    unused = unused[costs < _UNUSED * inertia_K.sort(descending=True).values]
    # A cluster that goes is not split.
    left_K = inertia_K.index_fill(0, unused, 0)
    large = left_K.argsort(descending=True, stable=True)[: len(unused)]
    large = large[left_K[large] > 0]
    free, num_channels = unused[: len(large)], moving.shape[1] - 2
    position = torch.arange(len(large) * num_channels, device=moving.device).view(-1, num_channels)
    # Both halves begin with half of the cluster.
    recent_K2[large] /= 2
    moving[large] /= 2
    # Times the weight: `moving` holds sums, not means.
    apart = _APART * (inertia_K[large] / weight_K[large] / num_channels).sqrt()[:, None] * moving[large, -2:-1]
    # -step, since the numbers from 0 on are the draws of passes. Each channel goes either way.
    apart = torch.where(uniform(seed, -step, position) < 0.5, apart, -apart)
    # They count as clusters with rows, so that `means` moves them.
    moving[large, -1] = 1
    moving[free], recent_K2[free] = moving[large], recent_K2[large]
    moving[free, :num_channels] += apart
    moving[large, :num_channels] -= apart
    return torch.cat([free, large])
