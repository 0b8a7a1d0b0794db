"""Rows far from the origin, many equal ones, and numbers that float32 cannot tell apart."""

import numpy as np
import pytest
import torch

from soho_fast.cluster import KMeans, ResidualKMeans


def groups(offset, dtype=np.float32):
    """Four groups of 500 rows, 8 apart, spread by 1."""
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(4), 500)
    return (offset + 8 * np.eye(4)[group] + random.normal(size=(2000, 4))).astype(dtype), group


def inertia(rows, centers, labels):
    return ((rows.astype(np.float64) - np.asarray(centers, np.float64)[labels]) ** 2).sum()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("offset", [0, 1e3, 1e5, 1e6, 1e7])
def test_groups_far_from_the_origin(offset, weighted):
    """Means are rounded to float32 once, and nothing else is lost."""
    rows, group = groups(offset)
    weight = np.random.default_rng(1).random(2000).astype(np.float32) if weighted else None
    fitted = KMeans(4, init=rows[::500], tol=0).fit(rows, sample_weight=weight)
    assert fitted.n_iter_ < 10
    np.testing.assert_array_equal(fitted.labels_, group)
    means = [
        np.average(rows[group == k].astype(np.float64), 0, None if weight is None else weight[group == k])
        for k in range(4)
    ]
    np.testing.assert_array_equal(fitted.cluster_centers_, np.float32(means))


@pytest.mark.parametrize("weighted", [False, True])
def test_equal_rows_have_no_inertia(weighted):
    rows = np.repeat(np.float32([[0.1, 0.3], [0.7, -1e6]]), 1000, axis=0)
    weight = np.random.default_rng(0).random(2000).astype(np.float32) if weighted else None
    fitted = KMeans(2, random_state=0).fit(rows, sample_weight=weight)
    assert fitted.inertia_ == 0 and set(map(tuple, fitted.cluster_centers_)) == set(map(tuple, rows))


def test_a_mean_of_many_rows():
    """2^24 + 1000 is beyond what float32 counts to, one by one."""
    rows = torch.ones(1, 1).expand(2**24 + 1000, 1)
    fitted = KMeans(1, init=torch.zeros(1, 1), max_iter=1, tol=0).fit(rows)
    assert fitted.cluster_centers_.item() == 1.0


KINDS = {
    "float64": lambda stamps: stamps.astype(np.float64),
    "int64": lambda stamps: stamps,
    "tensor": torch.from_numpy,
    "batches": lambda stamps: lambda: np.array_split(stamps, 7),
}


@pytest.mark.parametrize("kind", KINDS)
def test_unix_timestamps_in_three_groups(kind):
    """30 seconds apart; near 1.7e9 float32 has every 128th second."""
    group = np.arange(900) * 7 % 3
    stamps = (1_700_000_000 + 30 * group + np.random.default_rng(0).integers(-3, 4, size=900))[:, None]
    fitted = KMeans(3, random_state=0).fit(KINDS[kind](stamps))
    assert len(set(zip(group, np.asarray(fitted.labels_), strict=True))) == 3
    means = sorted(stamps[group == k].mean() for k in range(3))
    centers = np.asarray(fitted.cluster_centers_)
    assert centers.dtype == np.float64
    np.testing.assert_allclose(np.sort(centers[:, 0]), means, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(fitted.predict(stamps), fitted.labels_)
    assert -fitted.score(stamps) == pytest.approx(fitted.inertia_, rel=1e-6)
    assert fitted.inertia_ == pytest.approx(inertia(stamps, centers, fitted.labels_), rel=1e-6)
    distance = np.abs(stamps - centers[None, :, 0])
    np.testing.assert_allclose(fitted.transform(stamps), distance, rtol=1e-5)
    again = KMeans(3, init=centers, max_iter=1).fit(KINDS[kind](stamps))
    np.testing.assert_array_equal(again.labels_, fitted.labels_)


def test_residual_codes_of_unix_timestamps():
    stamps = 1_700_000_000 + np.random.default_rng(0).integers(0, 1000, size=(900, 2))
    fitted = ResidualKMeans(2, 16, random_state=0).fit(stamps)
    np.testing.assert_array_equal(fitted.predict(stamps), fitted.labels_)
    restored = fitted.inverse_transform(fitted.labels_)
    assert restored.dtype == np.float64
    assert ((stamps - restored) ** 2).sum() == pytest.approx(fitted.inertia_, rel=1e-5)
    assert -fitted.score(stamps) == pytest.approx(fitted.inertia_, rel=1e-5)


def test_a_stray_row_takes_no_bits_from_the_others():
    """A missing time is often 0."""
    stamps = np.repeat([[0.0], [1_700_000_000.0], [1_700_000_030.0]], [3, 500, 500], axis=0)
    fitted = KMeans(3, random_state=0).fit(stamps)
    np.testing.assert_array_equal(np.sort(fitted.cluster_centers_[:, 0]), np.unique(stamps))
