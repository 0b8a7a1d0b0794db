"""codebook_lookup at every CPU level against the baselines; all are checked against the float64 rule."""

import functools

import pytest
import torch

from benchmarks.ops.lookup_baselines import (
    AUTOMATIC,
    BASELINES,
    EVERY_LEVEL,
    FAST_LEVELS,
    LEVELS,
    OURS,
    inputs,
    kd_tree,
    product_work,
    real_inputs,
    share_wrong,
    soho_fast,
    torch_addmm,
)
from benchmarks.ops.report import HARD as HARD_OP
from benchmarks.ops.shapes import (
    EVERY_LEVEL_NKC,
    FEW,
    HARD_NKC,
    LOOKUP_NKC,
    ONE_ROW_NKC,
    REAL,
    SMALL_NKC,
    TINY_NKCT,
    text,
)
from benchmarks.short import first_by_default
from soho_fast.ops import codebook_lookup

# A baseline's share of wrong rows may not pass this: float32 errs on near-ties, bfloat16 on many rows.
MAX_WRONG = {torch.float32: 1e-3, torch.bfloat16: 0.5}
# Real rows and codes lie close together beside their norm: the expanded square loses more.
MAX_WRONG_REAL = 0.05
BASELINES_OF = {torch.float32: BASELINES, torch.bfloat16: {"torch addmm+argmin": torch_addmm}}


def compete(time_checked, shape, dtype, method, make, *, level=None, kind=""):
    features, codebook, exact = inputs(shape, dtype)
    case = f"{kind} {text(shape)}" if kind else f"{text(shape)} {str(dtype).removeprefix('torch.')}"
    call, check, work = make(features, codebook), share_wrong(exact), product_work(shape)
    wrong = MAX_WRONG[dtype]
    time_checked("codebook_lookup", case, shape, method, call, check, level=level, max_wrong=wrong, work=work)


@pytest.mark.parametrize(
    ("dtype", "method"),
    [
        pytest.param(dtype, method, id=f"{str(dtype).removeprefix('torch.')}-{method}")
        for dtype, baselines in BASELINES_OF.items()
        for method in [*OURS, *baselines]
    ],
)
@pytest.mark.parametrize("shape", first_by_default(LOOKUP_NKC), ids=text)
def test_against_baselines(shape, dtype, method, time_checked):
    make, level = OURS.get(method) or (BASELINES_OF[dtype][method], None)
    compete(time_checked, shape, dtype, method, make, level=level)


@pytest.mark.parametrize("method", [name for name in AUTOMATIC if name != "soho_fast"])
@pytest.mark.parametrize("shape", first_by_default(LOOKUP_NKC), ids=text)
def test_prepared_on_noise(shape, method, time_checked):
    """What pruning costs where it can prove nothing."""
    compete(time_checked, shape, torch.float32, method, AUTOMATIC[method])


@pytest.mark.parametrize("method", [*AUTOMATIC, *BASELINES])
@pytest.mark.parametrize("features_of", first_by_default(REAL), ids=text)
def test_real_features(features_of, method, time_checked):
    name, shape = features_of
    features, codebook, exact = real_inputs(name, shape)
    call = {**AUTOMATIC, **BASELINES}[method](features, codebook)
    case, work = f"real {text(features_of)}", product_work(shape)
    check = share_wrong(exact)
    time_checked("codebook_lookup", case, shape, method, call, check, max_wrong=MAX_WRONG_REAL, work=work)


RIVALS = {name: BASELINES[name] for name in ("torch addmm+argmin", "faiss-cpu")} | {"scipy cKDTree": kd_tree}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("method", ["soho_fast", "soho_fast prepared", *RIVALS])
@pytest.mark.parametrize("features_of", first_by_default(FEW), ids=text)
def test_few_codes_or_channels(features_of, method, dtype, time_checked):
    name, shape = features_of
    if dtype == torch.bfloat16 and method not in (*AUTOMATIC, "torch addmm+argmin"):
        pytest.skip(f"{method} takes float32 alone")
    if method == "scipy cKDTree" and shape[-1] > 8:
        pytest.skip("a k-d tree is for few channels")
    features, codebook, exact = real_inputs(name, shape, dtype)
    check = share_wrong(exact)
    call = {**AUTOMATIC, **RIVALS}[method](features, codebook)
    case = f"few {text(features_of)} {str(dtype).removeprefix('torch.')}"
    time_checked("codebook_lookup", case, shape, method, call, check, max_wrong=0.5, work=product_work(shape))


