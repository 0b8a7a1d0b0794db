"""Which object covers each patch, against what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from soho_fast.data.mini.builder import corpus_scenes, object_map, objects_touching
from soho_fast.data.mini.drawing import draw_scene
from soho_fast.data.mini.scenes import Background, Scene, SceneObject

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
