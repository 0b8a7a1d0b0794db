"""Whether codes mean something: planted meaning is found whole, and none where there is none."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from soho_fast.data.mini import build_corpus
from soho_fast.data.mini.builder import corpus_scenes, objects_in_patches
from soho_fast.explore import codes as measured
from soho_fast.explore.codes import (
    count_labels,
    k_means,
    normalised_mutual_information,
    purity,
    shuffled,
    words_of_active_codes,
)
from soho_fast.explore.words import is_associated

CELLS = 4
NUM_CODES = 200


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "soho-mini"
    return build_corpus(folder, num_train=60, num_heldout=4, image_size=32, seed=1, progress=False)


class _PlantedSource:
    """A code is the name of the object under its patch, or of the background; features lie close about it."""

    def __init__(self, corpus) -> None:
        self.scenes = corpus_scenes(corpus)
        self.codebook, self.num_codes, self.num_levels = np.zeros((NUM_CODES, 8), dtype=np.float32), NUM_CODES, 1
        self.num_images = len(self.scenes)
        self.store = str(corpus)
        self.number_of: dict[str, int] = {}
        self.held_out = sorted(self.scenes)[::4]

    def batches(self):
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(NUM_CODES, 8, generator=generator) * 100
        for name, scene in self.scenes.items():
            background = scene.background.photo or scene.background.colour
            names = [f"behind {background}", *(item.name for item in scene.objects)]
            numbers = [self.number_of.setdefault(each, len(self.number_of)) for each in names]
            index_hw = torch.tensor(numbers)[objects_in_patches(scene, CELLS, CELLS).astype(int) + 1]
            padded_hw = torch.full((CELLS, CELLS + 1), -1)
            padded_hw[:, :CELLS] = index_hw
            noise = torch.randn(padded_hw.numel(), 8, generator=generator)
            ref = SimpleNamespace(store=self.store, name=f"some/{name}")
            words = " ".join(f"word{number}" for number in set(index_hw.flatten().tolist()))
            yield SimpleNamespace(
                images=[SimpleNamespace(ref=ref, captions=[words], held_out=name in self.held_out)],
                index=padded_hw[None, None],
                features=(centres[padded_hw.clamp(min=0).flatten()] + noise)[None],
            )


def test_a_planted_dictionary_is_pure_and_a_shuffled_one_is_not(corpus):
    table = measured.measure(_PlantedSource(corpus), say=lambda _: None)
    assert table.columns == ["measure", "the model's codes", "k-means", "shuffled codes"]
    rows = {name: values for name, *values in table.rows}
    assert rows["purity, objects"][0] == rows["NMI, objects"][0] == "100.0% ± 0.0%"
    found = {
        name: [float(value.partition("%")[0]) for value in values] for name, values in rows.items() if "%" in values[0]
    }
    _, means, chance = found["purity, objects"]
    assert means == 100.0 and chance < 60
    assert found["NMI, objects"][2] < found["NMI, objects"][1] < 100.0, "there are more means than objects"
    planted, _, by_chance = found["codes associated with a word"]
    assert planted > by_chance == 0.0
    assert "64 images, 1,024 patches" in table.title


def test_a_planted_dictionary_points_and_a_shuffled_one_does_not(corpus, monkeypatch):
    monkeypatch.setattr("soho_fast.tasks.evaluation.pointing.LEAST_IMAGES", 1)
    source = _PlantedSource(corpus)
    rows = {name: values for name, *values in measured.measure(source, say=lambda _: None).rows}
    assert rows["patches on their code's object, held-out images that show it"] == ["100.0%", "100.0%", "-"]
    any_patch, *_ = rows["any patch there"]
    assert 0 < float(any_patch.rstrip("%")) < 50
    # With one image enough, backgrounds stand for objects too, and are seen without them.
    for name in ("patches on their code's object, all held-out images", "patches of objects found, held-out images"):
        assert rows[name][2] == "-" and all(0 < float(share.rstrip("%")) < 50 for share in rows[name][:2])
    source.held_out = []
    assert not any("held-out" in name for name, *_ in measured.measure(source, say=lambda _: None).rows)


def test_without_a_demo_corpus_words_alone_are_measured(corpus):
    source = _PlantedSource(corpus)
    source.store = "/nowhere"
    table = measured.measure(source, say=lambda _: None)
    assert [row[0] for row in table.rows] == [
        "codes with a token",
        "perplexity of their use",
        "codes associated with a word",
    ]


def test_labels_are_those_under_the_cells(corpus):
    """Row by row: a transposed map would give other labels."""
    source = _PlantedSource(corpus)
    seen = measured.look(source, say=lambda _: None)
    names = list(seen.labels)
    number_of = {number: name for name, number in source.number_of.items()}
    for code, label, is_object in zip(seen.code, seen.label, seen.is_object, strict=True):
        planted = number_of[int(code)]
        assert is_object == (not planted.startswith("behind "))
        assert names[label] == (planted if is_object else "")
    assert 0.05 < seen.is_object.mean() < 0.5


def test_a_runs_row_and_the_table_have_the_same_numbers(corpus):
    seen = measured.look(_PlantedSource(corpus), say=lambda _: None)
    found = seen.metrics(seen.code, NUM_CODES)
    words = words_of_active_codes(seen.code, seen.image, seen.captions)
    assert found["with_a_token"] == len(words) and found["purity"] == found["nmi"] == 1.0
    assert found["claims"] == np.mean([is_associated(each) for each in words]) > 0
    assert found["lift"] == pytest.approx(np.mean([max([1.0, *each["low"][:1]]) for each in words]))


def test_purity_and_information_by_hand():
    code, label = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 1])
    table = count_labels(code, label, 4, 2)
    assert table.tolist() == [[2, 1], [0, 2], [0, 1], [0, 0]]
    assert purity(table) == pytest.approx(5 / 6)
    assert normalised_mutual_information(table) == pytest.approx(normalized_mutual_info_score(label, code))
    weighted = count_labels(code, label, 4, 2, np.array([0.0, 1, 3, 1, 1, 0]))
    assert purity(weighted) == pytest.approx(5 / 6) and weighted[0].tolist() == [1, 3]


def test_of_labels_at_random_information_is_nothing_and_purity_is_chance():
    generator = np.random.default_rng(0)
    code, label = generator.integers(8, size=40_000), generator.integers(10, size=40_000)
    table = count_labels(code, label, 8, 10)
    assert normalised_mutual_information(table) < 1e-3
    assert 0.1 < purity(table) < 0.12


def test_shuffled_codes_are_as_many_and_lie_elsewhere():
    code = np.repeat(np.arange(5), [10, 200, 30, 4, 1000])
    other = shuffled(code)
    assert np.array_equal(np.bincount(other), np.bincount(code)) and (other != code).mean() > 0.3
    assert np.array_equal(other, shuffled(code))


def test_k_means_find_what_is_apart_and_take_no_more_means_than_features():
    features = np.repeat(np.eye(3, 4, dtype=np.float32) * 50, 40, axis=0)
    features += np.random.default_rng(0).normal(size=features.shape).astype(np.float32)
    found = k_means(features, 3)
    assert [len(set(found[first : first + 40])) for first in (0, 40, 80)] == [1, 1, 1] and len(set(found)) == 3
    assert sorted(k_means(features[:2], 3)) == [0, 1]


def associated(codes, images, captions):
    return list(map(is_associated, words_of_active_codes(codes, images, captions)))


def test_a_code_is_associated_with_a_word_that_its_images_have_and_others_do_not():
    # Codes 0 and 1 halve the images, code 2 is in all, code 4 in two; code 3 has no token.
    image = np.arange(200)
    codes = np.concatenate([image % 2, np.full(200, 2), [4, 4]])
    images = np.concatenate([image, image, [0, 2]])
    captions = [["even" if number % 2 == 0 else "odd"] for number in image]
    assert associated(codes, images, captions) == [True, True, False, False]
    assert associated(codes, images, [[]] * 200) == [False] * 4


def test_images_without_captions_say_nothing_of_words():
    """Two data sets, one without captions: a code of the other one is not associated with its words."""
    rng = np.random.default_rng(0)
    captions = [[str(rng.choice(["dog", "cat"]))] if image < 200 else ["", " "] for image in range(400)]
    image = np.repeat(np.arange(400), 4)
    codes = rng.integers(10, size=1600) + 10 * (image >= 200)
    assert associated(codes, image, captions) == [False] * 20
