"""k-means with scikit-learn's interface.

Letters: N rows, M rows of a batch, K clusters, C channels.
"""

from __future__ import annotations

import operator
import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, overload

import torch
from torch import Tensor

from soho_fast import ops
from soho_fast.cluster.estimator import Estimator
from soho_fast.cluster.lloyd import Fitted, fit_centers
from soho_fast.cluster.processes import Processes
from soho_fast.cluster.rows import (
    Rows,
    are_batches,
    as_rows,
    as_weights,
    centred,
    each_batch,
    give_back,
    names_of,
    rows_of,
    seed_of,
    split,
)
from soho_fast.cluster.seeding import Seeding
from soho_fast.cluster.statistics import exact_sum, mean_variance, weighted

if TYPE_CHECKING:
    import numpy as np

    from soho_fast.cluster.rows import Centers, Floats, Labels  # noqa: F401  # Floats stands in a string

INITS = ("auto", "mini-batch", "k-means++", "random")
ALGORITHMS = ("lloyd", "elkan")
METRICS = ("euclidean", "cosine")
_RANDOM_STARTS = 10  # as in scikit-learn
_MANY_ROWS = 4096
_PRODUCT_ELEMENTS = 1 << 21  # float64 scores held at a time


Columns = TypeVar("Columns")


class Clusterer(Estimator, ABC, Generic[Columns]):
    """What `KMeans` and `ResidualKMeans` share: labels and columns, in the kind in which rows came.

    `Columns` are the arrays that `transform` gives.
    """

    cluster_centers_: Tensor | Centers
    labels_: Tensor | Labels
    inits: ClassVar[tuple[str, ...]] = INITS  # what `init` may name
    _offset: Tensor | None = None  # float64 (C,), what rows are compared without
    _unit: bool = False  # whether rows are compared by their directions

    @abstractmethod
    def fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Self:
        """Find the centres."""

    @overload
    def fit_predict(self, X: Tensor, y: None = None, sample_weight: Any = None) -> Tensor: ...
    @overload
    def fit_predict(self, X: np.ndarray, y: None = None, sample_weight: Any = None) -> Labels: ...
    @overload
    def fit_predict(self, X: object, y: None = None, sample_weight: Any = None) -> Tensor | Labels: ...
    def fit_predict(self, X: Any, y: None = None, sample_weight: Any = None) -> Any:
        """`fit(X)`, then `labels_`."""
        return self.fit(X, sample_weight=sample_weight).labels_

    @overload
    def predict(self, X: Tensor) -> Tensor: ...
    @overload
    def predict(self, X: np.ndarray) -> Labels: ...
    @overload
    def predict(self, X: object) -> Tensor | Labels: ...
    def predict(self, X: Any) -> Any:
        """The label of each row, int64 (N,), of `ResidualKMeans` (N, L), in the kind of X (which may be batches)."""
        self._check_fitted()
        prepared, as_array = None, False
        # Without a batch (0,), or (0, L) of several levels.
        found = [torch.zeros(0, *self.cluster_centers_.shape[:-2], dtype=torch.int64, device="cpu")]
        for features_MC, is_array in parts_of(self, X):
            if prepared is None:
                prepared = prepared_for(X, features_MC, self._centers(features_MC.device))
                as_array, found = is_array, []
            found.append(self._labels_of(features_MC, prepared))
        return give_back(torch.cat(found), as_array)

    @overload
    def transform(self, X: Tensor) -> Tensor: ...
    @overload
    def transform(self, X: np.ndarray) -> Columns: ...
    @overload
    def transform(self, X: object) -> Tensor | Columns: ...
    @abstractmethod
    def transform(self, X: Any) -> Any:
        """The distance of each row to each centre, float32 (N, K), float64 where rows are of a type that float32 would
        round; of `ResidualKMeans` its labels, int64 (N, L). In the kind of X."""

    @overload
    def fit_transform(self, X: Tensor, y: None = None, sample_weight: Any = None) -> Tensor: ...
    @overload
    def fit_transform(self, X: np.ndarray, y: None = None, sample_weight: Any = None) -> Columns: ...
    @overload
    def fit_transform(self, X: object, y: None = None, sample_weight: Any = None) -> Tensor | Columns: ...
    def fit_transform(self, X: Any, y: None = None, sample_weight: Any = None) -> Any:
        """`fit(X)`, then `transform(X)`."""
        return self.fit(X, sample_weight=sample_weight).transform(X)

    @abstractmethod
    def _labels_of(self, features_MC: Tensor, prepared: ops.PreparedCodebook) -> Tensor:
        """`predict` of rows, by the centres."""

    def _centers(self, device: torch.device) -> Tensor:
        """float32, without the offset, which of several levels the first one has."""
        centers = torch.as_tensor(self.cluster_centers_, device=device)
        if self._offset is not None:
            centers = centers.clone()
            (centers if centers.dim() == 2 else centers[0]).sub_(self._offset.to(device))
        return centers.float()

    def _keep(self, centers: Tensor, labels: Tensor, rows: Rows) -> None:
        """Centres and labels as users get them."""
        self._keep_columns(rows.num_channels, rows.names)
        self._offset, self._unit = rows.offset, rows.unit
        if rows.offset is not None:
            centers = centers.double()
            (centers if centers.dim() == 2 else centers[0]).add_(rows.offset.to(centers.device))
        self.cluster_centers_ = give_back(centers, rows.is_array)
        self.labels_ = give_back(labels, rows.is_array)


