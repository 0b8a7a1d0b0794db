"""k-means by moving averages over mini-batches.

Letters: N rows of this process, M rows of a batch, K clusters, C channels.
"""

import math
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor

from soho_fast import ops
from soho_fast.cluster.kmeans import KMeans, check_alike, check_count, shared_seed, tell
from soho_fast.cluster.lloyd import final_pass, means
from soho_fast.cluster.processes import Processes
from soho_fast.cluster.rows import MemoryRows, Rows
from soho_fast.cluster.seeding import Seeding, uniform
from soho_fast.cluster.statistics import as_totals, exact_sum, totals_of

# Measured on 20,000 rows of 64 channels and 256 centres: groups of equal and of Zipf's sizes, windows of photographs.
_ROWS_A_CENTRE = 4  # of a batch; 2 take a quarter longer and end as low, 8 end 1 % higher
_LEAST_ROWS = 512  # of a batch, unless its size is given
_FIRST_RATE = 0.15  # for each row that a batch has for a centre; 0.08 and 0.3 end higher
_SPLIT_EACH = 2  # steps, in the first half of them; up to three quarters, photographs end 2 to 4 % higher
_UNUSED = 0.1  # of the mean weight: below it a centre goes to a cluster with more inertia
_FORGOTTEN = 2.0**-60  # of the mean weight: below it a centre stays, before its sums have no bits left
_APART = 0.25  # standard deviations of a cluster, from its centre to its halves
_UPDATED_EACH = 16  # steps: of the subspace of the lookups
_SEEDED = 3  # times 1,024 rows, or times the centres, in the sample for k-means++, as in scikit-learn
_LEAST_SEEDED = 1024


