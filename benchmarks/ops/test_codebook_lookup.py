"""codebook_lookup at every CPU level against the peers; all are checked against the float64 rule."""

import pytest
import torch

from benchmarks.ops.lookup_contenders import (
    LEVELS,
    OURS,
    PEERS,
    SHAPES,
    inputs,
    product_work,
    share_wrong,
    soho_fast,
    torch_addmm,
)
from soho_fast.ops import codebook_lookup

SMALL_SHAPE = (4096, 512, 64)


def compete(time_checked, shape, dtype, contender, make, *, level=None, max_wrong=0.0):
    features, codebook, exact = inputs(shape, dtype)
    case = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
    call = make(features, codebook)
    work = product_work(shape)
    time_checked(
        "codebook_lookup", case, shape, contender, call, share_wrong(exact), level=level, max_wrong=max_wrong, work=work
    )


@pytest.mark.parametrize("contender", [*OURS, *PEERS])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_float32(shape, contender, time_checked):
    if contender in OURS:
        make, level = OURS[contender]
        compete(time_checked, shape, torch.float32, contender, make, level=level)
    else:
        compete(time_checked, shape, torch.float32, contender, PEERS[contender], max_wrong=1e-3)


@pytest.mark.parametrize("contender", [*OURS, "torch addmm+argmin"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_bfloat16(shape, contender, time_checked):
    if contender in OURS:
        make, level = OURS[contender]
        compete(time_checked, shape, torch.bfloat16, contender, make, level=level)
    else:
        compete(time_checked, shape, torch.bfloat16, contender, torch_addmm, max_wrong=0.5)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level, time_checked):
    compete(time_checked, SMALL_SHAPE, torch.float32, f"soho_fast {level}", soho_fast, level=level)


HARD = {
    "soho_fast, easy": lambda features, codebook: (features, codebook),
    "soho_fast, far from the origin": lambda features, codebook: (features + 1e4, codebook + 1e4),
    "soho_fast, each code 64 times": lambda features, codebook: (features, codebook[:16].repeat(64, 1)),
    "soho_fast, codes close together": lambda features, codebook: (features, 1 + codebook * 1e-4),
}


@pytest.mark.parametrize("contender", HARD)
def test_hard_inputs(contender, time_checked):
    """What exactness costs where screening decides little, against an easy input."""
    shape = (16384, 1024, 128)
    features, codebook = HARD[contender](*inputs(shape, torch.float32)[:2])
    exact = codebook_lookup(features, codebook, backend="reference")
    call = soho_fast(features, codebook)
    time_checked("hard inputs", "16384x1024x128", shape, contender, call, share_wrong(exact))
