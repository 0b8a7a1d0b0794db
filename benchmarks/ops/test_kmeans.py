"""k-means on real features: the same number of Lloyd's steps, from the same rows where a library takes them, then the
labels of all rows, which are what is clustered for (faiss and SuperKMeans give them by a call of their own). And from
`fit(rows)` alone, seeding included, until it settles, on overlapping groups.

The inertia of centres and labels is looked at before anything is timed: ours has to be that of Lloyd's steps (which
fill no empty cluster, so it may be lower where there is one), that of a baseline at most 1 % higher. SuperKMeans draws
its own rows and prunes without proof: it takes as many steps more as that needs.
"""

import functools

import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.ops import real_features
from benchmarks.ops.lookup_baselines import installed, product_work
from benchmarks.ops.shapes import KMEANS, KMEANS_FIT_NKC, KMEANS_STEPS, text
from benchmarks.short import first_by_default
from soho_fast import ops
from soho_fast.cluster import KMeans

EXCESS = 0.01  # of the inertia, for a baseline
OUR_EXCESS = 1e-5  # roundings of float32 sums, and what near-ties make of them
Result = tuple[Tensor, Tensor]  # centres and labels


def soho_fast(rows_NC: Tensor, start_KC: Tensor):
    model = KMeans(len(start_KC), init=start_KC, max_iter=KMEANS_STEPS, tol=0)

    def call() -> Result:
        model.fit(rows_NC)
        return model.cluster_centers_, model.labels_

    return call


def scikit_learn(rows_NC: Tensor, start_KC: Tensor):
    cluster = installed("sklearn.cluster", "scikit-learn")
    rows, start = rows_NC.numpy(), start_KC.numpy()
    model = cluster.KMeans(len(start), init=start, n_init=1, max_iter=KMEANS_STEPS, tol=0, algorithm="lloyd")

    def call() -> Result:
        with threadpool_limits(torch.get_num_threads()):
            model.fit(rows)
        return torch.from_numpy(model.cluster_centers_), torch.from_numpy(model.labels_)

    return call


def faiss_cpu(rows_NC: Tensor, start_KC: Tensor):
    faiss = installed("faiss", "faiss-cpu")
    faiss.omp_set_num_threads(torch.get_num_threads())
    rows, start = rows_NC.numpy(), start_KC.numpy()

    def call() -> Result:
        model = faiss.Kmeans(
            *(rows.shape[1], len(start)),
            niter=KMEANS_STEPS,
            max_points_per_centroid=len(rows),
            min_points_per_centroid=1,
        )
        model.train(rows, init_centroids=start)
        _, labels = model.assign(rows)
        return torch.from_numpy(model.centroids), torch.from_numpy(labels)

    return call


