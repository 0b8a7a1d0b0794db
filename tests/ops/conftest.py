"""Fixtures of the op tests: every implementation by force, and numbers to compare with that do not come from it."""

import numpy as np
import pytest
import torch

from soho_fast import ops
from soho_fast.ops import triton_backend

INTERPRETING = triton_backend.INTERPRETING and not triton_backend.MISSING  # test_triton.py starts such a process
IMPLEMENTATIONS = ("triton",) if INTERPRETING else ("reference", *ops.build_info().get("cpu_levels_built", ()))
ON_GPU = tuple(name for name in ops.available_backends() if name in ("triton", "cuda") and not INTERPRETING)
IMPLEMENTATIONS += ON_GPU


class GpuGenerator(torch.Generator):
    """A generator on the GPU where no device is named. A class, since torch asks what is an instance of it."""

    def __new__(cls, device="cuda"):
        return super().__new__(cls, device)


@pytest.fixture(params=IMPLEMENTATIONS)
def backend(request, monkeypatch):
    """The `backend` argument that runs the implementation; CPU levels are forced for the duration of the test, and what
    a test creates for a backend of the GPU lies there."""
    if request.param in ON_GPU:
        monkeypatch.setattr(torch, "Generator", GpuGenerator)
        with torch.device("cuda"):
            yield request.param
        return
    if request.param in ("reference", "triton"):
        yield request.param
        return
    try:
        ops.set_cpu_level(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield "cpu"
    ops.set_cpu_level(None)


@pytest.fixture(params=("euclidean",) if INTERPRETING else ("euclidean", "cosine", "dot"))
def metric(request, backend):
    """The metrics that the implementation serves."""
    if request.param != "euclidean" and backend in ON_GPU:
        pytest.skip("refused by name")
    return request.param


@pytest.fixture(params=[1] if INTERPRETING else [1, 2])
def threads(request):
    """Number of intra-op threads, set for the duration of the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _sum_of_lanes(terms):
    """Over the last axis in the documented order of summation, by numpy."""
    lanes = np.zeros((*terms.shape[:-1], 8))
    for channel in range(terms.shape[-1]):
        lanes[..., channel % 8] += terms[..., channel]
    for width in (4, 2, 1):
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    return lanes[..., 0]


def _norms(vectors):
    norms = np.sqrt(_sum_of_lanes(vectors * vectors))
    return np.where(norms == 0.0, 1.0, norms)


def _values(features_NC, codebook_KC, metric):
    """Squared distances, or similarities (cosine before |x|), in float64."""
    x, d = features_NC.double().cpu().numpy(), codebook_KC.double().cpu().numpy()
    if metric == "euclidean":
        return _sum_of_lanes((x[:, None] - d) ** 2)
    products_NK = _sum_of_lanes(x[:, None] * d)
    return products_NK / _norms(d) if metric == "cosine" else products_NK


@pytest.fixture
def exact_lookup():
    """Function (features (N, C), codebook (K, C), metric, topk) -> index (N,), distance float32 (N,) by the float64
    rule, both (N, topk) where that is given."""

    def lookup(features_NC, codebook_KC, metric="euclidean", topk=None):
        with np.errstate(invalid="ignore", over="ignore"):
            value_NK = _values(features_NC, codebook_KC, metric)
            cost_NK = value_NK if metric == "euclidean" else -value_NK
            ranked_NK = np.where(np.isfinite(cost_NK), cost_NK, np.inf)
            index_NT = ranked_NK.argsort(1, kind="stable")[:, : topk or 1]
            chosen_NT = np.take_along_axis(value_NK, index_NT, 1)
            if metric == "cosine":
                chosen_NT = chosen_NT / _norms(features_NC.double().cpu().numpy())[:, None]
            index_N, chosen_N = (t if topk else t[:, 0] for t in (index_NT, chosen_NT))
        return tuple(t.to(features_NC.device) for t in (torch.from_numpy(index_N), torch.from_numpy(chosen_N).float()))

    return lookup
