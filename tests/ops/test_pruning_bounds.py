"""Each term of the bound of low-dimensional pruning (csrc/kernels/codebook_lookup/pruning.h) on a problem that it
decides: without it the nearest code is dropped, and the one behind it answered.

Codes come with their negatives or balanced, so that their mean is 0 and rows and codes are rounded as they are written
here. All rows of a problem are alike. K codes, C channels, D dimensions.
"""

import pytest
import torch

from soho_fast import ops
from soho_fast.ops import triton_backend

pytestmark = [
    pytest.mark.skipif(triton_backend.INTERPRETING, reason="of the CPU kernels"),
    pytest.mark.parametrize("family", ["cpu"], indirect=True),
]
NUM_ROWS = 70


def _unit(num_channels, *channels):
    return torch.nn.functional.one_hot(torch.tensor(channels), num_channels).T.float().contiguous()


def _with_negatives(codes):
    return torch.cat([codes, -codes])


def norm_of_the_subspace(num_channels):
    """Directions of norm exactly 1, all of the row in them, and its nearest code opposed to it: were the norm taken for
    2 % less, its score would seem 4 % of 0.125 lower."""
    codes = torch.zeros(5, num_channels)
    codes[:, 0] = torch.tensor([-0.125, 0, 0, 3.125, -3])
    codes[1:3, 1] = torch.tensor([0.5165, -0.5165])
    row = torch.zeros(num_channels)
    row[0] = 1
    return row, codes, _unit(num_channels, 0, 1), None


def chain_of_additions(num_channels):
    """Products just above half of the last place of the sum before them: each addition of 2000 rounds up."""
    small = (0.51 * 2.0**-23) ** 0.5
    row = torch.zeros(num_channels)
    row[0], row[1 : num_channels - 32] = 1, small
    turned = row[:, None].clone()
    aside = _unit(num_channels, *range(num_channels - 32, num_channels)).T
    opposed = -row + torch.cat([torch.zeros(1, num_channels), *(d * aside[:31] for d in (0.25, -0.25))])
    square = float(row.double().square().sum())
    across = (3 * square + 6e-5) ** 0.5 * _with_negatives(aside[31:32])
    return row, torch.cat([opposed, 63 * row[None], across]), turned, None


def error_of_a_float32_distance(num_channels):
    """A warm start whose squares are just below half of the last place of their sums: its float32 distance is too small
    by 2e-5 of it, more than what tells its true one from that of a code without some of these squares."""
    small = (0.98 * 2.0**-24) ** 0.5
    codes = torch.randn(4, num_channels, generator=torch.Generator().manual_seed(0)).sign()
    codes[:, 64:] *= small
    codes[:, -1] = 0  # in which the only direction lies
    codes[-1, 64 : 64 + num_channels // 10] = 0
    return torch.zeros(num_channels), _with_negatives(codes), _unit(num_channels, num_channels - 1), 0


def error_of_int8(num_channels):
    """All that the row and its nearest code have in common is lost where the row is rounded to its unit, 1."""
    sign = torch.randn(num_channels, generator=torch.Generator().manual_seed(0)).sign()
    row = 0.45 * sign
    row[0], row[-1] = 127, 0
    common = row.clone()
    common[0] = 0
    decoys = torch.randn(100, num_channels, generator=torch.Generator().manual_seed(1))
    decoys[:, -1] = 0
    decoys -= decoys @ row[:, None] / row.square().sum() * row
    decoys *= row.norm() / decoys.norm(dim=1, keepdim=True)
    codes = torch.stack([common, 0.8 * common])
    return row, _with_negatives(torch.cat([codes, decoys])), _unit(num_channels, num_channels - 1), 1


def rounding_of_the_row(num_channels):
    """To bfloat16, by 2^-8; the codes are exact in it."""
    row, codes = torch.zeros(num_channels), torch.zeros(2, num_channels)
    row[0] = 1 + 2.0**-8 - 2.0**-16
    codes[:, 0] = 1
    codes[1, 1] = 0.045
    return row, _with_negatives(codes), _unit(num_channels, 0), None


def rounding_of_the_codes(num_channels):
    row, codes = torch.zeros(num_channels), torch.zeros(2, num_channels)
    row[0] = 1
    codes[:, 0] = torch.tensor([1 + 2.0**-8 - 2.0**-16, 1])
    codes[1, 1] = 0.02
    return row, _with_negatives(codes), _unit(num_channels, 0), None


@pytest.mark.parametrize(
    ("problem", "num_channels"),
    [
        (norm_of_the_subspace, 40), (norm_of_the_subspace, 600), (chain_of_additions, 2033),
        (error_of_a_float32_distance, 20_000), (error_of_int8, 600), (rounding_of_the_row, 600),
        (rounding_of_the_codes, 600),
    ],
)  # fmt: skip
def test_the_nearest_code_is_not_dropped(problem, num_channels, at_every_level):
    row, codebook, subspace, warm_start = problem(num_channels)
    distance_K = (row.double() - codebook.double()).square().sum(1)
    nearest = int((distance_K == distance_K.min()).nonzero()[0])
    behind = distance_K[distance_K > distance_K[nearest]].min()
    assert behind - distance_K[nearest] < 0.1 * distance_K[nearest].clamp(min=0.1), "too far for the term to matter"
    features = row.expand(NUM_ROWS, -1)
    warm_starts = None if warm_start is None else torch.full((NUM_ROWS,), warm_start)

    def found(backend):
        prepared = ops.prepare_codebook(codebook, subspace=subspace, backend=backend)
        options = {"warm_start": warm_starts, "backend": backend}
        return [
            ops.codebook_lookup(features, codebook, subspace=subspace, **options),
            ops.codebook_lookup(features, prepared, **options),
        ]

    for index in at_every_level(found):
        assert set(index.tolist()) == {nearest}
