"""Time against N, K and C, for us and the peers: the curves of the figure, and the bar on doubling N and K."""

import pytest
import torch

from benchmarks.ops.lookup_contenders import PEERS, inputs, share_wrong, soho_fast
from benchmarks.ops.shapes import GROWTH_BASE, GROWTH_SIZES

CONTENDERS = {"soho_fast": soho_fast, **PEERS}


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize(
    ("series", "size"), [(series, size) for series, sizes in GROWTH_SIZES.items() for size in sizes], ids=str
)
def test_lookup_growth(series, size, contender, time_checked):
    shape = tuple({**GROWTH_BASE, series: size}.values())
    features, codebook, exact = inputs(shape, torch.float32)
    time_checked(
        "lookup growth",
        f"{series}={size}",
        shape,
        contender,
        CONTENDERS[contender](features, codebook),
        share_wrong(exact),
        max_wrong=0.0 if contender == "soho_fast" else 1e-3,
        series=series,
        size=size,
    )
