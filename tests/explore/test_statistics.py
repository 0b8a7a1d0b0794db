"""What all images together say of a code, against the obvious program."""

import numpy as np
import pytest
from explore_made import codebook, filled, seen_images

from soho_fast.explore.statistics import (
    count_usage,
    near_codes,
    places_in_plane,
)

NUM_CODES = 12


def test_the_heat_map_of_a_large_grid_has_sixteen_rows(tmp_path):
    images = seen_images(2, NUM_CODES, size=(33, 5))
    usage = count_usage(filled(images, tmp_path), NUM_CODES)
    assert (usage.position_rows, usage.position_columns) == (16, 5)
    assert usage.positions.sum() == pytest.approx(usage.tokens.sum(), rel=1e-12)


@pytest.mark.parametrize("num_codes", [1, 2, 9, 10, 300])
def test_near_codes(num_codes):
    codes = codebook(num_codes)
    codes[num_codes // 2] = codes[0]  # a duplicate, whose distance must be exactly 0
    number, distance = near_codes(codes)
    exact = np.sqrt(((codes[:, None].astype(np.float64) - codes) ** 2).sum(2))
    assert number.shape == distance.shape == (num_codes, min(8, num_codes - 1))
    for code in range(num_codes):
        others = sorted((other for other in range(num_codes) if other != code), key=lambda o: (exact[code, o], o))
        assert number[code].tolist() == others[:8]
        np.testing.assert_allclose(distance[code], exact[code, others[:8]], rtol=1e-12, atol=0)


def test_the_plane_is_that_in_which_active_codes_lie():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(40, 2)) * (5.0, 2.0)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    codes = np.concatenate([np.pad(plane, ((0, 0), (0, 4))) @ turn, [np.full(6, 1e6)]]).astype(np.float32)
    is_active = np.arange(41) < 40
    place = places_in_plane(codes, is_active)
    assert place.shape == (41, 2) and (place >= 0).all() and (place <= 1).all(), "the dead code is on the border"
    assert np.ptp(place[:40, 0]) == pytest.approx(1.0, rel=1e-5), "the wide direction comes first, and fills it"
    here = np.linalg.norm(place[:40, None] - place[None, :40], axis=2)
    there = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    np.testing.assert_allclose(here * (there.max() / here.max()), there, rtol=0, atol=1e-4 * there.max())


@pytest.mark.parametrize("codes", [np.zeros((3, 2)), np.ones((1, 5)), np.arange(4.0)[:, None]])
def test_the_plane_of_hardly_anything(codes):
    place = places_in_plane(codes.astype(np.float32), np.zeros(len(codes), dtype=bool))
    assert np.isfinite(place).all() and (place >= 0).all() and (place <= 1).all()


def test_the_plane_of_one_live_code_has_it_in_the_middle():
    codes = np.array([[0.0, 0.0], [1e6, 0.0], [0.0, -1e6]], dtype=np.float32)
    with np.errstate(all="raise"):
        place = places_in_plane(codes, np.array([True, False, False]))
    assert place[0].tolist() == [0.5, 0.5] and sorted(map(sorted, place[1:].tolist())) in ([[0.0, 0.5], [0.5, 1.0]],)
