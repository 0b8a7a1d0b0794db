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
from soho_fast.cluster.processes import Processes
from soho_fast.cluster.rows import Batch, MemoryRows, Rows
from soho_fast.cluster.statistics import exact_sum, magnitude, totals_of, weighted

ROUNDS = 5  # of k-means||, as in its paper
OVERSAMPLING = 0.5  # rows drawn in a round, in units of K; the paper's smallest that is enough with five rounds
_MOST_ROUNDS = 20
_CANDIDATE_STEPS = 10  # k-means over the candidates after they are thinned out
_SAMPLE_A_CLUSTER = 64  # rows kept of batches for k-means++, in units of K
_NEAR = 1 << 17  # elements of features compared together: they stay in the cache


def uniform(seed: int, draw: int, position_M: Tensor) -> Tensor:
    """A number in (0, 1) for each position, float64: splitmix64 of seed, draw and position."""
    start = Random(f"{seed} {draw}").getrandbits(63)
    z = position_M * -7046029254386353131 + start  # 0x9E3779B97F4A7C15; int64 wraps
    z = (z ^ _shifted(z, 30)) * -4658895280553007687
    z = (z ^ _shifted(z, 27)) * -7723592293110705685
    z = z ^ _shifted(z, 31)
    return (_shifted(z, 11).double() + 0.5) * 2.0**-53


