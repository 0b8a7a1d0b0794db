"""Time against N, K and C, for us and the peers: the curves of the figure, and the bar on doubling N and K."""

import pytest
import torch

from benchmarks.ops.lookup_contenders import PEERS, inputs, share_wrong, soho_fast

BASE = {"N": 8192, "K": 1024, "C": 128}
SIZES = {"N": (2048, 4096, 8192, 16384), "K": (256, 512, 1024, 2048), "C": (32, 64, 128, 256)}
CONTENDERS = {"soho_fast": soho_fast, **PEERS}


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize(
    ("series", "size"), [(series, size) for series, sizes in SIZES.items() for size in sizes], ids=str
)
def test_lookup_growth(series, size, contender, time_checked):
    shape = tuple({**BASE, series: size}.values())
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
