"""Files that others have damaged or written: of runs, models, evaluations, corpora and recipes; then the command that
reads them.

Held: what comes of undamaged files (a damaged checkpoint is passed over for an older one), or one line that refuses; no
code of theirs is executed, imported or started. What has no checksum and is still well-formed text (a digit of a loss,
a word of a caption) nobody can call damaged: there only a stack trace counts.
"""

import hashlib
import json
import os
import pickle
import random
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from tiny_runs import STEPS, Bench, Case, LostError, digest, kill_at, limit_memory, run, same, same_folders

KINDS = ("flipped", "truncated", "zeroed", "emptied", "deleted", "swapped", "lengthened")
_QUESTION = "how many dogs are there?"


def damaged(bench: Bench) -> list[Case]:
    """Each file that a command reads, in each of `KINDS`."""
    read: list[tuple[str, Callable, list[str]]] = []
    for task in ("pretraining", "vqa"):
        read += [
            (state, partial(_resumed, bench, task, state), _files(bench.folder / state))
            for state in (f"{task}-half", task)
        ]
    ours = [name for name in _files(bench.folder / "vqa") if name.startswith("best/") or "/" not in name]
    read += [("evaluated", partial(_evaluated, bench), ours), ("asked", partial(_asked, bench), ours)]
    model = [name for name in _files(bench.folder / "pretraining") if name.startswith("model/")]
    corpus = [
        name for name in _files(bench.corpus) if not re.search(r"nlvr2|snli|flickr|\.md$|ATTRIBUTION|[1-9]\.jpg$", name)
    ]
    read += [
        ("fine-tuned", partial(_fine_tuned, bench), model),
        ("partly evaluated", partial(_again, bench), ["part-000001.pt"]),
    ]
    read += [(f"trained for {task}", partial(_trained, bench, task), corpus) for task in ("pretraining", "vqa")]
    return [
        (f"{what}, {name} {kind}", partial(attempt, name, kind))
        for what, attempt, names in read
        for name in names
        for kind in KINDS
    ]


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _damage(path: Path, kind: str, draw: random.Random) -> None:
    """As disks, copies and editors do it."""
    content = bytearray(path.read_bytes())
    at = draw.randrange(len(content)) if content else 0
    others = sorted(other for other in path.parent.iterdir() if other.suffix == path.suffix and other != path)
    if kind == "flipped" and content:
        content[at] ^= 1 << draw.randrange(8)
    elif kind == "truncated":
        del content[at:]
    elif kind == "zeroed":
        size = min(draw.choice((16, 512, 4096)), len(content) - at)
        content[at : at + size] = bytes(size)
    elif kind == "emptied":
        content.clear()
    elif kind == "swapped" and others:
        content[:] = draw.choice(others).read_bytes()
    else:
        content += draw.randbytes(draw.choice((1, 100, 5000)))
    path.unlink() if kind == "deleted" else path.write_bytes(content)


def _resumed(bench: Bench, task: str, state: str, name: str, kind: str, folder: Path, draw: random.Random) -> None:
    output = bench.copy(state, folder / "run")
    _damage(output / name, kind, draw)
    # There is always an older checkpoint to go back to.
    codes = (0,) if name.startswith("checkpoints/") or name == "log.jsonl" else (0, 2)
    done = run(bench.command(task, output)).expect(*codes, where="resumed")
    if done.code == 2 or (state == task and name in ("metrics.json", "log.jsonl")):
        return  # Of a finished run nothing is written again.
    ends, of_log = (bench.digests[task], digest(output)), name == "log.jsonl"
    # What stays damaged: an older checkpoint that is no longer needed, a result that is no longer written.
    stays = name.rpartition("/")[0] if name.startswith("checkpoints/") else name
    expected, found = (
        {
            part: [file for file in value if not file.startswith(stays)] if part == "files" else value
            for part, value in end.items()
            if part != name and not (of_log and part.startswith("log"))
        }
        for end in ends
    )
    same(expected, found)
    if of_log and kind in ("zeroed", "truncated") and ends[0]["log"] != ends[1]["log"] and name not in done.text:
        raise LostError("nothing was said of log.jsonl")