def _shifted(z: Tensor, bits: int) -> Tensor:
    """z >> bits without its sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def squared_distances(features_MC: Tensor, center_C: Tensor) -> Tensor:
    """float32 (M,): to one centre, rounded as float32 rounds."""
    parts = [(part.float() - center_C).square_().sum(1) for part in features_MC.split(max(1, _NEAR // len(center_C)))]
    return torch.cat(parts) if parts else features_MC.new_zeros(0, dtype=torch.float32)


class Near(NamedTuple):
    """Of the rows of a batch: the squared distance to the nearest candidate so far, float32 (M,), the weights, and the
    position of the first. Kept for all rows, so that a round needs no reading of its own to draw from them."""

    squared_M: Tensor
    weight_M: Tensor | None
    first: int

    @property
    def mass_M(self) -> Tensor:
        return weighted(self.squared_M, self.weight_M)


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
        self.draws = itertools.count()

    def centers(self, init: str, num_clusters: int) -> Tensor:
        """float32 (K, C)."""
        if init == "random":
            return self.take(self._lowest_keys(num_clusters))
        if init == "k-means||":
            return self._scalable(num_clusters)
        if self.rows.memory is not None:
            return self._plus_plus(self.rows.memory, num_clusters)
        sample = self._lowest_keys(_SAMPLE_A_CLUSTER * num_clusters, by_weight=False)
        return self._plus_plus_alone(self.take(sample), self._weights_at(sample), num_clusters)

    def take(self, positions: list[int]) -> Tensor:
        """The rows at these positions among all, float32 (T, C)."""
        return self._taken(positions, self.rows.num_channels, lambda batch: batch.features)

    def _weights_at(self, positions: list[int]) -> Tensor:
        def weights(batch: Batch) -> Tensor:
            return batch.features.new_ones(len(batch.features), 1) if batch.weight is None else batch.weight[:, None]

        return self._taken(positions, 1, weights)[:, 0]

    def _taken(self, positions: list[int], width: int, read: Callable[[Batch], Tensor]) -> Tensor:
        taken = torch.zeros(len(positions), width, dtype=torch.float32, device=self.rows.device)
        wanted_T = torch.tensor(positions, dtype=torch.int64, device=self.rows.device) - self.offset
        for batch in self.rows.batches():
            here_T = (wanted_T >= batch.first) & (wanted_T < batch.first + len(batch.features))
            taken[here_T] = read(batch)[wanted_T[here_T] - batch.first].to(taken)
        return self.processes.sum(taken)

    def _positions(self, first: int, number: int) -> Tensor:
        """Among all rows."""
        return torch.arange(self.offset + first, self.offset + first + number, device=self.rows.device)

    def _lowest_keys(self, number: int, by_weight: bool = True) -> list[int]:
        """Positions of rows drawn without replacement, each step in proportion to the weights: those with the lowest
        -log(u) / weight (Efraimidis and Spirakis, 2006). Rows without weight come last."""
        draw = next(self.draws)
        kept: list[tuple[float, int]] = []
        for batch in self.rows.batches():
            position_M = self._positions(batch.first, len(batch.features))
            key_M = -torch.log(uniform(self.seed, draw, position_M))
            if by_weight and batch.weight is not None:
                key_M = key_M / batch.weight
            key_T, row_T = key_M.topk(min(number, len(key_M)), largest=False)
            kept = sorted([*kept, *zip(key_T.tolist(), position_M[row_T].tolist(), strict=True)])[:number]
        drawn = sorted(itertools.chain(*self.processes.gather(kept)))
        return [position for _, position in drawn[:number]]

    def _plus_plus_alone(
        self, features_TC: Tensor, weight_T: Tensor, num_clusters: int, num_trials: int | None = None
    ) -> Tensor:
        """`_plus_plus` from rows that every process has: each seeds from them by itself, alike."""
        alone = Seeding(MemoryRows(features_TC), Processes(together=False), self.random.getrandbits(62))
        return alone._plus_plus(Batch(features_TC, weight_T, 0), num_clusters, num_trials)

    def _plus_plus(self, rows: Batch, num_clusters: int, num_trials: int | None = None) -> Tensor:
        """k-means++ (Arthur and Vassilvitskii, 2007), of several rows drawn at each step the one that leaves the lowest
        inertia, as in scikit-learn. One read of the rows for each."""
        trials = 2 + int(math.log(num_clusters)) if num_trials is None else num_trials
        features_NC, weight_N, _ = rows
        centers_KC = features_NC.new_zeros(num_clusters, features_NC.shape[1], dtype=torch.float32)
        ones_N = torch.ones(len(features_NC), dtype=torch.float32, device=self.rows.device)
        mass_N = ones_N if weight_N is None else weight_N
        closest_N = torch.full_like(mass_N, torch.inf)
        for k in range(num_clusters):
            candidates_TC = self._drawn(mass_N, weight_N, trials if k else 1)
            found = [torch.minimum(closest_N, squared_distances(features_NC, code_C)) for code_C in candidates_TC]
            inertia_T = torch.tensor(
                [exact_sum(weighted(near_N, weight_N)) for near_N in found],
                dtype=torch.float64,
                device=self.rows.device,
            )
            best = int(self.processes.sum(inertia_T).argmin())
            centers_KC[k], closest_N = candidates_TC[best], found[best]
            mass_N = weighted(closest_N, weight_N)
        return centers_KC

    def _drawn(self, mass_N: Tensor, weight_N: Tensor | None, number: int) -> Tensor:
        """Rows drawn in proportion to their mass (to their weight where all mass is zero), float32 (T, C)."""
        upto_N = mass_N.double().cumsum(0)
        totals = self.processes.gather(float(upto_N[-1]) if len(upto_N) else 0.0)
        if sum(totals) <= 0:
            upto_N = (torch.ones_like(mass_N) if weight_N is None else weight_N).double().cumsum(0)
            totals = self.processes.gather(float(upto_N[-1]) if len(upto_N) else 0.0)
        starts = [0.0, *itertools.accumulate(totals)]
        positions = []
        for _ in range(number):
            point = self.random.random() * starts[-1]
            mine = starts[self.processes.rank] <= point < starts[self.processes.rank + 1]
            row = -1
            if mine:
                within = torch.tensor(point - starts[self.processes.rank], dtype=torch.float64, device=upto_N.device)
                row = self.offset + min(int(torch.searchsorted(upto_N, within, right=True)), len(upto_N) - 1)
            positions.append(row)
        return self.take([max(drawn) for drawn in zip(*self.processes.gather(positions), strict=True)])

    def _scalable(self, num_clusters: int) -> Tensor:
        """k-means|| (Bahmani et al., 2012): rounds that each draw many rows, then k-means++ and a few steps of k-means
        over what was drawn, each candidate with the weight of the rows nearest to it."""
        candidates_TC = self.take(self._lowest_keys(1))
        closest = self._closest(None, candidates_TC)
        for number in range(_MOST_ROUNDS):
            inertia = math.fsum(self.processes.gather(math.fsum(exact_sum(near.mass_M) for near in closest)))
            if inertia <= 0 or (number >= ROUNDS and len(candidates_TC) >= num_clusters):
                break
            new_TC = self.take(self._coins(closest, OVERSAMPLING * num_clusters / inertia))
            if len(new_TC):
                closest = self._closest(closest, new_TC)
                candidates_TC = torch.cat([candidates_TC, new_TC])
        if len(candidates_TC) < num_clusters:  # so many rows coincide with others
            return torch.cat([candidates_TC, self.take(self._lowest_keys(num_clusters - len(candidates_TC)))])
        weight_T = self._weight_of(candidates_TC)
        thinned = self._plus_plus_alone(candidates_TC, weight_T, num_clusters, num_trials=1)
        for _ in range(_CANDIDATE_STEPS):
            total = totals_of(candidates_TC, ops.codebook_lookup(candidates_TC, thinned), weight_T, num_clusters)
            moved = (total[:, :-2] / total[:, -2:-1]).float()
            thinned = torch.where(total[:, -1:] > 0, moved, thinned)
        return thinned

    def _closest(self, before: list[Near] | None, codes_TC: Tensor) -> list[Near]:
        """Of each batch; one pass."""
        found = []
        for number, (features_MC, weight_M, first) in enumerate(self.rows.batches()):
            squared_M = ops.codebook_lookup(features_MC, codes_TC, return_distance=True)[1]
            if before is not None:
                squared_M = torch.minimum(before[number].squared_M, squared_M)
            found.append(Near(squared_M, weight_M, first))
        return found

    def _coins(self, closest: list[Near], factor: float) -> list[int]:
        """Positions of rows, each drawn by itself with probability factor * weight * squared distance."""
        draw, drawn = next(self.draws), []
        for near in closest:
            position_M = self._positions(near.first, len(near.squared_M))
            heads_M = uniform(self.seed, draw, position_M) < factor * near.mass_M.double()
            drawn += position_M[heads_M].tolist()
        return sorted(itertools.chain(*self.processes.gather(drawn)))

    def _weight_of(self, codes_TC: Tensor) -> Tensor:
        """Of the rows nearest to each code, but for a factor, float32 (T,)."""
        total_T = torch.zeros(len(codes_TC), dtype=torch.float64, device=self.rows.device)
        for batch in self.rows.batches():
            label_M = ops.codebook_lookup(batch.features, codes_TC)
            ones_M1 = batch.features.new_ones(len(label_M), 1)
            total_T += totals_of(ones_M1, label_M, batch.weight, len(codes_TC))[:, -2]
        total_T = self.processes.sum(total_T)
        return (total_T / magnitude(total_T)).float()