@dataclass(eq=False, repr=False)
class KMeans(Clusterer["Floats"]):
    """Lloyd's k-means, with the labels of `ops.codebook_lookup`: the argmin in float64, ties to the lowest index.

    Labels, centres and inertia have the same bits for any number of threads. Sums are float64, and a centre is rounded
    to float32 once. How rows are divided among batches or processes changes the last bits of these sums, and hardly
    ever a centre. Numbers of a type that float32 would round (float64, int32, int64) are compared as float32 of what
    float64 leaves of them after the median of some rows, and their centres are float64.

    If torch.distributed is initialised, all ranks call `fit`, each with its own rows. Counts and sums are all-reduced:
    every rank has the same centres, and the labels of its own rows.

    After each step empty clusters take rows that are far from their centres: the first empty cluster the farthest row,
    and so on. Such a row leaves its cluster. Of equally far rows the first is taken, and a row without weight or on its
    centre never is. None is taken if the inertia has not fallen since the last time. A cluster that takes none keeps
    its centre, and `fit` warns if clusters are empty at the end.

    Args:
        n_clusters: K.
        init: "auto" ("mini-batch" for 16 clusters or more, of 12 rows or more each; else "k-means++", and from 49,152
            rows on Lloyd's steps over a sample for fewer than 16 clusters), "mini-batch" (random rows after passes of
            `MiniBatchKMeans` over a sample of 128 K rows, at least 8,192), "k-means++" (the best of 2 + log K rows
            drawn at each step), "random", or the centres (K, C).
        n_init: starts of which the one with the lowest inertia is kept; "auto": 10 for "random", else 1.
            From given centres one start is made.
        max_iter: most steps of a start.
        tol: a start ends when the centres move by at most tol * mean variance of the channels (sum of squares), or
            no label changes.
        verbose: above 0, each step prints a line.
        random_state: None, an int, a torch.Generator or a numpy generator. What is drawn depends on it and on the
            rows' positions alone. With None and several processes the first one's seed holds for all.
        copy_x, algorithm: for programs written for scikit-learn. X is never written to, and "lloyd" and "elkan" are
            answered alike: pruned lookups, see `ops.codebook_lookup`.
        metric: "euclidean"; or "cosine", spherical k-means (Dhillon and Modha, 2001): rows are scaled to length 1, a
            centre is the direction of their mean, and distances are those of unit vectors, squared 2 - 2 cos.
        distributed: False: this process fits alone, whatever torch.distributed says.

    Attributes:
        cluster_centers_: float32 (K, C), or float64 by the type of the rows. labels_: int64 (N,). inertia_: sum of
            weighted squared distances. n_iter_: steps of the start that was kept. n_features_in_: C. feature_names_in_:
            of a data frame's columns, an array of text; a frame with other columns is refused then.
    """

    n_clusters: int = 8
    _: KW_ONLY
    init: Any = "auto"
    n_init: int | str = "auto"
    max_iter: int = 300
    tol: float = 1e-4
    verbose: int = 0
    random_state: Any = None
    copy_x: bool = True
    algorithm: str = "lloyd"
    metric: str = "euclidean"
    distributed: bool = True

    def fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Self:
        """Find the centres.

        Args:
            X: (N, C): a torch tensor or anything that numpy makes an array of. float32, bfloat16 and float16 are taken
                as they are. Or batches, for more rows than memory holds: a
                function that returns an iterable of them, or an iterable that can be gone through again and again (a
                DataLoader that does not shuffle), of rows (M, C), (rows,) or (rows, weights).
            y: not used. sample_weight: (N,), none below zero.

        Raises:
            TypeError, ValueError: parameters, rows or weights that do not fit.
        """
        processes = Processes(self.distributed)
        seed = shared_seed(self.random_state, processes)
        rows, given = processes.agree(lambda: self._checked(X, sample_weight))
        given = centre_alike(rows, processes, given)
        check_alike(self, rows, processes, given)
        fitted = best_start(self, rows, processes, seed, given)
        self._keep(fitted.centers, fitted.labels, rows)
        self.inertia_, self.n_iter_ = fitted.inertia, fitted.num_steps
        return self

    def transform(self, X: Any) -> Any:
        # From float64 products of what is left of rows and centres after the centres' mean.
        self._check_fitted()
        features_NC, is_array, is_wide = rows_and_type(self, X)
        codes = self._centers(features_NC.device).double()
        mean_C = codes.mean(0)
        # About their mean |x|^2 - 2 x.d + |d|^2 loses the fewest digits; rounding may still leave it below 0.
        codes -= mean_C
        square_K, parts = codes.square().sum(1), []
        for part in features_NC.split(max(1, _PRODUCT_ELEMENTS // len(codes))):
            rows = part.double() - mean_C
            squared = rows.square().sum(1)[:, None] - 2 * (rows @ codes.T) + square_K
            distance = squared.clamp_(min=0).sqrt_()
            parts.append(distance if is_wide else distance.float())
        return give_back(torch.cat(parts), is_array)

    def score(self, X: Any, y: None = None, sample_weight: Any = None) -> float:
        """Minus the inertia of X."""
        self._check_fitted()
        features_NC, _ = rows_in_memory(self, X)
        weight_N = as_weights(sample_weight, len(features_NC), features_NC.device)
        squared_N = ops.codebook_lookup(features_NC, self._centers(features_NC.device), return_distance=True)[1]
        return -exact_sum(weighted(squared_N, weight_N))

    def _labels_of(self, features_MC: Tensor, prepared: ops.PreparedCodebook) -> Tensor:
        return ops.codebook_lookup(features_MC, prepared)

    def _checked(self, X: Any, sample_weight: Any) -> tuple[Rows, Tensor | None]:
        """The rows, and the centres where they are given."""
        check_parameters(self)
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm: expected {' or '.join(ALGORITHMS)}, got {self.algorithm!r}")
        rows = rows_of(X, sample_weight, self.metric == "cosine")
        if isinstance(self.init, str):
            return rows, None
        centers_KC = as_rows("init", self.init)[0]
        if tuple(centers_KC.shape) != (self.n_clusters, rows.num_channels):
            raise ValueError(
                f"init: expected centres of shape (n_clusters, features) = {(self.n_clusters, rows.num_channels)}, "
                f"got {tuple(centers_KC.shape)}"
            )
        return rows, centers_KC.to(rows.device)


def check_parameters(model: Any) -> None:
    """Raises ValueError: a parameter of a k-means estimator is invalid."""
    for name in ("n_clusters", "max_iter"):
        check_count(name, getattr(model, name))
    check_count("n_init", model.n_init, or_auto=True)
    if isinstance(model.tol, bool) or not isinstance(model.tol, Real) or not float(model.tol) >= 0:
        raise ValueError(f"tol: expected a number of at least 0, got {model.tol!r}")
    if isinstance(model.init, str) and model.init not in model.inits:
        raise ValueError(f"init: expected {', '.join(model.inits)} or the centres, got {model.init!r}")
    if model.metric not in METRICS:
        raise ValueError(f"metric: expected {' or '.join(METRICS)}, got {model.metric!r}")


def centre_alike(rows: Rows, processes: Processes, given: Tensor | None = None) -> Tensor | None:
    """Rows, and the centres where they are given, less the offset of the first process that has one.

    Raises ValueError on every rank: their rows have other numbers of features."""
    channels = processes.gather(rows.num_channels)
    if len(set(channels)) > 1:
        raise ValueError(f"X: expected the same number of features on every rank, got {channels}")
    # One for all, since the sums of all ranks are added up. A rank without rows has none.
    offset_C = next((offset for offset in processes.gather(rows.offset) if offset is not None), None)

    def centre() -> Tensor | None:
        rows.centre(offset_C)
        return None if given is None else centred("init", given, offset_C, rows.unit).float()

    return processes.agree(centre)


def check_alike(model: Any, rows: Rows, processes: Processes, given: Tensor | None = None) -> None:
    """What every rank sees alike, so that all of them refuse. Seeds may differ: the first one's holds."""
    own = {name: value for name, value in model.get_params().items() if name not in ("random_state", "verbose")}
    # As a tensor, which `_equal` compares by value.
    own["init"] = model.init if given is None else given.cpu()
    for rank, other in enumerate(processes.gather(own)):
        for name, value in own.items():
            if not _equal(other[name], value):
                raise ValueError(f"{name}: expected the same on every rank, but it differs on rank {rank} from another")
    named = [names for names in processes.gather(rows.names) if names]
    if any(names != named[0] for names in named):
        raise ValueError("X: expected columns of the same names, in the same order, on every rank")
    mine = (rows.num_rows, rows.num_channels, rows.has_weight)
    num_rows, channels, has_weight = zip(*processes.gather(mine), strict=True)
    total = sum(num_rows)
    if total < 1:
        raise ValueError(
            f"X: Found array with 0 sample(s) (shape={(total, channels[0])}) while a minimum of 1 is required."
        )
    if total < model.n_clusters:
        raise ValueError(f"n_samples={total} should be >= n_clusters={model.n_clusters}.")
    if not any(has_weight):
        raise ValueError("sample_weight: expected at least one weight above zero, all of them are zero")


def _equal(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return torch.equal(value, other)
    return type(value) is type(other) and value == other


def shared_seed(random_state: Any, processes: Processes) -> int:
    seed = seed_of(random_state)
    return processes.gather(random.SystemRandom().getrandbits(62) if seed is None else seed)[0]


def best_start(model: Any, rows: Rows, processes: Processes, seed: int, given: Tensor | None = None) -> Fitted:
    """The start of lowest inertia, by the parameters of `model`; with given centres, those from these."""
    tolerance = model.tol * mean_variance(rows, processes) if model.tol > 0 else 0.0
    starts = model.n_init
    if isinstance(starts, str):  # "auto"
        starts = _RANDOM_STARTS if given is None and model.init == "random" else 1
    if given is not None and starts > 1:
        message = f"n_init: one start is made from given centres, not {starts}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
        starts = 1

    def fitted(start: int) -> Fitted:
        tell(model, processes, f"start {start + 1}: {'given centres' if given is not None else model.init}")
        centers_KC = given
        if centers_KC is None:
            seeding = Seeding(rows, processes, random.Random(f"{seed} {start}").getrandbits(62))
            centers_KC = seeding.centers(model.init, model.n_clusters)
        found = fit_centers(
            rows,
            centers_KC,
            processes,
            max_iter=model.max_iter,
            tolerance=tolerance,
            tell=lambda line: tell(model, processes, line),
        )
        tell(model, processes, f"start {start + 1}: inertia {found.inertia:.6g} after {found.num_steps} steps")
        return found

    best = min(map(fitted, range(starts)), key=lambda found: found.inertia)
    num_filled = int((best.sizes_K2[:, 1] > 0).sum())
    if num_filled < model.n_clusters:
        warnings.warn(
            f"{num_filled} of n_clusters = {model.n_clusters} clusters have a row: too many rows coincide",
            RuntimeWarning,
            stacklevel=3,
        )
    return best


def rows_in_memory(model: Any, value: Any) -> tuple[Tensor, bool]:
    """(N, C) of the channels that `model` was fitted to, and whether results go back as arrays."""
    return rows_and_type(model, value)[:2]


def rows_and_type(model: Any, value: Any) -> tuple[Tensor, bool, bool]:
    """The same, and whether they came as numbers that float32 would round."""
    if are_batches(value):
        raise TypeError(f"X: expected rows in memory, got a {type(value).__name__}; fit and predict take batches")
    features_NC, is_array = as_rows("X", value)
    model._check_columns(features_NC.shape[1], names_of(value))
    is_wide = features_NC.dtype == torch.float64
    return centred("X", features_NC, model._offset, model._unit), is_array, is_wide


def parts_of(model: Any, value: Any) -> Iterator[tuple[Tensor, bool]]:
    """`rows_in_memory` of rows, or of each batch."""
    if not are_batches(value):
        yield rows_in_memory(model, value)
        return
    for item in each_batch(value):
        yield rows_in_memory(model, split(item)[0])


def prepared_for(X: Any, features_MC: Tensor, centers: Tensor) -> ops.PreparedCodebook:
    """The centres, for lookups of the rows X, of which features_MC are the first."""
    # Few rows are looked up sooner than the centres' subspace is found.
    subspace = None if are_batches(X) or len(features_MC) >= _MANY_ROWS else False
    return ops.prepare_codebook(centers, subspace=subspace)


def tell(model: Any, processes: Processes, line: str) -> None:
    if model.verbose and processes.rank == 0:
        print(line, flush=True)


def check_count(name: str, value: Any, or_auto: bool = False, least: int = 1) -> None:
    if or_auto and isinstance(value, str) and value == "auto":
        return
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
