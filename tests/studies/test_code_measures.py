"""What codes leave out of the features, by hand."""

import numpy as np
import pytest

from soho_fast.explore.codes import group_means, unexplained

# Two pairs, 2 and 4 apart, whose middles are 10 apart.
FEATURES = np.array([[0.0, -1], [0, 1], [10, -2], [10, 2]], dtype=np.float32)
VARIANCE = 4 * 25 + 1 + 1 + 4 + 4


def test_what_codes_leave_out_is_the_distance_to_them():
    middles = np.array([[0, 0], [0, 0], [10, 0], [10, 0]], dtype=np.float32)
    assert unexplained(FEATURES, middles) == pytest.approx(10 / VARIANCE)
    assert unexplained(FEATURES, FEATURES) == 0
    assert unexplained(FEATURES, np.full((4, 2), FEATURES.mean(0))) == pytest.approx(1), "one code in the middle"
    assert unexplained(FEATURES, middles + 3) > 10 / VARIANCE, "codes that lie elsewhere leave out more"
    assert unexplained(FEATURES[:1], FEATURES[:1]) == 0


def test_means_of_groups():
    assert group_means(FEATURES, np.array([3, 3, 1, 1])).tolist() == [[0, 0], [0, 0], [10, 0], [10, 0]]
