"""Files of others run no code here: not by a keystroke, not by a field, and not by what a terminal obeys."""

import builtins
import contextlib
import dataclasses
import io
import json
import re
import tokenize
from copy import copy
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from tiny_corpus import draw, write_tokenizer
from tiny_study import TINY

import soho_fast
from soho_fast.common.errors import UserError, fail, printable
from soho_fast.common.processes import Processes
from soho_fast.data.text import load_tokenizer
from soho_fast.model import SohoConfig, SohoModel
from soho_fast.model.pretrained import bert_state
from soho_fast.studies.__main__ import main as studies
from soho_fast.tasks.check import main as check
from soho_fast.tasks.recipe import load_recipe, read_recipe

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
            {"overrides": {"model.config": {"dictionary_options": "{a: 'theirs:A'}"}}},
            "model.config.dictionary_options: theirs:A",
        ),
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


def test_every_line_is_printed_by_the_one_function_that_escapes():
    """Whatever command, and whatever file a name in it comes from; run.py of an export needs torch alone."""
    home, allowed = Path(soho_fast.__file__).parent, {"common/errors.py": 1, "export/run.py": 3, "cluster/kmeans.py": 1}
    for source in home.rglob("*.py"):
        tokens = list(tokenize.generate_tokens(io.StringIO(source.read_text()).readline))
        names = [token for before, token in pairwise(tokens) if token.type == tokenize.NAME and before.string != "."]
        printed = [token.line for token in names if token.string == "print"]
        assert len(printed) == allowed.get(source.relative_to(home).as_posix(), 0), f"{source}: {printed}"


def test_names_of_images_steer_no_terminal(tmp_path, capsys):
    name = "dog\x1b[2J.jpg"
    draw(tmp_path / name)
    draw(tmp_path / f"more {name}")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    lines = [{"file": file, "captions": ["a dog"]} for file in (name, f"no {name}", "round.jpg")]
    (tmp_path / "images.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert check([str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "dog\\x1b[2J.jpg" in said.out and "\x1b" not in said.out + said.err and "round.jpg" in said.out


def test_a_recipe_that_a_study_names_neither(tmp_path, capsys):
    recipe = tmp_path / "theirs.yaml"
    recipe.write_text(yaml.safe_dump({"log": {"trackers": ["theirs"]}}))
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"title": "T", "conditions": {"a": {}}, "stages": {"x": {"recipe": str(recipe)}}}))
    command = [str(path), "--list", "--into", str(tmp_path / "into")]
    assert studies(command) == 2
    assert "a seed 0 x: \"log.trackers: ['theirs']\", which a file alone may not" in capsys.readouterr().err
    assert studies([*command, "--trust-file"]) == 0 == studies([*command, "--log.trackers", "[mine]"])


def planted_in(value):
    """What YAML holds, with one text, list or section after the other replaced by what names something to import."""
    if isinstance(value, str):
        yield "package:planted.sub/x"
    elif isinstance(value, (dict, list)):
        yield {"class_path": "planted.sub.OwnModel", "init_args": {}}
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            for inner in planted_in(item):
                changed = copy(value)
                changed[name] = inner
                yield changed


def test_no_field_of_a_recipe_imports_what_it_names(tmp_path, monkeypatch):
    (tmp_path / "planted/sub").mkdir(parents=True)
    for folder in (tmp_path / "planted", tmp_path / "planted/sub"):
        (folder / "__init__.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = dataclasses.asdict(read_recipe(["--recipe", "mini"])) | {"data_roots": {"corpus": "c"}}
    contents = list(planted_in(json.loads(json.dumps(recipe))))
    for content in contents:
        Path("shared.yaml").write_text(yaml.safe_dump(content))
        with contextlib.suppress(ValueError):
            load_recipe(["--recipe", "shared.yaml"], with_files=True)
    assert len(contents) > 40 and not list(tmp_path.rglob("ran"))
    with pytest.raises(UserError, match=r"data_roots\.corpus: there is no Python package planted\.sub;"):
        load_recipe(["--recipe", "mini", "--data_roots.corpus", "package:planted.sub/x"])


def test_a_model_brings_no_adapter_and_names_no_program(tmp_path):
    """peft imports what an adapter's file names; transformers fetches an attention that has a `/` in its name."""
    folder = write_tokenizer(tmp_path / "model")
    SohoConfig().save_pretrained(folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "megatron_core": "megatron.planted"}')
    for load in (SohoModel.from_pretrained, load_tokenizer, bert_state):
        with pytest.raises((ValueError, OSError), match=r"adapter_config\.json: expected a model of its own weights"):
            load(str(folder))
    (folder / "adapter_config.json").unlink()
    about = json.loads((folder / "config.json").read_text())
    for name in ("attn_implementation", "_attn_implementation"):
        (folder / "config.json").write_text(json.dumps(about | {name: "theirs/attention"}))
        with pytest.raises(ValueError, match=rf"config\.json: {name}: .* 'theirs/attention'"):
            SohoConfig.from_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "bert", "attn_implementation": "theirs/attention"}')
    with pytest.raises(FileNotFoundError) as told:
        bert_state(str(folder))
    assert "kernel" not in str(told.value) and "model.safetensors" in str(told.value)


def test_no_image_starts_a_program():
    """Pillow gives files that are PostScript to Ghostscript, whatever they are called, unless formats are named."""
    for source in Path(soho_fast.__file__).parent.rglob("*.py"):
        for call in re.findall(r"Image\.open\(.*", source.read_text()):
            assert "formats=" in call, f"{source}: {call}"
