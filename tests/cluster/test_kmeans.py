"""KMeans against Lloyd's steps in float64: the same labels, the same steps, centres to the last bits of float32."""

import numpy as np
import pytest
import torch

from soho_fast import ops
from soho_fast.cluster import KMeans
from soho_fast.cluster import lloyd as lloyd_steps


def assert_close(centers, expected):
    """Means of float64 sums, rounded to float32 once."""
    centers = np.asarray(centers)
    assert centers.dtype == np.float32
    np.testing.assert_allclose(centers, expected, rtol=2.0**-23, atol=0)


def assert_is(fitted, expected):
    """What plain Lloyd's steps in float64 find: centres, labels, inertia, steps."""
    centers, labels, inertia, steps = expected
    assert fitted.n_iter_ == steps
    np.testing.assert_array_equal(fitted.labels_, labels)
    assert_close(fitted.cluster_centers_, centers)
    assert fitted.inertia_ == pytest.approx(inertia, rel=1e-6)


@pytest.mark.parametrize("num_clusters", [1, 2, 7, 40, 130])
def test_it_is_lloyds_method(num_clusters, make_features, lloyd):
    rows = make_features()
    init = rows[:num_clusters]
    assert_is(KMeans(num_clusters, init=init, tol=0).fit(rows), lloyd(rows, init))


def test_weights(make_features, lloyd):
    rows = make_features(seed=1)
    weight = np.random.default_rng(1).gamma(1.0, size=len(rows)).astype(np.float32)
    weight[::7] = 0
    expected = lloyd(rows, rows[1:31], weight)
    fitted = KMeans(30, init=rows[1:31], tol=0).fit(rows, sample_weight=weight)
    assert_is(fitted, expected)
    assert fitted.score(rows, sample_weight=weight) == pytest.approx(-expected[2], rel=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_empty_clusters_take_the_farthest_rows(weighted, make_features, lloyd):
    """Far and copied centres get no member at first."""
    rows = make_features(400, seed=3)
    weight = np.random.default_rng(3).integers(0, 3, size=400).astype(np.float32) if weighted else None
    init = np.concatenate([rows[:20], rows[:5], rows[20:25] + 1e4]).astype(np.float32)
    fitted = KMeans(30, init=init, tol=0).fit(rows, sample_weight=weight)
    assert_is(fitted, lloyd(rows, init, weight))
    assert len(np.unique(fitted.labels_[slice(None) if weight is None else weight > 0])) == 30


@pytest.mark.parametrize("batched", [False, True])
def test_a_heavy_row_that_an_empty_cluster_takes_leaves_the_others_their_mean(batched):
    """In a float32 sum with it nothing is left of theirs."""
    rows = np.array([[0.0, 8.0], [100.0, 0.0], [1.0, 8.0], [2.0, 8.0]], dtype=np.float32)
    weight = np.array([1.0, 2.0**40, 1.0, 2.0], dtype=np.float32)
    model = KMeans(2, init=np.array([[0.0, 0.0], [1e4, 1e4]], np.float32), max_iter=1)
    if batched:
        model.fit(lambda: iter([(rows[:3], weight[:3]), (rows[3:], weight[3:])]))
    else:
        model.fit(rows, sample_weight=weight)
    np.testing.assert_array_equal(model.cluster_centers_, [[1.25, 8.0], [100.0, 0.0]])
    np.testing.assert_array_equal(model.labels_, [0, 1, 0, 0])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_rows_that_are_fewer_than_clusters_are_not_taken_for_ever(init, weighted):
    """Their means are off by some roundings, so that hardly a row lies on its centre."""
    rows = np.repeat(np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32), 100, axis=0)
    weight = np.random.default_rng(1).random(900) if weighted else None
    with pytest.warns(RuntimeWarning, match="of n_clusters = 12 clusters have a row"):
        fitted = KMeans(12, init=init, n_init=1, tol=0, random_state=0).fit(rows, sample_weight=weight)
    assert fitted.n_iter_ <= 12
    assert len({(tuple(row), label) for row, label in zip(rows.tolist(), fitted.labels_, strict=True)}) == 9
    assert fitted.inertia_ < 1e-8


