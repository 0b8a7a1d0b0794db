"""Semantic ids: codes, and a last column that makes each its own."""

import numpy as np
import pytest
import torch

from soho_fast.cluster import semantic_ids


def test_semantic_ids_are_unique_and_count_in_order():
    codes = torch.tensor([[1, 2], [0, 5], [1, 2], [1, 2], [2, 1], [0, 5]])
    expected = [[1, 2, 0], [0, 5, 0], [1, 2, 1], [1, 2, 2], [2, 1, 0], [0, 5, 1]]
    assert semantic_ids(codes).tolist() == expected
    assert isinstance(semantic_ids(codes.numpy().astype(np.int32)), np.ndarray)
    assert semantic_ids(codes[:4]).tolist() == expected[:4]
    assert semantic_ids(codes[:0]).shape == (0, 3)
    many = torch.randint(4, (500, 3), generator=torch.Generator().manual_seed(0))
    ids = semantic_ids(many)
    assert torch.equal(ids[:, :3], many) and len(ids.unique(dim=0)) == 500


@pytest.mark.parametrize("codes", [np.zeros(3, int), np.zeros((3, 2)), np.zeros((3, 0), int)])
def test_refused_codes(codes):
    with pytest.raises(ValueError, match=r"codes: expected whole numbers of shape \(N, L\), got (int|float)64"):
        semantic_ids(codes)
