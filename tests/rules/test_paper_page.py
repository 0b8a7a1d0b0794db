"""docs/paper.md says what recipes and preset have: every field that it names has the value that it tells."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from soho_fast.model import SohoConfig
from soho_fast.tasks.recipe import RECIPES, read_recipe

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "paper.md").read_text()
COLUMN = 3  # | what | text | released code | ours | why |

# Fields of a recipe's file that say where things lie and how a run is kept, not what is trained.
NOT_VALUES = re.compile(
    r"seed|task|data_roots\..*|data\.(sources|heldout|splits)(\..*)?|batch\.(workers|gradient_accumulation_steps)|"
    r"engine\.zero_stage|(checkpoint|log|evaluation)\..*|model\.(preset|pretrained|text_encoder|backbone)|data\.tokenizer"
)

# Fields of SohoConfig whose values the paper gives, or that stand for what it leaves open.
PAPER_FIELDS = {
    "backbone", "backbone_frozen_stages", "visual_pool", "vocab_size", "hidden_size", "num_hidden_layers",
    "num_attention_heads", "intermediate_size", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob",
    "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "use_dictionary_output", "num_codes", "ema_decay",
    "dictionary_init", "code_reset_threshold", "dictionary_batch_norm", "head_act", "head_dropout",
}  # fmt: skip


def sections() -> dict[str, str]:
    """Tables by the recipe that their heading names."""
    found: dict[str, str] = {}
    for section in PAGE.split("\n## ")[1:]:
        heading = section.partition("\n")[0]
        if named := re.search(r"recipe `(\w+)`", heading):
            found[named[1]] = found.get(named[1], "") + section
    return found


def told(recipe: str) -> dict[str, Any]:
    """What the column `ours` tells of a recipe: values by dotted name, or by a field of SohoConfig."""
    rows = [line.split(" | ") for line in sections()[recipe].splitlines() if line.startswith("| ")]
    cells = " ".join(row[COLUMN] for row in rows)
    return {name: yaml.safe_load(value) for name, value in re.findall(r"`([\w.]+): ([^`]+)`", cells)}


def value_of(recipe: Any, name: str) -> Any:
    if name in SohoConfig.__dataclass_fields__:
        return getattr(SohoConfig.from_preset(recipe.model.preset, **recipe.model.changes()), name)
    value: Any = recipe
    for part in name.split("."):
        value = value[int(part)] if part.isdecimal() else getattr(value, part)
    return value


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{name}.{key}".lstrip(".")).items()}
    return {name: value}


@pytest.mark.parametrize("name", sorted(sections()))
def test_every_value_is_the_recipes(name):
    recipe = read_recipe(["--recipe", name])
    values = told(name)
    assert len(values) >= 5, "the table is not read"
    wrong = {}
    for field, value in values.items():
        ours = value_of(recipe, field)
        ours = list(ours) if isinstance(ours, tuple) else ours
        if ours != value:
            wrong[field] = (value, ours)
    assert not wrong, f"docs/paper.md tells other values (page, recipe): {wrong}"


@pytest.mark.parametrize("name", ["paper", "vqa", "retrieval_coco"])
def test_every_value_of_the_recipe_is_told(name):
    content = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    missing = {
        field: value
        for field, value in flat(content).items()
        if not NOT_VALUES.fullmatch(field) and field.removeprefix("model.config.") not in told(name)
    }
    assert not missing
    if name == "paper":
        assert {*told("paper"), *told("vqa")} >= PAPER_FIELDS


@pytest.mark.parametrize(
    ("name", "of", "allowed"),
    [
        ("paper_r18", "paper", {"model.config.backbone", "model.config.num_hidden_layers",
                                "batch.gradient_accumulation_steps"}),
        ("retrieval_coco_two_stages", "retrieval_coco", {"model.config.contrastive_weight"}),
    ],
)  # fmt: skip
def test_a_recipe_of_another_size_differs_in_what_its_name_says(name, of, allowed):
    mine, other = (flat(dataclasses.asdict(read_recipe(["--recipe", each]))) for each in (name, of))
    assert {field for field in {**mine, **other} if mine.get(field) != other.get(field)} == allowed


def test_the_recipes_of_flickr_and_coco_train_alike():
    coco, flickr = (read_recipe(["--recipe", f"retrieval_{name}"]) for name in ("coco", "flickr"))
    for part in ("epochs", "optim", "schedule", "batch", "engine", "model"):
        assert getattr(coco, part) == getattr(flickr, part)
