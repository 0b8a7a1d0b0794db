"""Who competes in the codebook lookup, on which inputs.

Each method takes features (N, C) and codebook (K, C) and returns the call that is timed, which gives the index
(N,). What a library prepares once per codebook is prepared outside the call.
"""

import functools
from collections.abc import Callable
from types import ModuleType

import numpy
import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks import blas
from benchmarks.ops import real_features
from benchmarks.ops.shapes import REAL_ROWS_LEARNT
from soho_fast import ops

LEVELS = ops.build_info().get("cpu_levels_available", [])
FAST_LEVELS = [level for level in LEVELS if level != "scalar"]  # scalar has a small shape of its own


def installed(module: str, package: str) -> ModuleType:
    """A baseline's module. Where it is missing the test is skipped, and the end of the run says so; where its BLAS
    kernels are below the processor's, the test fails."""
    try:
        return blas.imported(module, package)
    except ModuleNotFoundError:
        pytest.skip(f"{package} is not installed (pip install 'soho_fast[bench]')")
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)


def product_work(shape: tuple[int, int, int]) -> dict[str, float]:
    """The multiplications and additions of all N x K products, in units of both product limits."""
    num_rows, num_codes, num_channels = shape
    operations = 2.0 * num_rows * num_codes * num_channels
    return {"float32 product": operations, "bfloat16 product": operations}


@functools.lru_cache(maxsize=1)
def inputs(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features, codebook and the exact index of one shape; the methods of a competition follow one another."""
    num_rows, num_codes, num_channels = shape
    generator = torch.Generator().manual_seed(0)
    features_NC = torch.randn(num_rows, num_channels, generator=generator).to(dtype)
    codebook_KC = torch.randn(num_codes, num_channels, generator=generator).to(dtype)
    return features_NC, codebook_KC, ops.codebook_lookup(features_NC, codebook_KC, backend="reference")


@functools.lru_cache(maxsize=1)
def real_inputs(
    name: str, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of features of real pictures and codes that learnt from others; skips the test without them."""
    reason = real_features.absent(name)
    if reason is not None:
        pytest.skip(reason)
    try:
        learnt = real_features.learnt(name, *shape, REAL_ROWS_LEARNT[name])
    except ConnectionError as error:
        pytest.skip(str(error))
    features_NC, codebook_KC = (each.to(dtype) for each in learnt)
    return features_NC, codebook_KC, ops.codebook_lookup(features_NC, codebook_KC, backend="reference")


def soho_fast(features: Tensor, codebook: Tensor, topk: int = 1) -> Callable[[], Tensor]:
    if topk > 1:
        return lambda: ops.codebook_lookup(features, codebook, topk=topk)
    return lambda: ops.codebook_lookup(features, codebook)


def soho_fast_prepared(features: Tensor, codebook: Tensor, topk: int = 1) -> Callable[[], Tensor]:
    prepared = ops.prepare_codebook(codebook)
    if topk > 1:
        return lambda: ops.codebook_lookup(features, prepared, topk=topk)
    return lambda: ops.codebook_lookup(features, prepared)


def soho_fast_full(features: Tensor, codebook: Tensor) -> Callable[[], Tensor]:
    """Prepared for lookups that multiply all channels."""
    prepared = ops.prepare_codebook(codebook, subspace=False)
    return lambda: ops.codebook_lookup(features, prepared)


def torch_cdist(features: Tensor, codebook: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.cdist(features, codebook).argmin(-1)


def torch_addmm(features: Tensor, codebook: Tensor, topk: int = 1) -> Callable[[], Tensor]:
    def values() -> Tensor:
        return torch.addmm(codebook.square().sum(-1), features, codebook.T, alpha=-2)

    return (lambda: values().topk(topk, largest=False)[1]) if topk > 1 else lambda: values().argmin(-1)


def faiss_cpu(features: Tensor, codebook: Tensor, topk: int = 1) -> Callable[[], numpy.ndarray]:
    faiss = installed("faiss", "faiss-cpu")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    queries = features.numpy()
    return lambda: index.search(queries, topk)[1]  # a tensor of it would take as long as a search of a few codes


def kd_tree(features: Tensor, codebook: Tensor) -> Callable[[], Tensor]:
    tree = installed("scipy.spatial", "scipy").cKDTree(codebook.numpy())
    return lambda: torch.from_numpy(tree.query(features.numpy(), workers=torch.get_num_threads())[1])


def scikit_learn(features: Tensor, codebook: Tensor) -> Callable[[], Tensor]:
    metrics = installed("sklearn.metrics", "scikit-learn")

    def call() -> Tensor:
        with threadpool_limits(torch.get_num_threads()):
            return torch.from_numpy(metrics.pairwise_distances_argmin(features.numpy(), codebook.numpy()))

    return call


def vector_quantize_pytorch(features: Tensor, codebook: Tensor) -> Callable[[], Tensor]:
    library = installed("vector_quantize_pytorch", "vector-quantize-pytorch")
    layer = library.VectorQuantize(dim=codebook.shape[1], codebook_size=codebook.shape[0]).eval()
    layer.codebook = codebook

    def call() -> Tensor:
        with torch.no_grad():
            return layer(features[None])[1][0]

    return call


BASELINES = {
    "torch cdist+argmin": torch_cdist,
    "torch addmm+argmin": torch_addmm,
    "faiss-cpu": faiss_cpu,
    "scikit-learn": scikit_learn,
    "vector-quantize-pytorch": vector_quantize_pytorch,
}
# At the level that a call without a word takes.
AUTOMATIC = {
    "soho_fast": soho_fast,
    "soho_fast prepared": soho_fast_prepared,
    "soho_fast prepared, without pruning": soho_fast_full,
}
EVERY_LEVEL = {f"soho_fast {level}": (soho_fast, level) for level in FAST_LEVELS}
OURS = EVERY_LEVEL | {f"soho_fast {level} prepared": (soho_fast_prepared, level) for level in FAST_LEVELS[-1:]}


def share_wrong(exact: Tensor) -> Callable[[Tensor | numpy.ndarray], float]:
    """Function that gives the share of indices that are not the exact ones."""
    return lambda index: (torch.as_tensor(index).view(exact.shape) != exact).double().mean().item()
