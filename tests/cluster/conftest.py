"""Data of the cluster tests, and Lloyd's k-means in float64 with numpy, whose steps do not come from ours."""

import numpy as np
import pytest
import torch


def features(num_rows=900, num_channels=12, groups=25, seed=0, dtype=np.float32):
    """Rows around `groups` places, (N, C)."""
    random = np.random.default_rng(seed)
    places = random.normal(size=(groups, num_channels)) * 2
    return (places[random.integers(groups, size=num_rows)] + random.normal(size=(num_rows, num_channels))).astype(dtype)


def _distances(rows, centers):
    return ((rows[:, None, :] - centers[None]) ** 2).sum(-1)


def plain_lloyd(rows, centers, weight=None, max_iter=300, tolerance=0.0):
    """Centres (rounded to float32 after each step, as they are kept), labels, inertia and steps, all else in float64.

    Empty clusters take the farthest rows, one after another; see KMeans.
    """
    rows = rows.astype(np.float64)
    weight = np.ones(len(rows)) if weight is None else weight.astype(np.float64)
    centers = centers.astype(np.float32)
    before, steps = None, 0
    while steps < max_iter:
        steps += 1
        distance = _distances(rows, centers.astype(np.float64))
        label = distance.argmin(1)
        owner, nearest = label.copy(), np.where(weight > 0, distance.min(1), 0)
        counts = np.bincount(label[weight > 0], minlength=len(centers))
        empty = np.flatnonzero(counts == 0)
        repaired = 0
        for cluster, row in zip(empty, np.argsort(-nearest.astype(np.float32), kind="stable"), strict=False):
            if nearest[row] > 0:
                owner[row] = cluster
                repaired += 1
        moved = centers.copy()
        for k in range(len(centers)):
            members = (owner == k) & (weight > 0)
            if members.any():
                moved[k] = np.average(rows[members], axis=0, weights=weight[members])
        shift = ((moved.astype(np.float64) - centers) ** 2).sum()
        unchanged = before is not None and (label == before).all()
        centers, before = moved, label
        if not repaired and (unchanged or shift <= tolerance):
            break
    distance = _distances(rows, centers.astype(np.float64))
    return centers, distance.argmin(1), (distance.min(1) * weight).sum(), steps


@pytest.fixture
def lloyd():
    return plain_lloyd


@pytest.fixture
def make_features():
    return features


@pytest.fixture
def threads():
    """Function that sets the number of threads until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
