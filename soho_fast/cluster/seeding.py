"""Where the centres start. What is drawn depends on the seed and on the row's position among all rows, not on threads,
processes or batches.

Letters: N rows of this process, M rows of a batch, K clusters, C channels, T candidates.
"""

import itertools
import math
from collections.abc import Callable
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from soho_fast import ops
from soho_fast.cluster.lloyd import fit_centers
from soho_fast.cluster.moving import moved
from soho_fast.cluster.processes import Processes
from soho_fast.cluster.rows import Batch, MemoryRows, Rows, uniform
from soho_fast.cluster.statistics import magnitude, mean_variance, weighted

_SAMPLE_A_CLUSTER = 64  # rows kept of batches for k-means++, in units of K
_NEAR = 1 << 17  # elements of features compared together: they stay in the cache
_PRODUCTS = 1 << 19  # of rows and trials, held at a time
_KEPT = 1 << 25  # elements of rows that are kept without their mean: finding it anew was half of the time of few trials
_MOST_PAIRS = 1 << 24  # of rows and trials drawn together
_MANY_CLUSTERS = 16  # with 8, k-means++ ends 4 % lower where rows have heavy tails
_MANY_ROWS = 12  # a cluster: with 6, k-means++ ends 12 to 19 % lower
_PASSES, _READ_A_CLUSTER = 4, 96  # of mini-batches, and rows that they read for each cluster at least
_LEAST_MOVED, _MOVED_A_CLUSTER = 8192, 128  # rows in the sample for mini-batches
_SETTLED = 16384  # rows in that for Lloyd's steps, at least 1,024 a cluster; 256 a cluster save no step later
_STEPS, _TOLERANCE = 100, 1e-4  # over that sample; the tolerance as `KMeans` has it
_STEPS_TOGETHER = 0.25  # steps of k-means++ whose trials are drawn together, in units of the centres so far


