"""Hamerly's bounds (2010): rows whose label a step of the centres cannot have changed.

Of each row an upper bound of the distance to its own centre and a lower bound of that to all others are kept; when the
centres move they widen by as much. A row is left alone only where upper < lower holds beyond all rounding: every
operation here is rounded away from the answer, and the float64 evaluation by which the lookup decides is allowed for.

Letters: N rows, M some of them, K centres, C channels.
"""

import math

import torch
from torch import Tensor

from soho_fast import ops

_MOST_GROUPS = 32
_CHUNK = 1 << 21  # float64 elements held at a time
_FLUSHED = 2.0**-62  # more than the distance that reads as zero where a caller has torch flush subnormals


def slack(num_channels: int) -> float:
    """Relative error of a float64 evaluation of a squared distance, in any order, and of its root, with room to spare:
    C + 2 roundings of 2^-53 are enough."""
    return (num_channels + 16) * 2.0**-52


def _up(value: Tensor) -> Tensor:
    return torch.nextafter(value, torch.full_like(value, math.inf))


def _down(value: Tensor) -> Tensor:
    return torch.nextafter(value, torch.full_like(value, -math.inf))


def upper_root(squared_N: Tensor, num_channels: int) -> Tensor:
    """An upper bound, float64, of the true distance whose square a lookup gave in float32."""
    above = torch.nextafter(squared_N, torch.full_like(squared_N, math.inf)).double()
    return above.sqrt() * (1 + slack(num_channels)) + _FLUSHED


def lower_root(squared_N: Tensor, num_channels: int) -> Tensor:
    below = torch.nextafter(squared_N, torch.zeros_like(squared_N)).double()
    return below.sqrt() * (1 - slack(num_channels))


def own_upper(features_NC: Tensor, centers_KC: Tensor, row_M: Tensor, label_N: Tensor) -> Tensor:
    """Upper bound of the distance of some rows to their own centres, float64 (M,)."""
    chunk = max(1, _CHUNK // features_NC.shape[1])
    parts = [
        (features_NC[rows].double() - centers_KC[label_N[rows]].double()).square_().sum(1)
        for rows in row_M.split(chunk)
    ]
    return torch.cat(parts).sqrt() * (1 + slack(features_NC.shape[1])) + _FLUSHED


def others_lower(features_NC: Tensor, centers_KC: Tensor, row_M: Tensor, label_N: Tensor) -> Tensor:
    """Lower bound of the distance of some rows to every centre but their own, float64 (M,).

    The centres are cut into groups. Those outside of the row's own group are one lookup, with all rows of the group;
    the few inside are compared by a float64 product that leaves the own one out.
    """
    num_clusters, num_channels = centers_KC.shape
    groups = max(1, min(_MOST_GROUPS, round(math.sqrt(num_clusters)), 4 * len(row_M) // num_clusters))
    size = -(-num_clusters // groups)
    lower_M = torch.full(row_M.shape, math.inf, dtype=torch.float64, device=row_M.device)
    group_M = label_N[row_M] // size
    order_M = group_M.argsort(stable=True)
    counts = torch.bincount(group_M, minlength=groups).tolist()
    for group, place_G in enumerate(order_M.split(counts)):
        if not len(place_G):
            continue
        first, last = group * size, min((group + 1) * size, num_clusters)
        rows_GC = features_NC[row_M[place_G]]
        if last - first < num_clusters:
            outside = torch.cat([centers_KC[:first], centers_KC[last:]])
            squared_G = ops.codebook_lookup(rows_GC, outside, return_distance=True)[1]
            lower_M[place_G] = lower_root(squared_G, num_channels)
        inside_G = _lower_inside(rows_GC, centers_KC[first:last], label_N[row_M[place_G]] - first)
        lower_M[place_G] = torch.minimum(lower_M[place_G], inside_G)
    return lower_M


def _lower_inside(rows_GC: Tensor, codes_SC: Tensor, own_G: Tensor) -> Tensor:
    """As `others_lower`, within one group of S centres. |x|^2 - 2 x.d + |d|^2 of float64 is off by at most
    (C + 8) 2^-52 (|x| + |d|)^2, in any order of summation."""
    num_channels = rows_GC.shape[1]
    codes = codes_SC.double()
    square_S = codes.square().sum(1)
    largest = square_S.max().sqrt()
    parts = []
    for rows, own in zip(rows_GC.split(_CHUNK // 512), own_G.split(_CHUNK // 512), strict=True):
        rows = rows.double()
        square_G = rows.square().sum(1)
        squared_GS = square_G[:, None] - 2 * (rows @ codes.T) + square_S
        squared_GS.scatter_(1, own[:, None], math.inf)
        error_G = slack(num_channels) * 1.01 * (square_G.sqrt() + largest).square()
        parts.append((squared_GS.amin(1) - error_G).clamp(min=0).sqrt() * (1 - slack(num_channels)))
    return torch.cat(parts)


class Bounds:
    """upper and lower, float64 (N,), for the centres of the last call."""

    def __init__(self, upper_N: Tensor, lower_N: Tensor, num_channels: int) -> None:
        self.upper_N, self.lower_N = upper_N, lower_N
        self.beyond = 1 + 4 * slack(num_channels)

    @classmethod
    def measure(cls, features_NC: Tensor, centers_KC: Tensor, label_N: Tensor, squared_N: Tensor) -> "Bounds":
        """From a lookup's labels and squared distances."""
        every_N = torch.arange(len(features_NC), device=features_NC.device)
        lower_N = others_lower(features_NC, centers_KC, every_N, label_N)
        return cls(upper_root(squared_N, features_NC.shape[1]), lower_N, features_NC.shape[1])

    def follow(self, label_N: Tensor, before_KC: Tensor, after_KC: Tensor) -> None:
        """Widen them by what the centres moved."""
        moved_K = (after_KC.double() - before_KC.double()).square().sum(1).sqrt() * (1 + slack(before_KC.shape[1]))
        most_2 = moved_K.topk(min(2, len(moved_K)))
        self.upper_N = _up(self.upper_N + moved_K[label_N])
        others_N = torch.where(label_N == most_2.indices[0], most_2.values[-1], most_2.values[0])
        self.lower_N = _down(self.lower_N - others_N)

    def open_rows(self) -> Tensor:
        """Rows whose label may have changed, int64 (M,), ascending. Not-a-number is open."""
        return (~(self.upper_N * self.beyond < self.lower_N)).nonzero()[:, 0]