def test_equally_far_rows_are_taken_in_order():
    rows = np.array([[0.0], [4.0], [-4.0], [4.0]], dtype=np.float32)
    init = np.array([[0.0], [100.0], [200.0]], dtype=np.float32)
    fitted = KMeans(3, init=init, max_iter=1, tol=0).fit(rows)
    # Rows 1 and 2 go to clusters 1 and 2; row 3 stays in cluster 0 with row 0.
    np.testing.assert_array_equal(fitted.cluster_centers_, [[2.0], [4.0], [-4.0]])
    fitted = KMeans(3, init=init, max_iter=1, tol=0).fit(np.concatenate([rows, [[5.0]]]))
    # The farthest row, the last, goes to cluster 1, and row 1 to cluster 2.
    np.testing.assert_array_equal(fitted.cluster_centers_, [[0.0], [5.0], [4.0]])


def test_a_step_that_filled_a_cluster_is_not_the_last(make_features, lloyd):
    """However large the tolerance: the row that was taken is no mean yet."""
    rows = make_features(200)
    init = np.concatenate([rows[:6], rows[:2] + 1e4]).astype(np.float32)
    fitted = KMeans(8, init=init, tol=1e12).fit(rows)
    assert_is(fitted, lloyd(rows, init, tolerance=1e12))
    assert fitted.n_iter_ == 2


def test_a_row_that_left_leaves_no_rounding_behind():
    """A far row is in the first cluster for one step, then in the last: the small members' mean is theirs alone."""
    small = np.array([[-1.0], [-1.5], [1.0], [1.25]], dtype=np.float32)
    rows = np.concatenate([small, [[1e8], [1.5e8]]]).astype(np.float32)
    rows = np.concatenate([rows, np.tile(small, (20, 1))])
    fitted = KMeans(2, init=np.array([[1e7], [2.5e8]], np.float32), tol=0).fit(rows)
    assert fitted.labels_[4] == fitted.labels_[5] == 1 and set(fitted.labels_[:4]) == {0}
    np.testing.assert_array_equal(fitted.cluster_centers_[0], [-0.0625])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_are_taken_as_they_are(dtype, make_features, lloyd):
    rows = torch.from_numpy(make_features()).to(dtype)
    as_float = rows.float().numpy()
    assert_is(KMeans(30, init=rows[:30], tol=0).fit(rows), lloyd(as_float, as_float[:30]))


def test_tolerance_and_most_steps(make_features, lloyd):
    rows = make_features()
    variance = rows.astype(np.float64).var(0).mean()
    _, _, _, steps = lloyd(rows, rows[:40], tolerance=1e-2 * variance)
    _, _, _, all_steps = lloyd(rows, rows[:40])
    assert 1 < steps < all_steps
    assert KMeans(40, init=rows[:40], tol=1e-2).fit(rows).n_iter_ == steps
    assert KMeans(40, init=rows[:40], max_iter=3).fit(rows).n_iter_ == 3


def test_results_come_in_the_kind_of_the_rows(make_features):
    rows = make_features(200)
    array = KMeans(5, random_state=0).fit(rows)
    tensor = KMeans(5, random_state=0).fit(torch.from_numpy(rows))
    for name in ("cluster_centers_", "labels_"):
        assert isinstance(getattr(array, name), np.ndarray) and isinstance(getattr(tensor, name), torch.Tensor)
        np.testing.assert_array_equal(getattr(array, name), getattr(tensor, name).numpy())
    for fitted in (array, tensor):
        assert isinstance(fitted.predict(rows), np.ndarray) and isinstance(fitted.transform(rows), np.ndarray)
        assert isinstance(fitted.predict(torch.from_numpy(rows)), torch.Tensor)
    assert type(array.inertia_) is float and array.labels_.dtype == np.int64