def _evaluated(bench: Bench, name: str, kind: str, folder: Path, draw: random.Random) -> None:
    source = bench.copy("vqa", folder / "run", checkpoints=False)
    _damage(source / name, kind, draw)
    done = run(["evaluate", "--run", str(source), "--into", str(folder / "into")]).expect(0, 2, where="evaluated")
    if done.code == 0 and name not in ("recipe.yaml", "metrics.json"):
        for file in ("predictions.jsonl", "submission.json"):
            if (folder / "into" / file).read_bytes() != (bench.folder / "evaluated" / file).read_bytes():
                raise LostError(f"other {file} than undamaged, and no word of it")


def _asked(bench: Bench, name: str, kind: str, folder: Path, draw: random.Random) -> None:
    source = bench.copy("vqa", folder / "run", checkpoints=False)
    asked = ["ask", "--json", "answer", str(source), str(bench.picture), _QUESTION]
    undamaged = run(asked).expect(0, where="undamaged")
    _damage(source / name, kind, draw)
    done = run(asked).expect(0, 2, where="asked")
    # What is said beside the answer comes from metrics.json: that the model is no better than chance.
    answers = [[line for line in each.text.splitlines() if line[:1] in "[{"] for each in (undamaged, done)]
    if done.code == 0 and (answers[0] != answers[1] or not answers[0]):
        raise LostError("another answer than undamaged, and no word of it")


def _fine_tuned(bench: Bench, name: str, kind: str, folder: Path, draw: random.Random) -> None:
    source = bench.copy("pretraining", folder / "pretraining", checkpoints=False)
    more = ["--model.pretrained", str(source / "model"), "--max_steps", "1", "--evaluation.at_end", "false"]
    run(bench.command("vqa", folder / "undamaged", *more)).expect(0, where="undamaged")
    _damage(source / name, kind, draw)
    done = run(bench.command("vqa", folder / "damaged", *more)).expect(0, 2, where="fine-tuned")
    if done.code == 0:
        same(*({"weights": (folder / of / "model/model.safetensors").read_bytes()} for of in ("undamaged", "damaged")))


def _trained(bench: Bench, task: str, name: str, kind: str, folder: Path, draw: random.Random) -> None:
    shutil.copytree(bench.corpus, folder / "corpus")
    _damage(folder / "corpus" / name, kind, draw)
    more = ["--data_roots.corpus", str(folder / "corpus"), "--max_steps", "2"]
    run(bench.command(task, folder / "run", *more)).expect(0, 2, where="trained")


def _again(bench: Bench, name: str, kind: str, folder: Path, draw: random.Random) -> None:
    _evaluated_again(bench, name, folder, lambda path: _damage(path, kind, draw))


def _evaluated_again(bench: Bench, name: str, folder: Path, change: Callable[[Path], None]) -> None:
    """Kill an evaluation, change one of the files that it kept, and evaluate again: the same must come out."""
    into, events = folder / "into", bench.events["evaluate"]
    at = next(number for number, (_, path) in enumerate(events, 1) if "part-000003" in path)
    run(bench.command("evaluate", into), before=kill_at(into, at))
    change(into / "partial" / name)
    if run(bench.command("evaluate", into)).expect(0, 2, where="evaluated after a kill and a change").code == 0:
        same_folders(bench.folder / "evaluated", into)


class _Payload:
    """Unpickled, it leaves a marker."""

    def __reduce__(self) -> tuple:
        return exec, ("open(__import__('os').environ['FAULTS_FOLDER'] + '/marker', 'w').write('code was executed')",)


def _plant(path: Path, as_zip: bool = True) -> bytes:
    """A pickle alone, or in the zip that torch.save writes; returns what the file holds then."""
    path.write_bytes(data := pickle.dumps(_Payload(), protocol=2))
    if as_zip:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (("data.pkl", data), ("version", "3\n"), ("byteorder", "little")):
                archive.writestr(f"archive/{name}", content)
    return path.read_bytes()


def pickles(bench: Bench) -> list[Case]:
    """Code planted wherever something is loaded."""
    checkpoint = bench.folder / f"vqa-half/checkpoints/step-{STEPS - 2:08d}"
    names = [path.name for path in sorted(checkpoint.iterdir()) if path.suffix not in (".json", ".safetensors")]
    cases: list[Case] = [(f"checkpoints, {name}", partial(_in_checkpoints, bench, name)) for name in names]
    for name in ("pytorch_model.bin", "model.safetensors", "training_args.bin", "tokenizer.pkl"):
        cases += [
            (f"{how}, {name}", partial(_in_a_model, bench, name, how)) for how in ("evaluate", "ask", "pretrained")
        ]
    cases += [(f"backbone, {as_zip}", partial(_as_backbone, bench, as_zip)) for as_zip in (True, False)]
    cases += [("a kept part", partial(_in_a_part, bench)), ("text encoder", partial(_as_text_encoder, bench))]
    return [(name, partial(_unmarked, attempt)) for name, attempt in cases]


