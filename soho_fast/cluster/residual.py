"""Residual k-means: codes of several levels, each of what the levels before leave.

Letters: N rows, M rows of a batch, K clusters, C channels, L levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Self, overload

import torch
from torch import Tensor

from soho_fast import ops
from soho_fast.cluster.kmeans import (
    INITS,
    Clusterer,
    best_start,
    centre_alike,
    check_alike,
    check_count,
    check_parameters,
    rows_in_memory,
    shared_seed,
    tell,
)
from soho_fast.cluster.processes import Processes
from soho_fast.cluster.rows import Batch, Rows, array_of, as_weights, give_back, rows_of
from soho_fast.cluster.statistics import exact_sum, weighted

if TYPE_CHECKING:
    import numpy as np

    from soho_fast.cluster.rows import Floats, Labels


@dataclass(eq=False, repr=False)
class ResidualKMeans(Clusterer["Labels"]):
    """Level l is a `KMeans` of `x - d_1 - ... - d_(l-1)`, subtracted one after another in float32.

    By `metric="cosine"` x is the row scaled to length 1; the levels are k-means by Euclidean distance, and
    `inverse_transform` comes near the scaled row.

    Rows may be given as in `KMeans`, to several processes too. Rows in memory are copied once, as float32 residuals;
    of batches the residuals are computed in each pass.

    Args:
        n_levels: L. n_clusters: K, of each level.
        init: "auto", "mini-batch", "k-means++" or "random".
        n_init, max_iter, tol, verbose, random_state, distributed: of each level, as in `KMeans`.
        metric: "euclidean" or "cosine".

    Attributes:
        cluster_centers_: float32 (L, K, C), or float64 by the type of the rows. labels_: int64 (N, L). inertia_: what
            the last level leaves, the sum of weighted squared distances; inertias_: what each level leaves.
        n_iter_: steps of all levels together. n_features_in_, feature_names_in_: as of `KMeans`.
    """

    n_levels: int = 8
    n_clusters: int = 8
    _: KW_ONLY
    init: str = "auto"
    n_init: int | str = "auto"
    max_iter: int = 300
    tol: float = 1e-4
    verbose: int = 0
    random_state: Any = None
    metric: str = "euclidean"
    distributed: bool = True

    def fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Self:
        """Find the centres of all levels.

        Args:
            X, sample_weight: as in `KMeans.fit`. y: not used.

        Raises:
            TypeError, ValueError: parameters, rows or weights that do not fit.
        """
        processes = Processes(self.distributed)
        rows = processes.agree(lambda: self._checked_rows(X, sample_weight))
        centre_alike(rows, processes)
        check_alike(self, rows, processes)
        seed = shared_seed(self.random_state, processes)
        left = LeftRows(rows)
        found, labels = [], []
        for level in range(self.n_levels):
            tell(self, processes, f"level {level + 1} of {self.n_levels}")
            fitted = best_start(self, left, processes, seed_of_level(seed, level))
            if level + 1 < self.n_levels:
                left.subtract(fitted.centers, fitted.labels)
            found.append(fitted)
            labels.append(fitted.labels)
        self._keep(torch.stack([fitted.centers for fitted in found]), torch.stack(labels, 1), rows)
        self.inertias_ = [fitted.inertia for fitted in found]
        self.inertia_ = self.inertias_[-1]
        self.n_iter_ = sum(fitted.num_steps for fitted in found)
        return self

    def transform(self, X: Any) -> Any:
        return self.predict(X)

    @overload
    def inverse_transform(self, codes: Tensor) -> Tensor: ...
    @overload
    def inverse_transform(self, codes: np.ndarray) -> Floats: ...
    @overload
    def inverse_transform(self, codes: object) -> Tensor | Floats: ...
    def inverse_transform(self, codes: Any) -> Any:
        """The sum of the centres that codes (N, L) name, level by level, (N, C) of their type, in the codes' kind.

        Fewer levels than were fitted are the first ones.

        Raises:
            ValueError: another shape, or an invalid code.
        """
        self._check_fitted()
        codes_NL, is_array = _as_codes(codes, len(self.cluster_centers_))
        centers_LKC = self._centers(codes_NL.device)
        if codes_NL.numel() and not 0 <= int(codes_NL.min()) <= int(codes_NL.max()) < centers_LKC.shape[1]:
            raise ValueError(
                f"codes: expected values from 0 to {centers_LKC.shape[1] - 1}, got {int(codes_NL.min())} to "
                f"{int(codes_NL.max())}"
            )
        total_NC = centers_LKC[0][codes_NL[:, 0]]
        for centers_KC, code_N in zip(centers_LKC[1:], codes_NL.T[1:], strict=False):
            total_NC = total_NC + centers_KC[code_N]
        if self._offset is not None:
            total_NC = total_NC + self._offset.to(total_NC.device)
        return give_back(total_NC, is_array)

    def score(self, X: Any, y: None = None, sample_weight: Any = None) -> float:
        """Minus what the last level leaves of X, the sum of weighted squared distances."""
        self._check_fitted()
        features_NC, _ = rows_in_memory(self, X)
        weight_N = as_weights(sample_weight, len(features_NC), features_NC.device)
        centers_LKC, left_NC = self._centers(features_NC.device), features_NC
        if len(centers_LKC) > 1:
            left_NC = _looked_up(features_NC, ops.prepare_codebook(centers_LKC[:-1], subspace=False))[1]
        squared_N = ops.codebook_lookup(left_NC, centers_LKC[-1], return_distance=True)[1]
        return -exact_sum(weighted(squared_N, weight_N))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.estimator_type = None  # a clusterer has one label a row
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _labels_of(self, features_MC: Tensor, prepared: ops.PreparedCodebook) -> Tensor:
        return _looked_up(features_MC, prepared)[0]

    def _checked_rows(self, X: Any, sample_weight: Any) -> Rows:
        check_count("n_levels", self.n_levels)
        if not isinstance(self.init, str):
            raise ValueError(f"init: expected {', '.join(INITS)}, got {type(self.init).__name__}")
        check_parameters(self)
        return rows_of(X, sample_weight, self.metric == "cosine")


def _looked_up(features_NC: Tensor, prepared: ops.PreparedCodebook) -> tuple[Tensor, Tensor]:
    """Codes (N, L), and what the centres (L, K, C) leave of the rows, float32 (N, C)."""
    if features_NC.device.type == "cpu":  # where one kernel has all levels
        index_NL, _, left_NC = ops.residual_lookup(features_NC, prepared, return_residual=True)
        return index_NL, left_NC
    codes, left_NC = [], features_NC.float()
    for centers_KC in prepared.codebook:
        codes.append(ops.codebook_lookup(left_NC, centers_KC))
        left_NC = left_NC - centers_KC[codes[-1]]
    return torch.stack(codes, 1), left_NC


class LeftRows(Rows):
    """Rows, less the centres that were subtracted so far. What they are otherwise is what the rows are, but that their
    means need no length."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.memory = rows, rows.memory
        self.subtracted: ops.PreparedCodebook | None = None
        self.num_rows, self.num_channels, self.device = rows.num_rows, rows.num_channels, rows.device
        self.is_array, self.has_weight = rows.is_array, rows.has_weight

    def batches(self) -> Iterator[Batch]:
        if self.memory is not None:
            yield from super().batches()
            return
        for features_MC, weight_M, first in self.rows.batches():
            if self.subtracted is not None:
                features_MC = _looked_up(features_MC, self.subtracted)[1]
            yield Batch(features_MC, weight_M, first)

    def subtract(self, centers_KC: Tensor, label_N: Tensor) -> None:
        """From now on less the centres of these labels."""
        if self.memory is None:
            centers_LKC = centers_KC[None]
            if self.subtracted is not None:
                centers_LKC = torch.cat([self.subtracted.codebook, centers_LKC])
            # Of batches the labels are not kept: each pass looks the levels up again.
            self.subtracted = ops.prepare_codebook(centers_LKC)
        else:
            features_NC, weight_N, first = self.memory
            self.memory = Batch(features_NC.float() - centers_KC[label_N], weight_N, first)


