"""Codes point: what they stand for is found on some images, and looked for on others."""

import math
from collections import ChainMap
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from soho_fast.data.mini import build_corpus
from soho_fast.data.mini.builder import corpus_scenes, object_map, objects_touching
from soho_fast.tasks.evaluation import pointing as measured
from soho_fast.tasks.evaluation.pointing import measure_pointing, objects_of_codes, objects_touched, pointing
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
    assert found == (1.0, 4 / 16, 1.0, 4 / 16, 40 / 160, 40, 4), "of an object's four patches one has its code"
    codes, touched = planted(40, seed=1)
    missed = [{name: ~touched_hw for name, touched_hw in each.items()} for each in touched]
    assert pointing(objects, codes, missed) == (0.0, 12 / 16, 0.0, 12 / 16, 0.0, 40, 4)


def test_padding_and_codes_of_other_images_are_not_counted():
    touched_hw = np.array([[True, False], [False, True]])
    code_hw = np.array([[0, 0], [1, -1]])
    found = pointing(["dog", "cat"], [code_hw], [{"dog": touched_hw}])
    # Of all three tokens the cat's lies nowhere; of the dog's two patches one is padding.
    assert found == (0.5, pytest.approx(1 / 3), pytest.approx(1 / 3), pytest.approx(2 / 9), 1.0, 2, 2)
    nothing = pointing([None, None], [code_hw], [{"dog": touched_hw}])
    assert math.isnan(nothing.share) and math.isnan(nothing.share_of_all) and nothing.found == 0.0
    assert nothing.num_tokens == nothing.num_codes == 0 and nothing.metrics() == {}


def test_tokens_in_images_without_the_object_count_among_all():
    codes = [np.array([[0, 0], [1, -1]]), np.array([[0, 1], [1, 2]])]
    touched = [
        {"dog": np.array([[True, False], [False, False]])},
        # Two objects lie on one patch: two pairs, of which a code finds one at most.
        {"cat": np.array([[True, True], [False, False]]), "ball": np.array([[True, False], [False, False]])},
    ]
    assert pointing(["dog", "cat", None], codes, touched).metrics() == pytest.approx(
        {
            "pointing": 2 / 4,
            "pointing_any_patch": (2 * 1 / 3 + 2 * 2 / 4) / 4,
            "pointing_all": 2 / 6,
            "pointing_all_any_patch": (2 * 1 / 3 + 2 * 2 / 4) / 6,
            "pointing_found": 2 / 4,
        }
    )
    k_means = pointing(["dog", "cat", None], codes, touched).metrics("_k_means")
    assert k_means == {"pointing_k_means": 2 / 4, "pointing_all_k_means": 2 / 6, "pointing_found_k_means": 2 / 4}


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


class _Planted(nn.Module):
    """Its CNN sees, in each half of a token's side, which object lies there; its codes are those of a column before."""

    def __init__(self, label_of: dict[str, np.ndarray], num_labels: int) -> None:
        super().__init__()
        self.maps = [torch.from_numpy(label_hw) for label_hw in label_of.values()]
        self.number_of = {name: number for number, name in enumerate(label_of)}
        self.config = SimpleNamespace(
            dictionary="paper", use_dictionary_output=True, num_codes=num_labels, official=None
        )
        self.visual_encoder = SimpleNamespace(backbone_output=self.backbone_output, pool=2)
        # What is looked up has moved by two columns.
        self.visual_dictionary = SimpleNamespace(words=lambda feat_BLC: feat_BLC)

    def base(self):
        return self

    def backbone_output(self, pixel_values, pixel_mask, shift=0):
        seen_Bhw = torch.stack([self.maps[int(number)] for number in 1000 * pixel_values[:, 0, 0, 0]]).roll(shift, -1)
        seen_BChw = F.one_hot(seen_Bhw, self.config.num_codes).float().movedim(-1, 1)
        fine_BChw = seen_BChw.repeat_interleave(2, 2).repeat_interleave(2, 3)
        # Only the mean of a window says what lies there.
        # Whole numbers, or how a sum is rounded would decide what k-means begins with.
        fine_BChw[:, :, ::2] += torch.randint_like(fine_BChw[:, :, ::2], -9, 10)
        fine_BChw[:, :, 1::2] += 2 * seen_BChw.repeat_interleave(2, 3) - fine_BChw[:, :, ::2]
        return fine_BChw, pixel_mask

    def encode_images(self, backbone_features, backbone_mask):
        assert backbone_mask is None
        index_Bhw = F.avg_pool2d(backbone_features, 2).argmax(1).roll(1, -1)
        valid_BL = torch.ones_like(index_Bhw, dtype=torch.bool).flatten(1)
        looked_BLC = F.one_hot(index_Bhw.roll(1, -1).flatten(1), self.config.num_codes).float()
        return SimpleNamespace(
            features=looked_BLC, index=index_Bhw.flatten(1), valid=valid_BL, columns=index_Bhw.shape[2]
        )

    def pixels(self, number):
        """The deviation of a patch's colours is its label's, the mean says nothing."""
        checked_HW = (torch.arange(4 * SIDE)[:, None] + torch.arange(4 * SIDE)) % 2 * 2 - 1
        label_HW = self.maps[number].repeat_interleave(4, 0).repeat_interleave(4, 1)
        return torch.stack([torch.full(label_HW.shape, number / 1000), label_HW * checked_HW, label_HW * checked_HW])


