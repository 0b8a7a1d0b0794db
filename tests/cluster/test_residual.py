"""ResidualKMeans against the loop over KMeans that it replaces."""

import warnings

import numpy as np
import pytest
import torch

from soho_fast import ops
from soho_fast.cluster import KMeans, MiniBatchKMeans, ResidualKMeans, semantic_ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_a_loop_of_kmeans(dtype, make_features):
    rows = torch.from_numpy(make_features(800, 10)).to(dtype)
    fitted = ResidualKMeans(4, 16, random_state=0).fit(rows)
    left = rows
    for level in range(4):
        index, distance = ops.codebook_lookup(left, fitted.cluster_centers_[level], return_distance=True)
        assert torch.equal(index, fitted.labels_[:, level])
        assert fitted.inertias_[level] == pytest.approx(float(distance.double().sum()), rel=1e-12)
        settled = KMeans(16, init=fitted.cluster_centers_[level]).fit(left)
        assert settled.n_iter_ <= 3  # nearly where Lloyd's steps end
        left = left.float() - fitted.cluster_centers_[level][index]
    assert fitted.inertias_ == sorted(fitted.inertias_, reverse=True) and fitted.inertia_ == fitted.inertias_[-1]
    assert fitted.cluster_centers_.shape == (4, 16, 10) and fitted.n_iter_ >= 4


def test_the_first_level_is_kmeans(make_features):
    rows = make_features(500)
    levels, single = ResidualKMeans(2, 12, random_state=7).fit(rows), KMeans(12, random_state=7).fit(rows)
    np.testing.assert_array_equal(levels.cluster_centers_[0], single.cluster_centers_)
    np.testing.assert_array_equal(levels.labels_[:, 0], single.labels_)


def test_codes_and_back(make_features):
    rows = make_features(500)
    untouched = rows.copy()
    fitted = ResidualKMeans(3, 20, random_state=0).fit(rows)
    codes = fitted.predict(rows)
    np.testing.assert_array_equal(codes, fitted.labels_)
    np.testing.assert_array_equal(fitted.transform(rows), codes)
    made = fitted.inverse_transform(codes)
    assert isinstance(made, np.ndarray) and made.dtype == np.float32
    assert ((rows.astype(np.float64) - made) ** 2).sum() == pytest.approx(fitted.inertia_, rel=1e-5)
    assert fitted.score(rows) == pytest.approx(-fitted.inertia_, rel=1e-12)
    first = fitted.inverse_transform(torch.from_numpy(codes[:, :1]))
    assert torch.equal(first, torch.from_numpy(fitted.cluster_centers_[0][codes[:, 0]]))
    np.testing.assert_array_equal(rows, untouched)


def test_codes_of_any_kind(make_features):
    """Frames (here what numpy makes an array of), lists, other types, byte orders and strides, read-only memory."""
    fitted = ResidualKMeans(2, 4, random_state=0).fit(make_features(60))
    codes = fitted.labels_
    expected, ids = fitted.inverse_transform(codes), semantic_ids(codes)

    class Frame:
        def __array__(self, dtype=None, copy=None):
            return codes

    read_only = codes.copy()
    read_only.setflags(write=False)
    others = [codes.astype(dtype) for dtype in (np.uint16, np.uint64, ">i4", np.int8)]
    for given in (Frame(), codes.tolist(), read_only, codes[::-1].copy()[::-1], *others):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(fitted.inverse_transform(given), expected)
            np.testing.assert_array_equal(semantic_ids(given), ids)
    for given in (torch.from_numpy(codes).short(), torch.from_numpy(codes.astype(np.uint16))):
        assert torch.equal(fitted.inverse_transform(given), torch.from_numpy(expected))
        assert torch.equal(semantic_ids(given), torch.from_numpy(ids))
    for given in (codes.astype(complex), codes.astype(str), torch.from_numpy(codes).to(torch.complex64)):
        for call in (fitted.inverse_transform, semantic_ids):
            with pytest.raises(ValueError, match="codes: expected whole numbers of shape"):
                call(given)


def test_weights(make_features):
    rows = make_features(400)
    times = np.random.default_rng(0).integers(0, 3, size=400)
    fitted = ResidualKMeans(2, 10, random_state=0).fit(rows, sample_weight=times)
    assert fitted.inertia_ == pytest.approx(-fitted.score(np.repeat(rows, times, axis=0)), rel=1e-9)


