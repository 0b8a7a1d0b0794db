"""Does the campaign see what it is for? Products made worse on purpose; a case of a class must be lost with each.

python tests/faults/mutants.py [NAME ...]   prints a line a mutant: how many faults were lost without it, and with it
"""

import importlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from campaign import CLASSES, campaign, hostile, prepared
from tiny_runs import STEPS, Bench

_SAVED = f"checkpoints/step-{STEPS - 2:08d}"


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _load_all(load: Callable, *arguments: Any, **options: Any) -> Any:
    return load(*arguments, **{**options, "weights_only": False})


def _open_all(opened: Callable, file: Any, mode: str = "r", formats: Any = None) -> Any:
    return opened(file, mode)


def _delete_in_place(folder: Path) -> None:
    for path in sorted(folder.iterdir()):  # checkpoint.json first; a file system has an order of its own
        path.unlink()
    folder.rmdir()


# Name: the class that must notice it, which of its cases (the first whose name is like this), what is replaced where,
# and by what; a `partial` gets what was there as its first argument.
MUTANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "random states are lost": ("kills", f"^vqa, killed before .* open {_SAVED}", {"torch:set_rng_state": _nothing}),
    "folders are deleted in place": (
        "kills", r"^vqa, killed before .* remove .*step-\d+\.partial/\w",
        {"soho_fast.engine.checkpoint:delete": _delete_in_place},
    ),
    "checksums say nothing": (
        "damage", rf"^vqa-half, {_SAVED}.*model_states\.pt zeroed", {"soho_fast.engine.checkpoint:_altered": _nothing}
    ),
    "everything is unpickled": (
        "pickles", r"^checkpoints, .*model_states\.pt",
        {"torch:load": partial(_load_all), "torch.serialization:get_unsafe_globals_in_checkpoint": lambda path: []},
    ),
    "ranks need not agree": ("ranks", "^another optim.lr", {"soho_fast.engine.resume:refuse_disagreement": _nothing}),
    "files are trusted": (
        "foreign", "^recipe, log.trackers = .'planted.sub'", {"soho_fast.tasks.recipe:_refuse_foreign_code": _nothing}
    ),
    "own code is in no identity": (
        "code", "^rule, planted_beside/late.py, resumed", {"soho_fast.common.versions:own_code": dict}
    ),
    "models are read by any code": (
        "code", "^dictionary, planted_own.py, rank", {"soho_fast.ask.__main__:cautions": lambda *_: []}
    ),
    "pages of others are let in": ("app", "calls, 0$", {"soho_fast.explore.door:_foreign": lambda _: ""}),
    "errors have stack traces": (
        "settings", "^a recipe's text",
        {"soho_fast.common.errors:UserError.__str__": lambda _: "Traceback (most recent call last)"},
    ),
    "every format is opened": ("images", "^batch 0$", {"PIL.Image:open": partial(_open_all)}),
    "texts have no end": (
        "bombs", "^tokenizer, 'a dog and ' of 1,000,000", {"soho_fast.data.readers.records:MOST_CHARACTERS": 10**9}
    ),
    "all is printed raw": ("controls", r"^check, '.x1b\[2J'", {"soho_fast.common.errors:printable": lambda text: text}),
}  # fmt: skip


def _worsen(patches: dict[str, Any]) -> None:
    for place, worse in patches.items():
        module, _, name = place.partition(":")
        holder: Any = importlib.import_module(module)
        *outer, last = name.split(".")
        for each in outer:
            holder = getattr(holder, each)
        there = getattr(holder, last)  # It has another name now where this fails.
        setattr(holder, last, partial(worse.func, there) if isinstance(worse, partial) else worse)


def _lost(bench: Bench, name: str, like: str, patches: dict[str, Any]) -> int:
    (sound,) = (kind for kind in CLASSES if kind.name == name)
    cases = sound.cases(bench)
    seed = next(seed for seed, (case, _) in enumerate(sound.in_order(bench)) if re.search(like, case))

    def worse_cases(bench: Bench) -> list:
        _worsen(patches)
        return cases

    tried = replace(sound, cases=worse_cases)
    campaign([tried], bench, minutes=5, seed=seed, count=1)
    return tried.lost


def main() -> int:
    hostile.BATCH = 200
    with prepared() as bench:
        for name in sys.argv[1:] or MUTANTS:
            kind, like, patches = MUTANTS[name]
            lost = [_lost(bench, kind, like, each) for each in ({}, patches)]
            print(json.dumps({"mutant": name, "lost": lost}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
