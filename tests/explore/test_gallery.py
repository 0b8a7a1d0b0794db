"""Which pictures are shown, and which of their patches: distinct, in order, the same whatever comes together."""

import dataclasses

import numpy as np
import pytest
from explore_made import filled, patches_of, seen_images

from soho_fast.explore.gallery import SmallestOfEach, assigned_patches, choose_images, choose_occurrences, draw

NUM_CODES = 12


def images_of_codes(images):
    return {code: {patch[0] for patch in patches} for code, patches in patches_of(images).items()}


@pytest.mark.parametrize("most", [100, 150, 199])
def test_each_code_has_twelve_images_where_it_has_that_many(tmp_path, most):
    images = seen_images(200, 40)
    has = images_of_codes(images)
    count = np.array([len(has.get(code, ())) for code in range(40)])
    assert (count == 0).any() and ((count > 0) & (count < 12)).any() and (count > 100).any()
    chosen = choose_images(filled(images, tmp_path), count, most)
    assert len(chosen) == most and len(set(chosen.tolist())) == most and (np.diff(chosen) > 0).all()
    shown = [len(has.get(code, set()) & set(chosen.tolist())) for code in range(40)]
    assert all(here >= min(12, there) for here, there in zip(shown, count, strict=True))


def test_what_is_left_goes_to_the_nearest_of_each_code(tmp_path):
    images = seen_images(200, 40)
    patches = patches_of(images)
    count = np.array([len({patch[0] for patch in patches[code]}) for code in range(40)])
    chosen = choose_images(filled(images, tmp_path), count, 150).tolist()
    for code in np.flatnonzero(count):
        assert min(patches[code], key=lambda patch: (patch[3], patch[0]))[0] in chosen


def test_without_distances_the_images_are_drawn(tmp_path):
    images = [dataclasses.replace(image, distance=None) for image in seen_images(400, 4, size=(2, 2))]
    chosen = choose_images(filled(images, tmp_path), np.full(4, 100), 40)
    assert (chosen < 40).sum() < 12, "not the first ones"


def test_more_rare_codes_than_images_share_them(tmp_path):
    """No picture has a code of another, so that not all can have twelve."""
    images = seen_images(90, 8, size=(1, 1))
    for number, image in enumerate(images):
        image.index[0, 0] = number // 3
    chosen = choose_images(filled(images, tmp_path), np.full(30, 3), 20)
    assert len(chosen) == 20


def test_smallest_of_each_is_the_same_in_one_call_and_in_many():
    rng = np.random.default_rng(0)
    image = np.sort(rng.integers(100, size=3000))
    code, key = rng.integers(5, size=3000), rng.integers(50, size=3000).astype(float)
    best = {}
    for c, i, k in zip(code, image, key, strict=True):
        best[c, i] = min(k, best.get((c, i), np.inf))
    for size in (1, 10, 100):
        smallest = SmallestOfEach(5)
        for first in range(0, 100, size):
            some = (image >= first) & (image < first + size)
            smallest.add(code[some], image[some], key[some])
        for c in range(5):
            ordered = sorted((k, i) for (other, i), k in best.items() if other == c)
            assert smallest.image[c].tolist() == [i for _, i in ordered[:12]]


def test_occurrences(tmp_path):
    images = seen_images(60, NUM_CODES)
    shown = np.array([1, *range(4, 60, 2)])
    shown_N = np.full(60, -1)
    shown_N[shown] = np.arange(len(shown))
    (chunk,) = filled(images, tmp_path).tokens()
    members = assigned_patches(chunk, shown_N, 0, NUM_CODES)
    patches = patches_of(images)
    place_of = {image: place for place, image in enumerate(shown.tolist())}
    for code in range(NUM_CODES):
        here = [(place_of[i], r, c, d) for i, r, c, d in patches[code] if i in place_of]
        keys = {
            (p, r, c): int(draw(shown[[p]], np.array([r * images[shown[p]].index.shape[1] + c]))[0])
            for p, r, c, _ in here
        }
        found = {kind: records(at) for kind, at in choose_occurrences(members[members["code"] == code]).items()}
        nearest = first_of_each_picture(sorted(here, key=lambda patch: (patch[3], patch[:3])))
        assert found["nearest"] == nearest[:12]
        drawn = first_of_each_picture(sorted(here, key=lambda patch: keys[patch[:3]]))
        assert found["random"] == drawn[:12]
        assert len(found["quantiles"]) == min(12, len(drawn)) and set(found["quantiles"]) <= set(drawn)
        distances = sorted(patch[3] for patch in drawn)
        if len(drawn) > 12:
            steps = [round(step * (len(drawn) - 1) / 11) for step in range(12)]
            assert [patch[3] for patch in found["quantiles"]] == [distances[step] for step in steps]
        for at in found.values():
            assert len({patch[0] for patch in at}) == len(at), "distinct pictures"
    assert not patches[NUM_CODES - 1] and len(choose_occurrences(members[members["code"] == 0])["nearest"]) == 1
    some = assigned_patches(chunk, shown_N, 3, 5)
    assert some.tolist() == members[np.isin(members["code"], [3, 4])].tolist()


def records(at):
    return at[["image", "row", "column", "distance"]].tolist()


def first_of_each_picture(patches):
    return [patch for place, patch in enumerate(patches) if patch[0] not in {before[0] for before in patches[:place]}]
