"""ResidualKMeans against the loop over KMeans that it replaces."""

import warnings

import numpy as np
import pytest
import torch

from soho_fast import ops
from soho_fast.cluster import KMeans, ResidualKMeans, semantic_ids


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


def test_weights(make_features):
    rows = make_features(400)
    times = np.random.default_rng(0).integers(0, 3, size=400)
    fitted = ResidualKMeans(2, 10, random_state=0).fit(rows, sample_weight=times)
    assert fitted.inertia_ == pytest.approx(-fitted.score(np.repeat(rows, times, axis=0)), rel=1e-9)


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
