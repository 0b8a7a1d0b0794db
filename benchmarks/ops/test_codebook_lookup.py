"""codebook_lookup at every CPU level against the peers; all are checked against the float64 rule."""

import pytest
import torch

from benchmarks.ops.lookup_contenders import (
    LEVELS,
    OURS,
    PEERS,
    inputs,
    product_work,
    share_wrong,
    soho_fast,
    torch_addmm,
)
from benchmarks.ops.shapes import EVERY_LEVEL_NKC, HARD_NKC, LOOKUP_NKC, text
from soho_fast.ops import codebook_lookup


def compete(time_checked, shape, dtype, contender, make, *, level=None, max_wrong=0.0):
    features, codebook, exact = inputs(shape, dtype)
    case = f"{text(shape)} {str(dtype).removeprefix('torch.')}"
    call = make(features, codebook)
    work = product_work(shape)
    time_checked(
        "codebook_lookup", case, shape, contender, call, share_wrong(exact), level=level, max_wrong=max_wrong, work=work
    )


# A peer's share of wrong rows may not pass this: float32 errs on near-ties, bfloat16 on many rows.
MAX_WRONG = {torch.float32: 1e-3, torch.bfloat16: 0.5}
PEERS_OF = {torch.float32: PEERS, torch.bfloat16: {"torch addmm+argmin": torch_addmm}}


@pytest.mark.parametrize(
    ("dtype", "contender"),
    [
        pytest.param(dtype, contender, id=f"{str(dtype).removeprefix('torch.')}-{contender}")
        for dtype, peers in PEERS_OF.items()
        for contender in [*OURS, *peers]
    ],
)
@pytest.mark.parametrize("shape", LOOKUP_NKC, ids=text)
def test_against_peers(shape, dtype, contender, time_checked):
    if contender in OURS:
        make, level = OURS[contender]
        compete(time_checked, shape, dtype, contender, make, level=level)
    else:
        make = PEERS_OF[dtype][contender]
        compete(time_checked, shape, dtype, contender, make, max_wrong=MAX_WRONG[dtype])


@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level, time_checked):
    compete(time_checked, EVERY_LEVEL_NKC, torch.float32, f"soho_fast {level}", soho_fast, level=level)


HARD = {
    "soho_fast, easy": lambda features, codebook: (features, codebook),
    "soho_fast, far from the origin": lambda features, codebook: (features + 1e4, codebook + 1e4),
    "soho_fast, each code 64 times": lambda features, codebook: (features, codebook[:16].repeat(64, 1)),
    "soho_fast, codes close together": lambda features, codebook: (features, 1 + codebook * 1e-4),
}


@pytest.mark.parametrize("contender", HARD)
def test_hard_inputs(contender, time_checked):
    """What exactness costs where screening decides little, against an easy input."""
    features, codebook = HARD[contender](*inputs(HARD_NKC, torch.float32)[:2])
    exact = codebook_lookup(features, codebook, backend="reference")
    call = soho_fast(features, codebook)
    time_checked("hard inputs", text(HARD_NKC), HARD_NKC, contender, call, share_wrong(exact))
