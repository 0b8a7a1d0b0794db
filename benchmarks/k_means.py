"""CPU time and inertia of k-means from `fit(x)`, beside other libraries: the tables of docs/kmeans.md, one thread.

Libraries that are not installed, or whose BLAS kernels are below the processor's, are left out. The inertia is that of
the nearest centres, by one function for all.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import blas
from benchmarks.ops.real_features import photo_windows
from benchmarks.ops.report import blas_text
from soho_fast import ops
from soho_fast.cluster import KMeans, MiniBatchKMeans

STEPS = 25


def groups(num_rows: int, num_clusters: int, num_channels: int) -> Tensor:
    """Rows around three times as many normal points as there are clusters, with half their standard deviation."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(3 * num_clusters, num_channels, generator=generator)
    group_N = torch.randint(len(places), (num_rows,), generator=generator)
    return places[group_N] + 0.5 * torch.randn(num_rows, num_channels, generator=generator)


def estimator(kind: Any, num_clusters: int, **options: Any) -> Callable[[Tensor], Any]:
    """Centres by scikit-learn's interface."""
    return lambda rows: kind(num_clusters, random_state=0, **options).fit(rows.numpy()).cluster_centers_


def methods(num_clusters: int) -> dict[str, Callable[[Tensor], Any]]:
    """Name -> function that gives centres for rows, and finds labels where the library has a call for it."""

    def lloyd(**options: Any) -> Callable[[Tensor], Any]:
        return estimator(KMeans, num_clusters, max_iter=STEPS, tol=0, **options)

    found = {
        f'KMeans(init="k-means++", max_iter={STEPS})': lloyd(init="k-means++"),
        f"KMeans(max_iter={STEPS})": lloyd(),
        "MiniBatchKMeans": estimator(MiniBatchKMeans, num_clusters),
        "MiniBatchKMeans(max_iter=2)": estimator(MiniBatchKMeans, num_clusters, max_iter=2),
        "MiniBatchKMeans(max_iter=8)": estimator(MiniBatchKMeans, num_clusters, max_iter=8),
        'MiniBatchKMeans(init="random")': estimator(MiniBatchKMeans, num_clusters, init="random"),
    }
    libraries = {
        "scikit-learn": ("sklearn.cluster", of_sklearn),
        "faiss-cpu": ("faiss", of_faiss),
        "superkmeans": ("superkmeans", of_superkmeans),
    }
    for package, (module, add) in libraries.items():
        try:
            found |= add(blas.imported(module, package), num_clusters)
        except (ImportError, RuntimeError) as error:
            print(f"{package} is left out: {error}")
    return found


def of_sklearn(cluster: Any, num_clusters: int) -> dict[str, Callable[[Tensor], Any]]:
    return {
        "scikit-learn KMeans": estimator(cluster.KMeans, num_clusters),
        "scikit-learn MiniBatchKMeans": estimator(cluster.MiniBatchKMeans, num_clusters),
        "with batch_size=4096": estimator(cluster.MiniBatchKMeans, num_clusters, batch_size=4096),
    }


def of_faiss(faiss: Any, num_clusters: int) -> dict[str, Callable[[Tensor], Any]]:
    def of(kind: Any, **options: Any) -> Callable[[Tensor], Any]:
        def call(rows: Tensor) -> Any:
            model = kind(rows.shape[1], num_clusters, **options)
            model.train(rows.numpy())
            model.assign(rows.numpy())
            return model.centroids

        return call

    faiss.omp_set_num_threads(1)
    every = {"niter": STEPS, "max_points_per_centroid": 1 << 30}
    found = {"faiss Kmeans, 10 steps, its own sample": of(faiss.Kmeans, niter=10)}
    found[f"faiss Kmeans, {STEPS} steps of all rows"] = of(faiss.Kmeans, **every)
    if hasattr(faiss, "SuperKmeans"):  # from 1.15 on
        found[f"faiss SuperKmeans, {STEPS} steps of all rows"] = of(faiss.SuperKmeans, **every)
    return found


def of_superkmeans(library: Any, num_clusters: int) -> dict[str, Callable[[Tensor], Any]]:
    def of(quantizer: str) -> Callable[[Tensor], Any]:
        def call(rows: Tensor) -> Any:
            model = library.SuperKMeans(num_clusters, rows.shape[1], quantizer=quantizer, n_threads=1)
            centers = model.train(rows.numpy())
            if quantizer == "f32":
                model.assign_training_points(rows.numpy(), centers)
            return centers

        return call

    return {f"superkmeans, {quantizer}": of(quantizer) for quantizer in ("f32", "sq8", "lvq4", "rabitq")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", choices=("groups", "photographs"), default="groups", help="default: %(default)s")
    for name, default in (("rows", 20_000), ("clusters", 256), ("channels", 64)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    asked = parser.parse_args()
    if not 1 <= asked.clusters <= asked.rows:
        parser.error(f"--clusters: expected 1 to {asked.rows}, the number of rows, got {asked.clusters}")
    torch.set_num_threads(1)
    if asked.features == "photographs":
        rows = photo_windows(asked.rows, asked.channels)
    else:
        rows = groups(asked.rows, asked.clusters, asked.channels)
    found, first = methods(asked.clusters), None
    print(f"BLAS kernels: {blas_text(blas.recorded(('torch', *blas.WHEELS)))}\n")
    print("| | CPU time | inertia |\n|---|---|---|")
    for name, call in found.items():
        start = time.process_time()
        try:
            centers_KC = torch.as_tensor(call(rows)).view(asked.clusters, -1).float()
        except RuntimeError as error:  # faiss' SuperKmeans wants 32 channels
            print(f"| {name} | refused: {error} | |")
            continue
        took = time.process_time() - start
        inertia = float(ops.codebook_lookup(rows, centers_KC, return_distance=True)[1].double().sum())
        first = first or inertia
        print(f"| {name} | {took:.2f} s | {inertia / first:.3f} |", flush=True)


if __name__ == "__main__":
    main()
