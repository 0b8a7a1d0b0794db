"""The split and the placement of scenes at full size, checked on the descriptions."""

from __future__ import annotations

import itertools
import math
from collections import Counter

from soho_fast.data.mini.concepts import CONCEPTS, DRAWN_IN
from soho_fast.data.mini.scenes import PHOTOS, describe_scenes


def _pairs(scenes):
    """Pairs of objects seen together, same-concept pairs included, computed from the names alone."""
    return {
        tuple(sorted(pair)) for scene in scenes for pair in itertools.combinations([o.name for o in scene.objects], 2)
    }


def test_no_pair_of_concepts_is_on_both_sides(full_scenes):
    train, held_out = (_pairs(scenes) for scenes in full_scenes)
    assert len(train) > 3000 and len(held_out) > 500
    assert not train & held_out


def test_every_concept_is_trained_and_tested(full_scenes):
    assert len(CONCEPTS) >= 100
    train, held_out = (Counter(name for scene in scenes for name in scene.counts) for scenes in full_scenes)
    assert min(train[name] for name in CONCEPTS) >= 60
    assert min(held_out[name] for name in CONCEPTS) >= 5


def test_backgrounds_differ_between_the_sides(full_scenes):
    photos = [{scene.background.photo for scene in scenes} - {None} for scenes in full_scenes]
    assert photos[0] and photos[1] and not photos[0] & photos[1]
    for scenes, low, high in zip(full_scenes, (0, 180), (180, 360), strict=True):
        assert all(low <= scene.background.direction <= high for scene in scenes if scene.background.colour)
    colours = [Counter(scene.background.colour for scene in scenes) for scenes in full_scenes]
    assert set(colours[0]) == set(colours[1]), "every colour word must occur on both sides"


def test_placements_differ_between_the_sides(full_scenes):
    squares = [
        {(int(item.x * 16), int(item.y * 16)) for scene in scenes for item in scene.objects} for scenes in full_scenes
    ]
    assert squares[0] and squares[1] and not squares[0] & squares[1]


def test_objects_are_inside_and_apart(full_scenes):
    for scene in itertools.chain(*full_scenes):
        assert 1 <= len(scene.objects) <= 4
        for item in scene.objects:
            assert item.size / 2 - 1e-3 <= min(item.x, item.y)
            assert max(item.x, item.y) <= 1 - item.size / 2 + 1e-3
        for first, second in itertools.combinations(scene.objects, 2):
            assert math.dist((first.x, first.y), (second.x, second.y)) >= 0.45 * (first.size + second.size)
    sizes = [item.size for scene in full_scenes[0] for item in scene.objects]
    assert min(sizes) > 0.25 and 0.33 < sum(sizes) / len(sizes) < 0.45


def test_background_neither_hides_nor_shows_an_object(full_scenes):
    for scene in itertools.chain(*full_scenes):
        barred = set(PHOTOS[scene.held_out].get(scene.background.photo, ()))
        for item in scene.objects:
            assert not barred & {item.name, item.concept.category}
            assert scene.background.colour is None or item.concept.colour != scene.background.colour
            assert item.name not in DRAWN_IN.get(scene.background.colour, ())


def test_scenes_depend_on_the_seed_only():
    assert describe_scenes(20, 8, 1) == describe_scenes(20, 8, 1)
    assert describe_scenes(20, 8, 1) != describe_scenes(20, 8, 2)
    assert describe_scenes(20, 8, 1)[1] == describe_scenes(35, 8, 1)[1], "held-out scenes must not follow num_train"
