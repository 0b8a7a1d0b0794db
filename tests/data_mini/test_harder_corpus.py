"""Styles, held-out styles and what else makes a corpus harder; and that the demo's stays as it was."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw

from soho_fast.data.mini import build_corpus, photographs
from soho_fast.data.mini.__main__ import main
from soho_fast.data.mini.builder import corpus_scenes, object_map
from soho_fast.data.mini.concepts import CONCEPTS
from soho_fast.data.mini.drawing import draw_scene, load_cutout
from soho_fast.data.mini.options import CorpusOptions
from soho_fast.data.mini.scenes import Background, Finish, Scene, SceneObject, describe_scenes
from soho_fast.data.readers.captions import read_karpathy
from soho_fast.data.readers.questions import read_vqa
from soho_fast.data.readers.statements import read_nlvr2, read_snli_ve
from soho_fast.explore.licences import demo_licences

SIZES = {"num_train": 40, "num_heldout": 24, "image_size": 32, "seed": 2}


@pytest.fixture(scope="session")
def styles(tmp_path_factory):
    """Three folders of drawings: a disc, a square and a triangle of a colour that is the concept's own."""
    root = tmp_path_factory.mktemp("styles")
    for number, name in enumerate(("discs", "squares", "triangles")):
        (root / name).mkdir()
        for place, concept in enumerate(CONCEPTS.values()):
            art = Image.new("RGBA", (24, 24))
            colour = (40 + place, 250 - place, 80 * number)
            pen = ImageDraw.Draw(art)
            if number == 0:
                pen.ellipse((1, 1, 22, 22), fill=colour)
            elif number == 1:
                pen.rectangle((1, 1, 22, 22), fill=colour)
            else:
                pen.polygon(((1, 22), (22, 22), (12, 1)), fill=colour)
            art.save(root / name / f"{concept.code}.png")
    (root / "discs" / "licence.json").write_text('{"credit": "Ada Example", "licence": "CC0-1.0"}')
    return root


@pytest.fixture(scope="session")
def options(styles):
    return {
        "styles": ["twemoji", str(styles / "discs"), str(styles / "squares")],
        "heldout_styles": [str(styles / "triangles")],
        "max_objects": 6,
        "texts": 2,
        "photo_share": 0.6,
        "object_scale": 0.9,
        "max_rotation": 40.0,
        "overlap": 0.2,
        "noise": 0.05,
        "blur": 0.01,
        "jitter": 0.15,
    }


@pytest.fixture(scope="session")
def harder(tmp_path_factory, options):
    return build_corpus(tmp_path_factory.mktemp("harder") / "corpus", **SIZES, **options, progress=False)


def test_the_demo_corpus_is_as_it_was(corpus):
    """Every text of it, byte by byte, and its scenes; images' bytes also depend on the release of Pillow."""
    digest = hashlib.blake2b(digest_size=16)
    names = sorted(corpus.glob("*.json*")) + sorted(corpus.glob("[nsv]*/*.json*")) + [corpus / "tokenizer/vocab.txt"]
    for path in names:
        if path.name != "corpus.json":
            digest.update(path.relative_to(corpus).as_posix().encode() + path.read_bytes())
    assert len(names) == 16 and digest.hexdigest() == "b17dbbea1340bc0aaa2d7389cdb9b991"
    manifest = json.loads((corpus / "corpus.json").read_text())
    assert set(manifest["settings"]) == {"source", "num_train", "num_heldout", "image_size", "seed"}
    (scene,) = describe_scenes(1, 0, 0)[0]
    assert scene.finish is None and not scene.new_styles
    seen = np.asarray(draw_scene(scene, 64).resize((2, 2), Image.Resampling.BOX)).reshape(-1).astype(int)
    assert np.abs(seen - [242, 216, 121, 244, 214, 94, 243, 229, 121, 237, 210, 109]).max() <= 2


