"""Clusters of bounded size and semantic ids."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from soho_fast import ops
from soho_fast.cluster import KMeans, ResidualKMeans, semantic_ids
from soho_fast.cluster.balance import bounded_labels


def crowded(num_rows=600, num_channels=6):
    """Half of the rows around one place."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(12, num_channels, generator=generator) * 4
    chosen = torch.randint(12, (num_rows,), generator=generator)
    chosen[: num_rows // 2] = 0
    return places[chosen] + torch.randn(num_rows, num_channels, generator=generator)


@pytest.mark.parametrize("most", [20, 22, 40, 100, 400])
def test_labels_within_a_bound_cost_hardly_more_than_the_best(most):
    rows, centers = crowded(400), crowded(400)[::20]
    cost = torch.cdist(rows.double(), centers.double()).square()
    label = bounded_labels(rows, centers, most)
    assert torch.bincount(label, minlength=20).max() <= most
    row, place = linear_sum_assignment(cost.repeat_interleave(most, 1).numpy())
    least = float(cost[row, place // most].sum())
    assert least - 1e-6 <= float(cost[torch.arange(400), label].sum()) <= 1.03 * least


@pytest.mark.parametrize(("kind", "share"), [("outliers", 1.03), ("skewed", 1.15)])
def test_it_ends_where_few_rows_are_far_from_all_others(kind, share, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 4, generator=generator)
    rows[0], rows[1] = 1e3, 1e5
    rows = rows if kind == "outliers" else (1.5 * torch.randn(500, 8, generator=generator)).exp()
    centers, rounds, lookup = KMeans(10, random_state=0).fit(rows).cluster_centers_, [], ops.codebook_lookup

    def counted(*given, **options):
        rounds.append(len(given[0]))
        assert len(rounds) < 2000, "rounds"
        return lookup(*given, **options)

    monkeypatch.setattr(ops, "codebook_lookup", counted)
    label = bounded_labels(rows, centers, 50)
    assert torch.bincount(label).tolist() == [50] * 10
    cost = torch.cdist(rows.double(), centers.double()).square()
    row, place = linear_sum_assignment(cost.repeat_interleave(50, 1).numpy())
    assert float(cost[torch.arange(500), label].sum()) <= share * float(cost[row, place // 50].sum())


@pytest.mark.parametrize("kind", ["equal", "on their centres"])
def test_rows_that_coincide_are_shared_out(kind):
    centers = torch.zeros(5, 3) if kind == "equal" else torch.eye(5, 3)
    label = bounded_labels(centers[:1].expand(50, 3), centers, 10)
    assert torch.bincount(label, minlength=5).tolist() == [10] * 5


@pytest.mark.parametrize("balance", [1, 1.3])
def test_no_cluster_exceeds_the_bound(balance):
    rows = crowded().numpy()
    free = KMeans(30, random_state=0).fit(rows)
    bound = KMeans(30, balance=balance, random_state=0).fit(rows)
    most = math.ceil(balance * 600 / 30)
    assert np.bincount(free.labels_).max() > most >= np.bincount(bound.labels_).max()
    for cluster in range(30):
        np.testing.assert_allclose(
            bound.cluster_centers_[cluster], rows[bound.labels_ == cluster].mean(0, dtype=np.float64), rtol=1e-6
        )
    apart = (rows.astype(np.float64) - bound.cluster_centers_[bound.labels_]) ** 2
    assert bound.inertia_ == pytest.approx(apart.sum(), rel=1e-9) and bound.inertia_ > free.inertia_
    distance = np.square(rows[:, None].astype(np.float64) - bound.cluster_centers_).sum(-1)
    np.testing.assert_array_equal(bound.predict(rows), distance.argmin(1))  # which knows no bound


def test_a_bound_that_nothing_exceeds_changes_nothing_much():
    rows = crowded()
    free, bound = (KMeans(10, balance=balance, random_state=0).fit(rows) for balance in (None, 10.0))
    assert bound.inertia_ <= free.inertia_ * (1 + 1e-6)


def test_each_level_is_within_the_bound():
    rows = crowded(800)
    free, bound = (ResidualKMeans(3, 16, balance=balance, random_state=0).fit(rows) for balance in (None, 1.1))
    for level in range(3):
        assert torch.bincount(bound.labels_[:, level], minlength=16).max() <= 55
    assert torch.bincount(free.labels_[:, 0]).max() > 55
    left = rows - bound.inverse_transform(bound.labels_)
    assert float(left.double().square().sum()) == pytest.approx(bound.inertia_, rel=1e-5)


def test_semantic_ids_are_unique_and_count_in_order():
    codes = torch.tensor([[1, 2], [0, 5], [1, 2], [1, 2], [2, 1], [0, 5]])
    expected = [[1, 2, 0], [0, 5, 0], [1, 2, 1], [1, 2, 2], [2, 1, 0], [0, 5, 1]]
    assert semantic_ids(codes).tolist() == expected
    assert isinstance(semantic_ids(codes.numpy().astype(np.int32)), np.ndarray)
    assert semantic_ids(codes[:4]).tolist() == expected[:4]
    assert semantic_ids(codes[:0]).shape == (0, 3)
    many = torch.randint(4, (500, 3), generator=torch.Generator().manual_seed(0))
    ids = semantic_ids(many)
    assert torch.equal(ids[:, :3], many) and len(ids.unique(dim=0)) == 500


@pytest.mark.parametrize("codes", [np.zeros(3, int), np.zeros((3, 2)), np.zeros((3, 0), int)])
def test_refused_codes(codes):
    with pytest.raises(ValueError, match=r"codes: expected whole numbers of shape \(N, L\), got (int|float)64"):
        semantic_ids(codes)


@pytest.mark.parametrize("kind", [KMeans, ResidualKMeans])
def test_refusals(kind):
    rows = crowded(50)
    for balance in (0.9, "1", True, math.nan, math.inf):
        with pytest.raises(ValueError, match="balance: expected None or a finite number of at least 1"):
            kind(n_clusters=4, balance=balance).fit(rows)
    for given, weight in ((rows, np.ones(50)), (lambda: iter(rows.split(20)), None)):
        with pytest.raises(ValueError, match="balance: expected rows in memory of one process, without sample_weight"):
            kind(n_clusters=4, balance=1.5).fit(given, sample_weight=weight)