class MiniBatchKMeans(KMeans):
    """k-means in few passes, for many rows (e-means, arXiv 2611.09501). A centre is the mean of its rows in the batches
    so far, `sums / weights`; each batch moves both, `sums <- sums + e (sums of the batch - sums)`, so that batches may
    be small. e falls along a cosine to 0, from 0.15 times the rows that a batch has for each centre, at most 1. In the
    first half of the steps, a centre that hardly any row is nearest to goes to the cluster with the largest inertia,
    which it splits. At last each centre becomes the mean of the rows that were nearest to it in the last pass (of a
    single pass, since its last split).

    "k-means++" works on a sample of 3 max(1024, K) rows. Batches that X gives are taken as they come. Several
    processes move the same centres, each by batches of its own rows; of batches that X gives, all give as many.

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
        first_rate = min(1.0, _FIRST_RATE * sum(num_rows) / (of_pass * self.n_clusters))
        subspace, first, step = ops.MovingSubspace(_UPDATED_EACH), sum(num_rows[: processes.rank]), 0
        moving, of_last_pass = centers_KC.new_zeros(2, len(centers_KC), rows.num_channels + 2, dtype=torch.float64)
        squares_K = moving.new_zeros(len(centers_KC))
        for number in range(self.max_iter):
            for features_MC, weight_M in _batches(rows, of_pass, first, seed, number):
                label_M, squared_M = ops.codebook_lookup(
                    features_MC, centers_KC, subspace=subspace.of(centers_KC), return_distance=True
                )
                total = processes.sum(totals_of(features_MC, label_M, weight_M, len(centers_KC)))
                apart = processes.sum(totals_of(squared_M[:, None], label_M, weight_M, len(centers_KC)))
                if step == 0:
                    moving = torch.nn.functional.pad(centers_KC.double(), (0, 2), value=1) * _mean(total[:, -2])
                rate = first_rate * (0.5 + 0.5 * math.cos(math.pi * step / num_steps))
                moving.lerp_(total, rate)
                squares_K.lerp_(apart[:, 0], rate)
                if number == self.max_iter - 1:
                    of_last_pass += total
                step += 1
                if step % _SPLIT_EACH == 0 and 2 * step <= num_steps:
                    of_last_pass[_split(moving, squares_K, seed, step)] = 0
                lasts_K1 = moving[:, -2:-1] > _FORGOTTEN * _mean(moving[:, -2])
                centers_KC = torch.where(lasts_K1, means(moving, centers_KC, rows.unit), centers_KC)
            tell(self, processes, f"pass {number + 1} of {self.max_iter}: {of_pass} batches")
        centers_KC = means(of_last_pass, centers_KC, rows.unit)
        labels, self.inertia_, total = final_pass(rows, centers_KC, None, processes)
        self._weight, self._length = as_totals(total).weight, centers_KC.new_ones(len(centers_KC), 1)
        if self._unit:  # of the means whose directions the centres are
            self._length = means(total, centers_KC, False).norm(dim=1, keepdim=True)
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
        rows, given = self._centred(processes, lambda: self._checked_part(X, sample_weight, seed, is_first))
        if is_first:
            check_alike(self, rows, processes, given)
            centers_KC, self.n_steps_ = self._start(rows, processes, seed, given), 0
            self._weight = torch.zeros(len(centers_KC), dtype=torch.float64, device=rows.device)
            self._length = centers_KC.new_ones(len(centers_KC), 1)
        else:
            centers_KC = self._centers(rows.device)
        labels, self.inertia_, total = final_pass(rows, centers_KC, None, processes)
        weight_K, mean_KC = as_totals(total).weight, centers_KC * self._length.to(rows.device)
        self._weight = self._weight.to(rows.device) + weight_K
        rate_K1 = (weight_K / self._weight.clamp(min=1e-300))[:, None].float()
        mean_KC = mean_KC + rate_K1 * (means(total, mean_KC, False) - mean_KC)
        self._length = mean_KC.norm(dim=1, keepdim=True) if self._unit else torch.ones_like(rate_K1)
        self._keep(torch.where(self._length > 0, mean_KC / self._length, centers_KC), labels, rows)
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
        if self.n_clusters != len(self.cluster_centers_):
            raise ValueError(
                f"n_clusters: expected {len(self.cluster_centers_)}, the number of centres so far, got "
                f"{self.n_clusters!r}; call fit to start again"
            )
        rows = MemoryRows(X, sample_weight, self._unit)
        self._check_columns(rows.num_channels, rows.names)
        rows.offset, rows.names = self._offset, list(getattr(self, "feature_names_in_", ()))
        return rows, None


def _batches(rows: Rows, of_pass: int, first: int, seed: int, number: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows (M, C) and weights of each batch of a pass; rows in memory in an order drawn for the pass."""
    if rows.memory is None:
        for batch in rows.batches():
            yield batch.features, batch.weight
        return
    features_NC, weight_N, _ = rows.memory
    position_N = first + torch.arange(rows.num_rows, device=rows.device)
    for row_M in uniform(seed, number, position_N).argsort().tensor_split(of_pass):
        yield features_NC[row_M], None if weight_N is None else weight_N[row_M]


def _split(moving: Tensor, squares_K: Tensor, seed: int, step: int) -> Tensor:
    """Each centre that hardly any row is nearest to leaves its place for one half of the cluster with the largest sum
    of squared distances; in place, of the moving totals (K, C + 2) and sums of squares. Both clusters are returned."""
    weight_K = moving[:, -2]
    unused_K = weight_K < _UNUSED * _mean(weight_K)
    inertia_K = squares_K.masked_fill(unused_K, 0)
    large = inertia_K.argsort(descending=True, stable=True)[: int((inertia_K > 0).sum())][: int(unused_K.sum())]
    free = unused_K.nonzero()[: len(large), 0]
    moving[large] /= 2
    squares_K[large] /= 2
    num_channels = moving.shape[1] - 2
    position = torch.arange(len(large) * num_channels, device=moving.device).view(-1, num_channels)
    apart = _APART * (squares_K[large] * weight_K[large] / num_channels).sqrt()[:, None]
    apart = torch.where(uniform(seed, -step, position) < 0.5, apart, -apart)
    moving[free], squares_K[free] = moving[large], squares_K[large]
    moving[free, :num_channels] += apart
    moving[large, :num_channels] -= apart
    return torch.cat([free, large])


def _mean(values_K: Tensor) -> float:
    return exact_sum(values_K) / len(values_K)
