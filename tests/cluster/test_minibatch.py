"""MiniBatchKMeans against its rule in numpy, and against Lloyd's steps."""

import inspect
import math

import numpy as np
import pytest
import torch

from soho_fast.cluster import KMeans, MiniBatchKMeans


def plain(batches, centers, passes):
    """The rule in float64 on batches in a given order, without splits."""
    centers, step, steps = centers.astype(np.float64), 0, passes * len(batches)
    size = sum(map(len, batches)) / len(batches) / len(centers)
    weight, sums = np.full(len(centers), len(batches[0]) / len(centers)), None
    sums = centers * weight[:, None]
    for _ in range(passes):
        of_pass = np.zeros((len(centers), centers.shape[1] + 1))
        for rows in batches:
            rate = min(1, 0.15 * size) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            label = ((rows[:, None] - centers) ** 2).sum(-1).argmin(1)
            of_batch = np.zeros_like(of_pass)
            np.add.at(of_batch, label, np.append(rows.astype(np.float64), np.ones((len(rows), 1)), axis=1))
            sums, weight = (1 - rate) * sums + rate * of_batch[:, :-1], (1 - rate) * weight + rate * of_batch[:, -1]
            centers, of_pass, step = sums / weight[:, None], of_pass + of_batch, step + 1
    return np.where(of_pass[:, -1:] > 0, of_pass[:, :-1] / of_pass[:, -1:].clip(1), centers)


