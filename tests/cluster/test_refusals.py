"""What cannot be clustered is refused by the name of the argument, with what was expected and what came."""

import itertools
import re

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from soho_fast.cluster import KMeans, MiniBatchKMeans, NotFittedError, ResidualKMeans, semantic_ids

ROWS = torch.randn(700, 4, generator=torch.Generator().manual_seed(0))
HOLED = ROWS[:9].clone()
HOLED[3, 2] = torch.nan
ZERO = ROWS[:20].clone()
ZERO[3] = 0


def fit(rows, weight=None, kind=KMeans, **params):
    return lambda: kind(**{"n_clusters": 2, **params}).fit(rows, sample_weight=weight)


def batches(*parts):
    return fit(lambda: iter(parts))


def changing(*passes):
    """Batches that are others in the third pass."""
    count = itertools.count()
    return fit(lambda: passes[next(count) >= 2])


PARAMETERS = [
    (fit(ROWS, n_clusters=0), "n_clusters: expected a whole number of at least 1, got 0"),
    (fit(ROWS, n_clusters=True), "n_clusters: expected a whole number of at least 1, got True"),
    (fit(ROWS, n_clusters=701), "n_samples=700 should be >= n_clusters=701"),
    (fit(ROWS, max_iter=-1), "max_iter: expected a whole number of at least 1, got -1"),
    (fit(ROWS, n_init="all"), "n_init: expected a whole number of at least 1, got 'all'"),
    (fit(ROWS, tol=-1.0), "tol: expected a number of at least 0, got -1.0"),
    (fit(ROWS, algorithm="full"), "algorithm: expected lloyd or elkan, got 'full'"),
    (fit(ROWS, metric="dot"), "metric: expected euclidean or cosine, got 'dot'"),
    (fit(ROWS, init="kmeans"), "init: expected auto, mini-batch, k-means++, random or the centres, got 'kmeans'"),
    (fit(ROWS, init=np.zeros((3, 4))), "init: expected centres of shape (n_clusters, features) = (2, 4), got (3, 4)"),
    (fit(ROWS, init=np.full((2, 4), 1e19)), "init: expected magnitudes of at most 4.61e+18"),
    (fit(ROWS, init=np.full((2, 4), np.nan)), "init: expected finite values"),
    (fit(ROWS, init=torch.zeros(2, 4), metric="cosine"), "init: expected no row of zeros"),
    (fit(ROWS, random_state="now"), "random_state: expected None, an int, a torch.Generator"),
    (fit(ROWS, kind=MiniBatchKMeans, batch_size=0), "batch_size: expected a whole number of at least 1, got 0"),
    (fit(ROWS, kind=MiniBatchKMeans, init="auto"), "init: expected k-means++, random or the centres, got 'auto'"),
    (fit(ROWS, kind=ResidualKMeans, n_levels=0), "n_levels: expected a whole number of at least 1, got 0"),
    (fit(ROWS, kind=ResidualKMeans, init=ROWS[:2]), "init: expected auto, mini-batch, k-means++, random, got Tensor"),
    (fit(ROWS, kind=ResidualKMeans, metric="dot"), "metric: expected euclidean or cosine, got 'dot'"),
]  # fmt: skip
GIVEN = [
    (fit(torch.zeros(9)), "X: expected 2 dimensions"),
    (fit(torch.zeros(9, 0)), "X: Found array with 0 feature"),
    (fit(torch.zeros(0, 3)), "X: Found array with 0 sample"),
    (fit(np.repeat([[1e300], [-1e300]], 9, 0)), "X: expected finite values in float32, got infinity"),
    (fit(np.array([[1, 2], [3, np.nan]])), "X: expected finite values in float32, got NaN in row 1"),
    (fit(torch.full((9, 4), -5e18)), "X: expected magnitudes of at most 4.61e+18"),
    (fit(torch.eye(9).to_sparse()), "X: expected dense rows, got a sparse Tensor"),
    (fit(torch.zeros(9, 2, dtype=torch.complex64)), "X: Complex data not supported"),
    (fit([["a", "b"]]), "X: expected numbers, got a list: could not convert string to float"),
    (fit(ZERO, metric="cosine"), "X: expected no row of zeros, which has no direction"),
    (fit(ROWS, torch.ones(8)), "sample_weight: expected shape (700,)"),
    (fit(ROWS, -torch.ones(700)), "sample_weight: expected no weight below zero"),
    (fit(ROWS, torch.zeros(700)), "sample_weight: expected at least one weight above zero"),
    (fit(ROWS, torch.full((700,), torch.inf)), "sample_weight: expected finite values"),
    (fit(DataLoader(TensorDataset(ROWS, ROWS[:, 0]), 99), ROWS[:, 0]), "sample_weight: with batches, weights come as"),
    (fit(part for part in ROWS.split(100)), "X: expected batches that can be gone through more than once, got a gen"),
    (batches(), "X: expected at least one batch, got none"),
    (batches(ROWS[:50], ROWS[50:90, :3]), "batch 1: expected 4 features, got 3"),
    (batches(ROWS[:50], ROWS[:50], HOLED), "batch 2: expected finite values in float32, got NaN in row 3"),
    (fit(DataLoader(TensorDataset(ROWS), 100, shuffle=True)), "X: expected the same rows in the same order in each"),
    (changing([ROWS[:350], ROWS[350:]], [ROWS[:350], ROWS[350:].flip(0)]), "X: expected the same rows in the same"),
    (changing([ROWS], [ROWS[:600]]), "X: expected the same 700 rows in each pass over the batches, got 600"),
]  # fmt: skip
FITTED = {kind: kind(n_clusters=4, random_state=0).fit(ROWS) for kind in (KMeans, MiniBatchKMeans, ResidualKMeans)}
LATER = [
    *((getattr(kind(), name), "This ") for kind in FITTED for name in ("predict", "transform", "score")),
    *((getattr(model, name), "X: expected rows in memory, got a list_iterator")
      for kind, model in FITTED.items() for name in ("transform", "score")
      if (kind, name) != (ResidualKMeans, "transform")),
]  # fmt: skip
CODES = [
    (FITTED[ResidualKMeans].inverse_transform, np.zeros((3, 9), int), "codes: expected whole numbers of shape (N, 1"),
    (FITTED[ResidualKMeans].inverse_transform, np.zeros((3, 2)), "codes: expected whole numbers of shape"),
    (FITTED[ResidualKMeans].inverse_transform, np.array([[0, 4]]), "codes: expected values from 0 to 3, got 0 to 4"),
    (semantic_ids, np.zeros(3, int), "codes: expected whole numbers of shape (N, L), got int64"),
    (semantic_ids, np.zeros((3, 2)), "codes: expected whole numbers of shape (N, L), got float64"),
    (semantic_ids, torch.zeros(3, 2, dtype=torch.complex64), "codes: expected whole numbers of shape"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "said"), [*PARAMETERS, *GIVEN], ids=lambda value: value if type(value) is str else "")
