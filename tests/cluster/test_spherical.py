"""Spherical k-means: `KMeans(metric="cosine")`."""

import numpy as np
import pytest
import torch

from soho_fast import ops
from soho_fast.cluster import KMeans


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
