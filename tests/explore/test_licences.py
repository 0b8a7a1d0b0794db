"""Which licences hold for a picture: what stands beside it, what the demo corpus was composed of, or that it is not
known."""

import json

import pytest

from soho_fast.data.mini import build_corpus
from soho_fast.data.mini.concepts import COLOURS
from soho_fast.explore.licences import Licences, demo_licences, read_licences

HARBOUR = {"what": "the harbour", "credit": "Ada", "licence": "CC-BY-4.0", "images": ["harbour/*.jpg", "sea.png"]}
ALL = {"what": "everything", "credit": "Grace", "licence": "CC0"}


def told(licences, name):
    return [licences.entries[number]["licence"] for number in licences.of(name)]


def test_entries_hold_for_all_or_for_what_they_name():
    both = Licences([HARBOUR, ALL])
    assert told(both, "harbour/a.jpg") == ["CC-BY-4.0", "CC0"] and told(both, "hill.jpg") == ["CC0"]
    one = Licences([HARBOUR])
    assert told(one, "sea.png") == ["CC-BY-4.0"] and told(one, "hill.jpg") == ["unknown"]
    assert told(Licences(), "hill.jpg") == ["unknown"]
    assert "images" not in both.entries[0]


def test_they_stand_beside_the_images(tmp_path):
    assert told(read_licences(str(tmp_path)), "a.jpg") == ["unknown"]
    (tmp_path / "licences.json").write_text(json.dumps([HARBOUR]))
    assert told(read_licences(str(tmp_path)), "sea.png") == ["CC-BY-4.0"]
    assert told(read_licences(str(tmp_path / "images.zip")), "sea.png") == ["CC-BY-4.0"]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("[", r"licences\.json: not valid JSON .*; expected a list of licences"),
        ("{}", r"licences\.json: expected a list of \{what, credit, licence\}, got dict"),
        ('[{"what": "a", "credit": "b"}]', r"licences\.json\[0\]: expected texts by the names what, credit, licence"),
        (json.dumps([{**HARBOUR, "images": "*"}]), r"licences\.json\[0\]\.images: expected a list of names or patt"),
    ],
)
def test_mistakes_name_the_file_and_the_entry(tmp_path, content, error):
    (tmp_path / "licences.json").write_text(content)
    with pytest.raises(ValueError, match=error):
        read_licences(str(tmp_path))


def test_the_demo_corpus_knows_what_each_image_was_composed_of(tmp_path):
    corpus = build_corpus(tmp_path / "corpus", num_train=60, num_heldout=20, image_size=32, seed=3)
    found = demo_licences(str(corpus))
    pictures = {path.stem for path in corpus.rglob("COCO_*.jpg")}
    assert len(pictures) == 80 and pictures == set(found)
    kinds = set()
    for image in json.loads((corpus / "dataset_coco.json").read_text())["images"]:
        entries = found[image["filename"].removesuffix(".jpg")]
        assert "Twemoji" in entries[0]["what"] and entries[0]["licence"].startswith("CC-BY-4.0")
        kinds.add(len(entries))
        # A caption that tells the background's colour is of a picture without a photograph.
        said = " ".join(sentence["raw"] for sentence in image["sentences"])
        if any(f"{colour} background" in said for colour in COLOURS):
            assert len(entries) == 1
    assert kinds == {1, 2}
    assert demo_licences(str(tmp_path)) is None