def test_what_cannot_be_fitted(call, said):
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(said)}"):
        call()


@pytest.mark.parametrize(("method", "said"), LATER)
def test_what_cannot_be_asked(method, said):
    error = (NotFittedError, ValueError) if said == "This " else TypeError
    with pytest.raises(error, match=f"^{said}"):
        method(iter([ROWS]))


@pytest.mark.parametrize(("call", "codes", "said"), CODES)
def test_what_is_no_code(call, codes, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        call(codes)


def test_what_does_not_go_on_from_the_centres_so_far():
    model = MiniBatchKMeans(4, random_state=0).partial_fit(ROWS)
    labels = model.predict(ROWS)
    for rows, params, said in (
        (lambda: iter([ROWS]), {}, "X: expected 2 dimensions|X: expected numbers"),
        (ROWS[:, :3], {}, "X has 3 features, but MiniBatchKMeans is expecting 4 features as input"),
        (HOLED, {}, "X: expected finite values in float32, got NaN in row 3"),
        (ROWS, {"n_clusters": 5}, "n_clusters: expected 4, as in the centres so far, got 5; call fit"),
        (ROWS, {"metric": "cosine"}, "metric: expected 'euclidean', as in the centres so far, got 'cosine'"),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            model.set_params(**params).partial_fit(rows)
        model.set_params(n_clusters=4, metric="euclidean")
    with pytest.raises(TypeError, match="X: expected the rows of one batch; fit takes batches"):
        MiniBatchKMeans(4).partial_fit(lambda: iter([ROWS]))
    with pytest.raises(ValueError, match="n_samples=3 should be >= n_clusters=4"):
        MiniBatchKMeans(4).partial_fit(ROWS[:3])
    assert torch.equal(model.predict(ROWS), labels)
    assert len(model.set_params(n_clusters=5).fit(ROWS).cluster_centers_) == 5 == model.partial_fit(ROWS).n_clusters
