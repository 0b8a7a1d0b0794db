"""Does the campaign see what it is for? Products made worse on purpose; a class of faults must lose with each.

python tests/faults/mutants.py      prints a line a mutant: how many faults were lost without it, and with it
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import corruption
import decoding
import pickles
from campaign import Campaign
from classes import CLASSES
from tiny_runs import STEPS, Bench, import_everything


@dataclass
class Mutant:
    """A worse product.

    Args:
        kind: The class of faults that must notice it.
        seed: The seed of a fault that shows it.
        patch: Makes the product worse in this process.
    """

    kind: str
    seed: Callable[[Bench], int]
    patch: Callable[[], Any]


def _random_states_are_lost() -> None:
    import torch

    torch.set_rng_state = lambda state: None


def _everything_is_unpickled() -> None:
    import torch

    torch.load = partial(_load_all, torch.load)
    torch.serialization.get_unsafe_globals_in_checkpoint = lambda path: []


def _load_all(load: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return load(*arguments, **{**options, "weights_only": False})


def _every_format_is_opened() -> None:
    from PIL import Image

    opened = Image.open
    Image.open = lambda file, mode="r", formats=None: opened(file, mode)


def _errors_have_stack_traces() -> None:
    from soho_fast.common import errors

    errors.UserError.__str__ = lambda error: "Traceback (most recent call last)"


def _checksums_say_nothing() -> None:
    from soho_fast.engine import checkpoint

    assert checkpoint._altered, "what compares a checkpoint's files with their checksums has another name now"
    checkpoint._altered = lambda path: None


def _seed_of_planted_code(bench: Bench) -> int:
    return next(
        seed
        for seed, place in enumerate(pickles.places(bench))
        if place.func.__name__ == "_in_checkpoints" and place.args[1].endswith("model_states.pt") and place.args[2]
    )


def _seed_of_weights(bench: Bench) -> int:
    return corruption.seed_of(bench, "vqa-half", f"checkpoints/step-{STEPS - 2:08d}/", ".pt", "flipped")


MUTANTS = {
    "random states are lost": Mutant("kills", lambda bench: 37, _random_states_are_lost),
    "everything is unpickled": Mutant("pickles", _seed_of_planted_code, _everything_is_unpickled),
    "checksums say nothing": Mutant("corruption", _seed_of_weights, _checksums_say_nothing),
    "every format is opened": Mutant("images", lambda bench: 0, _every_format_is_opened),
    "errors have stack traces": Mutant("settings", lambda bench: 2, _errors_have_stack_traces),
}


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    os.environ["FAULTS_FOLDER"] = str(folder)
    os.chdir(folder)
    try:
        import_everything()
        decoding.BATCH = 200
        bench = Bench(folder)
        bench.prepare()
        for name, mutant in MUTANTS.items():
            lost = [_lost(bench, mutant, patch) for patch in (lambda: None, mutant.patch)]
            print(json.dumps({"mutant": name, "lost": lost}), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _lost(bench: Bench, mutant: Mutant, patch: Callable[[], Any]) -> int:
    sound = CLASSES[mutant.kind]

    def attempt(*arguments: Any) -> int:
        patch()
        return sound.attempt(*arguments)

    kind = replace(sound, attempt=attempt, losses=[])
    Campaign([kind], bench, seed=mutant.seed(bench), processes=1, keep=False).run(5, count=1)
    return len(kind.losses)


if __name__ == "__main__":
    sys.exit(main())