def _unmarked(attempt: Callable, folder: Path, draw: random.Random) -> None:
    """Raises LostError: what was planted has left a marker in the folder."""
    lost = None
    try:
        attempt(folder, draw)
    except LostError as error:
        lost = error
    if (marker := folder / "marker").exists():
        raise LostError(marker.read_text()[:80])
    if lost is not None:
        raise lost


def _in_checkpoints(bench: Bench, name: str, folder: Path, draw: random.Random) -> None:
    """In the newest or in all of them, with sizes and checksums made to fit."""
    output = bench.copy("vqa-half", folder / "run")
    for path in sorted((output / "checkpoints").glob(f"step-*/{name}"))[draw.choice((0, -1)) :]:
        before, after = path.read_bytes(), _plant(path)

        def fit(value: Any, before: bytes = before, after: bytes = after) -> Any:
            if isinstance(value, dict):
                return {name: fit(item) for name, item in value.items()}
            sums = (len, lambda data: hashlib.sha256(data).hexdigest())
            return next((make(after) for make in sums if value == make(before)), value)

        for manifest in path.parent.glob("*.json"):
            fitted = fit({name: value for name, value in json.loads(manifest.read_text()).items() if name != "sha256"})
            fitted["sha256"] = hashlib.sha256(json.dumps(fitted, sort_keys=True).encode()).hexdigest()
            manifest.write_text(json.dumps(fitted, indent=1))
    run(bench.command("vqa", output)).expect(0, 2, where="resumed")


def _in_a_model(bench: Bench, name: str, how: str, folder: Path, draw: random.Random) -> None:
    model, command = _model(bench, how, folder)
    (model / "SHA256SUMS").unlink()
    if "model." in name:
        (model / "model.safetensors").unlink()
    _plant(model / name)
    run(command).expect(0, 2, where=how)


def _model(bench: Bench, how: str, folder: Path) -> tuple[Path, list[str]]:
    """A copy of a model, and a command that reads it: `evaluate`, `ask`, or training from it (`pretrained`)."""
    is_start = how == "pretrained"
    source = bench.copy("pretraining" if is_start else "vqa", folder / "source", checkpoints=False)
    more = ["--model.pretrained", str(source / "model"), "--max_steps", "1"]
    return source / ("model" if is_start else "best"), {
        "evaluate": ["evaluate", "--run", str(source), "--into", str(folder / "into")],
        "ask": ["ask", "answer", str(source), str(bench.picture), _QUESTION],
        "pretrained": bench.command("vqa", folder / "run", *more),
    }[how]


def _as_backbone(bench: Bench, as_zip: bool, folder: Path, draw: random.Random) -> None:
    _plant(folder / "backbone.pth", as_zip)
    more = ["--model.backbone", str(folder / "backbone.pth"), "--max_steps", "1"]
    run(bench.command("pretraining", folder / "run", *more)).expect(0, 2, where="trained")