@pytest.mark.parametrize("method", ["soho_fast", "soho_fast prepared", *RIVALS])
@pytest.mark.parametrize("shape", first_by_default(ONE_ROW_NKC), ids=text)
def test_one_row(shape, method, time_checked):
    compete(time_checked, shape, torch.float32, method, {**AUTOMATIC, **RIVALS}[method], kind="one row")


WITH_TOPK = ("soho_fast", "soho_fast prepared", "torch addmm+argmin", "faiss-cpu")
TINY = {name: {**AUTOMATIC, **BASELINES}[name] for name in WITH_TOPK}


@pytest.mark.parametrize("method", TINY)
@pytest.mark.parametrize("case", first_by_default(TINY_NKCT), ids=text)
def test_tiny_calls(case, method, time_checked):
    *shape, topk = case
    features, codebook, exact = inputs(tuple(shape), torch.float32)
    if topk > 1:
        exact = codebook_lookup(features, codebook, topk=topk, backend="reference")
    name = f"tiny {text(tuple(shape))}, topk {topk}"
    call = TINY[method](features, codebook, topk)
    time_checked("codebook_lookup", name, shape, method, call, share_wrong(exact), work=product_work(tuple(shape)))


@pytest.mark.parametrize("method", ["soho_fast", "soho_fast prepared", *EVERY_LEVEL, "torch addmm+argmin"])
@pytest.mark.parametrize("shape", first_by_default(SMALL_NKC), ids=text)
def test_small_shapes(shape, method, time_checked):
    make, level = EVERY_LEVEL.get(method) or ({**AUTOMATIC, **BASELINES}[method], None)
    compete(time_checked, shape, torch.float32, method, make, level=level, kind="small")


@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level, time_checked):
    compete(time_checked, EVERY_LEVEL_NKC, torch.float32, f"soho_fast {level}", soho_fast, level=level)


def _all_tie(features, codebook):
    """All codes are exactly as near to a row: they differ in the sign of channels where the row is zero."""
    shared = torch.arange(codebook.shape[1]) < codebook.shape[1] // 2
    codes = torch.where(shared, codebook[0], codebook[0] * codebook.sign())
    return torch.where(shared, features, 0.0), codes, shared


def _some_tie(features, codebook, tied):
    features, codes, shared = _all_tie(features, codebook)
    far = torch.where(shared, codebook + 9.0, codebook)
    return features, torch.where(tied(torch.arange(len(codebook)), len(codebook))[:, None], codes, far)


HARD = {
    "easy": lambda features, codebook: (features, codebook),
    "far from the origin": lambda features, codebook: (features + 1e4, codebook + 1e4),
    "each code 64 times": lambda features, codebook: (features, codebook[: len(codebook) // 64].repeat(64, 1)),
    "codes close together": lambda features, codebook: (features, 1 + codebook * 1e-4),
    "one huge code": lambda features, codebook: (features, torch.cat([codebook[:-1], codebook[-1:] * 1e6])),
    "small integers all tie": lambda features, codebook: (torch.zeros_like(features), codebook.sign()),
    "all tie": lambda features, codebook: _all_tie(features, codebook)[:2],
    "every third ties": lambda features, codebook: _some_tie(features, codebook, lambda code, _: code % 3 == 0),
    "last fifth ties": lambda features, codebook: _some_tie(features, codebook, lambda code, size: code > 0.8 * size),
}


@functools.lru_cache(maxsize=1)
def hard_inputs(shape, kind):
    features, codebook = HARD[kind](*inputs(shape, torch.float32)[:2])
    return features, codebook, codebook_lookup(features, codebook, backend="reference")


@pytest.mark.full
@pytest.mark.parametrize("level", FAST_LEVELS)
@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("shape", HARD_NKC, ids=text)
def test_hard_inputs(shape, kind, level, time_checked):
    """What exactness costs where screening decides little."""
    features, codebook, exact = hard_inputs(shape, kind)
    method, call = f"soho_fast {level}, {kind}", soho_fast(features, codebook)
    time_checked(HARD_OP, text(shape), shape, method, call, share_wrong(exact), level=level, kind=kind)


@pytest.mark.full
@pytest.mark.parametrize("shape", HARD_NKC, ids=text)
def test_plain_pass_beside_hard_inputs(shape, time_checked):
    """A float32 pass over an easy input, which hard inputs are compared with."""
    features, codebook, exact = hard_inputs(shape, "easy")
    call, check, allowed = torch_addmm(features, codebook), share_wrong(exact), MAX_WRONG[torch.float32]
    time_checked(HARD_OP, text(shape), shape, "torch addmm+argmin", call, check, max_wrong=allowed, kind="easy")
