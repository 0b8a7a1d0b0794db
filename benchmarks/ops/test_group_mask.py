"""group_mask, in place and out of place, against torch.where and assignment by a boolean mask."""

import pytest
import torch

from benchmarks.ops.shapes import GROUP_MASK_BLC, text
from benchmarks.short import first_by_default
from soho_fast.ops import group_mask, sample_group


def _out_of_place(features, index, mask_token, target):
    return group_mask(features, index, mask_token, target)[0]


def _in_place(features, index, mask_token, target):
    return group_mask(features, index, mask_token, target, inplace=True)[0]


def _where(features, index, mask_token, target):
    return torch.where((index == target[:, None])[..., None], mask_token, features)


def _assign(features, index, mask_token, target):
    features[index == target[:, None]] = mask_token
    return features


METHODS = {
    "soho_fast in place": _in_place,
    "soho_fast out of place": _out_of_place,
    "torch where": _where,
    "torch boolean assignment in place": _assign,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", first_by_default(GROUP_MASK_BLC), ids=text)
def test_group_mask(shape, method, time_checked, generator):
    features = torch.randn(shape, generator=generator)
    index = torch.randint(64, shape[:2], generator=generator)
    mask_token = torch.randn(shape[2], generator=generator)
    target = sample_group(index, generator=generator)
    expected = _where(features, index, mask_token, target)
    time_checked(
        "group_mask",
        text(shape),
        shape,
        method,
        lambda: METHODS[method](features, index, mask_token, target),
        lambda masked: (masked != expected).double().mean().item(),
        work={} if "in place" in method else {"copy": 8.0 * features.numel()},
    )
