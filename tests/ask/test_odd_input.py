"""Odd images and texts, in Python and on the command line: answered as what they stand for, or refused in one line."""

import json
import os
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_images import odd_images, unusable_images
from PIL import Image

from soho_fast.ask.__main__ import main

TEXT = "there is a man"
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with all of them, and with a folder, a pipe and a link that leads nowhere."""
    folder = tmp_path_factory.mktemp("odd")
    for name, (content, _) in {**odd_images(), **unusable_images()}.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link.jpg").symlink_to("nowhere.jpg")
    return folder


@pytest.fixture(scope="module")
def expected(soho_of):
    """The answer about the plain RGB image that each stands for."""
    return {name: soho_of("answer").answer(np.asarray(image), TEXT) for name, (_, image) in odd_images().items()}


def refused(files):
    return {
        **{name: words for name, (_, words) in unusable_images().items()},
        "folder.jpg": "is no regular file",
        "pipe.jpg": "is no regular file",
        "link.jpg": "No such file or directory",
        "nowhere.jpg": "No such file or directory",
    }


def as_pairs(answer):
    return [(row["answer"], pytest.approx(row["score"], abs=TOLERANCE)) for row in answer]


def test_they_are_told_apart(expected):
    """Another image than the right one would be seen: turned, opaque or of another frame."""
    scores = [round(answer[0]["score"], 5) for answer in expected.values()]
    assert len(set(scores)) >= 8
    assert expected["turned.png"] != expected["deep colour.png"] != expected["clear.png"]


@pytest.mark.parametrize("name", odd_images())
def test_an_odd_image_is_what_it_stands_for(soho_of, files, expected, name):
    soho, path = soho_of("answer"), files / name
    ways = [path, str(path), path.read_bytes(), Image.open(path)]
    for answer in (*(soho.answer(way, TEXT) for way in ways), *soho.answer(ways, TEXT)):
        assert [(row["answer"], row["score"]) for row in answer] == as_pairs(expected[name])
    pixels = torch.from_numpy(np.array(odd_images()[name][1])).permute(2, 0, 1)
    assert [(row["answer"], row["score"]) for row in soho.answer(pixels, TEXT)] == as_pairs(expected[name])


@pytest.mark.parametrize("name", refused(None))
def test_an_unusable_image_is_reported_in_a_line(soho_of, files, name):
    soho, path, words = soho_of("answer"), files / name, refused(files)[name]
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        soho.answer(path, TEXT)
    message = str(caught.value)
    assert message.startswith(f"image: {path} can't be read (") and message.isprintable() and len(message) < 400
    if name in unusable_images():
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
    names = [*odd_images(), *refused(files)]
    lines = [{"image": name, "question": TEXT} for name in names]
    lines += [{"image": "one pixel.png", "question": text} for text, _ in TEXTS if "\ud800" not in text]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    paths = [str(tmp_path / name) for name in ("questions.jsonl", "results.jsonl")]
    assert main(["many", str(folder_of("answer")), *paths, "--images", str(files)]) == 0
    found = [json.loads(line) for line in Path(paths[1]).read_text().splitlines()]
    assert [{"image": line["image"], "question": line["question"]} for line in found] == lines
    by_image = {line["image"]: line for line in reversed(found)}
    for name in odd_images():
        assert [(row["answer"], row["score"]) for row in by_image[name]["answers"]] == as_pairs(expected[name])
    for name, words in refused(files).items():
        words = "there is no such file" if name == "nowhere.jpg" else words
        assert words in by_image[name]["error"] and by_image[name]["error"].startswith("image: "), by_image[name]
    for line, (_, words) in zip(found[len(names) :], [each for each in TEXTS if "\ud800" not in each[0]], strict=True):
        assert words in line["error"]
    said = capsys.readouterr()
    assert "14 have no answer but an error, the first is line 18" in said.out and said.err == ""


def test_an_animation_shows_the_frame_that_it_stands_at(soho_of, files):
    soho = soho_of("answer")
    moving = Image.open(files / "moving.gif")
    moving.seek(1)
    second = soho.answer(np.asarray(moving.convert("RGB")), TEXT)
    moving = Image.open(BytesIO((files / "moving.gif").read_bytes()))
    moving.seek(1)
    assert soho.answer(moving, TEXT) == second != soho.answer(files / "moving.gif", TEXT)
