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
from soho_fast.cluster.statistics import as_totals, exact_sum, totals_of, weighted

_UPDATED_EACH = 4  # steps: updating the subspace of the lookups costs little beside one


class Fitted(NamedTuple):
    """centers float32 (K, C), labels int64 (N,), the inertia of all processes, steps made, clusters with a row."""

    centers: Tensor
    labels: Tensor
    inertia: float
    num_steps: int
    num_filled: int


class Step(NamedTuple):
    """What one pass over the rows found: totals of all processes (K, C + 2); where labels are kept, how many are new,
    and those of this process's rows (N,)."""

    total: Tensor
    num_changed: int | None
    label_N: Tensor | None


class Steps:
    """Passes over the rows. Labels of rows in memory are kept from one to the next, as warm starts and to count those
    that change; of batches nothing is kept."""

    def __init__(self, rows: Rows, processes: Processes) -> None:
        self.rows, self.processes = rows, processes
        self.subspace = ops.MovingSubspace(_UPDATED_EACH)
        self.label_N: Tensor | None = None

    def step(self, centers_KC: Tensor) -> Step:
        before_N, subspace_CD = self.label_N, self.subspace.of(centers_KC)
        prepared = ops.prepare_codebook(centers_KC, subspace=False if subspace_CD is None else subspace_CD)
        total = centers_KC.new_zeros(len(centers_KC), self.rows.num_channels + 2, dtype=torch.float64)
        num_changed = torch.zeros(1, dtype=torch.int64, device=total.device)
        for batch in self.rows.batches():
            label_M = ops.codebook_lookup(batch.features, prepared, warm_start=before_N)
            total += totals_of(batch.features, label_M, batch.weight, len(centers_KC))
            if self.rows.memory is not None:
                num_changed += len(label_M) if before_N is None else (label_M != before_N).sum()
                self.label_N = label_M
        if self.rows.memory is None:
            return Step(self.processes.sum(total), None, None)
        return Step(self.processes.sum(total), int(self.processes.sum(num_changed)), self.label_N)


def means(total: Tensor, before_KC: Tensor, unit: bool) -> Tensor:
    """float32 (K, C): the mean of the assigned rows, with `unit` its direction, rounded once; a cluster without any
    stays where it was."""
    totals = as_totals(total)
    size_K1 = totals.sums.norm(dim=1, keepdim=True) if unit else totals.weight[:, None]
    return torch.where((totals.members[:, None] > 0) & (size_K1 > 0), totals.sums / size_K1, before_KC).float()


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
        least = squared_M.topk(min(len(empty), len(squared_M))).values[-1]
        far_F = ((squared_M >= least) & (squared_M > 0)).nonzero()[:, 0]
        farthest_first = squared_M[far_F].sort(descending=True, stable=True).indices[: len(empty)]
        found += [(-float(squared_M[row]), offset + batch.first + row) for row in far_F[farthest_first].tolist()]
        found = sorted(found)[: len(empty)]
    every = sorted(itertools.chain(*processes.gather(found)))
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
    tell: Callable[[str], None],
) -> Fitted:
    """Steps from these centres until no label changes, or the centres move by no more than `tolerance` (in sum of
    squares)."""
    steps, number, label_N, inertia = Steps(rows, processes), 0, None, math.inf
    for number in range(1, max_iter + 1):
        total, num_changed, label_N = steps.step(centers_KC)
        total, num_repaired, inertia = fill_empty(total, centers_KC, rows, processes, inertia)
        before_KC, centers_KC = centers_KC, means(total, centers_KC, rows.unit)
        shift = float((centers_KC.double() - before_KC.double()).square().sum())
        told = "" if num_changed is None else f"{num_changed} labels changed, "
        tell(
            f"step {number}: {told}centres moved by {shift**0.5:.4g}" + f", {num_repaired} filled" * bool(num_repaired)
        )
        if not num_repaired and (num_changed == 0 or shift <= tolerance):
            break
    labels, inertia, total = final_pass(rows, centers_KC, label_N, processes)
    return Fitted(centers_KC, labels, inertia, number, int((as_totals(total).members > 0).sum()))


def final_pass(
    rows: Rows, centers_KC: Tensor, warm_start_N: Tensor | None, processes: Processes
) -> tuple[Tensor, float, Tensor]:
    """Labels (N,) for these centres, the inertia of all processes, and their totals (K, C + 2)."""
    found, inertia = [torch.zeros(0, dtype=torch.int64, device=rows.device)], []
    total = centers_KC.new_zeros(len(centers_KC), rows.num_channels + 2, dtype=torch.float64)
    prepared = ops.prepare_codebook(centers_KC)
    for batch in rows.batches():
        warm_start_M = None if warm_start_N is None else warm_start_N[batch.first : batch.first + len(batch.features)]
        label_M, squared_M = ops.codebook_lookup(
            batch.features, prepared, return_distance=True, warm_start=warm_start_M
        )
        found.append(label_M)
        total += totals_of(batch.features, label_M, batch.weight, len(centers_KC))
        inertia.append(exact_sum(weighted(squared_M, batch.weight)))
    every = [part for rank in processes.gather(inertia) for part in rank]
    return torch.cat(found), math.fsum(every), processes.sum(total)
