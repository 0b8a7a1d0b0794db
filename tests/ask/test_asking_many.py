"""A file of questions on the command line: each line answered, in order, and a stopped command goes on to the same."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_corpus import write_zip

from soho_fast.ask.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["is there a man", "a red", "the woman and the man is a blue", "blue"]


def write_questions(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def asked(tmp_path, image_folder):
    """A file of 60 questions, three about each image in turn; one image is not there."""
    _, names = image_folder
    lines = [
        {"image": names[number // 3 % 10], "question": WORDS[number % 4], "id": f"q{number}"} for number in range(60)
    ]
    lines[7] |= {"image": "gone.png"}
    return write_questions(tmp_path / "questions.jsonl", lines)


@pytest.fixture
def run(folder_of, asked, image_folder, tmp_path):
    """The command about the questions, in batches of two; gives the exit code."""

    def many(*more, model=None, results="results.jsonl"):
        paths = [str(model or folder_of("answer")), str(asked), str(tmp_path / results)]
        return main(["many", *paths, "--images", str(image_folder[0]), "--batch_size", "2", "--workers", "0", *more])

    return many


def test_each_line_is_answered_in_order(run, soho_of, asked, image_folder, tmp_path, capsys):
    assert run("--top_k", "2") == 0
    assert "60 lines; 1 have no answer but an error, the first is line 8" in capsys.readouterr().out
    for number, (line, found) in enumerate(zip(read(asked), read(tmp_path / "results.jsonl"), strict=True), start=1):
        answers, error = found.pop("answers", None), found.pop("error", None)
        assert found == {"line": number, **line}
        if number == 8:
            assert answers is None and error == "image: gone.png: there is no such file"
            continue
        expected = soho_of("answer").answer(image_folder[0] / line["image"], line["question"], top_k=2)
        assert [row["answer"] for row in answers] == [row["answer"] for row in expected] and error is None
        assert [row["score"] for row in answers] == pytest.approx([row["score"] for row in expected], abs=2e-6)


@pytest.mark.parametrize("kind", ["rank", "pretrained", "entails", "compare"])
def test_every_kind_of_model(folder_of, soho_of, image_folder, tmp_path, kind):
    folder, names = image_folder
    rows = {
        "entails": [{"image": name, "text": "a red"} for name in names],
        "compare": [{"left": one, "right": two, "text": "a red"} for one, two in zip(names, names[::-1], strict=True)],
    }.get(kind, [{"image": name, "texts": WORDS[: 1 + number % 4]} for number, name in enumerate(names)])
    questions = write_questions(folder / "questions.jsonl", rows)  # beside the images
    assert main(["many", str(folder_of(kind)), str(questions), str(tmp_path / "results.jsonl")]) == 0
    soho = soho_of(kind)
    for row, found in zip(rows, read(tmp_path / "results.jsonl"), strict=True):
        expected = soho({name: value if "text" in name else folder / value for name, value in row.items()})
        assert [{**each, "score": pytest.approx(each["score"], abs=2e-6)} for each in expected] == found["answers"]


def test_images_of_an_archive_by_workers(run, asked, image_folder, folder_of, tmp_path):
    assert run() == 0
    archive = write_zip(tmp_path / "images.zip", image_folder[0], "*.png")
    paths = [str(folder_of("answer")), str(asked), str(tmp_path / "others.jsonl")]
    assert main(["many", *paths, "--images", str(archive), "--batch_size", "2", "--workers", "2"]) == 0
    assert (tmp_path / "others.jsonl").read_bytes() == (tmp_path / "results.jsonl").read_bytes()


def test_a_cut_file_goes_on_to_the_same_bytes(run, tmp_path, capsys):
    assert run() == 0
    results, whole = tmp_path / "results.jsonl", (tmp_path / "results.jsonl").read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    for cut in (5, ends[0] + 9, ends[20], len(whole) - 1, len(whole)):
        results.write_bytes(whole[:cut])
        capsys.readouterr()
        assert run() == 0
        assert results.read_bytes() == whole, cut
        said = capsys.readouterr().out
        there = sum(end <= cut for end in ends)
        assert (f"{there} of 60 lines are there" in said) == (there > 0)
        assert "1 have no answer" in said


def test_what_is_of_something_else_is_refused_and_left(run, folder_of, asked, image_folder, tmp_path, capsys):
    assert run() == 0
    results, whole = tmp_path / "results.jsonl", (tmp_path / "results.jsonl").read_bytes()

    def refused(words, *more, **options):
        before = results.read_bytes()
        capsys.readouterr()
        assert run(*more, **options) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line and results.read_bytes() == before

    refused("results.jsonl was made with another top_k; give another name for the results, or delete", "--top_k", "1")
    other = tmp_path / "other"
    other.mkdir()
    for file in folder_of("answer").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    results.write_bytes(whole[:500])
    assert run(model=other) == 0, "a copy of the model is the model"
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"id2label": {"0": "yes", "1": "no", "2": "3"}}))
    (other / "SHA256SUMS").unlink(missing_ok=True)
    refused("was made with another model;", model=other)
    results.write_bytes(whole.replace(b'"line": 9,', b'"line": 8,'))
    refused("line 9 is not as it was written")
    results.write_bytes(whole[: whole.index(b"\n", 900) - 4] + whole[whole.index(b"\n", 900) :])
    refused(" is not as it was written")
    results.write_bytes(whole[:500])
    image = image_folder[0] / read(asked)[30]["image"]
    pixels = image.read_bytes()
    image.write_bytes(pixels[:-20] + bytes(20))
    refused("was made with another set of images;")
    image.write_bytes(pixels)
    beside = tmp_path / "results.jsonl.about.json"
    beside.write_text(beside.read_text().replace('"soho_fast": "', '"soho_fast": "0.'))
    capsys.readouterr()
    assert run() == 0 and results.read_bytes() == whole
    assert "its first 2 lines were answered by another version, soho_fast 0." in capsys.readouterr().out
    asked.write_text(asked.read_text().replace("q3", "q03"))
    refused("was made with another questions;")
    (tmp_path / "results.jsonl.about.json").unlink()
    refused("holds something, and results.jsonl.about.json does not say what")


def test_the_fast_path_is_another_result(run, tmp_path, capsys):
    assert run("--precision", "float32") == 0 and run(results="plain.jsonl") == 0
    for one, other in zip(read(tmp_path / "results.jsonl"), read(tmp_path / "plain.jsonl"), strict=True):
        scores, expected = ([row["score"] for row in line.get("answers", [])] for line in (one, other))
        assert scores == pytest.approx(expected, abs=5e-6)
    assert run() == 2 and "was made with another precision" in capsys.readouterr().err


def test_two_commands_do_not_write_one_file(run, tmp_path, capsys):
    (tmp_path / "results.jsonl").touch()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(tmp_path / "results.jsonl")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert run() == 2
    assert "results.jsonl is being written by another process" in capsys.readouterr().err
    assert (tmp_path / "results.jsonl").read_bytes() == b"" and run() == 0


def test_mistakes_are_reported_before_anything_is_written(folder_of, image_folder, tmp_path, capsys):
    folder, names = image_folder
    good = {"image": names[0], "question": "a red"}

    def reported(words, lines=(good,), kind="answer", results="out.jsonl", more=()):
        questions = write_questions(folder / "q.jsonl", lines)
        assert main(["many", str(folder_of(kind)), str(questions), str(tmp_path / results), *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line, line
        assert not (tmp_path / "out.jsonl").exists()

    reported("q.jsonl: line 2: no field 'question' (the record has: image)", (good, {"image": names[0]}))
    reported("q.jsonl: line 1: field 'image' is 3, expected str", ({"image": 3, "question": "a"},))
    reported("q.jsonl: line 1: field 'answers' is one of the results", ({**good, "answers": []},))
    reported("q.jsonl: line 1: no field 'texts'", kind="rank")
    reported("q.jsonl: line 1: field 'texts' is [], expected a list of", ({"image": "a", "texts": []},), "rank")
    reported("q.jsonl: line 1: no field 'left'", kind="compare")
    reported("q.jsonl: holds no record; expected one question a line", ())
    reported("q.jsonl: 1 of 1 images are not in", ({"image": "gone.png", "question": "a"},))
    reported("q.jsonl: image name '../0.png' leads out of", ({"image": "../0.png", "question": "a"},))
    reported("images: /nowhere does not exist", more=["--images", "/nowhere"])
    reported("is a folder); expected the name of a file", results="")
    reported("there is no such file or folder", results="nowhere/out.jsonl")
    (folder / "q.jsonl").write_text('{"image": "0.png"\n')
    assert main(["many", str(folder_of("answer")), str(folder / "q.jsonl"), str(tmp_path / "out.jsonl")]) == 2
    assert "q.jsonl: line 1: not valid JSON" in capsys.readouterr().err


def test_a_full_disk_is_reported_and_the_command_goes_on(run, folder_of, tmp_path, capsys):
    folder_of("answer")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))  # stands for it
    try:
        assert run() == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "results.jsonl can't be written (File too large); the same command goes on" in capsys.readouterr().err
    assert 0 < len((tmp_path / "results.jsonl").read_bytes()) <= 3000
    assert run() == 0 and len(read(tmp_path / "results.jsonl")) == 60


def test_killed_and_interrupted_it_goes_on_to_the_same(run, asked, folder_of, image_folder, tmp_path):
    lines = read(asked)
    write_questions(asked, [{**lines[number % 60], "id": number} for number in range(1500)])
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "soho_fast.ask", "many", str(folder_of("answer")), str(asked)]
    command += [str(results), "--images", str(image_folder[0]), "--batch_size", "2", "--workers", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    written = 0
    for number in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as child:
            while (results.stat().st_size if results.exists() else 0) <= written:
                assert child.poll() is None, child.stderr.read()
                time.sleep(0.005)
            child.send_signal(number)
            _, err = child.communicate(timeout=60)
        if number == signal.SIGINT:
            told = f"{results}: stopped; the same command goes on behind its last line"
            assert child.returncode == 130 and err.decode().split("\n") == ["", told, ""], err
        written = results.stat().st_size
        assert written > 0 and results.read_bytes().count(b"\n") < 1500, "it was stopped on the way"
    assert run() == 0
    stopped = results.read_bytes()
    results.unlink()
    assert run() == 0
    assert results.read_bytes() == stopped and len(read(results)) == 1500