def super_kmeans(rows_NC: Tensor, start_KC: Tensor):
    library = installed("superkmeans", "superkmeans")
    rows = rows_NC.numpy()

    def train(steps: int) -> Result:
        model = library.SuperKMeans(
            *(len(start_KC), rows.shape[1]),
            hierarchical=False,
            iters=steps,
            sampling_fraction=1.0,
            max_points_per_cluster=len(rows),
            n_threads=torch.get_num_threads(),
            early_termination=False,
        )
        centers = model.train(rows)
        return torch.from_numpy(centers), torch.from_numpy(model.assign_training_points(rows, centers))

    allowed = inertia(rows_NC, *lloyd(rows_NC, start_KC)) * (1 + EXCESS)
    tried = (KMEANS_STEPS * part // 4 for part in (4, 5, 6, 8, 12))
    steps = next((steps for steps in tried if inertia(rows_NC, *train(steps)) <= allowed), KMEANS_STEPS)
    return lambda: train(steps)


METHODS = {
    "soho_fast": soho_fast,
    "scikit-learn": scikit_learn,
    "faiss-cpu": faiss_cpu,
    "superkmeans": super_kmeans,
}


def inertia(rows_NC: Tensor, centers_KC: Tensor, label_N: Tensor) -> float:
    parts = zip(rows_NC.split(8192), label_N.long().split(8192), strict=True)
    return sum(float((rows.double() - centers_KC[labels].double()).square().sum()) for rows, labels in parts)


def lloyd(rows_NC: Tensor, centers_KC: Tensor) -> Result:
    """Plain steps, sums in float64; a centre without members stays."""
    for _ in range(KMEANS_STEPS):
        label_N = ops.codebook_lookup(rows_NC, centers_KC)
        counts_K1 = torch.bincount(label_N, minlength=len(centers_KC))[:, None]
        sums_KC = torch.zeros(centers_KC.shape, dtype=torch.float64).index_add_(0, label_N, rows_NC.double())
        centers_KC = torch.where(counts_K1 > 0, sums_KC / counts_K1, centers_KC.double()).float()
    return centers_KC, ops.codebook_lookup(rows_NC, centers_KC)


@functools.lru_cache(maxsize=1)
def problem(name: str, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, float]:
    """Rows, the centres to start from, and the inertia after the steps; those of a shape follow one another."""
    num_rows, num_clusters, num_channels = shape
    reason = real_features.absent(name)
    if reason is not None:
        pytest.skip(reason)
    try:
        rows_NC = real_features.FEATURES[name](num_rows, num_channels)
    except ConnectionError as error:
        pytest.skip(str(error))
    start_KC = real_features.kmeans_codes(rows_NC, num_clusters, steps=0)
    return rows_NC, start_KC, inertia(rows_NC, *lloyd(rows_NC, start_KC))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows_of", first_by_default(KMEANS), ids=text)
def test_kmeans(rows_of, method, time_checked):
    name, shape = rows_of
    rows_NC, start_KC, expected = problem(name, shape)
    ours = method.startswith("soho_fast")

    def share_wrong(result: Result) -> float:
        excess = max(0.0, inertia(rows_NC, *result) / expected - 1)
        return 0.0 if ours and excess < OUR_EXCESS else excess

    work = {name: KMEANS_STEPS * amount for name, amount in product_work(shape).items()}
    time_checked(
        "KMeans",
        f"{text(rows_of)}, {KMEANS_STEPS} steps",
        shape,
        method,
        METHODS[method](rows_NC, start_KC),
        share_wrong,
        max_wrong=EXCESS,
        work=work,
    )


def fit_soho_fast(rows_NC: Tensor, num_clusters: int, seed: int):
    return KMeans(num_clusters, random_state=seed).fit(rows_NC)


def fit_scikit_learn(rows_NC: Tensor, num_clusters: int, seed: int):
    cluster = installed("sklearn.cluster", "scikit-learn")
    with threadpool_limits(torch.get_num_threads()):
        return cluster.KMeans(num_clusters, random_state=seed).fit(rows_NC.numpy())


FITS = {"soho_fast": fit_soho_fast, "scikit-learn": fit_scikit_learn}


@functools.lru_cache(maxsize=1)
def groups(shape: tuple[int, int, int]) -> Tensor:
    """Rows around more than twice as many places as there are clusters."""
    num_rows, num_clusters, num_channels = shape
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(5 * num_clusters // 2, num_channels, generator=generator)
    group_N = torch.randint(len(places), (num_rows,), generator=generator)
    return places[group_N] + 0.7 * torch.randn(num_rows, num_channels, generator=generator)


@functools.lru_cache(maxsize=1)
def usual_inertia(shape: tuple[int, int, int]) -> float:
    """Of one start of scikit-learn."""
    return fit_scikit_learn(groups(shape), shape[1], 1).inertia_


@pytest.mark.parametrize("method", FITS)
@pytest.mark.parametrize("shape", first_by_default(KMEANS_FIT_NKC), ids=text)
def test_kmeans_from_rows(shape, method, time_checked):
    rows_NC, expected = groups(shape), usual_inertia(shape)

    def share_wrong(model) -> float:
        excess = model.inertia_ / expected - 1
        return excess if excess > EXCESS else 0.0  # starts differ by less

    call = lambda: FITS[method](rows_NC, shape[1], 0)  # noqa: E731
    time_checked("KMeans.fit", text(shape), shape, method, call, share_wrong)
