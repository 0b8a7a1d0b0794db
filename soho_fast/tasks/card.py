"""The model card, README.md of an exported model: what it is, on what it was trained, how good it is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soho_fast.common.versions import in_words, program

CARD = "README.md"

_TEXT = """---
library_name: soho_fast
license: other
tags: [soho, vision-language, vector-quantization]
---
# {kind}, trained by task {task}

{sizes}. Method: [SOHO](https://arxiv.org/abs/2104.03135). Made with {program}.

```python
from soho_fast.model import {kind}

model = {kind}.from_pretrained("FOLDER_OR_NAME")
```

## Base

{base}

## Data

{data}

Licence of the images:

{licences}

## Metrics

{metrics}

## Intended use

Research on vision-language models, and images and texts of the kind that it was trained on. The metrics above, beside
their baselines, say how good it is there; nothing else has been measured.

## Limits

The model knows the words and the kinds of images of its training data, and takes over their biases. It writes no
captions and finds no boxes. It was not tested for decisions about people.
"""


def model_card(task: Any, model: Any, metrics: Mapping[str, float]) -> str:
    """The text of a model card, Markdown with the head that the hub reads.

    Args:
        task: What the model was trained by, a `BaseTask`.
        model: The model.
        metrics: Of its last full evaluation; empty if it was never evaluated.
    """
    config, kind = model.config, type(model).__name__
    sets = [(name, each) for name in ("sources", "heldout", "splits") for each in _sets(task.data, name)]
    images = dict.fromkeys(folder for _, each in sets for folder in each.images)
    data = [f"- {name}: {_short(_file(each))}, format {getattr(each, 'format', task.name)}" for name, each in sets]
    licences = dict.fromkeys(line for folder in images for line in _licences(Path(folder)))
    base = [f"- {name}: {_short(getattr(task.model, name))}" for name in _BASE if getattr(task.model, name, None)]
    if getattr(task.model, "pretrained", None):
        base = base[:1]
    codes = f"{config.num_codes:,} codes" if config.use_dictionary else "no visual dictionary"
    return _TEXT.format(
        kind=kind,
        task=task.name,
        sizes=f"{sum(each.numel() for each in model.parameters()) / 1e6:.1f} M parameters: {config.backbone}, "
        f"{config.num_hidden_layers} layers of {config.hidden_size}, {codes}, {config.vocab_size:,} tokens",
        program=in_words(program()),
        base="\n".join(base) or "Random values.",
        data="\n".join(data),
        licences="\n".join(licences) or "Not recorded. State it, and the licence of this model, before you publish.",
        metrics="\n".join(_table(task, metrics)),
    )


# The first one replaces the others.
_BASE = ("pretrained", "text_encoder", "backbone")


def _sets(data: Any, name: str) -> list[Any]:
    found = getattr(data, name, [])
    return list(found.values()) if isinstance(found, dict) else found


def _file(source: Any) -> str:
    return str(getattr(source, "questions", None) or source.annotations)


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
