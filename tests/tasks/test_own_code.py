"""Code of a user's own that a recipe names: what is imported, by whose word, and what a mistake says."""

import json
import sys

import pytest
import yaml

from soho_fast.common.errors import UserError
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
    yield tmp_path
    sys.modules.pop("own_code", None)


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
