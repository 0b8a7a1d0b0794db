"""The command: what it says, what it refuses in one line, how it ends; and whether it finds the pictures themselves."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from loopback import Served, form_of
from PIL import Image

from soho_fast.common.checksums import write_checksums
from soho_fast.explore.__main__ import main
from soho_fast.explore.bundle import Bundle, write_in_files, write_value


@pytest.fixture
def run(runs, bundle_folder, tmp_path):
    """A run whose explorer was built."""
    shutil.copytree(runs / "rank", tmp_path / "mini")
    shutil.copytree(bundle_folder, tmp_path / "mini" / "explorer")
    return tmp_path / "mini"


def started(*arguments):
    """(process, its lines up to the address, the address)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "soho_fast.explore", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background would never hear Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if "http://" in line:
            return process, lines, line.partition("http://")[2].partition("/")[0]
    raise AssertionError(f"{lines} {process.stderr.read()}")


def test_it_says_what_is_served_and_ends_at_ctrl_c_while_a_model_works(run):
    write_checksums(run / "explorer")
    process, lines, address = started(run, "--port", "0")
    try:
        assert lines == [
            "mini: rank (pre-training), loaded when it is first asked",
            f"By hand: http://{address}/   (Ctrl-C ends)",
        ]
        assert address.startswith("127.0.0.1:")
        page = urllib.request.urlopen(f"http://{address}/", timeout=10).read()
        assert page == (run / "explorer" / "index.html").read_bytes()
        # Torch is being imported, which nothing can stop.
        body, kind = form_of([("model", "mini"), ("image", "0"), ("text", "a red man")])
        request = urllib.request.Request(f"http://{address}/ask", body, {"Content-Type": kind})
        replies = []

        def ask():
            try:
                urllib.request.urlopen(request, timeout=30)
            except urllib.error.HTTPError as error:
                replies.append((error.code, json.loads(error.read())))

        asking = threading.Thread(target=ask)
        asking.start()
        assert process.stdout.readline().startswith("loading ")
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert time.monotonic() - begun < 3
        asking.join()
        assert replies == [(503, {"error": "the server is being stopped"})]
        assert process.stderr.read() == "\nstopped\n"
    finally:
        process.kill()


def test_leaving_the_loopback_is_warned_of(run):
    process, lines, address = started(run / "explorer", "--port", "0", "--host", "0.0.0.0")
    try:
        assert lines[0].endswith("explorer has no SHA256SUMS: whether it is as it was built is not known")
        assert lines[1] == "no model: the explorer alone" and address.startswith("localhost:")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
        assert process.returncode == 130
        warning, *rest = said.splitlines()
        assert warning.startswith("warning: --host 0.0.0.0: everyone who reaches this machine")
        assert rest == ["", "stopped"]
    finally:
        process.kill()


def test_a_title_does_not_steer_the_terminal(run):
    """An explorer may be somebody else's."""
    meta = run / "explorer" / "data" / "meta.js"
    text = re.sub('"title":"[^"]*"', r'"title":"red\\u001b[31m\\n"', meta.read_text())
    meta.write_text(text)
    process, lines, _ = started(run / "explorer", "--port", "0")
    process.kill()
    assert lines[-1].startswith("red\\x1b[31m: http://")


