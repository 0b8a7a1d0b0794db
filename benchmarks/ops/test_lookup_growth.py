"""Time against N, K and C, for us and the baselines: the curves of the figure, and the target on doubling N and K."""

import pytest
import torch

from benchmarks.ops.lookup_baselines import BASELINES, inputs, share_wrong, soho_fast
from benchmarks.ops.shapes import GROWTH_BASE, GROWTH_SIZES

METHODS = {"soho_fast": soho_fast, **BASELINES}


@pytest.mark.full
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("series", "size"), [(series, size) for series, sizes in GROWTH_SIZES.items() for size in sizes], ids=str
)
def test_lookup_growth(series, size, method, time_checked):
    shape = tuple({**GROWTH_BASE, series: size}.values())
    features, codebook, exact = inputs(shape, torch.float32)
    time_checked(
        "lookup growth",
        f"{series}={size}",
        shape,
        method,
        METHODS[method](features, codebook),
        share_wrong(exact),
        max_wrong=1e-3,
        series=series,
        size=size,
    )
