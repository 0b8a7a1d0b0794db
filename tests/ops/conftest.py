"""Fixtures of the op tests: every level in turn, whose bits must agree, and numbers to compare with that come from none
of them."""

import contextlib
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from soho_fast import ops
from soho_fast.ops import triton_backend

sys.path.insert(0, str(Path(__file__).parent))
INTERPRETING = triton_backend.INTERPRETING and not triton_backend.MISSING  # test_triton.py starts such a process
ON_GPU = tuple(name for name in ops.available_backends() if name in ("triton", "cuda") and not INTERPRETING)
CPU_LEVELS = ("reference", *ops.build_info().get("cpu_levels_available", ()))
# The levels that one case goes through, by what its id says: all of the CPU, or one backend of a GPU.
FAMILIES = {"triton": ("triton",)} if INTERPRETING else {"cpu": CPU_LEVELS, **{name: (name,) for name in ON_GPU}}


class GpuGenerator(torch.Generator):
    """A generator on the GPU where no device is named. A class, since torch asks what is an instance of it."""

    def __new__(cls, device="cuda"):
        return super().__new__(cls, device)


@contextlib.contextmanager
def _where_it_works(name, monkeypatch):
    """What a test creates lies on the GPU where `name` is a backend of it."""
    with contextlib.ExitStack() as stack:
        if name in ON_GPU:
            monkeypatch.setattr(torch, "Generator", GpuGenerator)
            stack.enter_context(torch.device("cuda"))
        yield


@pytest.fixture(params=("triton",) if INTERPRETING else ops.available_backends())
def backend(request, monkeypatch):
    """Each backend once, a CPU's at its best level: for graphs and registration, which no level changes."""
    with _where_it_works(request.param, monkeypatch):
        yield request.param


@pytest.fixture(params=FAMILIES)
def family(request, monkeypatch):
    """Which of the FAMILIES a case is of. What no backend of a GPU has is parametrised with "cpu" alone, indirect."""
    with _where_it_works(request.param, monkeypatch):
        yield request.param


@pytest.fixture
def at_every_level(family):
    """Function (call, ...) -> what call(..., backend=) returns at every level, where its bits must be the same."""
    return functools.partial(_at_every_level, FAMILIES[family])


@pytest.fixture
def metrics(family):
    """Those that the family serves."""
    return ("euclidean", "cosine", "dot") if family == "cpu" else ("euclidean",)


def _at_every_level(levels: tuple[str, ...], call: Callable, /, *arguments: Any, **options: Any) -> Any:
    named = {name: value for name, value in options.items() if isinstance(value, (str, int))}
    results = {}
    for level in levels:
        try:
            with _forced(level) as backend:
                results[level] = call(*arguments, **options, backend=backend)
        except BaseException as error:
            error.add_note(f"at level {level} {named or ''}")
            raise
    alike: list[list[str]] = []  # levels of the same bits
    for level, result in results.items():
        group = next((group for group in alike if same_bits(results[group[0]], result)), None)
        alike.append([level]) if group is None else group.append(level)
    assert len(alike) == 1, f"not the same bits: {' | '.join(', '.join(group) for group in alike)} {named or ''}"
    return results[levels[0]]


@contextlib.contextmanager
def _forced(level):
    """The `backend` argument that runs a level."""
    if level in ops.available_backends():
        yield level
        return
    ops.set_cpu_level(level)
    try:
        yield "cpu"
    finally:
        ops.set_cpu_level(None)


def same_bits(one: Any, other: Any) -> bool:
    """Whether two results, of tensors or in lists of them, have the same types, shapes and bits; any NaN is a NaN."""
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same_bits, one, other))
    if not isinstance(one, torch.Tensor):
        return one == other
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    as_int = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    if one.is_floating_point():
        one, other = (torch.where(t.isnan(), torch.nan, t) for t in (one, other))
    return torch.equal(*(t.detach().contiguous().view(as_int) for t in (one, other)))


@pytest.fixture(name="same_bits")
def _same_bits():
    return same_bits


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


LAYOUTS = {
    "channels permuted": lambda x: x.permute(0, 2, 1).contiguous().permute(0, 2, 1),
    "batch permuted": lambda x: x.permute(1, 0, 2).contiguous().permute(1, 0, 2),
    "channels sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "rows strided": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "offset": lambda x: torch.cat([torch.zeros(3), x.flatten()])[3:].view(x.shape),
}


@pytest.fixture(params=LAYOUTS)
def laid_out(request):
    """Function (tensor of three dimensions) -> the same values, which lie in memory in another way."""
    return LAYOUTS[request.param]


@pytest.fixture
def exact_lookup():
    """Function (features (N, C), codebook (K, C), metric, topk) -> index (N,), distance float32 (N,) by the float64
    rule, both (N, topk) where that is given; codebooks of a batch one by one."""

    def lookup(features_NC, codebook_KC, metric="euclidean", topk=None):
        if codebook_KC.dim() > 2:
            each = [lookup(x, d, metric, topk) for x, d in zip(features_NC, codebook_KC, strict=True)]
            return tuple(map(torch.stack, zip(*each, strict=True)))
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


def _every_way(features, codebook, topk, metric, backend):
    """Index and distance; the kernels find the same index without the distance, and in a prepared codebook."""
    options = {"topk": topk, "metric": metric, "backend": backend}
    index, distance = ops.codebook_lookup(features, codebook, return_distance=True, **options)
    if backend == "reference":  # which has one way
        return index, distance
    assert torch.equal(ops.codebook_lookup(features, codebook, **options), index), "without the distance"
    if not INTERPRETING:  # packing takes the interpreter long
        prepared = ops.prepare_codebook(codebook, metric=metric, backend=backend)
        assert prepared.metric == metric
        found = ops.codebook_lookup(features, prepared, return_distance=True, **options)
        assert same_bits(found, (index, distance)), "in a prepared codebook"
    return index, distance


@pytest.fixture
def check_lookup(at_every_level, exact_lookup):
    """Function (features, codebook, metrics, topk): each way to ask gives at every level what the float64 rule says."""

    def check(features, codebook, metrics=("euclidean",), topk=None):
        for metric in metrics:
            index, distance = at_every_level(_every_way, features, codebook, topk, metric=metric)
            assert index.dtype == torch.int64 and distance.dtype == torch.float32
            assert same_bits((index, distance), exact_lookup(features, codebook, metric, topk)), metric

    return check
