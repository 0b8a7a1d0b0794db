"""Clusters of bounded size.

Letters: N rows, K clusters, C channels, F rows without a cluster.
"""

import torch
from torch import Tensor

from soho_fast import ops
from soho_fast.cluster.lloyd import Fitted, means
from soho_fast.cluster.rows import Rows
from soho_fast.cluster.statistics import exact_sum, totals_of

_RAISE = 0.2  # of a price at least, in units of the median squared distance to the second nearest centre
_GROWTH = 1.02  # of the raise, each round: far rows outbid full clusters in hundreds of rounds, not in millions
_TOGETHER = 1 << 14  # rows
_LEAST_GAIN = 1e-3  # of the inertia, for another step


def bounded_labels(features_NC: Tensor, centers_KC: Tensor, most: int) -> Tensor:
    """int64 (N,): each row to a centre, no centre with more than `most` rows, K * most >= N. The inertia is the least
    possible but for what a row's last bid was raised by: `_RAISE`, which grows by `_GROWTH` a round.

    An auction (Bertsekas, 1992). A full cluster has a price; rows without a cluster take the one of lowest squared
    distance plus price, and bid what the second best would cost them more. A cluster with too many keeps the highest
    bids, and its price becomes the lowest of these. The price is one more channel of the centres, so the two best are
    those of a lookup.
    """
    num_rows, num_clusters = len(features_NC), len(centers_KC)
    label_N = torch.zeros(num_rows, dtype=torch.int64, device=features_NC.device)
    if most >= num_rows:
        return ops.codebook_lookup(features_NC, centers_KC)
    # In the channel of the price rows are 0: a squared distance grows by the square of what a centre has there.
    features = torch.nn.functional.pad(features_NC, (0, 1))
    bid_N, price_K = label_N.double(), centers_KC.new_zeros(num_clusters, dtype=torch.float64)
    free_F, raised = torch.arange(num_rows, device=label_N.device), 0.0
    while len(free_F):
        # The root: squared it is the price again.
        codes = torch.cat([centers_KC, price_K.sqrt().float()[:, None]], 1)
        best_F2, cost_F2 = ops.codebook_lookup(features[free_F], codes, topk=2, return_distance=True)
        second_F = cost_F2[:, 1].double()
        # 0 in the first round alone; the others are for distances that are 0.
        raised = raised * _GROWTH or _RAISE * float(second_F.median()) or float(second_F.mean()) or 1.0
        taken_F = best_F2[:, 0]
        label_N[free_F] = taken_F
        bid_N[free_F] = price_K[taken_F] + cost_F2.double().diff(dim=1)[:, 0] + raised
        asked_K = torch.zeros(num_clusters, dtype=torch.bool, device=label_N.device)
        asked_K[taken_F] = True
        row = asked_K[label_N].nonzero()[:, 0]
        row = row[bid_N[row].argsort(descending=True, stable=True)]
        row = row[label_N[row].argsort(stable=True)]  # cluster by cluster, the highest bids first
        size_K = torch.bincount(label_N[row], minlength=num_clusters)
        first_K = size_K.cumsum(0) - size_K
        full_K = size_K >= most
        # The lowest of the bids that are kept.
        price_K[full_K] = bid_N[row[first_K[full_K] + most - 1]]
        # By the position within its cluster: what comes behind the first `most` is outbid.
        free_F = row[torch.arange(len(row), device=row.device) - first_K[label_N[row]] >= most]
    return label_N


def within_bound(rows: Rows, fitted: Fitted, most: int, max_iter: int) -> Fitted:
    """From settled centres, steps of bounded labels and their means, until the inertia hardly falls."""
    assert rows.memory is not None
    features_NC, best = rows.memory.features, None
    centers_KC, number = fitted.centers, 0
    for number in range(1, max_iter + 1):
        label_N = bounded_labels(features_NC, centers_KC, most)
        centers_KC = means(totals_of(features_NC, label_N, None, len(centers_KC)), centers_KC, rows.unit)
        parts = zip(features_NC.split(_TOGETHER), label_N.split(_TOGETHER), strict=True)
        apart = [(part.double() - centers_KC[one]).square().sum(1) for part, one in parts]
        sizes_K2 = torch.bincount(label_N, minlength=len(centers_KC)).double()[:, None].expand(-1, 2)
        found = Fitted(centers_KC, label_N, exact_sum(torch.cat(apart)), number, sizes_K2)
        if best is not None and found.inertia > best.inertia * (1 - _LEAST_GAIN):
            break
        best = found
    assert best is not None
    return best._replace(num_steps=fitted.num_steps + number)
