"""Bounds of Hamerly (2010), by groups of centres as Ding et al. (Yinyang k-means, 2015) have them: rows whose label a
step of the centres cannot have changed.

Of each row an upper bound of the distance to its own centre and, for each group, a lower bound of that to all others in
it are kept; when the centres move they widen by as much. Where upper < lower for all groups the row is left alone; else
it is looked up in the groups that remain. All of it is beyond rounding: every operation here is rounded away from the
answer, the float64 evaluation by which the lookup decides is allowed for, and what is too near is looked up in full.

Letters: N rows, M some of them, K centres, G groups, S centres of a group, C channels.
"""

import math

import torch
from torch import Tensor

from soho_fast import ops

_MOST_GROUPS = 32
_GROUP_SIZE = 64
_GROUP_STEPS = 4
_CHUNK = 1 << 16  # float64 elements worked on together: they stay in the cache
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


class Groups:
    """Centres that lie together.

    Attributes:
        members: of each group its centres' indices, ascending. group_K: the group of each centre. place_K: the position
            of each centre among its group's.
    """

    def __init__(self, centers_KC: Tensor) -> None:
        num_groups = max(1, min(_MOST_GROUPS, len(centers_KC) // _GROUP_SIZE))
        heart_GC = centers_KC[:: len(centers_KC) // num_groups][:num_groups].clone()
        for _ in range(_GROUP_STEPS):
            ops.scatter_mean_ema_(heart_GC, centers_KC, ops.codebook_lookup(centers_KC, heart_GC), decay=0.0)
        label_K = ops.codebook_lookup(centers_KC, heart_GC)
        self.members = [found for group in range(num_groups) if len(found := (label_K == group).nonzero()[:, 0])]
        self.group_K, self.place_K = torch.zeros_like(label_K), torch.zeros_like(label_K)
        for group, member_S in enumerate(self.members):
            self.group_K[member_S] = group
            self.place_K[member_S] = torch.arange(len(member_S), device=label_K.device)

    def largest(self, value_K: Tensor) -> Tensor:
        """Of each group (G,)."""
        return torch.stack([value_K[member_S].max() for member_S in self.members])


def others_lower(features_NC: Tensor, centers_KC: Tensor, row_M: Tensor, label_N: Tensor, groups: Groups) -> Tensor:
    """Lower bound of the distance of some rows to every centre of a group but their own, float64 (M, G)."""
    lower_MG = torch.empty(len(row_M), len(groups.members), dtype=torch.float64, device=row_M.device)
    for group, member_S in enumerate(groups.members):
        codes_SC, own_M = centers_KC[member_S], groups.group_K[label_N[row_M]] == group
        for place_P, lower in ((own_M.nonzero()[:, 0], _lower_inside), ((~own_M).nonzero()[:, 0], _lower_outside)):
            rows_PC, own_P = features_NC[row_M[place_P]], groups.place_K[label_N[row_M[place_P]]]
            lower_MG[place_P, group] = lower(rows_PC, codes_SC, own_P)
    return lower_MG


def _lower_outside(rows_PC: Tensor, codes_SC: Tensor, own_P: Tensor) -> Tensor:
    """To all of the codes."""
    return lower_root(ops.codebook_lookup(rows_PC, codes_SC, return_distance=True)[1], rows_PC.shape[1])


def _lower_inside(rows_GC: Tensor, codes_SC: Tensor, own_G: Tensor) -> Tensor:
    """To all of the codes but one each. |x|^2 - 2 x.d + |d|^2 of float64 is off by at most
    (C + 8) 2^-52 (|x| + |d|)^2, in any order of summation."""
    num_channels = rows_GC.shape[1]
    codes = codes_SC.double()
    square_S = codes.square().sum(1)
    largest = square_S.max().sqrt()
    parts = []
    for rows, own in zip(rows_GC.split(4096), own_G.split(4096), strict=True):
        rows = rows.double()
        square_G = rows.square().sum(1)
        squared_GS = square_G[:, None] - 2 * (rows @ codes.T) + square_S
        squared_GS.scatter_(1, own[:, None], math.inf)
        error_G = slack(num_channels) * 1.01 * (square_G.sqrt() + largest).square()
        parts.append((squared_GS.amin(1) - error_G).clamp(min=0).sqrt() * (1 - slack(num_channels)))
    return torch.cat(parts) if parts else square_S.new_zeros(0)


class Bounds:
    """upper float64 (N,) and lower float64 (N, G), for the centres of the last call."""

    def __init__(self, upper_N: Tensor, lower_NG: Tensor, groups: Groups, num_channels: int) -> None:
        self.upper_N, self.lower_NG, self.groups = upper_N, lower_NG, groups
        self.num_channels = num_channels
        self.beyond = 1 + 4 * slack(num_channels)

    @classmethod
    def measure(cls, features_NC: Tensor, centers_KC: Tensor, label_N: Tensor, squared_N: Tensor) -> "Bounds":
        """From a lookup's labels and squared distances."""
        every_N = torch.arange(len(features_NC), device=features_NC.device)
        groups = Groups(centers_KC)
        lower_NG = others_lower(features_NC, centers_KC, every_N, label_N, groups)
        return cls(upper_root(squared_N, features_NC.shape[1]), lower_NG, groups, features_NC.shape[1])

    def follow(self, label_N: Tensor, before_KC: Tensor, after_KC: Tensor) -> None:
        """Widen them by what the centres moved."""
        moved_K = (after_KC.double() - before_KC.double()).square().sum(1).sqrt() * (1 + slack(self.num_channels))
        self.upper_N = _up(self.upper_N + moved_K[label_N])
        self.lower_NG = _down(self.lower_NG - self.groups.largest(moved_K))

    def open_pairs(self, row_M: Tensor | None = None) -> Tensor:
        """Groups in which a row may have found a nearer centre, bool (M, G). Not-a-number is open."""
        upper_M, lower_MG = self.upper_N, self.lower_NG
        if row_M is not None:
            upper_M, lower_MG = upper_M[row_M], lower_MG[row_M]
        return ~(upper_M[:, None] * self.beyond < lower_MG)

    def settle(
        self, features_NC: Tensor, centers_KC: Tensor, row_M: Tensor, open_MG: Tensor, before_N: Tensor
    ) -> tuple[Tensor, float]:
        """Look rows up in their open groups; `upper_N` is that of `own_upper` for them.

        Returns:
            the labels int64 (M,), and how many lookups of a row in all centres this took the time of.
        """
        before_M, own_upper_M = before_N[row_M], self.upper_N[row_M]
        own_lower_M = (own_upper_M - 2 * _FLUSHED).clamp(min=0) * (1 - 4 * slack(self.num_channels))
        best_M, upper_M, lower_M = before_M.clone(), own_upper_M.clone(), own_lower_M.clone()
        unclear_M = torch.zeros_like(best_M, dtype=torch.bool)
        looked_up = 0
        for group, member_S in enumerate(self.groups.members):
            place_P = open_MG[:, group].nonzero()[:, 0]
            if not len(place_P):
                continue
            looked_up += len(place_P) * len(member_S)
            rows_PC, codes_SC, own_P = features_NC[row_M[place_P]], centers_KC[member_S], before_M[place_P]
            nearest_P, squared_P = ops.codebook_lookup(rows_PC, codes_SC, return_distance=True)
            nearest_P = member_S[nearest_P]
            from_P, upto_P = (root(squared_P, self.num_channels) for root in (lower_root, upper_root))
            is_own_P = nearest_P == own_P
            # The nearest of a group bounds all of it; where that is the own centre, the others have to be looked at.
            others_P = from_P.clone()
            own_place = is_own_P.nonzero()[:, 0]
            others_P[own_place] = _lower_inside(rows_PC[own_place], codes_SC, self.groups.place_K[own_P[own_place]])
            self.lower_NG[row_M[place_P], group] = others_P
            nearer_P = ~is_own_P & (upto_P * self.beyond < lower_M[place_P])
            farther_P = is_own_P | (from_P > upper_M[place_P] * self.beyond)
            unclear_M[place_P] |= ~(nearer_P | farther_P)
            moved_P = place_P[nearer_P]
            best_M[moved_P], upper_M[moved_P], lower_M[moved_P] = (
                nearest_P[nearer_P],
                upto_P[nearer_P],
                from_P[nearer_P],
            )
        unclear = unclear_M.nonzero()[:, 0]
        if len(unclear):
            label_U, squared_U = ops.codebook_lookup(features_NC[row_M[unclear]], centers_KC, return_distance=True)
            best_M[unclear], upper_M[unclear] = label_U, upper_root(squared_U, self.num_channels)
        left = (best_M != before_M).nonzero()[:, 0]  # their old centre is one of the others now
        place = row_M[left], self.groups.group_K[before_M[left]]
        self.lower_NG[place] = torch.minimum(self.lower_NG[place], own_lower_M[left])
        self.upper_N[row_M] = upper_M
        return best_M, looked_up / len(centers_KC) + len(unclear)
