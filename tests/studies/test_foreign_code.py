"""Files of others run no code here: not by a keystroke, not by a field, and not by what a terminal obeys."""

import builtins
import json

import pytest
import yaml
from tiny_corpus import write_tokenizer
from tiny_study import TINY

from soho_fast.common.errors import UserError, fail, printable
from soho_fast.common.processes import Processes
from soho_fast.data.text import load_tokenizer
from soho_fast.model.pretrained import bert_state
from soho_fast.studies.__main__ import main as studies
from soho_fast.tasks.recipe import load_recipe

CODE = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
class Own(PreTrainedTokenizerFast): pass
class OwnConfig(BertConfig): model_type = "own"
class OwnModel(BertModel): pass
"""


@pytest.fixture
def asked(monkeypatch):
    """What was asked for; each question is answered with yes."""
    questions = []
    monkeypatch.setattr(builtins, "input", lambda prompt="": questions.append(prompt) or "y")
    return questions


def test_a_tokenizer_or_model_with_code_of_its_own_is_refused_unasked(tmp_path, asked):
    folder = write_tokenizer(tmp_path / "tokenizer")
    (folder / "own.py").write_text(CODE)
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "checksums.json").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="custom code"):
        load_tokenizer(folder)
    model = tmp_path / "bert"
    model.mkdir()
    (model / "own.py").write_text(CODE)
    mapped = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (model / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": mapped}))
    with pytest.raises(FileNotFoundError, match="no BERT could be loaded"):
        bert_state(str(model))
    assert not asked and not list(tmp_path.rglob("ran"))


def test_trackers_come_from_the_command_line_or_a_trusted_file(tmp_path):
    path = tmp_path / "shared.yaml"
    path.write_text(yaml.safe_dump({"log": {"trackers": ["theirs"]}, "corpus": {"folder": ""}, "data": {}}))
    command = ["--recipe", str(path)]
    with pytest.raises(UserError, match=r"log\.trackers: recipe shared wants theirs imported, which a file alone may"):
        load_recipe(command, with_files=True)
    for trusted in (["--trust-file"], ["--log.trackers", "[theirs]"], ["--log.trackers=[theirs]"]):
        assert load_recipe([*command, *trusted], with_files=True).log.trackers == ["theirs"]
    for added in (["--log.trackers+", "mine"], ["--log.trackers+=mine"]):
        with pytest.raises(UserError, match="a file alone may"):
            load_recipe([*command, *added], with_files=True)
    # Commands that import none may read it.
    assert load_recipe(command).log.trackers == ["theirs"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"conditions": {**TINY["conditions"], "a": {"launcher": "rm -rf"}}},
            "a seed 0 pretraining: 'launcher: rm -rf'",
        ),
        ({"overrides": {"log": {"trackers": ["theirs"]}}}, "log.trackers: ['theirs']"),
        ({"overrides": {"log.trackers": ["theirs"]}}, "log.trackers: ['theirs']"),
        (
            {
                "conditions": {
                    **TINY["conditions"],
                    "a": {"overrides": {"optim.lr": 0.5}, "stages": {"vqa": {"log.trackers": ["theirs"]}}},
                }
            },
            "log.trackers: ['theirs']",
        ),
    ],
)
def test_launchers_and_trackers_of_a_study_too(tmp_path, capsys, changes, told):
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes, "composite": []}, sort_keys=False))
    command = [str(path), "--list", "--into", str(tmp_path / "into")]
    assert studies(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: study {path}: ") and told in line and "--trust-file" in line
    # A study of this package may name its own.
    assert studies(["scaling_processes", "--list", "--into", str(tmp_path / "own")]) == 0
    capsys.readouterr()
    if "launcher" in told:
        assert studies([*command, "--trust-file"]) == 0


def test_names_are_printed_without_what_a_terminal_obeys(capsys):
    name = "dog\x1b[2J\x07\r.jpg \u202egpj.exe caf\u00e9 \u72ac"
    shown = "dog\\x1b[2J\\x07\\r.jpg \\u202egpj.exe caf\u00e9 \u72ac"
    assert printable(name) == shown and printable("two\nlines\t") == "two\nlines\t"
    fail(f"{name} can't be read")
    Processes().say(f"skipped: {name}")
    said = capsys.readouterr()
    assert said.err == f"error: {shown} can't be read\n" and said.out == f"skipped: {shown}\n"


def test_a_recipe_that_a_study_names_neither(tmp_path, capsys):
    recipe = tmp_path / "theirs.yaml"
    recipe.write_text(yaml.safe_dump({"log": {"trackers": ["theirs"]}}))
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"title": "T", "conditions": {"a": {}}, "stages": {"x": {"recipe": str(recipe)}}}))
    command = [str(path), "--list", "--into", str(tmp_path / "into")]
    assert studies(command) == 2
    assert "a seed 0 x: \"log.trackers: ['theirs']\", which a file alone may not" in capsys.readouterr().err
    assert studies([*command, "--trust-file"]) == 0 == studies([*command, "--log.trackers", "[mine]"])
