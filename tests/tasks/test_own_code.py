"""Code of a user's own that a recipe names: what is imported, by whose word, and what a mistake says."""

import json
import sys
from importlib import import_module
from importlib.util import spec_from_file_location
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from soho_fast.common import import_path
from soho_fast.common.checksums import digest_of_files
from soho_fast.common.errors import UserError
from soho_fast.common.import_path import own_code
from soho_fast.common.versions import cautions, write_run_of
from soho_fast.tasks.recipe import load_recipe, write_recipe

TASK = '''
from dataclasses import dataclass

from torch import nn

from soho_fast.tasks.settings import StatementData
from soho_fast.tasks.visual_entailment import VisualEntailmentTask


@dataclass
class OwnData(StatementData):
    """Splits, and how examples are made.

    Args:
        sharpness: How sharp they are.
    """

    sharpness: int = 1


class OwnTask(VisualEntailmentTask):
    """Tell how sharp it is."""

    name = "own"
    data_type = OwnData


class Bare:
    pass


class OwnLoss(nn.Module):
    def __init__(self, gamma=2.0):
        super().__init__()
        self.gamma = gamma


class WrongTask(VisualEntailmentTask):
    name = "wrong"
    data_type = int
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder outside of the repository with a module `own_code` and recipes that name it; it is the current one."""
    (tmp_path / "own_code.py").write_text(TASK)
    splits = {"train": {"annotations": "train.jsonl", "images": ["images"]}}
    recipe = {"task": "own_code:OwnTask", "data": {"splits": splits, "sharpness": 3, "tokenizer": "words"}}
    (tmp_path / "named.yaml").write_text(yaml.safe_dump(recipe))
    recipe = {"task": "snli_ve", "data": {"splits": splits, "tokenizer": "words"}}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(import_path, "_NAMED", {})  # what other tests of this process named
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(sys.modules[name].__spec__):
            del sys.modules[name]


def test_a_task_by_import_path_has_its_own_settings(folder):
    given = ["--recipe", "plain.yaml", "--task", "own_code:OwnTask", "--data.sharpness", "5"]
    recipe = load_recipe(given)
    assert (recipe.task, recipe.data.sharpness, recipe.data.texts_per_image) == ("own_code:OwnTask", 5, 1)
    task = recipe.make_task(lambda line: None)
    assert type(task).__name__ == "OwnTask" and type(task)(recipe.data).model.use_dictionary_output is False
    # What a run writes it is continued and evaluated by.
    write_recipe(recipe, folder / "recipe.yaml")
    assert load_recipe(["--recipe", "recipe.yaml", "--trust-file"]).data.sharpness == 5


def test_a_recipe_alone_imports_nothing(folder):
    with pytest.raises(UserError) as error:
        load_recipe(["--recipe", "named.yaml"])
    assert str(error.value) == (
        "task: recipe named wants own_code:OwnTask imported, which a file alone may not; give --task "
        "own_code:OwnTask, or --trust-file to take what the file says"
    )
    assert "own_code" not in sys.modules
    assert load_recipe(["--recipe", "named.yaml", "--trust-file"]).data.sharpness == 3
    # It is there now, by the user's word.
    assert load_recipe(["--recipe", "named.yaml"]).data.sharpness == 3


LOSING = {"task": "snli_ve", "model": {"losses": {"own": {"path": "own_code:OwnLoss"}}}}


@pytest.mark.parametrize(
    "given",
    [
        ["--recipe", "own_code:OwnLoss.yaml"],
        ["--recipe", "losing.yaml", "--output", "own_code:OwnLoss"],
        ["--recipe", "losing.yaml", "--optim.rule", "own_code:OwnLossy"],
    ],
)
def test_a_path_is_trusted_as_the_value_of_a_field_that_names_code(folder, given):
    """As a recipe's name, a folder's or part of another path it was taken for the user's word."""
    recipe = yaml.safe_dump(LOSING | {"data": yaml.safe_load((folder / "plain.yaml").read_text())["data"]})
    for name in ("own_code:OwnLoss.yaml", "losing.yaml"):
        (folder / name).write_text(recipe)
    (folder / "own_code.py").write_text(f"{TASK}\n\nclass OwnLossy:\n    pass\n")
    with pytest.raises(UserError, match=r"model\.losses\.own\.path: recipe \S+ wants own_code:OwnLoss imported"):
        load_recipe(given, with_files=True)
    assert ("own_code" in sys.modules) == ("--optim.rule" in given)


@pytest.mark.parametrize("path", ["torch.nn:Linear", "soho_fast.model.soho:SohoForPreTraining", "torch.optim:SGD"])
def test_what_a_file_names_may_not_be_a_librarys(folder, path):
    """Loaded or not: a layer of two sizes takes terabytes."""
    sizes = {"in_features": 10**6, "out_features": 10**6}
    losses = {"own": {"path": path, "options": sizes}}
    recipe = yaml.safe_load((folder / "plain.yaml").read_text()) | {"model": {"losses": losses}}
    (folder / "large.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match=f"model.losses.own.path: recipe large wants {path} imported"):
        load_recipe(["--recipe", "large.yaml"], with_files=True)
    with pytest.raises(UserError, match=f"{path} is code that a file names|expected a subclass of Module"):
        load_recipe(["--recipe", "large.yaml"]).make_task(print).added_losses()


def test_trackers_are_trusted_where_the_command_line_gives_them(folder):
    content = yaml.safe_load((folder / "plain.yaml").read_text()) | {"log": {"trackers": ["own_tracker"]}}
    (folder / "tracked.yaml").write_text(yaml.safe_dump(content))
    given = ["--recipe", "tracked.yaml"]
    for more in ([], ["--log.every_steps", "3"], ["--log.trackers+", "csv"], ["--log.trackers+=csv"]):
        with pytest.raises(UserError, match=r"log\.trackers: recipe tracked wants own_tracker imported"):
            load_recipe([*given, *more], with_files=True)
    for more in (["--log.trackers", "[own_tracker]"], ["--log", '{"trackers": ["own_tracker"]}'], ["--trust-file"]):
        with pytest.raises(UserError, match=r"annotations: train\.jsonl"):
            load_recipe([*given, *more], with_files=True)


@pytest.mark.parametrize("name", ["r[1].yaml", "r*.yaml", "r?.yaml"])
def test_what_is_read_is_the_file_that_is_named(folder, name):
    """As a pattern it named others, which nobody looked at, or none."""
    for each, epochs in ((name, 7), ("r1.yaml", 8)):
        (folder / each).write_text(f"epochs: {epochs}\n{(folder / 'plain.yaml').read_text()}")
    assert load_recipe(["--recipe", name]).epochs == 7


def test_a_field_of_the_model_neither(folder):
    config = {"model": {"config": {"backbone": "own_code:Bare"}}}
    (folder / "shared.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"model\.config\.backbone: recipe shared wants own_code:Bare imported"):
        load_recipe(["--recipe", "shared.yaml"], with_files=True)
    # Commands that import none may read it.
    assert load_recipe(["--recipe", "shared.yaml"]).model.changes() == {"backbone": "own_code:Bare"}
    assert "own_code" not in sys.modules


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("own_code:OwnTusk", "task: own_code has no OwnTusk; did you mean OwnTask?"),
        ("own_code:Bare", "task: expected a subclass of BaseTask, own_code:Bare is a class of object"),
        ("own_code:WrongTask", "own_code:WrongTask has data_type=<class 'int'>; expected the dataclass of its settin"),
        ("other_code:OwnTask", "task: there is no module other_code, neither in the current folder"),
        ("own_code.OwnTask", "task: Expected a typing.Literal['snli_ve']. Got value: own_code.OwnTask"),
    ],
)
def test_a_mistake_is_one_line(folder, task, message):
    with pytest.raises(UserError) as error:
        load_recipe(["--recipe", "plain.yaml", "--task", task])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_another_task_over_that_of_a_file_is_refused(folder):
    given = ["--recipe", "named.yaml", "--trust-file", "--task", "vqa"]
    with pytest.raises(UserError, match=r"task: recipe named.yaml is of task own_code:OwnTask, got 'vqa'"):
        load_recipe(given)


def _with_loss(name="own", **settings):
    losses = json.dumps({name: {"path": "own_code:OwnLoss", **settings}})
    recipe = load_recipe(["--recipe", "plain.yaml", "--model.losses", losses])
    return recipe.make_task(lambda line: None)


def test_a_loss_by_import_path(folder):
    task = _with_loss(weight=0.5, options={"gamma": 1.5})
    assert task.logged == ("own",) and task.added_losses()["own"].gamma == 1.5
    (folder / "losing.yaml").write_text(yaml.safe_dump({"model": {"losses": {"own": {"path": "own_core:OwnLoss"}}}}))
    with pytest.raises(UserError, match=r"model\.losses\.own\.path: recipe losing wants own_core:OwnLoss"):
        load_recipe(["--recipe", "losing.yaml"], with_files=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"wieght": 0.5}, "model.losses"),
        ({"weight": -1}, "model.losses"),
        ({"options": {"gama": 1}}, "model.losses.own.options: own_code:OwnLoss does not take them: "),
        ({"path": "own_code:Bare"}, "model.losses.own.path: expected a subclass of Module, own_code:Bare is a class"),
        ({"name": "mvm_loss"}, "model.losses.mvm_loss: expected a name of letters, digits and _ that no loss here has"),
    ],
)
def test_a_wrong_loss_is_one_line(folder, settings, message):
    with pytest.raises(ValueError) as error:  # the message is looked at
        _with_loss(**settings).added_losses()
    assert message in str(error.value) and "\n" not in str(error.value)


PARTS = {
    "task": "own_code:OwnTask", "model.config.dictionary": "own_code:Bare", "model.config.backbone": "own_code:Bare",
    "model.losses": '{"own": {"path": "own_code:OwnLoss"}}', "optim.rule": "own_code:Bare",
    "optim.backbone_rule": "own_code:Bare", "log.trackers": "[own_code:Bare]",
    "data.splits": '{"train": {"annotations": "a", "format": "own_code:Bare"}}',
}  # fmt: skip


@pytest.mark.parametrize("field", PARTS)
def test_code_that_a_recipe_names_is_known_with_what_it_imports(folder, field):
    """In a package, by another name, relative, within a function, in a folder without __init__.py; no library."""
    (folder / "parts/deep").mkdir(parents=True)
    (folder / "parts/__init__.py").write_text("from .deep import below\n")
    (folder / "parts/deep/below.py").write_text("from .. import beside as other\nimport json, soho_fast\n")
    (folder / "parts/beside.py").write_text("")
    (folder / "lazy.py").write_text("def broken(\n")
    (folder / "unused.py").write_text("")
    (folder / "own_code.py").write_text(f"import parts\n\n\ndef late():\n    import lazy\n{TASK}")
    task = ["--task", "retrieval"] if field == "data.splits" else []  # that of the file has no format
    (folder / "bare.yaml").write_text("data: {tokenizer: words}\ntask: retrieval\n")
    load_recipe(["--recipe", "bare.yaml" if task else "plain.yaml", *task, f"--{field}", PARTS[field]])
    found = own_code()
    files = ("own_code.py", "lazy.py", "parts/__init__.py", "parts/beside.py", "parts/deep/below.py")
    for file in files:
        name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        assert found.pop(name).startswith(f"{file} "), file
    assert not found.keys() & {"unused", "soho_fast", "parts.deep", "json", "dataclasses", "torch"}


class _Mapped:
    """Finds a package in a folder of another name, as an editable install with `package-dir` has it found."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        file = Path("source/__init__.py").resolve()
        found = spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
        return found if name == "lab" else None


# Of each place: the module that is named, and the files and contents of modules that must be known.
PLACED = {
    "elsewhere on the path": ("own", {"own": ("own.py", "import helper"), "helper": ("far/helper.py", "")}),
    "elsewhere, imported late": (
        "own", {"own": ("own.py", "def late():\n    import helper"), "helper": ("far/helper.py", "")},
    ),
    "by a name at run time": (
        "own",
        {"own": ("own.py", "__import__('parts.' + 'helper')"), "parts": ("parts/__init__.py", ""),
         "parts.helper": ("parts/helper.py", "")},
    ),
    "a namespace of two folders": (
        "space.own", {"space.own": ("far/space/own.py", "import space.a"), "space.a": ("space/a.py", "")},
    ),
    "under another name": (
        "lab.own",
        {"lab": ("source/__init__.py", ""), "lab.own": ("source/own.py", "from . import b"),
         "lab.b": ("source/b.py", "")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("placed", PLACED)
def test_code_is_known_wherever_it_lies(folder, placed, monkeypatch):
    named, modules = PLACED[placed]
    for file, content in modules.values():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(f"{content}\n\n\nclass Part:\n    pass\n")
    monkeypatch.syspath_prepend(folder / "far")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, _Mapped])
    import_path.load(f"{named}:Part", "part")
    assert {name: each.partition(" ")[2] for name, each in own_code().items()} == {
        name: digest_of_files(Path(file)) for name, (file, _) in modules.items()
    }


def test_code_in_an_archive_is_known_by_it(folder, monkeypatch):
    with ZipFile("far.zip", "w") as archive:
        archive.writestr("zipped.py", "class Part:\n    pass\n")
    monkeypatch.syspath_prepend(folder / "far.zip")
    import_path.load("zipped:Part", "part")
    assert own_code() == {"zipped": f"zipped.py {digest_of_files(Path('far.zip'))}"}


def test_code_that_python_imported_is_compared_where_a_model_is_read(folder):
    """`import own_code` in a notebook, with `export_model` after it: no import path was loaded."""
    load_recipe(["--recipe", "plain.yaml", "--task", "own_code:OwnTask"])
    (folder / "model").mkdir()
    write_run_of(folder / "model", 4, "0123456789abcdef")
    import_path._NAMED.clear()
    assert cautions(folder / "model") == []
    (folder / "own_code.py").write_text(f"{TASK}\n")
    with pytest.raises(UserError, match=r"was trained with code\.own_code own_code\.py"):
        cautions(folder / "model")


READERS = {
    "ask": (["answer", "model", "image.jpg", "what?"], "ask.__main__"),
    "app": (["model"], "explore.app_command"),
    "export": (["model", "exported"], "export.__main__"),
    "suite": (["winoground", "model", "empty.jsonl", "--images", "."], "tasks.suites"),
    "evaluate": (["--recipe", "named.yaml", "--checkpoint", "./model", "--trust-file"], "evaluate"),
    "explore": (["build", "model", "--recipe", "named.yaml", "--trust-file"], "explore.__main__"),
}


@pytest.mark.parametrize("command", READERS)
def test_each_command_that_reads_a_model_refuses_other_code(folder, command, capsys, monkeypatch):
    monkeypatch.setattr("soho_fast.tasks.suites.read_suite", lambda *_, **__: [])
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text("{}")
    Path("image.jpg").touch()
    load_recipe(["--recipe", "plain.yaml", "--task", "own_code:OwnTask"])
    write_run_of(folder / "model", 4, "0123456789abcdef")
    before = own_code()["own_code"]
    del sys.modules["own_code"]
    (folder / "own_code.py").write_text(f"{TASK}\n")
    arguments, home = READERS[command]
    arguments = [*arguments, *([] if "--trust-file" in arguments else ["--import", "own_code"])]
    main = import_module(f"soho_fast.{home}").main
    assert main(arguments) == 2
    told = f"was trained with code.own_code {before}, here {own_code()['own_code']}"
    assert f"{told}: bring that code back, or give --accept-changes" in capsys.readouterr().err
    assert main([*arguments, "--accept-changes"]) == 2 and "model_type: expected 'soho'" in capsys.readouterr().err