def refused(capsys, *arguments) -> str:
    assert main(["serve", *map(str, arguments)]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("error: ") and "http" not in said.out
    return line


def test_what_cannot_be_served_is_one_line(run, capsys, tmp_path):
    assert "nowhere: there is no such folder; expected that of a run, of a model or" in refused(capsys, "nowhere")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port: {port} is taken; choose another one, as --port {port + 1}" in refused(
            capsys, run, "--port", port
        )
    assert "port: expected 0 to 65535, got 70000" in refused(capsys, run, "--port", "70000")
    assert "port: invalid int value: 'http'" in refused(capsys, run, "--port", "http")
    assert "seconds: expected 0.001 to 86400, got nan" in refused(capsys, run, "--seconds", "nan")
    assert "upload_mb: expected 0.001 to 1024, got -1" in refused(capsys, run, "--upload_mb", "-1")
    assert "host: can't listen at no.such.host.invalid" in refused(capsys, run, "--host", "no.such.host.invalid")
    assert "model: nowhere: there is no such folder" in refused(capsys, run, "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(capsys, run, tmp_path / "empty")
    (tmp_path / "empty" / "recipe.yaml").write_text("task: vqa\n")
    assert "is a run without a model yet" in refused(capsys, tmp_path / "empty")
    assert "empty is no explorer (it has no data/meta.js); make one: python -m soho_fast.explore build" in refused(
        capsys, run, "--explorer", tmp_path / "empty"
    )
    shutil.rmtree(run / "explorer")
    assert "explorer is no explorer (it has no data/meta.js); make one" in refused(capsys, run)


def test_damaged_models_and_explorers_are_told_before_anything_is_served(run, capsys):
    config = run / "model" / "config.json"
    whole = config.read_text()
    for damage, words in (
        ("[1]", "config.json is damaged: expected a JSON object"),
        ("{", "config.json is damaged: expected a JSON object"),
        ("[" * 100_000, "config.json is damaged: expected a JSON object"),
        ('{"architectures": 3}', "config.json is damaged: expected a JSON object with a list"),
        ('{"architectures": ["BertModel"]}', "holds BertModel; expected SohoForPreTraining"),
        ("{}", "holds a model of unknown kind"),
    ):
        config.write_text(damage)
        assert words in refused(capsys, run)
    config.write_text(whole)
    meta = run / "explorer" / "data" / "meta.js"
    text = meta.read_text()
    meta.write_text(text[: len(text) // 2])
    assert "meta.js can't be read" in refused(capsys, run)
    meta.write_text(text.replace('"weights"', '"waits"'))
    assert "meta.js: expected weights as they are built, got None; build the explorer again" in refused(capsys, run)
    meta.write_text(re.sub('"num_shown":[0-9]+', '"num_shown":"many"', text))
    assert "meta.js: expected num_shown as they are built, got 'many'; build the explorer again" in refused(capsys, run)
    meta.write_text(text.replace('"schema":4', '"schema":1'))
    assert "expected schema 4, got 1" in refused(capsys, run)


def test_models_of_one_name_are_called_by_their_paths(runs, bundle_folder, tmp_path):
    from soho_fast.explore.serve import at_hand

    shutil.copytree(runs / "answer", tmp_path / "rank")
    asking = at_hand(
        str(bundle_folder), [str(runs / "rank"), str(tmp_path / "rank"), str(runs / "compare" / "model")],
        upload_bytes=1, seconds=1.0,
    )  # fmt: skip
    assert list(asking.models) == [str(runs / "rank"), str(tmp_path / "rank"), "model"]
    assert [model.question for model in asking.models.values()] == ["rank", "answer", "compare"]


RECIPE = """
task: pretraining
data_roots: {{pictures: {pictures}}}
data:
  sources:
    - {{annotations: "{{pictures}}/pictures.jsonl", images: ["{{pictures}}"], format: json_lines, splits: [train]}}
  heldout: []
  tokenizer: {tokenizer}
"""


def test_a_model_sees_the_image_itself_where_the_run_knows_it(runs, bundle_folder, tokenizer_dir, tmp_path):
    """The explorer's second picture is called as an image of the data set, the others as files outside of it."""
    from soho_fast.explore.serve import at_hand

    shutil.copytree(runs / "rank", tmp_path / "mini")
    shutil.copytree(bundle_folder, tmp_path / "mini" / "explorer")
    data = tmp_path / "data"
    data.mkdir()
    original = Image.effect_mandelbrot((200, 150), (-2, -1.5, 1, 1.5), 60).convert("RGB")
    for path in (data / "one.png", data / "not listed.png", tmp_path / "secret.png"):
        original.save(path)
    (data / "pictures.jsonl").write_text(
        json.dumps({"file": "one.png", "captions": ["a red man"], "split": "train"}) + "\n"
    )
    (tmp_path / "mini" / "recipe.yaml").write_text(RECIPE.format(pictures=data, tokenizer=tokenizer_dir))
    explorer = tmp_path / "mini" / "explorer"
    pictures, meta = Bundle(explorer).read("images-0000"), Bundle(explorer).meta
    for picture, name in zip(pictures, ("../secret.png", "one.png", "not listed.png"), strict=True):
        picture["name"] = name
    write_in_files(explorer, "images", pictures, 256)
    meta["sources"][0]["name"] = "pictures"
    write_value(explorer, "meta", meta)
    asking = at_hand(str(tmp_path / "mini"), upload_bytes=2**20, seconds=60.0)
    serving = Served(asking)
    question = (("model", "mini"), ("text", "a red man"))
    try:
        replies = [serving.ask(*question, ("image", str(number))).json for number in range(3)]
        upload = serving.ask(*question, ("image", ("x", (data / "one.png").read_bytes()))).json
        assert [reply["images"][0]["seen"] for reply in replies] == ["small copy", "original", "small copy"]
        assert replies[1]["answers"] == upload["answers"]
        assert replies[1]["images"][0]["codes"] == upload["images"][0]["codes"]
        (data / "one.png").unlink()
        gone = serving.ask(*question, ("image", "1")).json
        assert gone["images"][0]["seen"] == "small copy" and gone["answers"] != upload["answers"]
    finally:
        serving.close()


def test_data_sets_that_cannot_be_read_are_told_once(runs, bundle_folder, tmp_path):
    from soho_fast.explore.shown import ShownImages

    shutil.copytree(runs / "rank", tmp_path / "mini")
    (tmp_path / "mini" / "recipe.yaml").write_text("task: pretraining\ndata: {sources: 3}\n")
    said = []
    shown = ShownImages(Bundle(bundle_folder), str(tmp_path / "mini"), said.append)
    assert [shown.read(number)[1] for number in (0, 1)] == ["small copy"] * 2
    assert len(said) == 2 and said[1].startswith("they can't be read, so models see the small copies: ")