def test_refusals(make_features):
    rows = make_features(100)
    with pytest.raises(ValueError, match="n_levels: expected a whole number of at least 1, got 0"):
        ResidualKMeans(0, 4).fit(rows)
    with pytest.raises(ValueError, match=r"init: expected auto, mini-batch, k-means\+\+"):
        ResidualKMeans(2, 4, init=rows[:4]).fit(rows)
    with pytest.raises(ValueError, match="metric: expected euclidean or cosine, got 'dot'"):
        ResidualKMeans(2, 4, metric="dot").fit(rows)
    with pytest.raises(TypeError, match="X: expected the rows of one batch; fit takes batches"):
        ResidualKMeans(2, 4).partial_fit(lambda: iter([rows]))
    fitted = ResidualKMeans(2, 4, random_state=0).fit(rows)
    for name, value in (("n_levels", 3), ("n_clusters", 5), ("metric", "cosine")):
        other = ResidualKMeans(2, 4, random_state=0).fit(rows).set_params(**{name: value})
        with pytest.raises(ValueError, match=f"{name}: expected .* as in the centres so far, got .*; call fit"):
            other.partial_fit(rows)
    for codes in (np.zeros((3, 3), int), np.zeros(3, int), np.zeros((3, 2))):
        with pytest.raises(ValueError, match="codes: expected whole numbers of shape"):
            fitted.inverse_transform(codes)
    with pytest.raises(ValueError, match="codes: expected values from 0 to 3, got 0 to 4"):
        fitted.inverse_transform(np.array([[0, 4]]))


def test_cosine_is_of_rows_scaled_to_length_one(make_features):
    rows = make_features(400).astype(np.float64)
    unit = rows / abs(rows).max(1, keepdims=True)
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    fitted = ResidualKMeans(3, 12, metric="cosine", random_state=0).fit(rows)
    plain = ResidualKMeans(3, 12, random_state=0).fit(unit)
    np.testing.assert_allclose(fitted.cluster_centers_, plain.cluster_centers_, atol=1e-6)
    np.testing.assert_array_equal(fitted.labels_, plain.labels_)
    assert fitted.inertia_ == pytest.approx(plain.inertia_, rel=1e-6)
    np.testing.assert_array_equal(fitted.predict(rows * 1000), fitted.labels_)
    assert fitted.score(rows / 8) == pytest.approx(-fitted.inertia_, rel=1e-12)


def test_the_first_level_of_a_stream_is_a_stream_of_mini_batches(make_features):
    rows, weight = make_features(600), np.random.default_rng(0).uniform(0, 2, size=600)
    levels, single = ResidualKMeans(2, 7, init="k-means++", random_state=3), MiniBatchKMeans(7, random_state=3)
    for part in np.split(np.arange(600), 4):
        expected = levels.predict(rows[part]) if hasattr(levels, "labels_") else None
        levels.partial_fit(rows[part], sample_weight=weight[part])
        single.partial_fit(rows[part], sample_weight=weight[part])
        np.testing.assert_array_equal(levels.cluster_centers_[0], single.cluster_centers_)
        np.testing.assert_array_equal(levels.labels_[:, 0], single.labels_)
        if expected is not None:
            np.testing.assert_array_equal(levels.labels_, expected)
    assert levels.n_steps_ == 4 and levels.inertias_[0] == single.inertia_ > levels.inertia_


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_stream_keeps_the_mean_of_what_was_left_so_far(dtype, make_features):
    """From `fit` on, at each level, with weights, and after an offset where rows are float64."""
    rows = make_features(600, groups=5).astype(dtype) + (1e6 if dtype == np.float64 else 0)
    weight = np.random.default_rng(0).uniform(0, 2, size=600)
    model = ResidualKMeans(3, 6, random_state=0).fit(rows[:200], sample_weight=weight[:200])
    sizes = np.stack([np.bincount(one, weight[:200], minlength=6) for one in model.labels_.T])
    sums = sizes[:, :, None] * model.cluster_centers_
    for part in np.split(np.arange(200, 600), 4):
        before = model.cluster_centers_
        model.partial_fit(rows[part], sample_weight=weight[part])
        left = rows[part].astype(np.float64)
        for level in range(3):
            np.add.at(sums[level], model.labels_[:, level], left * weight[part, None])
            np.add.at(sizes[level], model.labels_[:, level], weight[part])
            left -= before[level][model.labels_[:, level]]
        assert (left**2 * weight[part, None]).sum() == pytest.approx(model.inertia_, rel=1e-4)
    np.testing.assert_allclose(model.cluster_centers_, sums / sizes[:, :, None], rtol=1e-6, atol=2e-5)
    assert model.n_steps_ == 4 and model.cluster_centers_.dtype == dtype
