"""k-means by moving averages over mini-batches.

Letters: N rows of this process, M rows of a batch, K clusters, C channels.
"""

import itertools
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
from soho_fast.cluster.statistics import as_totals, totals_of, weighted

_RESETS = 4  # looks for unused centres, in the first half of the steps
_UNUSED = 0.1  # of the mean number of rows: below it a centre is drawn anew
_UPDATED_EACH = 16  # steps: of the subspace of the lookups
_LEAST_ROWS = 1024  # of a batch, unless its size is given
# On 14 sets of rows (1,797 to 200,000 of 12 to 128 channels, 64 to 512 centres, four passes) batches of 1,024 took as
# long or up to 1.3 times as long, and their inertia was as low or up to 5 % higher; 16 rows a centre: -3 to +1.3 %.
# Skewed, weighted or unit rows, 768 channels, few rows a centre: at most 0.8 % lower (6,000 rows, 600 centres).
_ROWS_A_CENTRE = 8
_SEEDED = 3  # times 1,024 rows, or times the centres, in the sample for k-means++, as in scikit-learn


class MiniBatchKMeans(KMeans):
    """k-means in few passes, for many rows. Each batch moves its centres toward the mean of their rows by the rule of
    `ops.codebook_ema_`, `d <- d + e (mean - d)`; e falls from 1 to 0 along a cosine (e-means, arXiv 2611.09501). In the
    first half of the steps, centres that hardly any row is nearest to are drawn again among the rows far from theirs.

    "k-means++" works on a sample of 3 max(1024, K) rows. Batches that X gives are taken as they come. Several
    processes move the same centres, each by batches of its own rows; of batches that X gives, all give as many.

    Args:
        n_clusters, init, verbose, random_state, metric, distributed: as in `KMeans`.
        max_iter: passes over the rows.
        batch_size: rows of a batch, of all processes together; "auto": 8 K, and 1,024 at least.

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
        looks = {max(1, num_steps * look // (2 * _RESETS)) for look in range(1, _RESETS + 1)}
        used_K, subspace = centers_KC.new_zeros(len(centers_KC), dtype=torch.float64), ops.MovingSubspace(_UPDATED_EACH)
        first, step = sum(num_rows[: processes.rank]), 0
        for number in range(self.max_iter):
            for features_MC, weight_M, position_M in _batches(rows, of_pass, first, seed, number):
                label_M, squared_M = ops.codebook_lookup(
                    features_MC, centers_KC, subspace=subspace.of(centers_KC), return_distance=True
                )
                total = processes.sum(totals_of(features_MC, label_M, weight_M, len(centers_KC)))
                rate = 0.5 + 0.5 * math.cos(math.pi * step / num_steps)
                centers_KC = self._moved(centers_KC, means(total, centers_KC, rows.unit), rate)
                used_K += total[:, -1]
                step += 1
                if step in looks:
                    key_M = -torch.log(uniform(seed, -step, position_M)) / weighted(squared_M, weight_M)
                    unused = (used_K < _UNUSED * used_K.mean()).nonzero()[:, 0].tolist()
                    _draw_anew(centers_KC, unused, features_MC, key_M, processes)
                    used_K.zero_()
            tell(self, processes, f"pass {number + 1} of {self.max_iter}: {of_pass} batches")
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

    def _moved(self, centers_KC: Tensor, mean_KC: Tensor, rate: float) -> Tensor:
        centers_KC = centers_KC + rate * (mean_KC - centers_KC)
        return torch.nn.functional.normalize(centers_KC, dim=1) if self._unit else centers_KC

    def _start(self, rows: Rows, processes: Processes, seed: int, given: list[Tensor] | None) -> Tensor:
        if given is not None:
            return given[0]
        sample = _SEEDED * max(_LEAST_ROWS, self.n_clusters)
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


def _batches(
    rows: Rows, of_pass: int, first: int, seed: int, number: int
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Rows (M, C), weights and positions among all rows of each batch of a pass; rows in memory in an order drawn for
    the pass."""
    if rows.memory is None:
        for batch in rows.batches():
            position_M = first + batch.first + torch.arange(len(batch.features), device=rows.device)
            yield batch.features, batch.weight, position_M
        return
    features_NC, weight_N, _ = rows.memory
    position_N = first + torch.arange(rows.num_rows, device=rows.device)
    for row_M in uniform(seed, number, position_N).argsort().tensor_split(of_pass):
        yield features_NC[row_M], None if weight_N is None else weight_N[row_M], position_N[row_M]


def _draw_anew(
    centers_KC: Tensor, clusters: list[int], features_MC: Tensor, key_M: Tensor, processes: Processes
) -> None:
    """Each of these centres becomes one of the batch's rows, those of the lowest keys of all processes."""
    key_T, row_T = key_M.topk(min(len(clusters), len(key_M)), largest=False)
    mine = [(key, features_MC[row].float().cpu()) for key, row in zip(key_T.tolist(), row_T, strict=True)]
    drawn = sorted(itertools.chain(*processes.gather(mine)), key=lambda one: one[0])
    for cluster, (key, row_C) in zip(clusters, drawn, strict=False):
        if math.isfinite(key):  # neither without weight nor on its centre
            centers_KC[cluster] = row_C.to(centers_KC.device)