@pytest.mark.parametrize("size", [6, 60])
def test_it_is_the_plain_rule(size, make_features):
    rows = make_features(600, groups=3)
    batches = np.array_split(rows, 600 // size)
    start = KMeans(3, random_state=0).fit(rows).cluster_centers_ + np.float32(0.7)
    fitted = MiniBatchKMeans(3, init=start, max_iter=3).fit(lambda: iter(batches))
    np.testing.assert_allclose(fitted.cluster_centers_, plain(batches, start, 3), rtol=1e-5, atol=1e-5)
    assert (fitted.n_iter_, fitted.n_steps_) == (3, 3 * len(batches))
    labels = ((rows[:, None].astype(np.float64) - fitted.cluster_centers_) ** 2).sum(-1)
    np.testing.assert_array_equal(fitted.labels_, labels.argmin(1))
    assert fitted.inertia_ == pytest.approx(labels.min(1).sum(), rel=1e-8)
    np.testing.assert_array_equal(fitted.predict(rows), fitted.labels_)


@pytest.mark.parametrize("options", [{}, {"metric": "cosine"}])
def test_few_passes_come_near_lloyds_whatever_the_threads(options, make_features, threads):
    rows = torch.from_numpy(make_features(6000, groups=60))
    lloyd = KMeans(40, init="k-means++", random_state=0, **options).fit(rows)
    threads(1)
    fitted = MiniBatchKMeans(40, batch_size=400, random_state=0, **options).fit(rows)
    assert fitted.inertia_ < 1.02 * lloyd.inertia_ and fitted.n_steps_ == 4 * 15
    threads(2)
    again = MiniBatchKMeans(40, batch_size=400, random_state=0, **options).fit(rows)
    assert torch.equal(again.cluster_centers_, fitted.cluster_centers_) and again.inertia_ == fitted.inertia_
    assert not torch.equal(fitted.set_params(random_state=1).fit(rows).cluster_centers_, again.cluster_centers_)


def test_a_batch_has_rows_for_each_centre(make_features):
    rows = make_features(8200)
    assert MiniBatchKMeans(256, random_state=0).fit(rows).n_steps_ == 4 * (8200 // (4 * 256))
    assert MiniBatchKMeans(5, random_state=0).fit(rows).n_steps_ == 4 * (8200 // 512)


def skewed(num_rows=12_000, groups=400, offset=0.0):
    """Rows of 32 channels around places that have rows by Zipf's law."""
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, groups + 1)
    places = random.normal(size=(groups, 32))
    group = random.choice(groups, size=num_rows, p=share / share.sum())
    return (places[group] + 0.5 * random.normal(size=(num_rows, 32)) + offset).astype(np.float32)


@pytest.mark.parametrize("options", [{}, {"init": "random"}, {"metric": "cosine"}])
def test_four_passes_are_as_good_as_25_steps_of_lloyds(options):
    """By Euclidean distance they need the splits, without which they end 3 % higher."""
    rows = skewed()
    given = {"init": "k-means++", "metric": options.get("metric", "euclidean")}
    lloyd = KMeans(128, max_iter=25, tol=0, random_state=0, **given).fit(rows)
    assert MiniBatchKMeans(128, random_state=0, **options).fit(rows).inertia_ < 1.01 * lloyd.inertia_


@pytest.mark.parametrize(
    ("num_rows", "clusters", "options"),
    [(1500, 500, {}), (1500, 1400, {}), (6000, 200, {"batch_size": 3000}), (6000, 200, {"max_iter": 1})],
)
def test_few_steps_end_near_lloyds(num_rows, clusters, options):
    """With so few steps the start decides: with one row drawn for each centre they end 45 to 76 % higher."""
    random = np.random.default_rng(0)
    places = random.normal(size=(min(clusters, 500), 16))
    group = random.integers(0, len(places), size=num_rows)
    rows = (places[group] + 0.2 * random.normal(size=(num_rows, 16))).astype(np.float32)
    lloyd = KMeans(clusters, init="k-means++", max_iter=25, tol=0, random_state=0).fit(rows)
    assert MiniBatchKMeans(clusters, random_state=0, **options).fit(rows).inertia_ < 1.1 * lloyd.inertia_


def separated(clusters, share):
    """(N, 16) around points that lie far apart; the share of each point's rows falls by this power of its rank."""
    random = np.random.default_rng(0)
    chance = np.arange(1.0, clusters + 1) ** -share
    group = random.choice(clusters, size=4000, p=chance / chance.sum())
    places = random.normal(size=(clusters, 16)) * 10
    return (places[group] + random.normal(size=(4000, 16))).astype(np.float32), random


@pytest.mark.parametrize(
    ("clusters", "share", "weights"), [(60, 1, "none"), (30, 0, "heavy tail"), (60, 1, "few rows")]
)
def test_few_rows_or_little_weight_do_not_cost_a_far_cluster_its_centre(clusters, share, weights):
    rows, random = separated(clusters, share)
    weight = {
        "none": None,
        "heavy tail": random.pareto(1.0, size=len(rows)) + 1e-3,
        "few rows": np.where(random.random(len(rows)) < 0.05, 1, 1e-6),
    }[weights]
    lloyd = KMeans(clusters, init="k-means++", max_iter=25, tol=0, random_state=0).fit(rows, sample_weight=weight)
    fitted = MiniBatchKMeans(clusters, random_state=0).fit(rows, sample_weight=weight)
    assert fitted.inertia_ < 1.15 * lloyd.inertia_


def test_splits_do_not_depend_on_the_origin():
    near, far = (MiniBatchKMeans(128, random_state=0).fit(skewed(offset=offset)) for offset in (0.0, 1e5))
    assert far.inertia_ == pytest.approx(near.inertia_, rel=0.02)


def test_centres_that_nothing_is_nearest_to_are_drawn_anew(make_features):
    rows = make_features(4000)
    given = rows[:30].copy()
    given[10:] += 1e4
    fitted = MiniBatchKMeans(30, init=given, batch_size=200, random_state=0).fit(rows)
    assert np.bincount(fitted.labels_, minlength=30).min() > 0
    assert fitted.inertia_ < 1.1 * KMeans(30, random_state=0).fit(rows).inertia_


def test_a_split_in_the_last_pass_forgets_the_rows_before_it():
    random = np.random.default_rng(0)
    rows = (random.choice([0.0, 10.0], size=(8000, 1)) + 0.1 * random.normal(size=(8000, 1))).astype(np.float32)
    rows[0] = 70
    fitted = MiniBatchKMeans(2, init=[[5.0], [70.0]], max_iter=1, random_state=0)
    fitted.fit(lambda: iter(np.split(rows, 8)))
    np.testing.assert_allclose(np.sort(fitted.cluster_centers_, 0), [[0.0], [10.0]], atol=0.1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_partial_fit_keeps_the_mean_of_all_rows_so_far(dtype, make_features):
    rows = make_features(600, groups=5).astype(dtype) + (1e6 if dtype == np.float64 else 0)
    weight = np.random.default_rng(0).uniform(0, 2, size=600)
    model, labels = MiniBatchKMeans(5, random_state=0), []
    for part in np.split(np.arange(600), 6):
        before = getattr(model, "cluster_centers_", None)
        model.partial_fit(rows[part], sample_weight=weight[part])
        labels.append(model.labels_)
        if before is not None:
            distance = ((rows[part][:, None].astype(np.float64) - before) ** 2).sum(-1)
            np.testing.assert_array_equal(model.labels_, distance.argmin(1))
    labels = np.concatenate(labels)
    for k in range(5):
        mean = np.average(rows[labels == k].astype(np.float64), axis=0, weights=weight[labels == k])
        np.testing.assert_allclose(model.cluster_centers_[k] - rows[0], mean - rows[0], rtol=1e-4, atol=1e-4)
    assert model.n_steps_ == 6 and model.cluster_centers_.dtype == dtype


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_small_batches_count_after_many_rows(metric):
    """One of them moves the centre by less than float32 tells apart."""
    many, few = np.array([[1000, 1000]], np.float32), np.array([[1000, 2000]], np.float32)
    model = MiniBatchKMeans(1, metric=metric, random_state=0).partial_fit(many, sample_weight=[1e8])
    for _ in range(1000):
        model.partial_fit(few, sample_weight=[1e3])
    sums = np.array([1000.0, (1e8 * 1000 + 1e6 * 2000) / (1e8 + 1e6)])
    if metric == "cosine":
        sums = 1e8 * np.array([1, 1]) / np.sqrt(2) + 1e6 * np.array([1, 2]) / np.sqrt(5)
        sums /= np.linalg.norm(sums)
    np.testing.assert_allclose(model.cluster_centers_, sums[None], rtol=1e-7)


@pytest.mark.parametrize("start", ["partial_fit", "fit"])
def test_partial_fit_keeps_the_mean_direction_of_all_rows_so_far(start):
    parts = [
        torch.tensor(row).expand(number, 2) for row, number in (([1.0, 0.0], 2), ([0.0, 1.0], 2), ([3.0, -4.0], 4))
    ]
    model = MiniBatchKMeans(1, metric="cosine", random_state=0)
    for part in parts if start == "partial_fit" else [torch.cat(parts[:2]), parts[2]]:
        model = getattr(model, "partial_fit" if model.__sklearn_is_fitted__() else start)(part)
    expected = torch.nn.functional.normalize(torch.tensor([[2 + 2.4, 2 - 3.2]]))
    torch.testing.assert_close(model.cluster_centers_, expected, rtol=1e-3 if start == "fit" else 1e-6, atol=1e-6)


def test_a_mean_without_direction_leaves_the_centre():
    model = MiniBatchKMeans(1, metric="cosine", random_state=0).partial_fit(torch.tensor([[1.0, 0.0]]))
    assert model.partial_fit(torch.tensor([[-1.0, 0.0]])).cluster_centers_.tolist() == [[1.0, 0.0]]
    assert model.partial_fit(torch.tensor([[0.0, 1.0]])).cluster_centers_.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("weighted", [False, True])
def test_partial_fit_goes_on_after_fit(weighted, make_features):
    rows = make_features(500)
    weight = np.random.default_rng(0).uniform(0, 9, size=500) if weighted else None
    model = MiniBatchKMeans(5, random_state=0).fit(rows, sample_weight=weight)
    before, members = model.cluster_centers_.astype(np.float64), np.bincount(model.labels_, weight, minlength=5)
    model.partial_fit(rows[:1])
    (k,) = model.labels_
    np.testing.assert_allclose(
        model.cluster_centers_[k], before[k] + (rows[0] - before[k]) / (members[k] + 1), rtol=1e-5
    )
    np.testing.assert_array_equal(np.delete(model.cluster_centers_, k, 0), np.delete(before, k, 0).astype(np.float32))


def test_one_cluster_is_the_mean(make_features):
    rows, weight = make_features(900), np.random.default_rng(0).pareto(1.0, size=900)
    model = MiniBatchKMeans(1, batch_size=100, random_state=0).fit(rows, sample_weight=weight)
    np.testing.assert_allclose(
        model.cluster_centers_[0], np.average(rows.astype(np.float64), axis=0, weights=weight), rtol=1e-5, atol=1e-6
    )


def test_it_takes_what_scikit_learns_takes(make_features):
    cluster = pytest.importorskip("sklearn.cluster")
    wanted = inspect.signature(cluster.MiniBatchKMeans).parameters
    assert set(wanted) <= set(MiniBatchKMeans().get_params())
    rows = make_features(400)
    options = {"n_clusters": 6, "random_state": 3, "max_iter": 2}
    everything = {name: each.default for name, each in wanted.items()} | options | {"batch_size": 100}
    plain = MiniBatchKMeans(**everything).fit(rows)
    assert np.array_equal(plain.cluster_centers_, MiniBatchKMeans(**options, batch_size=100).fit(rows).cluster_centers_)
    silent = MiniBatchKMeans(**everything | {"compute_labels": False}).fit(rows)
    assert np.array_equal(silent.cluster_centers_, plain.cluster_centers_) and not hasattr(silent, "labels_")
    assert np.array_equal(silent.predict(rows), plain.predict(rows))
    small = MiniBatchKMeans(**everything | {"init_size": 6}).fit(rows)
    assert not np.array_equal(small.cluster_centers_, plain.cluster_centers_)
    with pytest.raises(ValueError, match="init_size: expected a whole number of at least 6, got 5"):
        MiniBatchKMeans(**everything | {"init_size": 5}).fit(rows)


def test_of_several_starts_the_lowest_is_kept(make_features):
    rows = make_features(300)
    options = {"n_clusters": 9, "max_iter": 1, "init": "random", "random_state": 0}
    found = [MiniBatchKMeans(**options, n_init=number).fit(rows).inertia_ for number in (1, 2, 8)]
    assert found[0] >= found[1] >= found[2] and found[0] > found[2]
    assert MiniBatchKMeans(**options).fit(rows).inertia_ == found[0]
