"""Odd images and texts, in Python and on the command line: answered as what they stand for, or refused in one line."""

import json
import os
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_images import handmade_images, sound_images
from PIL import Image

from soho_fast.ask.__main__ import main
from soho_fast.data.images import decode_image

TEXT = "there is a man"
TOLERANCE = 1e-6
# Turned, clear, of several frames, of 16 bits and of other colours: tests/data says what pixels they have.
ODD = {name: sound_images()[name] for name in ("exif.jpg", "lossless.webp", "moving.gif", "deep.png", "cmyk.jpg")}
# File, and what is said of it.
UNUSABLE = {
    "truncated.jpg": (sound_images()["rgb.jpg"][:-100], "truncated"),
    "bomb.png": (handmade_images()["30000 x 30000.png"], "could be decompression bomb"),
    "empty.jpg": (b"", "it is no JPEG, PNG"),
    "text.jpg": (b"a dog on a beach", "it is no JPEG, PNG"),
    "nan.tif": (handmade_images()["nan.tif"], "floating-point grey"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with all of them, and with a folder, a pipe and a link that leads nowhere."""
    folder = tmp_path_factory.mktemp("odd")
    for name, content in (ODD | {name: content for name, (content, _) in UNUSABLE.items()}).items():
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link.jpg").symlink_to("nowhere.jpg")
    return folder


@pytest.fixture(scope="module")
def expected(soho_of):
    """The answer about the pixels that training takes of each."""
    return {name: soho_of("answer").answer(decode_image(content), TEXT) for name, content in ODD.items()}


def refused(files):
    return {
        **{name: words for name, (_, words) in UNUSABLE.items()},
        "folder.jpg": "is no regular file",
        "pipe.jpg": "is no regular file",
        "link.jpg": "No such file or directory",
        "nowhere.jpg": "No such file or directory",
    }


def as_pairs(answer):
    return [(row["answer"], pytest.approx(row["score"], abs=TOLERANCE)) for row in answer]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_image_is_what_it_stands_for(soho_of, files, expected, name):
    soho, path = soho_of("answer"), files / name
    ways = [path, str(path), path.read_bytes(), Image.open(path)]
    for answer in (*(soho.answer(way, TEXT) for way in ways), *soho.answer(ways, TEXT)):
        assert [(row["answer"], row["score"]) for row in answer] == as_pairs(expected[name])
    assert sum(other == expected[name] for other in expected.values()) == 1, "another image would be seen"


@pytest.mark.parametrize("name", refused(None))
def test_an_unusable_image_is_reported_in_a_line(soho_of, files, name):
    soho, path, words = soho_of("answer"), files / name, refused(files)[name]
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        soho.answer(path, TEXT)
    message = str(caught.value)
    assert message.startswith(f"image: {path} can't be read (") and message.isprintable() and len(message) < 400
    if name in UNUSABLE:
        with pytest.raises(ValueError, match=rf"^image: .*{re.escape(words)}"):
            soho.answer(path.read_bytes(), TEXT)
    if name in ("truncated.jpg", "nan.tif"):
        with pytest.raises(ValueError, match=rf"^image: .*{re.escape(words)}"):
            soho.answer(Image.open(path), TEXT)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((9, 9, 3)), "expected uint8 pixels (height, width, 3) or (height, width), got float64 (9, 9, 3)"),
        (np.zeros((9, 9, 4), dtype=np.uint8), "got uint8 (9, 9, 4)"),
        (np.zeros((0, 9, 3), dtype=np.uint8), "9 x 0 pixels"),
        (torch.zeros(3, 9, 9), "expected uint8 pixels (3, height, width), got float32 (3, 9, 9)"),
        (torch.zeros(9, 9, 3, dtype=torch.uint8), "got uint8 (9, 9, 3)"),
        (Image.new("L", (0, 5)), "0 x 5 pixels"),
        (None, "expected a path, bytes, a PIL image or pixels, got NoneType"),
        ({"image": "a.jpg"}, "expected a path, bytes, a PIL image or pixels, got dict"),
        ("nul\0.jpg", "can't be read ("),
    ],
)
def test_what_is_no_image_is_reported_in_a_line(soho_of, image, words):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        soho_of("answer").answer(image, TEXT)
    assert str(caught.value).startswith("image: ") and "\n" not in str(caught.value)


TEXTS = [
    ("", "text: expected words, got ''"),
    (" \n", r"text: expected words, got ' \n'"),
    ("man " * 10_000, "text: expected at most 16 tokens, got 10002: 'man man "),
    ("m" * 50_000, "holds no word that this model knows"),
    ("half \ud800", "half a surrogate pair"),
    ("\u200b", "holds no word that this model knows"),
]


@pytest.mark.parametrize(("text", "words"), [*TEXTS, (None, "got None"), (3, "got 3"), (b"man", "got b'man'")])
def test_an_odd_text_is_reported_in_a_line(soho_of, text, words):
    image = np.zeros((9, 9, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        soho_of("answer").answer(image, text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    with pytest.raises(ValueError, match=re.escape(words)):
        soho_of("rank").rank(image, ["a red", text])
    good, bad = soho_of("rank").rank([image] * 2, [["a red"], ["a red", text]], errors="return")
    assert len(good) == 1 and isinstance(bad, ValueError)


def test_the_command_answers_all_of_them(folder_of, files, expected, tmp_path, capsys):
    """In a file of questions each gets its answer or its reason, and nothing is lost."""
    names = [*ODD, *refused(files)]
    lines = [{"image": name, "question": TEXT} for name in names]
    lines += [{"image": "deep.png", "question": text} for text, _ in TEXTS if "\ud800" not in text]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    paths = [str(tmp_path / name) for name in ("questions.jsonl", "results.jsonl")]
    assert main(["many", str(folder_of("answer")), *paths, "--images", str(files)]) == 0
    found = [json.loads(line) for line in Path(paths[1]).read_text().splitlines()]
    assert [{"image": line["image"], "question": line["question"]} for line in found] == lines
    by_image = {line["image"]: line for line in reversed(found)}
    for name in ODD:
        assert [(row["answer"], row["score"]) for row in by_image[name]["answers"]] == as_pairs(expected[name])
    for name, words in refused(files).items():
        words = "there is no such file" if name == "nowhere.jpg" else words
        assert words in by_image[name]["error"] and by_image[name]["error"].startswith("image: "), by_image[name]
    for line, (_, words) in zip(found[len(names) :], [each for each in TEXTS if "\ud800" not in each[0]], strict=True):
        assert words in line["error"]
    said = capsys.readouterr()
    assert "14 have no answer but an error, the first is line 6" in said.out and said.err == ""


def test_an_animation_shows_the_frame_that_it_stands_at(soho_of, files):
    soho = soho_of("answer")
    moving = Image.open(files / "moving.gif")
    moving.seek(1)
    second = soho.answer(np.asarray(moving.convert("RGB")), TEXT)
    moving = Image.open(BytesIO((files / "moving.gif").read_bytes()))
    moving.seek(1)
    assert soho.answer(moving, TEXT) == second != soho.answer(files / "moving.gif", TEXT)
