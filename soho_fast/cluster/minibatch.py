"""k-means by moving averages over mini-batches.

Letters: N rows of this process, M rows of a batch, K clusters, C channels.
"""

import math
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor

from soho_fast import ops
from soho_fast.cluster.kmeans import METRICS, KMeans, check_alike, check_count, shared_seed, tell
from soho_fast.cluster.lloyd import means, one_pass, prepared_by, sizes
from soho_fast.cluster.processes import Processes
from soho_fast.cluster.rows import MemoryRows, Rows
from soho_fast.cluster.seeding import Seeding, uniform
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
_SEEDED = 3  # times 1,024 rows, or times the centres, in the sample for k-means++, as in scikit-learn
_LEAST_SEEDED = 1024


class MiniBatchKMeans(KMeans):
    """k-means in few passes, for many rows (e-means, arXiv 2611.09501). A centre is the mean of its rows in the batches
    so far, `sums / weights`; each batch moves both, `sums <- sums + e (sums of the batch - sums)`, so that batches may
    be small. e falls along a cosine to 0, from 0.15 times the rows that a batch has for each centre, at most 1. In the
    first half of the steps, a centre moves into the cluster with the largest inertia and splits it, if its own rows
    would cost less than a tenth of that inertia at the nearest other centre. At last each centre becomes the mean of
    the rows that were nearest to it in the last pass (of a single pass, since its last split).

    "k-means++" works on a sample of 3 max(1024, K) rows, drawn by their weights. Of rows in memory, one with much of
    the weight is in several batches of a pass, in each with a part of its weight. Batches that X gives are taken as
    they come. Several processes move the same centres, each by batches of its own rows; of batches that X gives, all
    give as many.

    Args:
        n_clusters, init, verbose, random_state, metric, distributed: as in `KMeans`.
        max_iter: passes over the rows.
        batch_size: rows of a batch, of all processes together; "auto": 4 K, and 512 at least.

    Attributes:
        cluster_centers_, labels_, inertia_, n_features_in_, feature_names_in_: as of `KMeans`. n_iter_: passes.
            n_steps_: batches.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        max_iter: int = 4,
        batch_size: int | str = "auto",
        verbose: int = 0,
        random_state: Any = None,
        metric: str = "euclidean",
        distributed: bool = True,
    ) -> None:
        super().__init__(
            n_clusters,
            init=init,
            n_init=1,
            max_iter=max_iter,
            verbose=verbose,
            random_state=random_state,
            metric=metric,
            distributed=distributed,
        )
        self.batch_size = batch_size

    def fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Self:
        """Find the centres, then the labels of all rows.

        Args:
            X, sample_weight: as in `KMeans.fit`. y: not used.

        Raises:
            TypeError, ValueError: parameters, rows or weights that do not fit.
        """
        processes = Processes(self.distributed)
        seed = shared_seed(self.random_state, processes)
        rows, given = self._centred(processes, lambda: self._checked(X, sample_weight, seed))
        check_alike(self, rows, processes, given)
        num_rows = processes.gather(rows.num_rows)
        size = self.batch_size
        size = max(_LEAST_ROWS, _ROWS_A_CENTRE * self.n_clusters) if isinstance(size, str) else size
        of_pass = rows.num_batches if rows.memory is None else max(1, sum(num_rows) // size)
        if len(set(processes.gather(of_pass))) > 1:
            raise ValueError(f"X: expected as many batches on every rank, got {processes.gather(of_pass)}")
        centers_KC, num_steps = self._start(rows, processes, seed, given), self.max_iter * of_pass
        of_center = sum(num_rows) / (of_pass * self.n_clusters)
        split_each = max(_SPLIT_EACH, math.ceil(_SPLIT_ROWS / of_center))
        first_rate = min(1.0, _FIRST_RATE * of_center)
        most = sum(processes.gather(_weight(rows))) / min(sum(num_rows), of_pass * self.n_clusters)
        subspace, first, step = ops.MovingSubspace(_UPDATED_EACH), sum(num_rows[: processes.rank]), 0
        moving, of_last_pass = centers_KC.new_zeros(2, len(centers_KC), rows.num_channels + 2, dtype=torch.float64)
        recent_K2 = moving.new_zeros(len(centers_KC), 2)
        for number in range(self.max_iter):
            for features_MC, weight_M in _batches(rows, of_pass, most, first, seed, number):
                prepared = prepared_by(subspace, centers_KC)
                label_M, squared_M = ops.codebook_lookup(features_MC, prepared, return_distance=True)
                total = processes.sum(totals_of(features_MC, label_M, weight_M, len(centers_KC)))
                apart = processes.sum(totals_of(squared_M[:, None], label_M, weight_M, len(centers_KC)))
                if step == 0:
                    moving = torch.nn.functional.pad(centers_KC.double(), (0, 2), value=1)
                    moving *= exact_sum(total[:, -2]) / len(total)
                moving.lerp_(total, first_rate * (0.5 + 0.5 * math.cos(math.pi * step / num_steps)))
                moving[:, -1] = total[:, -1]  # a centre without a row in the batch stays
                step += 1
                # Over a whole pass it lags behind the centres, and photographs end 1.5 % higher.
                recent_K2.lerp_(apart[:, :2], 1 / min(step, 2 * split_each))
                if number == self.max_iter - 1:
                    of_last_pass += total
                if step % split_each == 0 and 2 * step <= num_steps and len(centers_KC) > 1:
                    of_last_pass[_split(moving, recent_K2, prepared, seed, step)] = 0
                centers_KC = means(moving, centers_KC, rows.unit)
            tell(self, processes, f"pass {number + 1} of {self.max_iter}: {of_pass} batches")
        centers_KC = means(of_last_pass, centers_KC, rows.unit)
        labels, self.inertia_, total = one_pass(rows, ops.prepare_codebook(centers_KC), None, processes)
        self._total = total  # whose means become the centres
        self._total[:, :-2] = centers_KC * sizes(total, rows.unit)
        self._keep(centers_KC, labels, rows)
        self.n_iter_, self.n_steps_ = self.max_iter, step
        return self

    def partial_fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Self:
        """One step by a batch, for rows that come as a stream: each centre becomes the mean of all rows that it was the
        nearest to so far. The first call takes the centres from its rows. `labels_` and `inertia_` are those of X,
        before the step.

        Args:
            X: (N, C), in the first call at least K of them. sample_weight: (N,). y: not used.

        Raises:
            TypeError, ValueError: parameters, rows or weights that do not fit.
        """
        processes = Processes(self.distributed)
        seed = shared_seed(self.random_state, processes)
        is_first = not self.__sklearn_is_fitted__()
        if len(set(processes.gather(is_first))) > 1:
            raise ValueError("partial_fit: expected the same centres so far on every rank, but some ranks have none")
        rows, given = self._centred(processes, lambda: self._checked_part(X, sample_weight, seed, is_first))
        if is_first:
            check_alike(self, rows, processes, given)
            centers_KC, self.n_steps_ = self._start(rows, processes, seed, given), 0
            so_far = centers_KC.new_zeros(len(centers_KC), rows.num_channels + 2, dtype=torch.float64)
        else:
            centers_KC, so_far = self._centers(rows.device), self._total.to(rows.device)
        labels, self.inertia_, total = one_pass(rows, ops.prepare_codebook(centers_KC), None, processes)
        so_far = so_far + total
        so_far[:, -1] = total[:, -1]  # a centre without a row in X stays
        self._keep(means(so_far, centers_KC, rows.unit), labels, rows)
        self._total = so_far
        self.n_steps_ += 1
        self.n_iter_ = 1
        return self

    def set_partial_fit_request(self, *, sample_weight: bool | str | None) -> Self:
        """As `set_fit_request`, for `partial_fit`."""
        self._requests = {**self._requests, "partial_fit": sample_weight}
        return self

    def _start(self, rows: Rows, processes: Processes, seed: int, given: list[Tensor] | None) -> Tensor:
        if given is not None:
            return given[0]
        sample = _SEEDED * max(_LEAST_SEEDED, self.n_clusters)
        return Seeding(rows, processes, seed).centers(self.init, self.n_clusters, sample)

    def _checked(self, X: Any, sample_weight: Any, seed: int) -> tuple[Rows, list[Tensor] | None]:
        check_count("batch_size", self.batch_size, or_auto=True)
        return KMeans._checked(self, X, sample_weight, seed)

    def _checked_part(self, X: Any, sample_weight: Any, seed: int, is_first: bool) -> tuple[Rows, list[Tensor] | None]:
        if is_first:
            rows, given = self._checked(X, sample_weight, seed)
            if rows.memory is None:
                raise TypeError("X: expected the rows of one batch; fit takes batches")
            return rows, given
        so_far = {"n_clusters": len(self.cluster_centers_), "metric": METRICS[self._unit]}
        for name, value in so_far.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name}: expected {value!r}, as in the centres so far, got {getattr(self, name)!r}; call fit to "
                    "start again"
                )
        rows = MemoryRows(X, sample_weight, self._unit)
        self._check_columns(rows.num_channels, rows.names)
        rows.offset, rows.names = self._offset, list(getattr(self, "feature_names_in_", ()))
        return rows, None


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
        key_R, weight_N = (key_R[row_R] + part_R) % 1, weight_N / times_N
    for row_M in row_R[key_R.argsort()].tensor_split(of_pass):
        yield features_NC[row_M], None if weight_N is None else weight_N[row_M]


def _split(moving: Tensor, recent_K2: Tensor, prepared: ops.PreparedCodebook, seed: int, step: int) -> Tensor:
    """Each centre whose rows the nearest other centre could take at little cost moves to one half of the cluster with
    the largest inertia. Changes the moving totals (K, C + 2) and each cluster's inertia and weight in recent batches
    (K, 2); returns the clusters that have changed."""
    inertia_K, weight_K = recent_K2.unbind(1)
    near_K2, squared_K2 = ops.codebook_lookup(prepared.codebook, prepared, topk=2, return_distance=True)
    is_itself_K = near_K2[:, 0] == torch.arange(len(near_K2), device=moving.device)
    near_K = torch.where(is_itself_K, near_K2[:, 1], near_K2[:, 0])
    cost_K = squared_K2[:, 1] * weight_K
    rank_K = cost_K.argsort(stable=True).argsort()
    cost_K = cost_K.masked_fill((rank_K > rank_K[near_K]) & (weight_K > 0), torch.inf)
    costs, unused = cost_K.sort(stable=True)
    unused = unused[costs < _UNUSED * inertia_K.sort(descending=True).values]
    left_K = inertia_K.index_fill(0, unused, 0)
    large = left_K.argsort(descending=True, stable=True)[: len(unused)]
    large = large[left_K[large] > 0]
    free, num_channels = unused[: len(large)], moving.shape[1] - 2
    position = torch.arange(len(large) * num_channels, device=moving.device).view(-1, num_channels)
    recent_K2[large] /= 2
    moving[large] /= 2
    apart = _APART * (inertia_K[large] / weight_K[large] / num_channels).sqrt()[:, None] * moving[large, -2:-1]
    apart = torch.where(uniform(seed, -step, position) < 0.5, apart, -apart)
    moving[large, -1] = 1
    moving[free], recent_K2[free] = moving[large], recent_K2[large]
    moving[free, :num_channels] += apart
    moving[large, :num_channels] -= apart
    return torch.cat([free, large])