def test_predict_transform_and_score(make_features):
    rows = make_features(500)
    fitted = KMeans(17, random_state=0).fit(rows)
    np.testing.assert_array_equal(fitted.predict(rows), fitted.labels_)
    distance = np.sqrt(((rows[:, None].astype(np.float64) - fitted.cluster_centers_[None]) ** 2).sum(-1))
    np.testing.assert_allclose(fitted.transform(rows), distance, rtol=1e-6)
    wide = rows.astype(np.float64)
    assert fitted.transform(rows).dtype == np.float32 and fitted.transform(wide).dtype == np.float64
    assert fitted.transform(torch.from_numpy(wide)).dtype == torch.float64
    np.testing.assert_allclose(fitted.transform(wide), distance, rtol=1e-6)
    assert fitted.score(rows) == -fitted.inertia_
    assert fitted.predict(np.zeros((0, 12), np.float32)).shape == (0,)
    far = rows + np.float32([1e7] + [0] * 11)  # its square leaves no bits for the other channels'
    away = KMeans(17, random_state=0).fit(far)
    distance = np.sqrt(((far[:, None].astype(np.float64) - away.cluster_centers_[None]) ** 2).sum(-1))
    np.testing.assert_allclose(away.transform(far), distance, rtol=1e-6)
    np.testing.assert_array_equal(KMeans(17, random_state=0).fit_predict(rows), fitted.labels_)


@pytest.mark.parametrize("init", ["auto", "mini-batch", "k-means++", "random", "array"])
def test_the_same_bits_at_any_number_of_threads(init, make_features, threads):
    number = 50_000 if init == "auto" else 40_000  # more rows than torch's grain size in every sum, and than a sample's
    rows = torch.from_numpy(make_features(number, 9, groups=300))
    weight = torch.from_numpy(np.random.default_rng(0).random(number))
    given = rows[:48] if init == "array" else init
    found = []
    for number in (1, 2, 3):
        threads(number)
        model = KMeans(8 if init == "auto" else 48, init=given, n_init=1, max_iter=8, random_state=5)
        for sample_weight in (None, weight):
            fitted = model.fit(rows, sample_weight=sample_weight)
            found.append((fitted.cluster_centers_, fitted.labels_, fitted.inertia_, fitted.n_iter_))
    for plain, other in ((0, 2), (0, 4), (1, 3), (1, 5)):
        (centers, labels, *rest), (others, other_labels, *other_rest) = found[plain], found[other]
        assert torch.equal(centers, others) and torch.equal(labels, other_labels) and rest == other_rest


