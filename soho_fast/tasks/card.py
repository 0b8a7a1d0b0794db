"""The model card, README.md of an exported model: what it is, on what it was trained, how good it is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from soho_fast.common.versions import in_words, program

CARD = "README.md"

_START = """```python
from soho_fast.model import {kind}

model = {kind}.from_pretrained("FOLDER_OR_NAME")
```"""
_LIMITS = """It knows the words and the kinds of images of its training data, and takes over their biases. It was not
tested for decisions about people."""

# What a model may start from; the first one replaces the others.
_BASE = ("pretrained", "text_encoder", "backbone")


def model_card(task: Any, model: Any, metrics: Mapping[str, float]) -> str:
    """The text of a model card by the hub's template, in which whoever publishes the model fills in the rest.

    Args:
        task: What the model was trained by, a `BaseTask`.
        model: The model.
        metrics: Of its last full evaluation; empty if it was never evaluated.
    """
    config, kind = model.config, type(model).__name__
    sets = [(name, each) for name in ("sources", "heldout", "splits") for each in _sets(task.data, name)]
    files = [(name, _file_of(each), each) for name, each in sets]
    data = [f"- {name}: {_short(file)}, format {getattr(each, 'format', task.name)}" for name, file, each in files]
    folders = dict.fromkeys(folder for _, each in sets for folder in each.images)
    licences = list(dict.fromkeys(line for folder in folders for line in _licences(Path(folder))))
    base = [f"{name}: {_short(getattr(task.model, name))}" for name in _BASE if getattr(task.model, name, None)]
    millions = sum(each.numel() for each in model.parameters()) / 1e6
    codes = f"{config.num_codes:,} codes" if config.dictionary != "none" else "no visual dictionary"
    card = ModelCard.from_template(
        ModelCardData(library_name="soho_fast", license="other", tags=["soho", "vision-language"]),
        model_id=f"{kind}, trained by task {task.name}",
        model_description=f"{millions:.1f} M parameters: {config.backbone}, {config.num_hidden_layers} layers of "
        f"{config.hidden_size}, {codes}, {config.vocab_size:,} tokens.",
        base_model=", ".join(base[:1] if getattr(task.model, "pretrained", None) else base) or "random values",
        paper="[SOHO](https://arxiv.org/abs/2104.03135)",
        bias_risks_limitations=_LIMITS,
        get_started_code=_START.format(kind=kind),
        training_data="\n".join([*data, "\nLicence of the images:\n", *(licences or ["Not recorded."])]),
        results="\n".join(_table(task, metrics)),
        software=in_words(program()),
    )
    return str(card)


def _sets(data: Any, name: str) -> list[Any]:
    found = getattr(data, name, [])
    return list(found.values()) if isinstance(found, dict) else found


def trained_on(data: Any) -> str:
    """The files of the samples that a task's `data` settings train on, as others may read them."""
    splits = [each for name, each in getattr(data, "splits", {}).items() if name in data.train]
    return ", ".join(dict.fromkeys(_short(_file_of(each)) for each in [*_sets(data, "sources"), *splits]))


def _file_of(samples: Any) -> str:
    return getattr(samples, "questions", None) or samples.annotations


def _short(path: str) -> str:
    """A path as others may read it: its last two parts."""
    return "/".join(Path(path).parts[-2:])


def _licences(folder: Path) -> list[str]:
    """What a folder of images says of itself, a demo corpus or one with licences.json, as lines of a list."""
    from soho_fast.data.mini.builder import read_manifest

    try:
        of_demo = (read_manifest(folder) or {}).get("licences")
        entries = of_demo or json.loads((folder / "licences.json").read_text(encoding="utf-8"))
        credits: dict[str, list[str]] = {}
        for entry in entries:
            credits.setdefault(f"- {entry['what']}: {entry['licence']}", []).append(entry["credit"])
        return [f"{images}; {', '.join(dict.fromkeys(of))}" for images, of in credits.items()]
    except (OSError, ValueError, KeyError, TypeError):  # where it is wrong, the explorer says so
        return []


def _table(task: Any, metrics: Mapping[str, float]) -> list[str]:
    if not metrics:
        return ["Not measured."]
    table = task.table(metrics)
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return [f"On {table.title}, each beside its baseline:", "", *(f"| {' | '.join(row)} |" for row in rows)]
