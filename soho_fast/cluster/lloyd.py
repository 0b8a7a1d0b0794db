"""Lloyd's steps: labels, sums, new centres, until nothing moves.

Letters: N rows of this process, M rows of a batch, K clusters, C channels, E empty clusters.
"""

import itertools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from soho_fast import ops
from soho_fast.cluster.bounds import Bounds, Groups, others_lower, own_upper
from soho_fast.cluster.processes import Processes
from soho_fast.cluster.rows import Batch, Rows
from soho_fast.cluster.statistics import as_totals, exact_sum, totals_of, weighted

_TURNED_EACH = 4  # steps: turning the directions of the lookups costs little beside one

# Where bounds may pay. Measuring them takes the time of some lookups. What a step with them takes grows with the share
# of pairs (row, group) that are open, but little with K: a clock says whether it was less than a lookup.
_LEAST_WORK = 1 << 18  # K * C; at 1024 x 128 a step with 5 % of the pairs open took as long as a lookup
_MOVED_BEFORE_TRIAL = 0.1
_TRIAL_ROWS = 2048
_OPEN_IN_TRIAL = 0.25
_MOST_OPEN = 0.4
_FIRST_WAIT = 2
_SLOW_STEPS = 2  # one after the other, on which bounds are given up


class Fitted(NamedTuple):
    """centers float32 (K, C), labels int64 (N,), the inertia of all processes, steps made, clusters with a member."""

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


class MemorySteps:
    """Rows in memory: labels and bounds are kept from step to step."""

    def __init__(self, rows: Batch, processes: Processes, algorithm: str) -> None:
        self.rows, self.processes = rows, processes
        self.labeller = Labeller(rows.features, algorithm)

    def step(self, centers_KC: Tensor) -> Step:
        before = self.labeller.before
        label_N = self.labeller.labels(centers_KC)
        num_changed = len(label_N) if before is None else int((label_N != before.label_N).sum())
        total = totals_of(self.rows.features, label_N, self.rows.weight, len(centers_KC))
        both = self.processes.sum(torch.tensor([num_changed], device=label_N.device))
        return Step(self.processes.sum(total), int(both), label_N)


class BatchedSteps:
    """Rows in batches: nothing is kept of a row."""

    def __init__(self, rows: Rows, processes: Processes) -> None:
        self.rows, self.processes = rows, processes
        self.basis = ops.MovingBasis(_TURNED_EACH)

    def step(self, centers_KC: Tensor) -> Step:
        num_clusters, num_channels = centers_KC.shape
        total = torch.zeros(num_clusters, num_channels + 2, dtype=torch.float64, device=centers_KC.device)
        basis_CD = self.basis.of(centers_KC)
        prepared = ops.prepare_codebook(centers_KC, basis=False if basis_CD is None else basis_CD)
        for batch in self.rows.batches():
            label_M = ops.codebook_lookup(batch.features, prepared)
            total += totals_of(batch.features, label_M, batch.weight, num_clusters)
        return Step(self.processes.sum(total), None, None)


class Labelled(NamedTuple):
    """The label of each row (N,), and the centres (K, C) for which it is."""

    label_N: Tensor
    centers_KC: Tensor


class Trial(NamedTuple):
    """Bounds of some rows (M,)."""

    row_M: Tensor
    bounds: Bounds