def test_the_subspace_of_the_centres_changes_nothing(threads, lloyd):
    """So many centres and channels are looked up by low-dimensional pruning, from the labels of the step before."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1500, 12, generator=generator) @ torch.randn(12, 160, generator=generator)
    init = rows[:300].clone()
    expected = lloyd(rows.numpy(), init.numpy())
    found = []
    for number in (1, 2):
        threads(number)
        fitted = KMeans(300, init=init, tol=0).fit(rows)
        assert_is(fitted, expected)
        found.append(fitted.cluster_centers_)
    assert expected[3] > 3 and torch.equal(*found)


@pytest.mark.parametrize("batched", [False, True])
def test_comparing_with_moved_centres_first_changes_nothing(batched, monkeypatch):
    """Rows on a grid, with ties between centres that have moved and others, and centres that move away from rows."""
    random = np.random.default_rng(0)
    rows = torch.from_numpy(random.integers(0, 9, size=(3000, 3)).astype(np.float32))
    init = rows.unique(dim=0)[::2][:300]
    after_moves, shares = lloyd_steps._after_moves, []

    def seen(features, prepared, label, squared, moved):
        shares.append(float(moved.float().mean()))
        return after_moves(features, prepared, label, squared, moved)

    monkeypatch.setattr(lloyd_steps, "_after_moves", seen)

    def fit():
        fitted = KMeans(len(init), init=init, tol=0).fit((lambda: rows.split(700)) if batched else rows)
        return fitted.cluster_centers_, fitted.labels_, fitted.inertia_, fitted.n_iter_

    centers, labels, *rest = fit()
    assert min(shares) < max(shares) < 0.3
    assert torch.equal(labels, ops.codebook_lookup(rows, centers))
    monkeypatch.setattr(lloyd_steps, "_FEW", -1)
    others, other_labels, *other_rest = fit()
    assert torch.equal(centers, others) and torch.equal(labels, other_labels) and rest == other_rest


def test_ties_with_moved_centres_go_to_the_lowest_index():
    prepared, moved_K = ops.prepare_codebook(torch.tensor([[0.0], [4.0], [8.0]])), torch.tensor([False, True, False])
    before = torch.tensor([0, 2]), torch.tensor([4.0, 4.0])
    labels, squared = lloyd_steps._after_moves(torch.tensor([[2.0], [6.0]]), prepared, *before, moved_K)
    assert labels.tolist() == [0, 1] and squared.tolist() == [4.0, 4.0]


def test_given_centres_are_one_start(make_features):
    rows = make_features(100)
    with pytest.warns(RuntimeWarning, match="n_init: one start is made from given centres, not 3"):
        KMeans(5, init=rows[:5], n_init=3).fit(rows)


def test_more_starts_keep_the_best(make_features):
    rows = make_features(300)
    inertias = [KMeans(20, init="random", n_init=number, random_state=0).fit(rows).inertia_ for number in (1, 2, 4, 8)]
    assert inertias == sorted(inertias, reverse=True) and inertias[-1] < inertias[0]


def test_progress_is_told(capsys, make_features):
    KMeans(5, random_state=0, verbose=1).fit(make_features(100))
    told = capsys.readouterr().out
    assert "start 1: auto" in told and "step 1: 100 labels changed, centres moved by" in told
    KMeans(5, random_state=0).fit(make_features(100))
    assert capsys.readouterr().out == ""


def spherical(rows, centers, steps):
    """Plain steps in float64: centres, labels and the sum of squared distances between unit vectors."""
    rows = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    centers = centers / np.linalg.norm(centers.astype(np.float64), axis=1, keepdims=True)
    for _ in range(steps):
        label = (rows @ centers.T).argmax(1)
        sums = np.stack([rows[label == k].sum(0) for k in range(len(centers))])
        centers = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    cosine = rows @ centers.T
    return centers, cosine.argmax(1), (2 - 2 * cosine.max(1)).sum()


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_it_is_the_plain_rule_at_any_length(scale, make_features):
    rows = make_features(500) * np.random.default_rng(0).uniform(0.01, 10, size=(500, 1)).astype(np.float32)
    fitted = KMeans(9, init=rows[::60] * 3, metric="cosine", tol=0, max_iter=12).fit(rows * np.float64(scale))
    centers, labels, inertia = spherical(rows, rows[::60], fitted.n_iter_)
    np.testing.assert_allclose(fitted.cluster_centers_, centers, atol=1e-6)
    np.testing.assert_array_equal(fitted.labels_, labels)
    assert fitted.inertia_ == pytest.approx(inertia, rel=1e-5)
    assert fitted.score(rows) == pytest.approx(-fitted.inertia_, rel=1e-12)
    np.testing.assert_array_equal(fitted.predict(rows), labels)
    cosine = 1 - fitted.transform(rows).astype(np.float64) ** 2 / 2
    np.testing.assert_array_equal(cosine.argmax(1), labels)


@pytest.mark.parametrize("init", ["mini-batch", "k-means++", "random"])
def test_centres_have_length_one_and_labels_the_largest_cosine(init, make_features):
    rows = torch.from_numpy(make_features(600)) + 1.0
    weight = torch.arange(600) % 3
    fitted = KMeans(20, init=init, metric="cosine", random_state=0).fit(rows, sample_weight=weight)
    torch.testing.assert_close(fitted.cluster_centers_.norm(dim=1), torch.ones(20))
    expected = ops.codebook_lookup(rows, fitted.cluster_centers_, metric="cosine")
    assert (fitted.labels_ == expected).float().mean() > 0.999  # lengths of float32 centres are not quite 1
    batched = KMeans(20, init=init, metric="cosine", random_state=0)
    batched.fit(lambda: zip(rows.split(77), weight.split(77), strict=True))
    if init != "k-means++":  # which seeds from a sample of batches
        torch.testing.assert_close(batched.cluster_centers_, fitted.cluster_centers_)
    assert torch.equal(batched.predict(lambda: iter(rows.split(50))), batched.predict(rows))
