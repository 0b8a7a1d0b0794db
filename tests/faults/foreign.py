"""Folders of others whose fields name modules, packages, import paths, commands: nothing is imported or started."""

import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from commands import made
from corruption import without_checkpoints
from pickles import reading
from settings import mutated, put
from tiny_runs import Bench, LostError, run

# What a field may name that a careless reader imports, starts or looks up by importing what is around it.
NAMES: tuple[Any, ...] = (
    "planted", "planted.sub", "planted.sub:Own", "planted:Own", "planted.sub.Own", "package:planted.sub/x",
    "package:planted/x", {"class_path": "planted.sub.Own", "init_args": {}}, {"class_path": "planted.Own"},
    ["planted.sub:Own"], ["planted.sub"], {"_target_": "planted.sub.Own"}, "planted-program", "./planted-program",
    "timm/planted.sub", "planted/sub", "planted/sub--sub.Own", "$(planted-program)", "| planted-program",
    {"AutoConfig": "planted.Own", "AutoModel": "planted.Own", "AutoTokenizer": ["planted.Own", "planted.Own"]},
)  # fmt: skip
_KEYS = (
    "auto_map", "class_path", "_target_", "tokenizer_class", "launcher", "trackers", "attn_implementation", "backbone",
    "image_processor_type", "processor_class", "visual_encoder", "dictionary", "quantization_config", "peft_type",
)  # fmt: skip
# What is tried of each kind before chance: its files, a place, what it names.
KNOWN: tuple[tuple[str, str, str, Any], ...] = (
    *((kind, "*.yaml", *named) for kind in ("_recipe", "_run") for named in (
        ("log.trackers", ["planted"]), ("data_roots.corpus", "package:planted.sub/x"), ("task", "planted:Own"),
        ("model.config.backbone", "planted.sub:Own"), ("data_roots.corpus", "package:planted/x"),
    )),
    *(("_recipe", "*.yaml", "model.config.own", named) for named in (NAMES[8], json.dumps(NAMES[8]))),
    ("_model", "config.json", "auto_map", NAMES[-1]),
    ("_model", "tokenizer_config.json", "auto_map", NAMES[-1]),
    ("_model", "config.json", "backbone", "planted.sub:Own"),
    ("_model", "config.json", "attn_implementation", "planted/sub"),
    ("_model", "processor_config.json", "image_processor_type", "planted.Own"),
)  # fmt: skip
_CODE = """
import pathlib
pathlib.Path({marker!r}).open("a").write(__name__ + " was imported\\n")
class Own:
    def __init__(self, *_, **__): pass
    from_pretrained = classmethod(lambda own, *_, **__: own())
"""


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """The seed counts through the kinds of folders; of each a place or three are drawn that name something planted."""
    from soho_fast.common.checksums import write_checksums

    kind, draw, marker = KINDS[seed % len(KINDS)], random.Random(seed), folder / "marker"
    plant(folder / "planted-code", marker)
    theirs, command = kind(bench, draw, folder)
    path, known = draw.choice(theirs), [each for each in KNOWN if each[0] == kind.__name__]
    if (number := seed // len(KINDS)) < len(known):
        _, name, place, value = known[number]
        path = next(each for each in theirs if each.match(name))
        content, wrap = _read(path)
        said = [put(content, place, value)]
    else:
        content, wrap = _read(path)
        said = [mutated(content, draw, NAMES, _KEYS) for _ in range(draw.choice((1, 1, 3)))]
    path.write_text(wrap(content))
    beside = path if path.is_dir() else path.parent
    for sealed in {beside, beside.parent}:  # as whoever alters a folder would
        if (sealed / "SHA256SUMS").exists():
            write_checksums(sealed)
    what = f"{kind.__name__[1:]}, {path.name}, {'; '.join(said)}"
    done = run(command, before=lambda: meet(folder / "planted-code"), timeout=120)
    if marker.exists():
        raise LostError(f"{what}: {' '.join(marker.read_text().split())[:80]}")
    try:
        done.expect(0, 1, 2, where=command[0])
    except LostError as lost:
        raise LostError(f"{what}: {lost}") from None
    return 1


def plant(folder: Path, marker: Path) -> None:
    """A package with a package in it, and a program, which all leave a marker."""
    (folder / "planted/sub").mkdir(parents=True)
    for package in (folder / "planted", folder / "planted/sub"):
        (package / "__init__.py").write_text(_CODE.format(marker=str(marker)))
    program = folder / "planted-program"
    program.write_text(f"#!/bin/sh\necho a program was started >> '{marker}'\n")
    program.chmod(0o755)


def meet(folder: Path) -> None:
    """Have what is planted where this process and those that it starts look first."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    os.environ["PYTHONPATH"] = str(folder)


def _read(path: Path) -> tuple[Any, Callable[[Any], str]]:
    """What a file of YAML, JSON, JSON lines or an explorer's data holds, and how it is written back."""
    text = path.read_text()
    if path.suffix == ".yaml":
        return yaml.safe_load(text), lambda content: yaml.safe_dump(content, sort_keys=False)
    script = re.fullmatch(r"(explorer\.receive\([^{\[]*)(.*)(\);\n)", text, re.DOTALL)
    if script:
        return json.loads(script[2]), lambda content: f"{script[1]}{json.dumps(content)}{script[3]}"
    if path.parent.name == "nlvr2":
        return [*map(json.loads, text.splitlines())], lambda content: "\n".join(map(json.dumps, content))
    return json.loads(text), json.dumps


_Foreign = tuple[list[Path], list[str]]


def _recipe(bench: Bench, draw: random.Random, folder: Path) -> _Foreign:
    theirs = folder / "theirs.yaml"
    theirs.write_text(bench.private(folder / "bench").recipes[draw.choice(("pretraining", "vqa"))].read_text())
    safe = ["--max_steps", "1", "--output", str(folder / "run")]
    return [theirs], ["train", "--recipe", str(theirs), *safe]


def _run(bench: Bench, draw: random.Random, folder: Path) -> _Foreign:
    theirs, how = bench.private(folder / "bench").folder / "vqa", draw.choice(("evaluate", "ask", "train", "build"))
    recipe = theirs / "recipe.yaml"
    if how == "train":
        return [recipe], ["train", "--recipe", str(recipe), "--max_steps", "1", "--output", str(folder / "run")]
    if how == "build":
        return [recipe], ["explore", "build", str(theirs), "--into", str(folder / "explorer"), "--images", "4"]
    return [recipe], reading(bench, theirs, how, folder)


def _model(bench: Bench, draw: random.Random, folder: Path) -> _Foreign:
    how = draw.choice(("evaluate", "ask", "pretrained"))
    theirs = without_checkpoints(bench.folder / ("pretraining" if how == "pretrained" else "vqa"), folder / "source")
    files = sorted((theirs / ("model" if how == "pretrained" else "best")).glob("*.json"))
    return files, reading(bench, theirs, how, folder)


def _corpus(bench: Bench, draw: random.Random, folder: Path) -> _Foreign:
    own = bench.private(folder / "bench")
    files = [*sorted(own.corpus.glob("*.json")), *own.corpus.glob("*/*.json")]
    return files, own.train(draw.choice(("pretraining", "vqa")), folder / "run", "--max_steps", "1")


def _explorer(bench: Bench, draw: random.Random, folder: Path) -> _Foreign:
    theirs = shutil.copytree(made(bench, "explore") / "explorer", folder / "explorer")
    figure = ["explore", "figure", str(theirs), "--rows", "2", "--into", str(folder / "codes.png")]
    return sorted(theirs.glob("data/*.js")), figure


KINDS = (_recipe, _model, _run, _explorer, _corpus)
