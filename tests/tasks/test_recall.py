import pytest
import torch

from soho_fast.tasks.recall import recall_at

SCORES = torch.tensor(
    [
        [0.9, 0.1, 0.2, 0.3],  # target 0: first
        [0.9, 0.8, 0.1, 0.2],  # target 1: second
        [0.5, 0.6, 0.1, 0.9],  # target 2: last
        [0.5, 0.5, 0.1, 0.5],  # target 3: ties with two others
    ]
)


def test_hand_made_scores():
    recall = recall_at(SCORES, torch.arange(4), (1, 2, 3, 4))
    assert recall[1] == pytest.approx((1 + 0 + 0 + 1 / 3) / 4)
    assert recall[2] == pytest.approx((1 + 1 + 0 + 2 / 3) / 4)
    assert recall[3] == pytest.approx((1 + 1 + 0 + 1) / 4)
    assert recall[4] == 1.0


def test_columns_are_the_other_direction():
    recall = recall_at(SCORES.T, torch.arange(4), (1,))
    assert recall[1] == pytest.approx((0.5 + 1 + 0 + 0) / 4)


def test_a_blind_model_gets_exactly_chance():
    recall = recall_at(torch.zeros(40, 40), torch.arange(40))
    assert recall == {1: pytest.approx(1 / 40), 5: pytest.approx(5 / 40), 10: pytest.approx(10 / 40)}


def test_refusals():
    with pytest.raises(ValueError, match="NaN"):
        recall_at(torch.full((2, 2), float("nan")), torch.arange(2))
    with pytest.raises(ValueError, match=r"expected scores \(Q, N\)"):
        recall_at(torch.zeros(2, 3), torch.arange(3))
