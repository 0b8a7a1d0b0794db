"""`soho start FOLDER`: which commands it runs, and which it leaves out since their results are there."""

import json
import shlex
import signal
import subprocess
import sys

import pytest

from soho_fast.common import extras, start
from soho_fast.common.console import COMMANDS
from soho_fast.common.versions import write_run_of

RUN = ["soho check pics", "soho train --recipe own --data_roots.images pics", "soho explore build runs/own"]
TOKENIZER, APP = "soho tokenizer pics/images.jsonl pics/tokenizer", "soho app runs/own"


@pytest.fixture
def called(tmp_path, monkeypatch):
    """Commands that were run, none of which does anything; `pics` has a line."""
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "_call", lambda command: calls.append(shlex.join(["soho", *command])))
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/images.jsonl").write_text('{"file": "a.jpg", "captions": ["a"]}\n')
    monkeypatch.setattr(extras, "_of_command", [])
    return calls


def leave(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_is_there_is_left_out(called, tmp_path, capsys):
    def runs(*arguments):
        called.clear()
        assert start.main(["pics", *arguments]) == 0
        said = [line.removeprefix("$ ") for line in capsys.readouterr().out.splitlines()]
        assert [line for line in said if not line.endswith("   (done)")] == called and len(said) == 5
        return list(called)

    own = tmp_path / "runs/own"
    assert runs() == [TOKENIZER, *RUN, APP]
    leave(tmp_path / "pics/tokenizer/vocab.txt")
    assert runs() == [*RUN, APP]
    leave(own / "recipe.yaml", "data_roots: {images: pics}\n")
    assert runs() == [*RUN[1:], APP]
    leave(own / "metrics.json")
    leave(own / "model/config.json")
    write_run_of(own / "model", 3, "0123")
    assert runs() == [RUN[2], APP]
    assert runs("--max_steps", "9") == [f"{RUN[1]} --max_steps 9", RUN[2], APP]
    about = json.loads(next(path for path in (own / "model").glob("*.json") if "0123" in path.read_text()).read_text())
    leave(own / "explorer/data/meta.js", f'explorer.receive("meta", {json.dumps({"run": about})});\n')
    assert runs() == [APP]
    write_run_of(own / "model", 4, "0123")
    assert runs() == [RUN[2], APP]
    assert runs("--output", "runs/b")[1:2] == [f"{RUN[1]} --output runs/b"]


def test_what_it_cannot_start_with_is_told(called, tmp_path, capsys, monkeypatch):
    def told(*arguments):
        assert start.main(arguments) == 2 and not called
        return capsys.readouterr().err

    assert "pic: there is no such file or folder; did you mean pics?; expected one of images" in told("pic")
    assert 'has no images.jsonl; expected one with a line for each image, such as {"file"' in told(str(tmp_path))
    leave(tmp_path / "runs/own/recipe.yaml", "data_roots: {images: others}\n")
    assert "runs/own is a run of others; give another --output" in told("pics")
    monkeypatch.setattr(start, "find_spec", lambda name: name not in ("gradio", "scipy"))
    said = told("pics")
    assert "soho start needs scipy, gradio; install with: pip install" in said and "[train,app]" in said


def test_a_step_that_fails_is_the_last(called, monkeypatch, capsys):
    monkeypatch.setattr(start, "_call", lambda command: command[0] == "check" and 1)
    assert start.main(["pics"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"$ {RUN[0]}"


STEP = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(1)))
print("up", flush=True)
time.sleep(60)
"""
COMMAND = """
import subprocess, sys
from soho_fast.common import start
from soho_fast.common.command_line import exit_code
start.subprocess.Popen = lambda command, popen=subprocess.Popen: popen([sys.executable, "-c", sys.argv[1]])
sys.exit(exit_code(lambda _: start._call(["train"]), [], "stopped"))
"""


def test_ctrl_c_waits_for_the_step():
    """It ends as it does by itself, with what it saves."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = subprocess.Popen([sys.executable, "-c", COMMAND, STEP], **pipes)
    assert started.stdout.readline() == "up\n"
    started.send_signal(signal.SIGINT)
    assert started.communicate(timeout=30) == ("saved\n", "\nstopped\n") and started.returncode == 130


@pytest.mark.parametrize(("name", "extra"), [("app", "train,app"), ("explore", "train,explore"), ("train", "train")])
def test_a_missing_package_names_all_extras_of_the_command(monkeypatch, name, extra):
    monkeypatch.setattr(extras, "_of_command", [])
    extras.command_needs(COMMANDS[name][2])
    assert f"[{extra}]" in extras.install_command("explore") and "[heic]" in extras.install_command("heic")
