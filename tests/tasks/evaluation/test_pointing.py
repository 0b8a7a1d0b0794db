"""Codes point: what they stand for is found on some images, and looked for on others."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from soho_fast.data.mini import build_corpus
from soho_fast.data.mini.builder import corpus_scenes, object_map, objects_touching
from soho_fast.tasks.evaluation.pointing import objects_of_codes, objects_touched, pointing
from soho_fast.tasks.evaluation.pretraining import area_under_curve

SIDE, NUM_CODES = 4, 12


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "soho-mini"
    return build_corpus(folder, num_train=8, num_heldout=4, image_size=64, seed=3, progress=False)


def planted(num_images: int, seed: int):
    """Images that show one of four objects in one place; its code lies on it, codes from 4 on anywhere."""
    generator = np.random.default_rng(seed)
    codes, touched = [], []
    for image in range(num_images):
        code_hw = generator.integers(4, NUM_CODES, (SIDE, SIDE))
        touched_hw = np.zeros((SIDE, SIDE), dtype=bool)
        row, column = generator.integers(0, SIDE - 1, 2)
        touched_hw[row : row + 2, column : column + 2] = True
        code_hw[row, column] = image % 4
        codes.append(code_hw)
        touched.append({f"object {image % 4}": touched_hw})
    return codes, touched


def test_codes_that_lie_on_their_object_point_at_it():
    objects = objects_of_codes(*planted(80, seed=0), NUM_CODES)
    assert objects == [None] * NUM_CODES, "each image has one of four objects: no lift is above 4"
    codes, touched = planted(80, seed=0)
    # As many images again without an object: those of an object have it eight times as often as all.
    empty = [np.full((SIDE, SIDE), 11)] * 80, [{}] * 80
    objects = objects_of_codes(codes + empty[0], touched + empty[1], NUM_CODES)
    assert objects == ["object 0", "object 1", "object 2", "object 3", *[None] * 8]
    found = pointing(objects, *planted(40, seed=1))
    assert found == (1.0, 4 / 16, 40, 4)
    codes, touched = planted(40, seed=1)
    missed = [{name: ~touched_hw for name, touched_hw in each.items()} for each in touched]
    assert pointing(objects, codes, missed) == (0.0, 12 / 16, 40, 4)


def test_padding_and_codes_of_other_images_are_not_counted():
    touched_hw = np.array([[True, False], [False, False]])
    code_hw = np.array([[0, 0], [1, -1]])
    found = pointing(["dog", "cat"], [code_hw], [{"dog": touched_hw}])
    assert found == (0.5, pytest.approx(1 / 3), 2, 2), "no cat is there, and what is padded is no patch"
    nothing = pointing([None, None], [code_hw], [{"dog": touched_hw}])
    assert math.isnan(nothing.share) and nothing.num_tokens == nothing.num_codes == 0


def test_few_images_make_no_association():
    codes, touched = [np.array([[0]])] * 4 + [np.array([[1]])] * 60, [{"dog": np.array([[True]])}] * 4 + [{}] * 60
    assert objects_of_codes(codes, touched, 2) == [None, None], "four images with both are too few"
    codes, touched = codes + codes[:1], touched + touched[:1]
    assert objects_of_codes(codes, touched, 2) == ["dog", None]


def test_touched_patches_are_those_in_which_an_object_is_seen(corpus):
    for name, scene in corpus_scenes(corpus).items():
        touched = objects_touched(str(corpus), f"train2014/{name}", 8, 8)
        seen = object_map(scene, 256)
        for word, touched_hw in touched.items():
            numbers = [number for number, item in enumerate(scene.objects) if item.name == word]
            for row, column in np.ndindex(8, 8):
                patch = seen[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
                assert touched_hw[row, column] == np.isin(patch, numbers).any()
        assert touched.keys() == objects_touching(scene, 8).keys() == {item.name for item in scene.objects}
        assert objects_touched(str(corpus), name, 8, 6) is None, "images of the corpus are square"
    assert objects_touched(str(corpus), "other.jpg", 8, 8) is None
    assert objects_touched(str(Path(corpus).parent), name, 8, 8) is None


def test_area_under_the_curve_is_the_share_of_ordered_pairs():
    generator = torch.Generator().manual_seed(0)
    negative, positive = (torch.randint(0, 9, (num,), generator=generator).float() for num in (40, 31))
    larger = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative).double()
    assert area_under_curve(negative, positive) == pytest.approx(float(larger.mean()))
    assert area_under_curve(negative, negative + 10) == 1.0 and area_under_curve(negative, negative) == 0.5