def _as_codes(value: Any, most: int | None = None) -> tuple[Tensor, bool]:
    """int64 (N, L) of a tensor or of anything that numpy makes an array of, and whether results go back as arrays.

    Raises:
        ValueError: no whole numbers, other than 2 dimensions, no levels, or more than `most`.
    """
    is_array = not isinstance(value, Tensor)
    codes: Any = array_of("codes", value) if is_array else value
    whole = codes.dtype.kind in "iu" if is_array else not (codes.is_floating_point() or codes.is_complex())
    if not whole or codes.ndim != 2 or not 1 <= codes.shape[1] <= (most or codes.shape[1]):
        levels = "L" if most is None else f"1 to {most}"
        raise ValueError(
            f"codes: expected whole numbers of shape (N, {levels}), got {codes.dtype} of shape {tuple(codes.shape)}"
        )
    return torch.from_numpy(codes.astype("int64")) if is_array else codes.long(), is_array


@overload
def semantic_ids(codes: Tensor) -> Tensor: ...
@overload
def semantic_ids(codes: np.ndarray) -> Labels: ...
@overload
def semantic_ids(codes: object) -> Tensor | Labels: ...
def semantic_ids(codes: Any) -> Any:
    """Codes (N, L) and a last column that makes each row's id its own: 0 for the first row of some codes, 1 for the
    second, ... (TIGER, Rajput et al., 2023).

    Ids stay as they are when rows are appended. Collisions are the rows whose last column is above 0.

    Args:
        codes: whole numbers (N, L), those of `ResidualKMeans`.

    Returns:
        int64 (N, L + 1), in the codes' kind.

    Raises:
        ValueError: other numbers or another shape.
    """
    codes_NL, is_array = _as_codes(codes)
    group_N, size_G = torch.unique(codes_NL, dim=0, return_inverse=True, return_counts=True)[1:]
    order_N = group_N.argsort(stable=True)
    # Where a row is in sorted order, less where its group begins: its number within the group.
    place_N = torch.arange(len(order_N), device=order_N.device) - (size_G.cumsum(0) - size_G)[group_N[order_N]]
    # Back into the order of the rows.
    last_N = torch.empty_like(place_N).scatter_(0, order_N, place_N)
    return give_back(torch.cat([codes_NL, last_N[:, None]], 1), is_array)


def seed_of_level(seed: int, level: int) -> int:
    """A seed of the level's own."""
    # The first level draws as `KMeans` does with this seed.
    return seed if level == 0 else (seed * 1_000_003 + level) % 2**62
