"""The split and the placement of scenes at full size, checked on the descriptions; where their objects are."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from soho_fast.data.mini.builder import corpus_scenes, object_map, objects_touching
from soho_fast.data.mini.concepts import CONCEPTS, DRAWN_IN
from soho_fast.data.mini.drawing import draw_scene
from soho_fast.data.mini.scenes import PHOTOS, Background, Scene, SceneObject, describe_scenes


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


WHITE, BLACK = (
    Background(colour=name, shades=((0.0, 0.0, value),) * 2) for name, value in (("white", 1), ("black", 0))
)


def _scene(*objects: SceneObject, background: Background = WHITE) -> Scene:
    return Scene(0, False, objects, background)


def test_a_scene_made_by_hand():
    """A football fills the top right quarter; a heart the bottom right one, over a book."""
    scene = _scene(
        SceneObject("soccer ball", 0.75, 0.25, 0.5, 0.0, False),
        SceneObject("blue book", 0.75, 0.75, 0.5, 0.0, False),
        SceneObject("red heart", 0.75, 0.75, 0.5, 0.0, False),
    )
    seen = object_map(scene, 64)
    assert (seen[:, :32] == -1).all() and seen[16, 48] == 0
    assert seen[48, 48] == 2, "the heart was drawn last"
    touched = objects_touching(scene, 2)
    assert touched["soccer ball"].tolist() == [[False, True], [False, False]]
    assert touched["red heart"].tolist() == touched["blue book"].tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize(("angle", "mirrored"), [(0.0, False), (11.5, False), (-9.0, True)])
def test_the_map_is_where_the_drawing_hides_the_background(angle, mirrored):
    items = [
        SceneObject("guitar", 0.3, 0.35, 0.5, angle, mirrored),
        SceneObject("dolphin", 0.85, 0.8, 0.45, -angle, mirrored),  # it reaches beyond the edge
    ]
    for item in items:
        drawn = [np.asarray(draw_scene(_scene(item, background=back), 96)).astype(int) for back in (WHITE, BLACK)]
        hidden = (drawn[0] - drawn[1]).max(-1) < 128
        seen = object_map(_scene(item), 96) == 0
        assert hidden.sum() > 300 and (seen != hidden).mean() < 2e-3, "up to rounding of half opaque pixels"
    both = object_map(_scene(*items), 96)
    assert np.array_equal(both == 1, object_map(_scene(items[1]), 96) == 0)


def test_scenes_are_found_by_the_names_of_their_images(corpus, scenes_by_id):
    scenes = corpus_scenes(corpus)
    assert len(scenes) == len(scenes_by_id)
    for name, scene in scenes.items():
        assert scene == scenes_by_id[int(name.rpartition("_")[2].removesuffix(".jpg"))]
        (path,) = corpus.glob(f"*/{name}")
        assert path.is_file()


def test_what_is_no_corpus_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no demo corpus"):
        corpus_scenes(tmp_path)