def test_held_out_styles_are_in_their_split_alone(harder, options):
    scenes = corpus_scenes(harder)
    drawn = {"train2014": set(), "val2014": set(), "test2015": set(), "styles": set()}
    for name, scene in scenes.items():
        drawn[name.split("_")[1]] |= {item.style.rpartition("/")[2] for item in scene.objects}
    assert drawn.pop("styles") == {"triangles"}
    assert set.union(*drawn.values()) == {"twemoji", "discs", "squares"} == drawn["train2014"]
    splits = Counter(image["split"] for image in json.loads((harder / "dataset_coco.json").read_text())["images"])
    assert splits == {"train": 37, "restval": 3, "val": 12, "test": 12, "styles": 24}
    others = {scene.objects for scene in scenes.values() if not scene.new_styles}
    assert not others & {scene.objects for scene in scenes.values() if scene.new_styles}, "other scenes, not redrawn"


def test_every_reader_reads_the_split_of_held_out_styles(harder):
    captioned = read_karpathy(harder / "dataset_coco.json", harder, ["styles"])
    assert len(captioned) == 24 and all(record.image.name.startswith("styles/") for record in captioned)
    assert len(read_karpathy(harder / "dataset_flickr30k.json", harder, ["styles"])) == 24
    for split, number in (("styles", 24 * 8), ("test2015", 12 * 8), ("train2014", 37 * 4)):
        questions, answers = (
            harder / "vqa" / f"v2_{name}mscoco_{split}_{what}.json"
            for name, what in (("OpenEnded_", "questions"), ("", "annotations"))
        )
        records = read_vqa(questions, harder, answers)
        assert len(records) == number and {record.image.name.split("/")[0] for record in records} == {split}
    pairs = read_nlvr2(harder / "nlvr2" / "styles.json", harder / "nlvr2" / "images")
    assert Counter(record.label for record in pairs) == dict.fromkeys((True, False), len(pairs) // 2) and pairs
    labels = Counter(record.label for record in read_snli_ve(harder / "snli_ve" / "snli_ve_styles.jsonl", harder))
    assert len(labels) == 3 and len(set(labels.values())) == 1 and 24 * 2 > labels.popitem()[1] > 24


def test_the_same_settings_give_the_same_bytes_wherever_the_styles_lie(harder, options, styles, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(styles, moved)
    other = {
        name: [part.replace(str(styles), str(moved)) for part in options[name]] for name in options if "styles" in name
    }
    again = build_corpus(tmp_path / "again", **SIZES, **(options | other), progress=False)
    first, second = (
        {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (harder, again)
    )
    assert first == second
    shutil.rmtree(moved)
    before = (again / "corpus.json").stat().st_mtime_ns
    build_corpus(again, **SIZES, **(options | other), progress=False)
    assert (again / "corpus.json").stat().st_mtime_ns == before, "a whole corpus needs no styles"
    assert len(corpus_scenes(again)) == 88


def test_both_sides_have_as_many_objects_and_no_pair_in_common():
    train, held_out = describe_scenes(600, 150, 0, CorpusOptions(max_objects=6, heldout_styles=("a/new",)))
    assert len(held_out) == 300
    # By the demo's split of pairs hardly a held-out scene in a hundred found a sixth.
    of_six = [np.mean([len(scene.objects) == 6 for scene in side]) for side in (train, held_out)]
    assert abs(of_six[0] - of_six[1]) < 0.06 and of_six[1] > 0.08
    pairs = [
        {tuple(sorted(pair)) for scene in side for pair in itertools.combinations([o.name for o in scene.objects], 2)}
        for side in (train, held_out)
    ]
    assert not pairs[0] & pairs[1]
    assert min(Counter(name for scene in train for name in scene.counts).values()) > 8


def test_an_object_is_drawn_in_its_style_and_found_there(styles):
    plain = Background(colour="white", shades=((0.0, 0.0, 1.0),) * 2)
    item = SceneObject("dog", 0.5, 0.5, 0.6, 0.0, False, str(styles / "triangles"))
    scene = Scene(0, True, (item,), plain)
    assert draw_scene(scene, 64).getpixel((32, 40)) == load_cutout("dog", item.style).getpixel((14, 18))[:3]
    seen = object_map(scene, 64)
    assert 0.3 < (seen == 0).sum() / (0.6 * 64) ** 2 < 0.6, "a triangle is half of its square"


def test_noise_blur_and_light_are_what_the_scene_says():
    gray = Background(colour="gray", shades=((0.0, 0.0, 0.5),) * 2)

    def pixels(**changes):
        finish = Finish(**{"brightness": 1, "contrast": 1, "saturation": 1, "blur": 0, "noise": 0, "seed": 7} | changes)
        heart = SceneObject("red heart", 0.5, 0.5, 0.5, 0.0, False)
        return np.asarray(draw_scene(Scene(0, False, (heart,), gray, finish), 64)).astype(float)

    plain = pixels()
    assert abs((pixels(noise=0.05) - plain)[:16].std() - 0.05 * 255) < 1.0
    assert (
        np.array_equal(pixels(noise=0.05), pixels(noise=0.05)) and pixels(noise=0.05, seed=8)[0, 0, 0] != plain[0, 0, 0]
    )
    assert abs(pixels(brightness=1.1)[0, 0, 0] / plain[0, 0, 0] - 1.1) < 0.02
    steps = [np.abs(np.diff(image, axis=1)).max() for image in (plain, pixels(blur=0.02))]
    assert steps[1] < 0.7 * steps[0]
    centre = [np.ptp(image[32, 32]) for image in (plain, pixels(saturation=0.85))]
    assert centre[1] < 0.95 * centre[0]


def test_licences_of_styles_come_with_the_corpus(harder):
    text = (harder / "ATTRIBUTION.txt").read_text()
    assert "Twemoji" in text and "Ada Example" in text and "CC0-1.0" in text
    found = demo_licences(str(harder))
    scenes = corpus_scenes(harder)
    for name, scene in scenes.items():
        whose = [entry["credit"] for entry in found[name.removesuffix(".jpg")]]
        assert ("Ada Example" in whose) == any(item.style.endswith("/discs") for item in scene.objects)
        assert any("Twitter" in credit for credit in whose) == any(item.style == "twemoji" for item in scene.objects)
        assert len(whose) == len({item.style for item in scene.objects}) + (scene.background.photo is not None)


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ({"max_objects": 7}, ValueError, "max_objects: expected 1 to 6, got 7"),
        ({"max_objects": 2.0}, TypeError, "max_objects: expected a whole number, got 2.0"),
        ({"noise": -0.1}, ValueError, "noise: expected 0.0 to 0.2, got -0.1"),
        ({"noise": float("nan")}, TypeError, "noise: expected a number, got nan"),
        ({"photo_share": "half"}, TypeError, "photo_share: expected a number, got 'half'"),
        ({"monuments": 1}, TypeError, "monuments: expected true or false, got 1"),
        ({"styles": []}, ValueError, "styles: expected one style or more, got none"),
        ({"styles": "noto"}, TypeError, "styles: expected a list of styles"),
        ({"styles": ["a/x"], "heldout_styles": ["b/x"]}, ValueError, "x comes twice; expected different styles"),
        ({"styles": ["no/such"]}, FileNotFoundError, "style no/such: there is no such folder of drawings; `python -m"),
        ({"colour": 1}, TypeError, "colour"),
    ],
)
def test_options_that_cannot_be(tmp_path, bad, error, words):
    with pytest.raises(error, match=words):
        build_corpus(tmp_path / "corpus", **SIZES, **bad, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_style_without_a_concept_is_refused(styles, tmp_path):
    shutil.copytree(styles / "discs", tmp_path / "lacking")
    (tmp_path / "lacking" / f"{CONCEPTS['giraffe'].code}.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"each of the 124 concepts; 1 are missing, first 1f992.png \(giraffe\)"
    ):
        build_corpus(tmp_path / "corpus", **SIZES, styles=[str(tmp_path / "lacking")], progress=False)


def test_monuments_need_the_package_and_the_command_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(photographs, "FOLDER", tmp_path)
    photographs.read_photographs.cache_clear()
    assert main(["--out", str(tmp_path / "corpus"), "--monuments", "--quiet"]) == 2
    assert "apt-get install --no-install-recommends gcompris-qt-data" in capsys.readouterr().err
    scenes = describe_scenes(300, 100, 0, CorpusOptions(monuments=True, photo_share=1.0))
    photos = [{scene.background.photo for scene in side} for side in scenes]
    assert not photos[0] & photos[1] and all(sum("gcompris" in name for name in side) > 10 for side in photos)
    for scene in itertools.chain(*scenes):
        if scene.background.photo.startswith("gcompris"):
            assert not {item.concept.category for item in scene.objects} & {"building", "plant", "vehicle"}