def _as_text_encoder(bench: Bench, folder: Path, draw: random.Random) -> None:
    (encoder := folder / "bert").mkdir()
    (encoder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    _plant(encoder / "pytorch_model.bin")
    more = ["--model.text_encoder", str(encoder), "--max_steps", "1"]
    run(bench.command("pretraining", folder / "run", *more)).expect(0, 2, where="trained")


def _in_a_part(bench: Bench, folder: Path, draw: random.Random) -> None:
    def plant(path: Path) -> None:
        content, identity = _plant(path), json.loads((path.parent / "identity.json").read_text())
        sealed = f"{json.dumps(identity, sort_keys=True)}\0{int(path.stem[5:])}\0".encode() + content
        path.write_bytes(hashlib.sha256(sealed).digest() + content)

    _evaluated_again(bench, "part-000001.pt", folder, plant)


# What a field may name that a careless reader imports, starts or looks up by importing what is around it.
_THEIRS: tuple[Any, ...] = (
    "planted", "planted.sub:Own", "planted:Own", "planted.sub.Own", "package:planted.sub/x", "package:planted/x",
    {"class_path": "planted.sub.Own", "init_args": {}}, '{"class_path": "planted.sub.Own"}', ["planted.sub:Own"],
    ["planted.sub"], {"_target_": "planted.sub.Own"}, "planted-program", "./planted-program", "timm/planted.sub",
    "planted/sub", "planted/sub--sub.Own", "$(planted-program)", "| planted-program",
    {name: ["planted.Own", "planted.Own"] for name in ("AutoConfig", "AutoModel", "AutoTokenizer")},
)  # fmt: skip
_KEYS = (
    "auto_map", "class_path", "_target_", "tokenizer_class", "launcher", "trackers", "attn_implementation", "backbone",
    "image_processor_type", "processor_class", "visual_encoder", "dictionary", "quantization_config", "peft_type",
)  # fmt: skip
# Of each kind of file, places that are tried with all of `_THEIRS`; others are drawn.
_PLACES = {
    "recipe": ("log.trackers", "data_roots.corpus", "task", "model.config.backbone", "model.config.own", "optim.rule"),
    "run": ("log.trackers", "task", "model.config.backbone"),
    "config.json": ("auto_map", "backbone", "attn_implementation"),
    "tokenizer_config.json": ("auto_map", "tokenizer_class"),
    "processor_config.json": ("auto_map", "image_processor_type"),
}  # fmt: skip
_MISTAKES = (
    None, True, False, 0, 1, -1, 3, 1.5, 1e-300, 1e308, float("nan"), float("inf"), 2**63, "", " ", "auto", "x" * 300,
    "é", "{corpus}", "{nowhere}", "/nowhere/at/all", "../..", "1e-3", "0x10", "null", [], {}, [1], [None], {"a": 1},
    [[]], "2026-01-01", "\\", "--resume", [0.5, 0.5], [2, 1], "package:nothing/here", b"\xff",
)  # fmt: skip
_CODE = """
import os, pathlib
pathlib.Path(os.environ["FAULTS_FOLDER"], "marker").open("a").write(__name__ + " was imported\\n")
class Own:
    def __init__(self, *_, **__): pass
    from_pretrained = classmethod(lambda own, *_, **__: own())
"""


def foreign(bench: Bench) -> list[Case]:
    """Recipes, runs, models and corpora whose fields name planted modules, packages, import paths and programs."""
    cases: list[Case] = [
        (f"{kind}, {place} = {value!r}"[:90], partial(_changed, bench, kind, (place, value), _THEIRS))
        for kind, places in _PLACES.items()
        for place in places
        for value in _THEIRS
    ]
    cases += [(f"{kind}, drawn", partial(_changed, bench, kind, None, _THEIRS)) for kind in (*_PLACES, "corpus") * 20]
    return [(name, partial(_unmarked, attempt)) for name, attempt in cases]


def settings(bench: Bench) -> list[Case]:
    """Mistakes in recipes and in the JSON files of models, and in arguments: one line, or a run."""
    kinds = (
        "recipe", "recipe", "run", "config.json", "tokenizer_config.json", "processor_config.json", "tokenizer.json",
    )  # fmt: skip
    cases = [(f"{kind}, drawn", partial(_changed, bench, kind, None, _MISTAKES)) for kind in kinds]
    return [*cases, ("an argument", partial(_argument, bench)), ("a recipe's text", partial(_text, bench))]


def _changed(
    bench: Bench, kind: str, known: tuple[str, Any] | None, values: Sequence[Any], folder: Path, draw: random.Random
) -> None:
    own, safe = bench.private(folder / "bench"), ["--max_steps", "1", "--output", str(folder / "run")]
    if kind == "recipe":
        path = own.recipes[draw.choice(sorted(own.recipes))]
        command = ["train", "--recipe", str(path), *safe]
    elif kind == "run":
        path = own.folder / "vqa/recipe.yaml"
        command = draw.choice((["train", "--recipe", str(path), *safe], own.command("evaluate", folder / "into")))
    elif kind == "corpus":
        path = draw.choice([*sorted(own.corpus.glob("*.json")), *sorted(own.corpus.glob("[!n]*/*.json"))])
        command = own.command(draw.choice(sorted(own.recipes)), *(folder / "run", *safe[:2]))
    else:
        model, command = _model(bench, draw.choice(("evaluate", "ask", "pretrained")), folder)
        path = model / kind
        (model / "SHA256SUMS").unlink()
    content = yaml.safe_load(path.read_text()) if path.suffix == ".yaml" else json.loads(path.read_text())
    said = (
        [_put(content, *known)] if known else [_mutated(content, draw, values) for _ in range(draw.choice((1, 1, 3)))]
    )
    path.write_text(yaml.safe_dump(content) if path.suffix == ".yaml" else json.dumps(content, default=repr))
    for package in ("planted", "planted/sub"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(_CODE)
    program = folder / "planted-program"
    program.write_text("#!/bin/sh\necho a program was started >> $FAULTS_FOLDER/marker\n")
    program.chmod(0o755)
    _tried(command, folder, "; ".join(said))


def _tried(command: list[str], folder: Path, said: str) -> None:
    """The command where what is planted is found first, in itself and in what it starts."""

    def before() -> None:
        limit_memory()
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        os.environ |= {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(folder)}

    done = run(command, before=before, timeout=60)
    # A setting may be large, but possible; or ask for help.
    if (
        not (done.code is None and re.search("recipe |drawing the demo corpus", done.text))
        and "usage:" not in done.text
    ):
        done.expect(0, 1, 2, where=said[:300])


def _put(content: Any, place: str, value: Any) -> str:
    *names, last = place.split(".")
    for name in names:
        content = content.setdefault(name, {})
    content[last] = value
    return place


def _mutated(content: Any, draw: random.Random, values: Sequence[Any]) -> str:
    """Change one place of what YAML or JSON holds; returns what was done."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            # Of a tokenizer nearly all places are words.
            places.append((value, key))
            if isinstance(item, dict | list) and key != "vocab":
                walk(item)

    walk(content)
    if not places:
        return "nothing"
    holder, key = draw.choice(places)
    way = draw.choice(("value", "value", "value", "delete", "rename", "insert"))
    if way == "delete":
        del holder[key]
    elif way == "rename" and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    else:
        if way == "insert" and isinstance(holder, dict):
            key = draw.choice((*_KEYS, "x", 1, None, ""))
        holder[key] = draw.choice(values)
        return f"{key} = {holder[key]!r}"[:80]
    return f"{way} {key}"


def _argument(bench: Bench, folder: Path, draw: random.Random) -> None:
    """One after the command changed, taken away, or one more."""
    own, value = (
        bench.private(folder / "bench"),
        draw.choice([*map(str, _MISTAKES), "\udcff", "a=b", "--", "@file", "~", "["]),
    )
    more = ["--max_steps", "1", "--engine.precision", "float32", "--batch.workers", "0", "--schedule.warmup_steps", "3"]
    commands = (
        own.command("vqa", folder / "run", *more), own.command("evaluate", folder / "into", "--split", "val"),
        ["ask", "answer", str(own.folder / "vqa"), str(own.picture), _QUESTION, "--top_k", "2"],
    )  # fmt: skip
    arguments = draw.choice(commands)
    at = draw.randrange(1, len(arguments))
    arguments[at : at + draw.randrange(2)] = draw.choice(([value], [], [f"{arguments[at]}x"], [arguments[at]] * 2))
    _tried(arguments, folder, " ".join(map(repr, arguments)))


def _text(bench: Bench, folder: Path, draw: random.Random) -> None:
    """Something odd in the middle of a recipe, or in its place."""
    odd = draw.choice((
        b"", b"\xff\xfe", b"\x00", b"[", b"{", b"- 1\n- 2", b"\t:", b"a: b: c", b"*x", b"&a [*a]", b"%YAML 9",
        b"!!python/x", b"? ?", b"'", b"task: vqa\ntask: vqa",
        b"seed: 1\nseed: 2\n", b"---\n---\n", b"null", b"1", b"task:", b"data:",
        b"data: {splits: }", b"model:\n  config:", b"optim:", b"!!python/object/apply:builtins.exec ['import planted']",
    ))  # fmt: skip
    path = bench.private(folder / "bench").recipes["vqa"]
    content = bytearray(path.read_bytes())
    at = draw.randrange(len(content))
    content[at : at + draw.choice((0, 1, 30, len(content)))] = odd
    path.write_bytes(bytes(content) if draw.random() < 0.7 else odd)
    _tried(
        ["train", "--recipe", str(path), "--max_steps", "1", "--output", str(folder / "run")],
        folder,
        f"{odd!r} at {at}",
    )
