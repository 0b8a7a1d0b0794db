"""Lloyd's steps: labels, sums, new centres, until nothing moves.

Letters: N rows of this process, M rows of a batch, K clusters, C channels, E empty clusters.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from soho_fast import ops
from soho_fast.cluster.processes import Processes
from soho_fast.cluster.rows import Rows
from soho_fast.cluster.statistics import exact_sum, totals_of, weighted

_BLOCK = 1 << 14  # numbers: torch divides no such sum among threads
_UPDATED_EACH = 4  # steps: updating the subspace of the lookups costs little beside one
_FEW, _MANY = 0.3, 128  # rows are compared with moved centres before all, if these are few of many more than 128
_SURE = 1 + 2.0**-20  # between two squared distances, which float32 rounds


class Fitted(NamedTuple):
    """centers float32 (K, C), labels int64 (N,), the inertia of all processes, steps made, and the weight of each
    cluster's rows and how many have one, float64 (K, 2)."""

    centers: Tensor
    labels: Tensor
    inertia: float
    num_steps: int
    sizes_K2: Tensor


def means(total: Tensor, before_KC: Tensor, unit: bool) -> Tensor:
    """float32 (K, C): the mean of the assigned rows, with `unit` its direction, rounded once; a cluster without any
    stays where it was."""
    size_K1, after_KC = sizes(total, unit), torch.empty_like(before_KC)
    for one in blocks(before_KC):
        mean_BC = total[one, :-2] / size_K1[one]
        # A size of 0 with rows: with `unit`, directions that cancel.
        after_KC[one] = torch.where((total[one, -1:] > 0) & (size_K1[one] > 0), mean_BC, before_KC[one])
    return after_KC


