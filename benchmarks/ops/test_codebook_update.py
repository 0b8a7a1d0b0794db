"""codebook_stats + codebook_ema_ against index_add_ + bincount + where; checked against float64."""

import pytest
import torch

from benchmarks.ops.lookup_baselines import LEVELS
from benchmarks.ops.shapes import UPDATE_NKC, text
from benchmarks.short import first_by_default
from soho_fast.ops import codebook_ema_, codebook_stats, scatter_mean_ema_

DECAY = 0.9
READ_ONCE = "one read of the features"


def _two_steps(codebook, features, index):
    return codebook_ema_(codebook, *codebook_stats(features, index, codebook.shape[0]), DECAY)


def _fused(codebook, features, index):
    return scatter_mean_ema_(codebook, features, index, DECAY)


def _torch(codebook, features, index):
    sums = torch.zeros_like(codebook).index_add_(0, index, features)
    counts = torch.bincount(index, minlength=codebook.shape[0])[:, None]
    moved = codebook * DECAY + sums / counts.clamp(min=1) * (1 - DECAY)
    return codebook.copy_(torch.where(counts > 0, moved, codebook))


def _read_once(codebook, features, index):
    return features.sum(dtype=torch.float32)


METHODS = {
    "soho_fast": (_two_steps, None),
    **{f"soho_fast {level}": (_two_steps, level) for level in LEVELS[:-1]},
    "soho_fast fused": (_fused, None),
    "torch index_add_": (_torch, None),
    READ_ONCE: (_read_once, None),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", first_by_default(UPDATE_NKC), ids=text)
def test_codebook_update(shape, method, time_checked, generator):
    num_rows, num_codes, num_channels = shape
    features = torch.randn(num_rows, num_channels, generator=generator)
    index = torch.randint(num_codes, (num_rows,), generator=generator)
    codebook = torch.randn(num_codes, num_channels, generator=generator)
    start = codebook.clone()

    def share_wrong(moved):
        if method == READ_ONCE:
            return float(not torch.isclose(moved.double(), features.double().sum(), rtol=1e-3, atol=1.0))
        sums = torch.zeros(num_codes, num_channels, dtype=torch.float64).index_add_(0, index, features.double())
        counts = torch.bincount(index, minlength=num_codes)[:, None]
        average = start.double() * DECAY + sums / counts.clamp(min=1) * (1 - DECAY)
        expected = torch.where(counts > 0, average, start.double())
        return (~torch.isclose(moved.double(), expected, rtol=1e-5, atol=1e-5)).double().mean().item()

    function, level = METHODS[method]
    call = lambda: function(codebook, features, index)  # noqa: E731
    work = {"read": 4.0 * features.numel()}
    time_checked("codebook_update", text(shape), shape, method, call, share_wrong, level=level, work=work)
