"""Recipes and command lines with mistakes: one line that says what is wrong, or a run; never a stack trace."""

import os
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from corruption import picture
from tiny_runs import Bench, LostError, limit_memory, run

VALUES = (
    None, True, False, 0, 1, -1, 3, 1.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), "", " ", "auto", "x" * 300,
    "é", "{corpus}", "{nowhere}", "/nowhere/at/all", "../..", "1e-3", "0x10", "null", "yes", [], {}, [1], [None],
    {"a": 1}, [[]], "2026-01-01", "\\", "-1", "--overwrite", [0.5, 0.5], [2, 1], "package:nothing/here", b"\xff",
)  # fmt: skip
_KEYS = ("x", 1, None, "", "task", True)
_ODD_TEXT = (
    b"", b"\xff\xfe", b"\x00", b"[", b"{", b"- 1\n- 2", b"\t:", b"a: b: c", b"*x", b"&a [*a]", b"%YAML 9",
    b"!!python/x", b"? ?", b"'", b"task: vqa\ntask: vqa", b"seed: 1\nseed: 2\n", b"---\n---\n", b"null", b"1", b"task:",
    b"data:", b"data: {splits: }", b"model:\n  config:", b"optim:", b"corpus:", b"data_roots:",
)  # fmt: skip
_SECONDS = 25


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """Some mistakes in a recipe, or in the arguments of train, evaluate or ask."""
    draw = random.Random(seed)
    # A changed argument may name another output, or ask for another corpus.
    bench = bench.private(folder / "bench")
    os.chdir(folder)
    way = ("recipe", "text", "arguments", "evaluate", "ask")[seed % 5]
    task = draw.choice(sorted(bench.recipes))
    safe = ["--max_steps", "1", "--output", str(folder / "run")]
    if way == "recipe":
        recipe = yaml.safe_load(bench.recipes[task].read_text())
        said = [mutated(recipe, draw) for _ in range(draw.choice((1, 1, 2, 4)))]
        path = folder / "recipe.yaml"
        path.write_text(yaml.dump(recipe, sort_keys=False, allow_unicode=True))
        arguments = ["train", "--recipe", str(path), *safe]
    elif way == "text":
        path = folder / "recipe.yaml"
        content = bytearray(bench.recipes[task].read_bytes())
        at = draw.randrange(len(content))
        odd = draw.choice(_ODD_TEXT)
        said = [f"{odd!r} at {at}"]
        content[at : at + draw.choice((0, 1, 30, len(content)))] = odd
        path.write_bytes(bytes(content) if draw.random() < 0.7 else odd)
        arguments = ["train", "--recipe", str(path), *safe]
    else:
        commands = {
            "arguments": bench.train(task, folder / "run", "--max_steps", "1"),
            "evaluate": bench.evaluate(bench.folder / "vqa", folder / "into", "--split", "val"),
            "ask": ["ask", "answer", str(bench.folder / "vqa"), str(picture(bench)), "how many dogs?", "--top_k", "2"],
        }
        arguments = commands[way]
        said = [_changed(arguments, draw, bench, task) for _ in range(draw.choice((1, 1, 2)))]
    done = run(arguments, before=lambda: limit_memory(12), timeout=_SECONDS)
    if done.code is None and re.search("recipe |drawing the demo corpus", done.text):
        return 1  # a large, but possible, setting
    if way in ("arguments", "evaluate", "ask") and done.code == 0 and "usage:" in done.text:
        return 1  # --help
    try:
        done.expect(0, 2, where=way)
    except LostError as lost:
        raise LostError(f"{task}: {'; '.join(said)[:300]}: {lost}") from None
    return 1


def mutated(content: Any, draw: random.Random, values: Sequence[Any] = VALUES, keys: Sequence[Any] = _KEYS) -> str:
    """Change one place of what YAML or JSON holds to one of these values; returns what was done."""
    places: list[tuple[Any, Any, str]] = []

    def walk(value: Any, name: str) -> None:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            places.append((value, key, f"{name}.{key}"))
            if isinstance(item, dict | list):
                walk(item, f"{name}.{key}")

    walk(content, "")
    if not places:
        return "nothing"
    holder, key, name = draw.choice(places)
    way = draw.choice(("value", "value", "value", "delete", "rename", "insert"))
    if way == "delete":
        del holder[key]
    elif way == "rename" and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif way == "insert" and isinstance(holder, dict):
        holder[draw.choice(keys)] = draw.choice(values)
    else:
        holder[key] = draw.choice(values)
        return f"{name[1:]} = {holder[key]!r}"[:80]
    return f"{way} {name[1:]}"


def put(content: Any, place: str, value: Any) -> str:
    """Set the place of a dotted name; returns what was done."""
    *names, last = place.split(".")
    for name in names:
        content = content.setdefault(name, {})
    content[last] = value
    return f"{place} = {value!r}"


def _changed(arguments: list[str], draw: random.Random, bench: Bench, task: str) -> str:
    """Change one argument after the command; returns what was done."""
    fields: list[str] = []

    def walk(value: Any, name: str) -> None:
        for key, item in value.items():
            fields.append(f"--{name}{key}")
            if isinstance(item, dict):
                walk(item, f"{name}{key}.")

    walk(yaml.safe_load(bench.recipes[task].read_text()), "")
    value = draw.choice([*map(str, VALUES), "\udcff", "a=b", "", "--", "-", "@file", "~", "$HOME", "[", "{"])
    at = draw.randrange(1, len(arguments))
    way = draw.choice(("value", "append", "append", "field", "delete", "typo", "twice"))
    if way == "value":
        arguments[at] = value
    elif way == "append":
        arguments += [draw.choice(fields), value]
    elif way == "field":
        arguments.append(f"{draw.choice(fields)}={value}")
    elif way == "delete":
        del arguments[at]
    elif way == "typo":
        letter = draw.randrange(len(arguments[at]) or 1)
        arguments[at] = arguments[at][:letter] + draw.choice("xé-=. ") + arguments[at][letter + 1 :]
    else:
        arguments.append(arguments[at])
    return f"{way}: {' '.join(arguments)!r}"