def blocks(rows: Tensor) -> list[slice]:
    """Of rows whose float64 numbers stay in the cache, so that no temporary is as large as all centres."""
    step = max(1, _BLOCK // rows.shape[1])
    return [slice(first, first + step) for first in range(0, len(rows), step)]


def sizes(total: Tensor, unit: bool) -> Tensor:
    """float64 (K, 1): what makes a centre of each cluster's sum, its weight or with `unit` the sum's length."""
    return total[:, :-2].norm(dim=1, keepdim=True) if unit else total[:, -2:-1]


def shift(centers_KC: Tensor, before_KC: Tensor) -> float:
    """The sum of squares by which centres moved."""
    return math.fsum(float((centers_KC[one].double() - before_KC[one]).square().sum()) for one in blocks(centers_KC))


class Repair(NamedTuple):
    """The totals (K, C + 2) after empty clusters have taken rows, how many did, and the inertia before that."""

    total: Tensor
    num_filled: int
    inertia: float


def fill_empty(total: Tensor, centers_KC: Tensor, rows: Rows, processes: Processes, below: float) -> Repair:
    """The rule for empty clusters: they take, in ascending order, the rows farthest from their centres, farthest first,
    of equally far ones the first; such a row leaves the cluster it was in. A row without weight, or on its centre, is
    not taken, nor is any where the inertia is not below what it was when rows were last taken (they then lie on their
    centres but for rounding); a cluster that takes none stays empty where it is.
    """
    empty = (total[:, -1] == 0).nonzero()[:, 0].tolist()
    if not empty:
        return Repair(total, 0, below)
    found: list[tuple[float, int]] = []
    labels, inertia = [], []
    offset = sum(processes.gather(rows.num_rows)[: processes.rank])
    for batch in rows.batches():
        label_M, squared_M = ops.codebook_lookup(batch.features, centers_KC, return_distance=True)
        labels.append(label_M)
        inertia.append(exact_sum(weighted(squared_M, batch.weight)))
        if batch.weight is not None:
            squared_M = torch.where(batch.weight > 0, squared_M, 0.0)
        # By a threshold, since topk does not say which of equally far rows it takes.
        least = squared_M.topk(min(len(empty), len(squared_M))).values[-1]
        far_F = ((squared_M >= least) & (squared_M > 0)).nonzero()[:, 0]
        farthest_first = squared_M[far_F].sort(descending=True, stable=True).indices[: len(empty)]
        # Negative, so that sorting puts the farthest first, and of equals the lowest position.
        found += [(-float(squared_M[row]), offset + batch.first + row) for row in far_F[farthest_first].tolist()]
        found = sorted(found)[: len(empty)]
    every = sorted(itertools.chain(*processes.gather(found)))
    # Rows of other processes get positions outside of all batches here.
    taken = {position - offset: cluster for cluster, (_, position) in zip(empty, every, strict=False)}
    before = math.fsum(itertools.chain(*processes.gather(inertia)))
    if not taken or before >= below:
        return Repair(total, 0, below)
    # Added anew: taking a row out of a sum would leave its rounding, which may be all that the others are.
    total = torch.zeros_like(total)
    for batch, label_M in zip(rows.batches(), labels, strict=True):
        for position, cluster in taken.items():
            if 0 <= position - batch.first < len(label_M):
                label_M[position - batch.first] = cluster
        total += totals_of(batch.features, label_M, batch.weight, len(centers_KC))
    return Repair(processes.sum(total), len(taken), before)


def fit_centers(
    rows: Rows,
    centers_KC: Tensor,
    processes: Processes,
    *,
    max_iter: int,
    tolerance: float,
    tell: Callable[[str], None] = lambda line: None,
    fill: bool = True,
) -> Fitted:
    """Steps from these centres until no label changes, or the centres move by no more than `tolerance` (in sum of
    squares). Without `fill` empty clusters stay where they are."""
    subspace, before, inertia, number = ops.MovingSubspace(_UPDATED_EACH), None, math.inf, 0
    moved_K, few = None, False
    for number in range(1, max_iter + 1):
        before_KC = centers_KC
        found = one_pass(rows, prepared_by(subspace, centers_KC), processes, before, moved_K, few)
        total = found.total
        changed = len(found.labels) if before is None else int((found.labels != before.labels).sum())
        num_changed = sum(processes.gather(changed))
        num_repaired = 0
        if fill:
            total, num_repaired, inertia = fill_empty(total, centers_KC, rows, processes, inertia)
        centers_KC = means(total, centers_KC, rows.unit)
        apart = shift(centers_KC, before_KC)
        before, moved_K = found, (centers_KC != before_KC).any(1)
        # Then the next pass keeps distances, by which the one after it compares with moved centres alone.
        few = int(moved_K.sum()) <= _FEW * (len(centers_KC) - _MANY)
        tell(
            f"step {number}: {num_changed} labels changed, centres moved by {apart**0.5:.4g}"
            + f", {num_repaired} filled" * bool(num_repaired)
        )
        # Rows that were taken change labels in the next step.
        if not num_repaired and (num_changed == 0 or apart <= tolerance):
            break
    # Labels and inertia are those of the centres that are returned, which have moved since the last pass.
    found = one_pass(rows, ops.prepare_codebook(centers_KC), processes, before, moved_K)
    return Fitted(centers_KC, found.labels, found.inertia, number, found.total[:, -2:])


def prepared_by(subspace: ops.MovingSubspace, centers_KC: Tensor) -> ops.PreparedCodebook:
    """The centres, for lookups with a subspace that follows them, if they have one."""
    found_CD = subspace.of(centers_KC)
    return ops.prepare_codebook(centers_KC, subspace=False if found_CD is None else found_CD)


class Pass(NamedTuple):
    """Labels int64 (N,), squared distances float32 (N,) where they are asked for, and of all processes the inertia
    (else 0) and the totals (K, C + 2)."""

    labels: Tensor
    squared: Tensor | None
    inertia: float
    total: Tensor


def one_pass(
    rows: Rows,
    prepared: ops.PreparedCodebook,
    processes: Processes,
    before: Pass | None = None,
    moved_K: Tensor | None = None,
    distances: bool = True,
) -> Pass:
    """The rows in clusters of these centres. `before`: the pass before, and `moved_K`, bool (K,), which centres have
    moved since."""
    labels, squares, parts, total = list[Tensor](), list[Tensor](), list[float](), None
    for features_MC, weight_M, first in rows.batches():
        here = slice(first, first + len(features_MC))
        # Only pruning has a use for a warm start.
        label_M = None if before is None or prepared.subspace is None else before.labels[here]
        if not distances:
            label_M = ops.codebook_lookup(features_MC, prepared, warm_start=label_M)
        else:
            if before is None or before.squared is None or moved_K is None:
                found = ops.codebook_lookup(features_MC, prepared, return_distance=True, warm_start=label_M)
            else:
                found = _after_moves(features_MC, prepared, before.labels[here], before.squared[here], moved_K)
            label_M, squared_M = found
            parts.append(exact_sum(weighted(squared_M, weight_M)))
            squares.append(squared_M)
        labels.append(label_M)
        of_batch = totals_of(features_MC, label_M, weight_M, prepared.shape[-2])
        total = of_batch if total is None else total.add_(of_batch)
    if total is None:
        total = torch.zeros(prepared.shape[-2], rows.num_channels + 2, dtype=torch.float64, device=rows.device)
        labels = [torch.zeros(0, dtype=torch.int64, device=rows.device)]
    return Pass(
        labels[0] if len(labels) == 1 else torch.cat(labels),
        torch.cat(squares) if squares else None,
        math.fsum(itertools.chain(*processes.gather(parts))),
        processes.sum(total),
    )


def _after_moves(
    features_MC: Tensor, prepared: ops.PreparedCodebook, label_M: Tensor, squared_M: Tensor, moved_K: Tensor
) -> tuple[Tensor, Tensor]:
    """Labels and squared distances after some centres have moved, from those before.

    Rows are compared with the moved centres first. If the nearest of these is nearer than the row's own centre was, it
    is the new label. If it is farther and the row's own centre has not moved, the label stays. All other rows are
    compared with every centre.
    """
    moved_F = moved_K.nonzero()[:, 0]
    if not len(moved_F):
        return label_M, squared_M
    near_M, apart_M = ops.codebook_lookup(features_MC, prepared.codebook[moved_F], return_distance=True)
    # Before, no centre was nearer than `squared_M`; so one that is nearer now has moved, and is the nearest of these.
    wins_M = apart_M * _SURE < squared_M
    stays_M = (apart_M > squared_M * _SURE) & ~moved_K[label_M]
    # New tensors: the writes below must not reach those of the pass before.
    label_M, squared_M = torch.where(wins_M, moved_F[near_M], label_M), torch.where(wins_M, apart_M, squared_M)
    left = (~(wins_M | stays_M)).nonzero()[:, 0]
    label_M[left], squared_M[left] = ops.codebook_lookup(
        features_MC.index_select(0, left), prepared, return_distance=True, warm_start=label_M[left]
    )
    return label_M, squared_M
