"""k-means by moving averages over mini-batches.

Letters: N rows of this process, M rows of a batch, K clusters, C channels.
"""

from random import Random
from typing import Any, Self

import torch
from torch import Tensor

from soho_fast import ops
from soho_fast.cluster.kmeans import (
    INITS,
    METRICS,
    KMeans,
    centre_alike,
    check_alike,
    check_count,
    shared_seed,
    tell,
)
from soho_fast.cluster.lloyd import Pass, means, one_pass, sizes
from soho_fast.cluster.moving import moved
from soho_fast.cluster.processes import Processes
from soho_fast.cluster.rows import MemoryRows, Rows
from soho_fast.cluster.seeding import Seeding

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
        n_clusters, verbose, random_state, metric, distributed: as in `KMeans`.
        init: as in `KMeans`, but "auto" and "mini-batch".
        n_init: starts, each with all of its passes, of which the one with the lowest inertia is kept; "auto": 1.
        max_iter: passes over the rows.
        batch_size: rows of a batch, of all processes together; "auto": 4 K, and 512 at least.
        init_size: rows in the sample for "k-means++", K at least; None: 3 max(1024, K).
        compute_labels: False leaves `labels_` out.
        tol, max_no_improvement, reassignment_ratio: for programs written for scikit-learn. Every pass is made, since e
            falls to 0 in the last one, and centres without rows are moved by the rule above.

    Attributes:
        cluster_centers_, labels_, inertia_, n_features_in_, feature_names_in_: as of `KMeans`. n_iter_: passes.
            n_steps_: batches.
    """

    inits = INITS[2:]

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        max_iter: int = 4,
        batch_size: int | str = "auto",
        verbose: int = 0,
        compute_labels: bool = True,
        random_state: Any = None,
        tol: float = 0.0,
        max_no_improvement: int | None = 10,
        init_size: int | None = None,
        n_init: int | str = "auto",
        reassignment_ratio: float = 0.01,
        metric: str = "euclidean",
        distributed: bool = True,
    ) -> None:
        super().__init__(
            n_clusters,
            init=init,
            n_init=n_init,
            max_iter=max_iter,
            tol=tol,
            verbose=verbose,
            random_state=random_state,
            metric=metric,
            distributed=distributed,
        )
        self.batch_size, self.init_size, self.compute_labels = batch_size, init_size, compute_labels
        self.max_no_improvement, self.reassignment_ratio = max_no_improvement, reassignment_ratio

    def fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Self:
        """Find the centres, then the labels of all rows.

        Args:
            X, sample_weight: as in `KMeans.fit`. y: not used.

        Raises:
            TypeError, ValueError: parameters, rows or weights that do not fit.
        """
        processes = Processes(self.distributed)
        seed = shared_seed(self.random_state, processes)
        rows, given = processes.agree(lambda: self._checked(X, sample_weight))
        given = centre_alike(rows, processes, given)
        check_alike(self, rows, processes, given)

        def started(start: int) -> tuple[Tensor, int, Pass]:
            own = Random(f"{seed} {start}").getrandbits(62) if start else seed
            centers_KC, num_steps = moved(
                rows,
                self._start(rows, processes, own, given),
                processes,
                seed=own,
                passes=self.max_iter,
                batch_size=self.batch_size,
                tell=lambda line: tell(self, processes, line),
            )
            return centers_KC, num_steps, one_pass(rows, ops.prepare_codebook(centers_KC), processes)

        starts = 1 if given is not None or isinstance(self.n_init, str) else self.n_init
        centers_KC, self.n_steps_, found = min(map(started, range(starts)), key=lambda each: each[2].inertia)
        labels, _, self.inertia_, total = found
        self._total = total  # whose means become the centres
        # `partial_fit` goes on from the centres as they are, each with the weight of its labels.
        self._total[:, :-2] = centers_KC * sizes(total, rows.unit)
        self._keep_result(centers_KC, labels, rows)
        self.n_iter_ = self.max_iter
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
        rows, given = processes.agree(lambda: self._checked_part(X, sample_weight, is_first))
        given = centre_alike(rows, processes, given)
        if is_first:
            check_alike(self, rows, processes, given)
            centers_KC, self.n_steps_ = self._start(rows, processes, seed, given), 0
            so_far = centers_KC.new_zeros(len(centers_KC), rows.num_channels + 2, dtype=torch.float64)
        else:
            centers_KC, so_far = self._centers(rows.device), self._total.to(rows.device)
        labels, _, self.inertia_, total = one_pass(rows, ops.prepare_codebook(centers_KC), processes)
        so_far = so_far + total
        so_far[:, -1] = total[:, -1]  # a centre without a row in X stays
        self._keep_result(means(so_far, centers_KC, rows.unit), labels, rows)
        self._total = so_far
        self.n_steps_ += 1
        self.n_iter_ = 1
        return self

    def _keep_result(self, centers_KC: Tensor, labels: Tensor, rows: Rows) -> None:
        self._keep(centers_KC, labels, rows)
        if not self.compute_labels:
            del self.labels_

    def _start(self, rows: Rows, processes: Processes, seed: int, given: Tensor | None) -> Tensor:
        if given is not None:
            return given
        sample = _SEEDED * max(_LEAST_SEEDED, self.n_clusters) if self.init_size is None else int(self.init_size)
        return Seeding(rows, processes, seed).centers(self.init, self.n_clusters, sample)

    def _checked(self, X: Any, sample_weight: Any) -> tuple[Rows, Tensor | None]:
        check_count("batch_size", self.batch_size, or_auto=True)
        if self.init_size is not None:
            check_count("init_size", self.init_size, least=self.n_clusters)
        return super()._checked(X, sample_weight)

    def _checked_part(self, X: Any, sample_weight: Any, is_first: bool) -> tuple[Rows, Tensor | None]:
        """A batch of `partial_fit`, and the centres where it is the first and they are given."""
        if is_first:
            rows, given = self._checked(X, sample_weight)
            if rows.memory is None:
                raise TypeError("X: expected the rows of one batch; fit takes batches")
            return rows, given
        # A bool as an index: euclidean or cosine.
        for name, value in (("n_clusters", len(self.cluster_centers_)), ("metric", METRICS[self._unit])):
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name}: expected {value!r}, as in the centres so far, got {getattr(self, name)!r}; call fit to "
                    "start again"
                )
        rows = MemoryRows(X, sample_weight, self._unit)
        self._check_columns(rows.num_channels, rows.names)
        # Not those of this batch: its rows are compared with centres that are less the first one's offset.
        rows.offset, rows.names = self._offset, list(getattr(self, "feature_names_in_", ()))
        return rows, None
