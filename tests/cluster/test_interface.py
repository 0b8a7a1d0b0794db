"""scikit-learn's interface without scikit-learn, its own checks, and refusals."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from soho_fast.cluster import KMeans, MiniBatchKMeans, ResidualKMeans
from soho_fast.cluster.processes import Processes

# Which rows are drawn depends on their positions, which differ between weighted and repeated rows (scikit-learn's
# KMeans fails it too); with given centres they do not: test_kmeans.py::test_weights.
CANNOT_PASS = {"check_sample_weight_equivalence_on_dense_data"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [KMeans, MiniBatchKMeans, ResidualKMeans])
def test_scikit_learns_checks(kind):
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    model = kind(n_levels=2, n_clusters=4) if kind is ResidualKMeans else kind()
    results = checks.check_estimator(model, on_fail=None, on_skip=None)
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert set(failed) == CANNOT_PASS, failed
    assert sum(result["status"] == "passed" for result in results) > 30


def test_scikit_learn_and_numpy_are_not_loaded():
    """Tensors in, tensors out, by torch alone, and Triton where torch is built for GPUs."""
    program = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "from soho_fast.cluster import KMeans, ResidualKMeans\n"
        "rows = torch.randn(99, 4)\n"
        "KMeans(3).fit(rows).predict(rows); ResidualKMeans(2, 3).fit(rows)\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(sorted(new - {'soho_fast', 'torch', 'triton'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_parameters():
    model = KMeans(3, tol=0.5)
    assert model.get_params()["n_clusters"] == 3 and set(model.get_params()) == set(KMeans().get_params())
    assert model.set_params(n_clusters=4, tol=0.1) is model and model.n_clusters == 4
    assert repr(model) == "KMeans(n_clusters=4, tol=0.1)" and repr(KMeans()) == "KMeans()"
    with pytest.raises(ValueError, match="clusters: expected a parameter of KMeans, one of n_clusters, init"):
        model.set_params(clusters=3)


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_numpys_numbers_are_parameters(init):
    options = {"init": init, "random_state": 0}
    model = KMeans(np.int64(3), tol=np.float32(0.1), max_iter=np.int32(4), n_init=np.int64(2), **options)
    expected = KMeans(3, tol=float(np.float32(0.1)), max_iter=4, n_init=2, **options)
    rows = torch.randn(50, 4)
    assert torch.equal(model.fit(rows).cluster_centers_, expected.fit(rows).cluster_centers_)


def test_one_weight_for_all_rows(make_features):
    rows = make_features(50)
    plain = KMeans(3, random_state=0).fit(rows)
    for weight in (2.0, np.float64(2), torch.tensor(2.0)):
        assert KMeans(3, random_state=0).fit(rows, sample_weight=weight).inertia_ == 2 * plain.inertia_
        assert plain.score(rows, sample_weight=weight) == 2 * plain.score(rows)


@pytest.mark.parametrize("init", ["mini-batch", "k-means++", "random"])
@pytest.mark.parametrize("size", [2.0**125, 2.0**-145])
def test_huge_and_tiny_weights_do_as_others_do(size, init, make_features):
    """Also where a weight times its row is beyond float32 or rounds to zero."""
    rows, weight = make_features(200), np.arange(200) % 5
    plain, scaled = (
        KMeans(20, init=init, n_init=1, random_state=0).fit(rows * np.float32(2.0**20), sample_weight=weight * scale)
        for scale in (1, size)
    )
    np.testing.assert_array_equal(scaled.cluster_centers_, plain.cluster_centers_)
    assert scaled.inertia_ == plain.inertia_ * size


def test_other_numbers_become_float32_or_float64():
    rows = np.random.default_rng(0).integers(0, 50, size=(60, 3))
    expected = KMeans(4, random_state=0).fit(rows.astype(np.float32)).cluster_centers_
    assert expected.dtype == np.float32
    for dtype in (np.uint8, np.int16, ">f4"):
        np.testing.assert_array_equal(KMeans(4, random_state=0).fit(rows.astype(dtype)).cluster_centers_, expected)
    wide = KMeans(4, random_state=0).fit(rows).cluster_centers_
    np.testing.assert_allclose(wide, expected, rtol=1e-6)
    types = (np.float64, np.int32, object, np.longdouble)
    for given in (*(rows.astype(dtype) for dtype in types), rows[::-1].copy()[::-1], rows.tolist()):
        np.testing.assert_array_equal(KMeans(4, random_state=0).fit(given).cluster_centers_, wide)
    for dtype in (torch.int64, torch.float64):
        given = torch.from_numpy(rows).to(dtype)
        assert torch.equal(KMeans(4, random_state=0).fit(given).cluster_centers_, torch.from_numpy(wide))


def test_what_scikit_learns_programs_pass(make_features):
    rows = make_features(200)
    plain = KMeans(5, random_state=0).fit(rows)
    for algorithm in ("lloyd", "elkan"):
        same = KMeans(5, random_state=0, algorithm=algorithm, copy_x=False).fit(rows)
        np.testing.assert_array_equal(same.cluster_centers_, plain.cluster_centers_)


class Frame:
    """As much of a data frame as an estimator reads."""

    def __init__(self, columns):
        self.table = columns
        self.columns = list(columns)

    def __array__(self, dtype=None, copy=None):
        return np.stack([self.table[name] for name in self.columns], axis=1)

    def of(self, *names):
        return Frame({name: self.table[name] for name in names})


@pytest.mark.parametrize("kind", [KMeans, MiniBatchKMeans, ResidualKMeans])
def test_columns_in_another_order_are_refused(kind, make_features):
    rows = make_features(60, 3)
    frame = Frame(dict(zip("abc", rows.T, strict=True)))
    model = kind(n_clusters=4, random_state=0).fit(frame)
    assert model.feature_names_in_.tolist() == ["a", "b", "c"] and model.feature_names_in_.dtype == object
    for given in (frame, rows):
        np.testing.assert_array_equal(model.predict(given), model.labels_)
    methods = [model.predict, model.transform, model.score, *([model.partial_fit] if kind is MiniBatchKMeans else [])]
    for method in methods:
        with pytest.raises(ValueError, match=r"X: The feature names should match .* column 0 is 'c' and was 'a'"):
            method(frame.of("c", "b", "a"))
        with pytest.raises(ValueError, match=f"X has 2 features, but {kind.__name__} is expecting 3 features as input"):
            method(frame.of("a", "b"))
    if kind is MiniBatchKMeans:
        assert model.partial_fit(rows).feature_names_in_.tolist() == ["a", "b", "c"]
    assert not hasattr(model.fit(rows), "feature_names_in_")
    model.predict(frame.of("c", "b", "a"))
    numbered = Frame(dict(enumerate(rows.T)))
    assert not hasattr(model.fit(numbered), "feature_names_in_")  # as in scikit-learn, names are strings


@pytest.mark.parametrize("kind", [KMeans, MiniBatchKMeans, ResidualKMeans])
def test_batches_with_columns_in_another_order_are_refused(kind, make_features):
    first = second = Frame(dict(zip("abc", make_features(60, 3).T, strict=True)))
    model = kind(n_clusters=4, random_state=0).fit(lambda: iter([first, second]))
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"X: The feature names should match .* column 0 is 'b' and was 'a'"):
        model.predict(lambda: iter([first, second.of("b", "a", "c")]))
    with pytest.raises(ValueError, match=r"batch 1: The feature names should match .* column 1 is 'c' and was 'b'"):
        kind(n_clusters=4).fit(lambda: iter([first, second.of("a", "c", "b")]))


def test_columns_in_another_order_on_another_rank_are_refused(make_features, monkeypatch):
    frame = Frame(dict(zip("ab", make_features(60, 2).T, strict=True)))
    monkeypatch.setattr(Processes, "gather", lambda _, value: [value, ["b", "a"] if value == ["a", "b"] else value])
    for kind in (KMeans, MiniBatchKMeans, ResidualKMeans):
        with pytest.raises(ValueError, match="X: expected columns of the same names, in the same order, on every rank"):
            kind(n_clusters=4).fit(frame)
