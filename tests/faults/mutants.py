"""Does the campaign see what it is for? Products made worse on purpose; a class of faults must lose with each.

python tests/faults/mutants.py [NAME ...]   prints a line a mutant: how many faults were lost without it, and with it
"""

import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import bombs
import commands
import corruption
import decoding
import environments
import kills
import pickles
import ranks
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


def _signals_are_not_heard() -> None:
    from soho_fast.common import command_line

    assert command_line.Stopping.__enter__, "what hears signals has another name now"
    command_line.Stopping.__enter__ = lambda stopping: stopping


def _closed_pipes_are_mistakes() -> None:
    from soho_fast.common import command_line

    command_line._is_of_output = lambda error: False


def _what_the_killed_leave_stays() -> None:
    from soho_fast.common import files

    files.process_is_alive = lambda process_id: True


def _folders_are_deleted_in_place() -> None:
    from soho_fast.engine import checkpoint

    assert checkpoint.delete, "what deletes a checkpoint has another name now"
    checkpoint.delete = partial(shutil.rmtree, ignore_errors=True)


def _ranks_need_not_agree() -> None:
    from soho_fast.engine import resume

    assert resume.refuse_disagreement, "what compares the ranks has another name now"
    resume.refuse_disagreement = lambda processes, values: None


def _changes_are_not_seen() -> None:
    from soho_fast.engine import resume

    assert resume.changes_between, "what compares a run with its checkpoint has another name now"
    resume.changes_between = lambda before, now: []


def _files_are_trusted() -> None:
    from soho_fast.tasks import recipe

    assert recipe._refuse_foreign_code, "what asks what a recipe's file would import has another name now"
    recipe._refuse_foreign_code = lambda *_: None


def _texts_have_no_end() -> None:
    from soho_fast.data.readers import records

    records.MOST_CHARACTERS = 10**9


def _all_is_printed_raw() -> None:
    from soho_fast.common import errors

    errors.printable = lambda text: text


def _launchers_are_believed() -> None:
    from soho_fast.engine import distributed

    assert distributed.environment_number, "what reads a launcher's variables has another name now"
    distributed.environment_number = lambda name, default: int(os.environ.get(name, default))


def _seed_of_long_captions() -> int:
    return next(
        seed for seed in range(1000) if bombs.bomb(seed)[0] == "tokenizer" and len(bombs.bomb(seed)[3].strip()) == 10**6
    )


def _seed_of_no_number() -> int:
    """The number of processes is a word."""
    seeds = (seed for seed in range(10**6) if seed % 3 < 2)
    return next(
        seed for seed in seeds if environments.launched(random.Random(seed)) == ("train", {"WORLD_SIZE": "abc"})
    )


def _seed_of_corpus(way: str) -> int:
    """A corpus is drawn and ended once that way, while its first images are written."""
    return next(seed for seed in range(10**6) if commands.what(seed) == ("corpus", way, [4]))


def _seed_of_a_step_again(bench: Bench) -> int:
    """A run is killed once, while it saves its last checkpoint but one, so that it goes on from the one before."""
    for seed in range(100_000):
        task, at = kills.only_event(bench, seed)
        if task == "vqa" and at and f"/step-{STEPS - 2:08d}" in bench.events[task][at - 1][1]:
            return seed
    raise AssertionError("no seed kills a run while a checkpoint is saved")


def _seed_of_deletion(bench: Bench) -> int:
    """A run is killed once, between two deletions in a checkpoint."""
    for seed in range(100_000):
        task, at = kills.only_event(bench, seed)
        around = bench.events[task][at - 2 : at + 1] if at > 1 else []
        if len(around) == 3 and all(event == "remove" and "/step-" in path for event, path in around):
            return seed
    raise AssertionError("no seed kills a run while a checkpoint is deleted")


def _seed_of_planted_code(bench: Bench) -> int:
    return next(
        seed
        for seed, place in enumerate(pickles.places(bench))
        if place.func.__name__ == "_in_checkpoints" and place.args[1].endswith("model_states.pt") and place.args[2]
    )


def _seed_of_weights(bench: Bench) -> int:
    return corruption.seed_of(bench, "vqa-half", f"checkpoints/step-{STEPS - 2:08d}/", ".pt", "zeroed")


MUTANTS = {
    "random states are lost": Mutant("kills", _seed_of_a_step_again, _random_states_are_lost),
    "everything is unpickled": Mutant("pickles", _seed_of_planted_code, _everything_is_unpickled),
    "checksums say nothing": Mutant("corruption", _seed_of_weights, _checksums_say_nothing),
    "every format is opened": Mutant("images", lambda bench: 0, _every_format_is_opened),
    "errors have stack traces": Mutant("settings", lambda bench: 2, _errors_have_stack_traces),
    "signals are not heard": Mutant("commands", lambda bench: _seed_of_corpus("SIGHUP"), _signals_are_not_heard),
    "closed pipes are mistakes": Mutant(
        "commands", lambda bench: _seed_of_corpus("closed"), _closed_pipes_are_mistakes
    ),
    "what the killed leave stays": Mutant(
        "commands", lambda bench: _seed_of_corpus("SIGKILL"), _what_the_killed_leave_stays
    ),
    "folders are deleted in place": Mutant("kills", _seed_of_deletion, _folders_are_deleted_in_place),
    "ranks need not agree": Mutant("ranks", lambda bench: ranks.WAYS.index("disagreeing"), _ranks_need_not_agree),
    "changes are not seen": Mutant("contents", lambda bench: 0, _changes_are_not_seen),
    "files are trusted": Mutant("foreign", lambda bench: 0, _files_are_trusted),
    "refused models have stack traces": Mutant("models", lambda bench: 0, _errors_have_stack_traces),
    "texts have no end": Mutant("bombs", lambda bench: _seed_of_long_captions(), _texts_have_no_end),
    "all is printed raw": Mutant("controls", lambda bench: 0, _all_is_printed_raw),
    "launchers are believed": Mutant("environments", lambda bench: _seed_of_no_number(), _launchers_are_believed),
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
        for name in sys.argv[1:] or MUTANTS:
            mutant = MUTANTS[name]
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