def test_codes_and_k_means_afterwards_are_measured_alike(corpus, monkeypatch):
    monkeypatch.setattr(measured, "LEAST_IMAGES", 1)
    torch.manual_seed(1)  # of the noise: with some draws k-means leaves two labels in one cluster
    scenes = corpus_scenes(corpus)
    touched_of = {name: objects_touching(scene, SIDE) for name, scene in scenes.items()}
    heldout, training = list(scenes)[8:], list(scenes)[:8]
    words = sorted({word for name in training for word in touched_of[name]})
    label_of = {}
    for name, touched in touched_of.items():
        label_of[name] = np.zeros((SIDE, SIDE), dtype=np.int64)
        for word in touched.keys() & set(words):
            label_of[name][touched[word]] = 1 + words.index(word)
    model, store = _Planted(label_of, len(words) + 1), str(corpus)
    images = SimpleNamespace(
        load=lambda ref: model.number_of[ref.name],
        collate_bytes=lambda numbers: {
            "pixel_values": torch.stack([model.pixels(number) for number in numbers]),
            "pixel_mask": None,
        },
        normalised=dict,
    )
    refs = {name: SimpleNamespace(store=store, name=name) for name in scenes}
    task = SimpleNamespace(
        heldout_records=[SimpleNamespace(image=refs[name]) for name in heldout],
        processor=SimpleNamespace(image_processor=images),
        precision="float32",
        image_batch=3,
        workers=0,
        encoder_at_start=lambda device: SimpleNamespace(backbone_output=partial(model.backbone_output, shift=1)),
    )
    found = measure_pointing(task, model, [refs[name] for name in training])

    def expected(codes_of, end=""):
        parts = [
            ([codes_of[name] for name in each], [touched_of[name] for name in each]) for each in (training, heldout)
        ]
        return pointing(objects_of_codes(*parts[0], len(words) + 1), *parts[1]).metrics(end)

    before, looked_up = ({name: np.roll(label_hw, by, -1) for name, label_hw in label_of.items()} for by in (1, 2))
    rivals = {"": label_of, "_start": before, "_words": looked_up, "_colour": label_of}
    of_rivals = [expected(codes_of, f"{name}_k_means") for name, codes_of in rivals.items()]
    assert found == pytest.approx(expected(before) | dict(ChainMap(*of_rivals)))
    assert found["pointing_all"] < found["pointing_all_k_means"] and found["pointing"] < found["pointing_k_means"]
    model.config.num_codes = 1 + (len(training)) * SIDE * SIDE
    assert not [name for name in measure_pointing(task, model, [refs[name] for name in training]) if "means" in name]
    model.config.dictionary = "none"
    assert measure_pointing(task, model, [refs[name] for name in training]) == {}


def test_area_under_the_curve_is_the_share_of_ordered_pairs():
    generator = torch.Generator().manual_seed(0)
    negative, positive = (torch.randint(0, 9, (num,), generator=generator).float() for num in (40, 31))
    larger = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative).double()
    assert area_under_curve(negative, positive) == pytest.approx(float(larger.mean()))
    assert area_under_curve(negative, negative + 10) == 1.0 and area_under_curve(negative, negative) == 0.5
