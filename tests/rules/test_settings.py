"""Settings of recipes: each has a user, and help says where its value is from."""

import re

import pytest
import yaml
from house import ROOT

from soho_fast.model.values import GROUPS, ModelValues
from soho_fast.tasks import TASKS
from soho_fast.tasks.recipe import RECIPES, read_recipe, recipe_type
from soho_fast.tasks.recipe_help import Setting, help_text, settings_of

# By its name: who else uses a setting.
OTHERS = {
    "checkpoint.every_steps": "tests stop a run at a step",
    "max_minutes": "a machine that is lent for some minutes",
    "evaluation.at_end": "timed runs switch it off",
}
MOST = 120


def every_setting() -> dict[str, Setting]:
    """By name, of all tasks; those of splits, which tasks share, once."""
    found = [each for name in TASKS for each in settings_of(recipe_type(name))]
    return {re.sub(r"NAME|\[\]", "*", each.name): each for each in found}


def set_by(value: object, place: str = "") -> set[str]:
    """The names of what a recipe's content sets."""
    if isinstance(value, dict):
        names = {place} if place in ("data_roots", "model.losses") else set()
        return names.union(*(set_by(item, f"{place}.{key}" if place else key) for key, item in value.items()))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(set_by(item, f"{place}*") for item in value))
    return {re.sub(r"^data\.splits\.[^.]+", "data.splits.*", place)}


def test_each_setting_is_set_by_a_recipe_or_named_by_a_page():
    used = set().union(*(set_by(yaml.safe_load(path.read_text())) for path in RECIPES.glob("*.yaml")))
    used |= {name.replace("heldout*", "sources*") for name in used}
    pages = "\n".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    # Fenced code as a whole, and what stands between two backticks of a line.
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", pages, re.DOTALL))
    unused = [
        name
        for name in every_setting()
        if name not in used
        and name not in OTHERS
        and not re.search(rf"\b{re.escape(name.rpartition('.')[2].strip('*'))}\b", code)
    ]
    assert not unused, f"neither a recipe nor a page uses {', '.join(unused)}"


def test_there_are_no_more_settings_than_are_told():
    assert len(every_setting()) <= MOST


@pytest.mark.parametrize("part", ["model.config.", "optim.", "schedule."])
def test_a_value_of_the_model_and_of_its_training_says_where_it_is_from(part):
    source = re.compile(r"\b(paper|eq\. \d|ours|released code|BERT)\b")
    bare = [name for name, each in every_setting().items() if name.startswith(part) and not source.search(each.text)]
    assert not bare, bare


def test_help_begins_with_the_model_and_ends_with_the_engine():
    lines = help_text(read_recipe([])).splitlines()
    places = [next(n for n, line in enumerate(lines) if f"--{name} " in line) for name in (
        "model.config.backbone", "model.config.num_codes", "model.config.hidden_size", "optim.lr", "batch.workers",
        "data.shorter_edge", "engine.zero_stage",
    )]  # fmt: skip
    assert places == sorted(places)
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(ModelValues.__dataclass_fields__)
    assert all(each.name in "\n".join(lines) and each.text for each in settings_of(recipe_type("pretraining")))
