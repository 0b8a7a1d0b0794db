"""Rows that come in batches: the same as all of them in memory."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from soho_fast.cluster import KMeans, ResidualKMeans


@pytest.fixture
def rows(make_features):
    """Eighths add without rounding: batches must give the same bits."""
    return (torch.from_numpy(make_features(700, 9)) * 8).round() / 8


def batches_of(rows, sizes):
    """Function that gives batches of these sizes, again and again."""

    def make():
        first = 0
        for size in itertools.cycle(sizes):
            if first >= len(rows):
                return
            yield rows[first : first + size]
            first += size

    return make


@pytest.mark.parametrize("init", ["mini-batch", "random", "given"])
@pytest.mark.parametrize("sizes", [(700,), (1, 200, 3), (64,)], ids=str)
def test_batches_give_what_the_whole_gives(init, sizes, rows):
    start = torch.cat([rows[:25], rows[:3] + 1e3]) if init == "given" else init
    whole, batched = (
        KMeans(28, init=start, n_init=1 if init == "given" else 2, tol=0, random_state=1).fit(X)
        for X in (rows, batches_of(rows, sizes))
    )
    assert torch.equal(batched.cluster_centers_, whole.cluster_centers_)
    assert torch.equal(batched.labels_, whole.labels_) and batched.n_iter_ == whole.n_iter_
    assert batched.inertia_ == pytest.approx(whole.inertia_, rel=1e-12)
    assert torch.equal(batched.predict(batches_of(rows, sizes)), whole.labels_)


def test_the_tolerance_is_of_all_batches(make_features):
    rows = torch.from_numpy(make_features(700, 9)).sort(0).values  # batches of unlike means
    whole = KMeans(28, init=rows[::25], tol=1e-2).fit(rows)
    batched = KMeans(28, init=rows[::25], tol=1e-2).fit(batches_of(rows, (90,)))
    assert batched.n_iter_ == whole.n_iter_ > 1
    torch.testing.assert_close(batched.cluster_centers_, whole.cluster_centers_, rtol=1e-6, atol=1e-6)


def test_plus_plus_draws_from_a_sample(rows):
    first, second = (KMeans(5, random_state=0, tol=0).fit(batches_of(rows, (size,))) for size in (64, 99))
    assert torch.equal(first.cluster_centers_, second.cluster_centers_)


def test_weights_come_in_pairs(rows):
    weight = torch.randint(0, 3, (700,), generator=torch.Generator().manual_seed(0)).float()
    loader = DataLoader(TensorDataset(rows, weight), batch_size=150)
    for init in ("mini-batch", "random"):
        whole = KMeans(20, init=init, n_init=1, tol=0, random_state=1).fit(rows, sample_weight=weight)
        batched = KMeans(20, init=init, n_init=1, tol=0, random_state=1).fit(loader)
        assert torch.equal(batched.cluster_centers_, whole.cluster_centers_)
        assert torch.equal(batched.labels_, whole.labels_)
    seen = KMeans(9, random_state=0).fit(loader)  # k-means++ on a sample that keeps its weights
    assert seen.inertia_ == pytest.approx(-seen.score(rows, sample_weight=weight), rel=1e-12)


def test_few_rows_with_weight_are_all_in_the_sample(make_features):
    rows = torch.from_numpy(make_features(20_000, groups=40))
    weight = (torch.arange(20_000) % 97 == 0).float()
    few = KMeans(40, random_state=0).fit(rows[weight > 0])
    seen = KMeans(40, random_state=0).fit(lambda: zip(rows.split(5000), weight.split(5000), strict=True))
    assert seen.inertia_ < 1.05 * few.inertia_


def test_a_loader_of_rows_alone_and_arrays(rows):
    loader, expected = DataLoader(TensorDataset(rows), batch_size=128), KMeans(6, init=rows[:6]).fit(rows)
    fitted = KMeans(6, init=rows[:6]).fit(loader)
    assert torch.equal(fitted.cluster_centers_, expected.cluster_centers_)
    assert torch.equal(fitted.predict(loader), fitted.labels_)
    fitted = KMeans(6, init=rows[:6]).fit(lambda: (part.numpy() for part in rows.split(100)))
    assert isinstance(fitted.labels_, np.ndarray)
    np.testing.assert_array_equal(fitted.cluster_centers_, expected.cluster_centers_.numpy())


def test_residuals_of_batches(rows):
    whole = ResidualKMeans(3, 12, init="mini-batch", tol=0, random_state=2).fit(rows)
    batched = ResidualKMeans(3, 12, init="mini-batch", tol=0, random_state=2).fit(batches_of(rows, (130,)))
    assert torch.equal(batched.labels_, whole.labels_)
    torch.testing.assert_close(batched.cluster_centers_, whole.cluster_centers_, rtol=0, atol=1e-6)
