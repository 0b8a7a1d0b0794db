"""Damaged files of a run, of an evaluation, of a corpus; then the command that reads them.

Held: the result of undamaged files (a damaged checkpoint is passed over for an older one), or one line that refuses.
What has no checksum and is still well-formed text (a digit of a loss, a word of a caption) nobody can call damaged:
there only a stack trace counts.
"""

import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from damage import KINDS, damage
from kills import same_folders
from tiny_runs import Bench, LostError, differing, digest, run, watch

# Text without a checksum: a flipped bit may leave it well-formed.
_TEXT = (".json", ".jsonl", ".yaml", ".txt")


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """The seed counts through files and kinds of damage: consecutive seeds try each file in turn."""
    cases = _cases(bench)
    case, kind, draw = cases[seed % len(cases)], _kind(seed, len(cases)), random.Random(seed)
    try:
        case(folder, kind, draw)
    except LostError as lost:
        raise LostError(f"{case.func.__name__} {' '.join(map(str, case.args[1:]))}, {kind}: {lost}") from None
    return 1


def _kind(seed: int, num_cases: int) -> str:
    """Neighbours get different kinds, and each file gets all of them in turn."""
    return KINDS[(seed % num_cases + seed // num_cases) % len(KINDS)]


def seed_of(bench: Bench, state: str, begins: str, ends: str, kind: str) -> int:
    """A seed with this kind of damage to the largest of such files of a run that is resumed."""
    cases = _cases(bench)
    seeds = [
        seed
        for seed in range(len(KINDS) * len(cases))
        if (case := cases[seed % len(cases)]).func is _resumed
        and case.args[2] == state
        and case.args[3].startswith(begins)
        and case.args[3].endswith(ends)
        and _kind(seed, len(cases)) == kind
    ]
    return max(seeds, key=lambda seed: (bench.folder / state / cases[seed % len(cases)].args[3]).stat().st_size)


def _cases(bench: Bench) -> list[partial]:
    cases = []
    for task in ("pretraining", "vqa"):
        half, whole = bench.folder / f"{task}-half", bench.folder / task
        cases += [partial(_resumed, bench, task, f"{task}-half", name) for name in _files(half)]
        cases += [partial(_resumed, bench, task, task, name) for name in _files(whole)]
    for name in _files(bench.folder / "vqa"):
        if name.startswith("best/") or "/" not in name:
            cases += [partial(_evaluated, bench, name), partial(_asked, bench, name)]
    cases += [
        partial(_fine_tuned, bench, name) for name in _files(bench.folder / "pretraining") if name.startswith("model/")
    ]
    corpus = [name for name in _files(bench.corpus) if not re.search(r"nlvr2|snli|flickr", name)]
    pictures = [name for name in corpus if name.endswith((".png", ".jpg"))]
    others = [name for name in corpus if name not in pictures and not name.endswith((".md", "ATTRIBUTION.txt"))]
    cases += [partial(_trained, bench, task, name) for task in ("pretraining", "vqa") for name in others + pictures[:4]]
    cases += [partial(_partly_evaluated, bench, number) for number in range(3)]
    return random.Random(0).sample(cases, len(cases))


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _hit(path: Path, kind: str, draw: random.Random) -> None:
    others = [other for other in path.parent.iterdir() if other.suffix == path.suffix and other != path]
    damage(path, kind, draw, draw.choice(sorted(others)) if others else None)


def _may_be_well_formed(name: str, kind: str) -> bool:
    return name.endswith(_TEXT) and kind in ("flipped", "swapped", "lengthened", "truncated")


def _resumed(bench: Bench, task: str, state: str, name: str, folder: Path, kind: str, draw: random.Random) -> None:
    output = bench.copy(state, folder / "run")
    _hit(output / name, kind, draw)
    done = run(bench.train(task, output))
    # There is always an older checkpoint to go back to.
    done.expect(0, where="resumed") if name.startswith("checkpoints/") or name == "log.jsonl" else done.expect(
        0, 2, where="resumed"
    )
    if done.code == 2:
        return
    if state == task and name in ("metrics.json", "log.jsonl"):
        return  # of a finished run nothing is written again
    expected, found = dict(bench.digests[task]), digest(output)
    # What stays damaged: an older checkpoint that is no longer needed, a result that no longer is written.
    folder_of_it = name.rpartition("/")[0]
    if folder_of_it.startswith("checkpoints/"):
        for parts in (expected, found):
            parts["files"] = [file for file in parts["files"] if not file.startswith(folder_of_it)]
    if name.startswith("best/") or state == task:
        for parts in (expected, found):
            parts.pop(name, None)
            parts["files"] = [file for file in parts["files"] if file != name]
    if name == "log.jsonl":
        lines = [line for line in differing(expected, found) if line.startswith("log")]
        if lines and "log.jsonl" not in done.text and kind in ("zeroed", "truncated"):
            raise LostError(f"nothing was said of log.jsonl: {lines[0]}")
        expected, found = (
            {part: parts[part] for part in parts if not part.startswith("log")} for parts in (expected, found)
        )
    lines = differing(expected, found)
    if lines:
        raise LostError("another end than undisturbed: " + "; ".join(lines)[:300])


def _evaluated(bench: Bench, name: str, folder: Path, kind: str, draw: random.Random) -> None:
    source = without_checkpoints(bench.folder / "vqa", folder / "run")
    _hit(source / name, kind, draw)
    done = run(bench.evaluate(source, folder / "into")).expect(0, 2, where="evaluated")
    if done.code == 0 and not (name in ("recipe.yaml", "metrics.json") and _may_be_well_formed(name, kind)):
        for file in ("predictions.jsonl", "submission.json"):
            if (folder / "into" / file).read_bytes() != (bench.folder / "evaluated" / file).read_bytes():
                raise LostError(f"evaluated: other {file} than undamaged, and no word of it")


def _asked(bench: Bench, name: str, folder: Path, kind: str, draw: random.Random) -> None:
    source = without_checkpoints(bench.folder / "vqa", folder / "run")
    question = ["--json", "answer", str(source), str(picture(bench)), "how many dogs are there?"]
    undamaged = run(["ask", *question]).expect(0, where="asked, undamaged")
    _hit(source / name, kind, draw)
    done = run(["ask", *question]).expect(0, 2, where="asked")
    # What is said beside the answer comes from metrics.json: that the model is no better than chance.
    answers = [[line for line in each.text.splitlines() if line[:1] in "[{"] for each in (undamaged, done)]
    if done.code == 0 and (answers[0] != answers[1] or not answers[0]):
        raise LostError("asked: another answer than undamaged, and no word of it")


def _fine_tuned(bench: Bench, name: str, folder: Path, kind: str, draw: random.Random) -> None:
    source = without_checkpoints(bench.folder / "pretraining", folder / "pretraining")
    more = ["--model.pretrained", str(source / "model"), "--max_steps", "1", "--evaluation.at_end", "false"]
    run(bench.train("vqa", folder / "undamaged", *more)).expect(0, where="fine-tuned, undamaged")
    _hit(source / name, kind, draw)
    done = run(bench.train("vqa", folder / "damaged", *more)).expect(0, 2, where="fine-tuned")
    weights = [folder / name / "model/model.safetensors" for name in ("undamaged", "damaged")]
    if done.code == 0 and weights[0].read_bytes() != weights[1].read_bytes():
        raise LostError("fine-tuned: other weights than from the undamaged model, and no word of it")


def _trained(bench: Bench, task: str, name: str, folder: Path, kind: str, draw: random.Random) -> None:
    shutil.copytree(bench.corpus, folder / "corpus")
    _hit(folder / "corpus" / name, kind, draw)
    more = ["--data_roots.corpus", str(folder / "corpus"), "--max_steps", "2"]
    run(bench.train(task, folder / "run", *more)).expect(0, 2, where="trained")


def _partly_evaluated(bench: Bench, number: int, folder: Path, kind: str, draw: random.Random) -> None:
    evaluated_again(bench, number, folder, lambda path: _hit(path, kind, draw))


def evaluated_again(bench: Bench, number: int, folder: Path, change: Callable[[Path], None]) -> None:
    """Kill an evaluation, change one of the files it kept, and evaluate again: the same must come out."""
    into = folder / "into"

    def act(count: int, event: str, path: str) -> None:
        if event == "open" and "part-000003" in path:
            os.kill(os.getpid(), signal.SIGKILL)

    arguments = bench.evaluate(bench.folder / "vqa", into)
    run(arguments, before=watch(into, act))
    parts = sorted(path for path in (into / "partial").iterdir() if path.is_file())
    if not parts:
        raise LostError("a killed evaluation kept nothing")
    change(parts[number % len(parts)])
    done = run(arguments).expect(0, 2, where="evaluated after a kill and damage")
    if done.code == 0:
        same_folders(bench.folder / "evaluated", into)


def picture(bench: Bench) -> Path:
    """A picture of the corpus."""
    return next(path for path in sorted(bench.corpus.rglob("*")) if path.suffix in (".jpg", ".png"))


def without_checkpoints(source: Path, target: Path) -> Path:
    """A copy of a run's results."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("checkpoints"))
    return target