class Labeller:
    """The lookup's labels, with bounds in front of it where they pay; the same labels with and without.

    Args:
        algorithm: "lloyd" never uses bounds, "bounds" always, "auto" where a trial on some rows and then the clock
            say so. On other devices than a CPU they are not used.
        clock: seconds; a test has its own.
    """

    def __init__(self, features_NC: Tensor, algorithm: str, clock: Callable[[], float] = time.perf_counter) -> None:
        can_bound = features_NC.device.type == "cpu" and len(features_NC) > 0
        self.features_NC, self.algorithm = features_NC, algorithm if can_bound else "lloyd"
        self.basis = ops.MovingBasis(_TURNED_EACH)
        self.seconds = {False: 0.0, True: 0.0}  # of the last lookup without directions and with; each is tried once
        self.clock, self.lookup_seconds, self.slow_steps = clock, math.inf, 0
        self.before: Labelled | None = None
        self.bounds: Bounds | None = None
        self.trial: Trial | None = None
        self.trial_passed = False
        self.wait = self.left = _FIRST_WAIT
        self.num_looked_up = 0.0  # rows, those looked up in a part of the centres in part

    def labels(self, centers_KC: Tensor) -> Tensor:
        """int64 (N,)."""
        before = self.before
        if self.bounds is not None and before is not None:
            label_N = self._timed_within(self.bounds, before, centers_KC)
        elif self.algorithm == "bounds" or self.trial_passed:
            label_N = self._measured(centers_KC)
        else:
            label_N = self._look_up_all(centers_KC)[0]
        self.before = Labelled(label_N, centers_KC)
        if self.algorithm == "auto" and self.bounds is None and before is not None:
            self._try(before, self.before)
        return label_N

    def _look_up_all(self, centers_KC: Tensor) -> tuple[Tensor, Tensor]:
        self.num_looked_up += len(self.features_NC)
        guess_N = None if self.before is None else self.before.label_N
        with_basis = self.seconds[True] < self.seconds[False]
        basis_CD = self.basis.of(centers_KC) if with_basis else None
        start = self.clock()
        found = ops.codebook_lookup(self.features_NC, centers_KC, return_distance=True, basis=basis_CD, guess=guess_N)
        took = self.seconds[with_basis] = self.clock() - start
        self.lookup_seconds = min(self.lookup_seconds, took)
        return found

    def _measured(self, centers_KC: Tensor) -> Tensor:
        label_N, squared_N = self._look_up_all(centers_KC)
        self.slow_steps = 0
        self.bounds = Bounds.measure(self.features_NC, centers_KC, label_N, squared_N)
        return label_N

    def _timed_within(self, bounds: Bounds, before: Labelled, centers_KC: Tensor) -> Tensor:
        start = self.clock()
        label_N = self._within(bounds, before, centers_KC)
        slow = self.clock() - start > self.lookup_seconds
        self.slow_steps = self.slow_steps + 1 if slow else 0
        if self.algorithm == "auto" and self.slow_steps >= _SLOW_STEPS:
            self._give_up()
        return label_N

    def _give_up(self) -> None:
        self.bounds, self.trial_passed, self.slow_steps = None, False, 0
        self.wait = self.left = 4 * self.wait

    def _within(self, bounds: Bounds, before: Labelled, centers_KC: Tensor) -> Tensor:
        before_N = before.label_N
        bounds.follow(before_N, before.centers_KC, centers_KC)
        open_M = bounds.open_pairs().any(1).nonzero()[:, 0]
        if not len(open_M):
            return before_N
        bounds.upper_N[open_M] = own_upper(self.features_NC, centers_KC, open_M, before_N)
        open_MG = bounds.open_pairs(open_M)
        if int(open_MG.sum()) > _MOST_OPEN * bounds.lower_NG.numel():
            if self.algorithm == "auto":
                self._give_up()
                return self._look_up_all(centers_KC)[0]
            return self._measured(centers_KC)
        label_N = before_N.clone()
        label_N[open_M], looked_up = bounds.settle(self.features_NC, centers_KC, open_M, open_MG, before_N)
        self.num_looked_up += looked_up
        return label_N

    def _try(self, before: Labelled, now: Labelled) -> None:
        """Bounds of some rows, in one step measured and in the next looked at."""
        if self.trial is not None:
            row_M, bounds = self.trial
            bounds.follow(before.label_N[row_M], before.centers_KC, now.centers_KC)
            bounds.upper_N = own_upper(self.features_NC, now.centers_KC, row_M, before.label_N)
            share_open = float(bounds.open_pairs().double().mean())
            self.trial, self.trial_passed = None, share_open <= _OPEN_IN_TRIAL
            if not self.trial_passed:
                self.wait = self.left = 2 * self.wait
            return
        self.left -= 1
        label_N, centers_KC = now
        if self.left > 0 or centers_KC.numel() < _LEAST_WORK:
            return
        if int((label_N != before.label_N).sum()) > _MOVED_BEFORE_TRIAL * len(label_N):
            return
        row_M = torch.arange(0, len(label_N), max(1, len(label_N) // _TRIAL_ROWS), device=label_N.device)
        groups = Groups(centers_KC)
        lower_MG = others_lower(self.features_NC, centers_KC, row_M, label_N, groups)
        self.trial = Trial(row_M, Bounds(torch.zeros_like(lower_MG[:, 0]), lower_MG, groups, centers_KC.shape[1]))


def means(total: Tensor, before_KC: Tensor) -> Tensor:
    """float32 (K, C): the mean of the members, rounded once; a cluster without any stays where it was."""
    totals = as_totals(total)
    return torch.where(totals.members[:, None] > 0, totals.sums / totals.weight[:, None], before_KC).float()


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
    # Added anew: taking a row out of a float32 sum would leave its rounding, which may be all that the others are.
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
    algorithm: str,
    tell: Callable[[str], None],
) -> Fitted:
    """Steps from these centres until no label changes, or the centres move by no more than `tolerance` (in sum of
    squares)."""
    memory = rows.memory
    steps = BatchedSteps(rows, processes) if memory is None else MemorySteps(memory, processes, algorithm)
    number, label_N, inertia = 0, None, math.inf
    for number in range(1, max_iter + 1):
        total, num_changed, label_N = steps.step(centers_KC)
        total, num_repaired, inertia = fill_empty(total, centers_KC, rows, processes, inertia)
        before_KC, centers_KC = centers_KC, means(total, centers_KC)
        shift = float((centers_KC.double() - before_KC.double()).square().sum())
        told = "" if num_changed is None else f"{num_changed} labels changed, "
        tell(
            f"step {number}: {told}centres moved by {shift**0.5:.4g}" + f", {num_repaired} filled" * bool(num_repaired)
        )
        if not num_repaired and (num_changed == 0 or shift <= tolerance):
            break
    labels, inertia, members = final_pass(rows, centers_KC, label_N, processes)
    return Fitted(centers_KC, labels, inertia, number, int((members > 0).sum()))


def final_pass(
    rows: Rows, centers_KC: Tensor, guess_N: Tensor | None, processes: Processes
) -> tuple[Tensor, float, Tensor]:
    """Labels (N,) for these centres, the inertia of all processes, and the members (K,) of each cluster."""
    found, inertia = [torch.zeros(0, dtype=torch.int64, device=rows.device)], []
    members_K = torch.zeros(len(centers_KC), dtype=torch.int64, device=rows.device)
    prepared = ops.prepare_codebook(centers_KC)
    for batch in rows.batches():
        guess_M = None if guess_N is None else guess_N[batch.first : batch.first + len(batch.features)]
        label_M, squared_M = ops.codebook_lookup(batch.features, prepared, return_distance=True, guess=guess_M)
        found.append(label_M)
        members_K += torch.bincount(label_M, minlength=len(centers_KC))
        inertia.append(exact_sum(weighted(squared_M, batch.weight)))
    every = [part for rank in processes.gather(inertia) for part in rank]
    return torch.cat(found), math.fsum(every), processes.sum(members_K)