def squared_distances(features_MC: Tensor, center_C: Tensor) -> Tensor:
    """float32 (M,): to one centre, rounded as float32 rounds."""
    parts = [(part.float() - center_C).square_().sum(1) for part in features_MC.split(max(1, _NEAR // len(center_C)))]
    return torch.cat(parts) if parts else features_MC.new_zeros(0, dtype=torch.float32)


class Pairs(NamedTuple):
    """Trials and the rows that they may be nearer to than any centre is, trial by trial: those of trial t are the pairs
    starts[t] to starts[t + 1]. row int64 (P,); squared float32 (P,), their distance."""

    starts: list[int]
    row_P: Tensor
    squared_P: Tensor


class Nearer:
    """Finds the rows that a trial may be nearer to than any centre.

    One product of float32 matrices and a bound on its rounding tell which; the distances of these alone are computed,
    as `squared_distances` does. So neither the bits of the product, which may change with the number of threads, nor
    what is subtracted from the rows before, decide what is found.
    """

    def __init__(self, features_NC: Tensor) -> None:
        self.features_NC = features_NC
        self.mean_C = features_NC.float().mean(0)
        # Roundings: C of a product, C of a square, C + 4 of `squared_distances`, 8 of sums; and as many again.
        self.slack = (6 * features_NC.shape[1] + 32) * 2.0**-24
        if torch.get_float32_matmul_precision() != "highest" or torch.backends.cuda.matmul.allow_tf32:
            self.slack += 2.0**-7  # The user has allowed products of bfloat16 or TF32.
        self.left: list[Tensor] = []
        if 0 < features_NC.numel() <= _KEPT:
            parts = [self._left(part.float()) for part in features_NC.split(max(1, _NEAR // features_NC.shape[1]))]
            self.left = [torch.cat(part) for part in zip(*parts, strict=True)]

    def _left(self, rows_MC: Tensor) -> tuple[Tensor, Tensor]:
        """(rows - mean) / 4, and a lower bound on the squared lengths of these, (M,).

        Quarters: their products fit float32 wherever the distances of the rows do.
        """
        left_MC = (rows_MC - self.mean_C).mul_(0.25)
        return left_MC, left_MC.square().sum(1).mul_(1 - self.slack)

    def pairs(self, trials_TC: Tensor, closest_N: Tensor) -> Pairs:
        left_TC, square_T = self._left(trials_TC)
        trials, rows, squares = [], [], []
        step = max(1, _PRODUCTS // len(trials_TC))
        for number, features_MC in enumerate(self.features_NC.split(step)):
            here = slice(number * step, number * step + step)
            rows_MC, closest_M = features_MC.float(), closest_N[here]
            left_MC, square_M = (part[here] for part in self.left) if self.left else self._left(rows_MC)
            # No less than the distance of quarters, whatever was rounded; 1e-36 stands for what underflows.
            base_M = square_M - (closest_M * ((1 + self.slack) / 16) + 1e-36)
            # Nothing is nearer than 0.
            base_M[closest_M == 0] = torch.inf
            with torch.autocast(left_MC.device.type, enabled=False):
                # |x|^2 - closest / 16 - 2 x.t < -|t|^2, of quarters x and t: they are nearer than the centre.
                below_TM = torch.addmm(base_M[None], left_TC, left_MC.T, alpha=-2) < -square_T[:, None]
            trial_P, row_P = below_TM.nonzero().unbind(1)
            part = max(1, _NEAR // trials_TC.shape[1])
            for trial, row in zip(trial_P.split(part), row_P.split(part), strict=True):
                apart_PC = rows_MC.index_select(0, row).sub_(trials_TC.index_select(0, trial))
                squares.append(apart_PC.square_().sum(1))
            trials.append(trial_P)
            rows.append(row_P + number * step)
        # Found block by block of rows; stable, so that rows stay in ascending order within a trial.
        trial_P, order_P = torch.cat(trials).sort(stable=True)
        starts = torch.bincount(trial_P, minlength=len(trials_TC)).cumsum(0).tolist()
        return Pairs([0, *starts], torch.cat(rows)[order_P], torch.cat(squares)[order_P])


class Seeding:
    """The rows of all processes as one, from which rows are drawn.

    Args:
        rows: of this process. num_rows: of all.
        seed: the same in all processes.
    """

    def __init__(self, rows: Rows, processes: Processes, seed: int) -> None:
        self.rows, self.processes, self.seed = rows, processes, seed
        self.random = Random(seed)
        counts = processes.gather(rows.num_rows)
        self.offset = sum(counts[: processes.rank])
        self.num_rows = sum(counts)
        self.draws = itertools.count()

    def centers(self, init: str, num_clusters: int, sample: int | None = None) -> Tensor:
        """float32 (K, C), for k-means++ of so many rows where there are more."""
        if init == "auto" and num_clusters < _MANY_CLUSTERS:
            return self._settled(num_clusters)
        if init == "auto":
            init = "mini-batch" if self.num_rows >= _MANY_ROWS * num_clusters else "k-means++"
        if init == "mini-batch":
            return self._mini_batches(num_clusters)
        if init == "random":
            return self.take(self._lowest_keys(num_clusters))
        if self.rows.memory is not None and (sample is None or sample >= self.num_rows):
            return self._plus_plus(self.rows.memory, num_clusters)
        return self._plus_plus_alone(*self._sample(sample or _SAMPLE_A_CLUSTER * num_clusters), num_clusters)

    def _settled(self, num_clusters: int) -> Tensor:
        """k-means++, and Lloyd's steps over a sample where there are three times as many rows, so that fewer are left
        for all of them. A centre that no row of the sample is nearest to stays: it may have far ones."""
        centers_KC = self.centers("k-means++", num_clusters)
        if self.num_rows < 3 * _SETTLED:
            return centers_KC
        sample, alone = self._some(_SETTLED), Processes(together=False)
        tolerance = _TOLERANCE * mean_variance(sample, alone)
        return fit_centers(sample, centers_KC, alone, max_iter=_STEPS, tolerance=tolerance, fill=False).centers

    def _mini_batches(self, num_clusters: int) -> Tensor:
        """Rows drawn at random, after passes of mini-batches over a sample."""
        sample, alone = self._some(max(_LEAST_MOVED, _MOVED_A_CLUSTER * num_clusters)), Processes(together=False)
        seed = self.random.getrandbits(62)
        drawn_KC = Seeding(sample, alone, seed).centers("random", num_clusters)
        passes = max(_PASSES, math.ceil(_READ_A_CLUSTER * num_clusters / sample.num_rows))
        return moved(sample, drawn_KC, alone, seed=seed, passes=passes)[0]

    def _some(self, number: int) -> Rows:
        """A sample that every process has, or all rows where they are no more."""
        features_TC, weight_T = self._sample(number, in_order=True)
        sample = MemoryRows(features_TC, weight_T if float(weight_T.min()) < 1 else None)
        sample.unit = self.rows.unit
        return sample

    def take(self, positions: list[int]) -> Tensor:
        """The rows at these positions among all, float32 (T, C)."""
        return self._taken(positions, self.rows.num_channels, lambda batch: batch.features)

    def _sample(self, number: int, in_order: bool = False) -> tuple[Tensor, Tensor]:
        """Rows drawn by their weights, float32 (T, C), and these divided by the chance that a row is drawn (Horvitz and
        Thompson, 1952), but for a factor, float32 (T,). `in_order`: of their positions."""

        def weights(batch: Batch) -> Tensor:
            return batch.features.new_ones(len(batch.features), 1) if batch.weight is None else batch.weight[:, None]

        if in_order and number >= self.num_rows:
            drawn = [(math.inf, position) for position in range(self.num_rows)]  # nothing to draw
        else:
            # The key of the one more is the threshold that the others' keys lie below.
            drawn = self._with_keys(number + 1)
        positions = [position for _, position in drawn[:number]]
        if in_order:
            positions.sort()
        weight_T = self._taken(positions, 1, weights)[:, 0].double()
        if len(drawn) > number and drawn[-1][0] < math.inf:
            # A key -log(u) / w is below a threshold t by chance 1 - exp(-w t).
            weight_T /= -torch.expm1(weight_T * -drawn[-1][0])
        return self.take(positions), (weight_T / weight_T.max()).float()

    def _taken(self, positions: list[int], width: int, read: Callable[[Batch], Tensor]) -> Tensor:
        wanted_T = torch.tensor(positions, dtype=torch.int64, device=self.rows.device) - self.offset
        if self.rows.memory is not None and not self.processes.together:
            return read(self.rows.memory)[wanted_T].float()
        # Rows of other processes stay zeros here: the sum has each once.
        taken = torch.zeros(len(positions), width, dtype=torch.float32, device=self.rows.device)
        for batch in self.rows.batches():
            here_T = (wanted_T >= batch.first) & (wanted_T < batch.first + len(batch.features))
            taken[here_T] = read(batch)[wanted_T[here_T] - batch.first].to(taken)
        return self.processes.sum(taken)

    def _positions(self, first: int, number: int) -> Tensor:
        """Among all rows."""
        return torch.arange(self.offset + first, self.offset + first + number, device=self.rows.device)

    def _lowest_keys(self, number: int) -> list[int]:
        """Positions of rows drawn without replacement, each step in proportion to the weights: those with the lowest
        -log(u) / weight (Efraimidis and Spirakis, 2006). Rows without weight come last."""
        return [position for _, position in self._with_keys(number)]

    def _with_keys(self, number: int) -> list[tuple[float, int]]:
        draw = next(self.draws)
        kept: list[tuple[float, int]] = []
        for batch in self.rows.batches():
            position_M = self._positions(batch.first, len(batch.features))
            key_M = -torch.log(uniform(self.seed, draw, position_M))
            if batch.weight is not None:
                key_M = key_M / batch.weight
            key_T, row_T = key_M.topk(min(number, len(key_M)), largest=False)
            kept = sorted([*kept, *zip(key_T.tolist(), position_M[row_T].tolist(), strict=True)])[:number]
        return sorted(itertools.chain(*self.processes.gather(kept)))[:number]

    def _plus_plus_alone(self, features_TC: Tensor, weight_T: Tensor, num_clusters: int) -> Tensor:
        """`_plus_plus` from rows that every process has: each seeds from them by itself, alike."""
        alone = Seeding(MemoryRows(features_TC), Processes(together=False), self.random.getrandbits(62))
        return alone._plus_plus(Batch(features_TC, weight_T, 0), num_clusters)

    def _plus_plus(self, rows: Batch, num_clusters: int, num_trials: int | None = None) -> Tensor:
        """k-means++ (Arthur and Vassilvitskii, 2007), of several rows drawn at each step the one that leaves the lowest
        inertia, as in scikit-learn.

        The trials of some steps are drawn together, by the squared distances before them. A step takes one in the
        proportion to which the steps between have lowered its distance, which makes it a draw by the distances now.
        """
        trials = 2 + int(math.log(num_clusters)) if num_trials is None else num_trials
        features_NC, weight_N, _ = rows
        # A power of two keeps products with gains within float32.
        scaled_N = None if weight_N is None else (weight_N.double() / magnitude(weight_N)).float()
        mass_N = features_NC.new_ones(len(features_NC), dtype=torch.float32) if weight_N is None else weight_N
        centers = [self.take(self._drawn(mass_N, weight_N, 1))[0]]
        closest_N = squared_distances(features_NC, centers[0])
        nearer = Nearer(features_NC)
        most = max(1, _MOST_PAIRS // (trials * self.num_rows))
        while len(centers) < num_clusters:
            # Few at first: each centre changes the distances much while there are few.
            steps = min(num_clusters - len(centers), max(1, int(len(centers) * _STEPS_TOGETHER)), most)
            positions = self._drawn(weighted(closest_N, weight_N), weight_N, trials * steps)
            drawn_TC = self.take(positions)
            then_T = self._taken(positions, 1, lambda _: closest_N[:, None])[:, 0]
            chance_T = then_T.new_tensor([self.random.random() for _ in positions])
            now_T, first = then_T, 0
            starts, row_P, squared_P = nearer.pairs(drawn_TC, closest_N)
            while len(centers) < num_clusters:
                # A trial counts by chance now / then: those that do are draws by the distances now.
                taken = (chance_T[first:] * then_T[first:] <= now_T[first:]).nonzero()[:trials, 0].tolist()
                # The draw is used up: the next one is by the distances now.
                if len(taken) < trials:
                    break
                tried = [first + number for number in taken]
                first = tried[-1] + 1
                spans = [slice(starts[t], starts[t + 1]) for t in tried]
                row_G = torch.cat([row_P[span] for span in spans])
                # A pair is a candidate: its row may be no nearer to the trial.
                gain_G = (closest_N[row_G] - torch.cat([squared_P[span] for span in spans])).clamp_(min=0)
                if scaled_N is not None:
                    gain_G *= scaled_N[row_G]
                trial_G = torch.cat([row_P.new_full((starts[t + 1] - starts[t],), i) for i, t in enumerate(tried)])
                gain_T = ops.codebook_stats(gain_G[:, None], trial_G, trials, wide=True)[1][:, 0]
                best = int(self.processes.sum(gain_T).argmax())
                row_M = row_P[spans[best]]
                closest_N[row_M] = torch.minimum(closest_N[row_M], squared_P[spans[best]])
                centers.append(drawn_TC[tried[best]])
                # The trials that are left come nearer to a centre, too.
                now_T = torch.minimum(now_T, squared_distances(drawn_TC, centers[-1]))
        return torch.stack(centers)

    def _drawn(self, mass_N: Tensor, weight_N: Tensor | None, number: int) -> list[int]:
        """Positions of rows drawn in proportion to their mass (to their weight where all mass is zero)."""
        upto_N = mass_N.double().cumsum(0)
        totals = self.processes.gather(float(upto_N[-1]) if len(upto_N) else 0.0)
        if sum(totals) <= 0:
            upto_N = (torch.ones_like(mass_N) if weight_N is None else weight_N).double().cumsum(0)
            totals = self.processes.gather(float(upto_N[-1]) if len(upto_N) else 0.0)
        starts = [0.0, *itertools.accumulate(totals)]
        begin, end = starts[self.processes.rank : self.processes.rank + 2]
        points = [self.random.random() * starts[-1] for _ in range(number)]
        within_T = torch.tensor([point - begin for point in points], dtype=torch.float64, device=upto_N.device)
        rows = torch.searchsorted(upto_N, within_T, right=True).tolist()
        mine = [
            # A point less `begin` may round up to the last sum.
            self.offset + min(row, len(upto_N) - 1) if begin <= point < end else -1
            for row, point in zip(rows, points, strict=True)
        ]
        # A point lies in one process's span; the others have -1.
        return [max(drawn) for drawn in zip(*self.processes.gather(mine), strict=True)]
