"""Contents replaced between two starts of the same command, or on one of two ranks: images, texts, a tokenizer's
behaviour, shards, what is asked about.

Held: it is refused or reported by name, or nothing of what was replaced is in the end: never a part of each.
"""

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import shards
from kills import kill_beyond, same_folders
from ranks import end_ranks, start_ranks, undisturbed
from tiny_runs import Bench, Finished, LostError, differing, digest, run, watch

BEHAVIOURS = (("normalizer", "lowercase", False), ("normalizer", "strip_accents", False),
              ("model", "max_input_chars_per_word", 3))  # fmt: skip
# What a refusal or a report names, one of each kind of contents.
_NAMES = re.compile(
    r"(training|held-out) (images|data)|tokenizer's output|data\.tokenizer|another (set of images|quest)"
)

# Else it is drawn anew, as whatever the demo's corpus has lost.
_KEPT = ("--corpus.folder", "")


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """The seed counts through commands, each with another kind of replacement in turn."""
    command, replace, draw = _COMMANDS[seed % len(_COMMANDS)], CHANGES[seed % len(CHANGES)], random.Random(seed)
    try:
        command(bench, draw, folder, partial(replace, draw=draw))
    except LostError as lost:
        raise LostError(f"{command.__name__}, {replace.__name__}: {lost}") from None
    return 1


def behave_otherwise(tokenizer: Path, part: str, name: str, value: object) -> None:
    """Let a tokenizer of the same words behave in another way."""
    content = json.loads(tokenizer.read_text())
    assert content[part][name] != value
    content[part][name] = value
    tokenizer.write_text(json.dumps(content))


def all_images(corpus: Path, draw: random.Random) -> None:
    """Redrawn: each is the next one, turned."""
    from PIL import Image

    paths = _images(corpus)
    drawn = [Image.open(path).convert("RGB").rotate(90 * draw.randint(1, 3)) for path in [*paths[1:], paths[0]]]
    for path, image in zip(paths, drawn, strict=True):
        image.save(path)


def one_image(corpus: Path, draw: random.Random) -> None:
    shutil.copyfile(*draw.sample(_images(corpus), 2))


def bytes_of_images(corpus: Path, draw: random.Random) -> None:
    """The same names, sizes and beginnings."""
    for path in _images(corpus):
        content = bytearray(path.read_bytes())
        content[-draw.randint(3, 200)] ^= 1 << draw.randrange(8)
        path.write_bytes(content)


def texts(corpus: Path, draw: random.Random) -> None:
    """A letter of each caption and question is another one."""
    for path in (corpus / "dataset_coco.json", *corpus.glob("vqa/*questions.json")):
        path.write_text(re.sub(r'("raw":|"question":)"\w', r'\1"Z', path.read_text()))


def tokenizer(corpus: Path, draw: random.Random) -> None:
    behave_otherwise(corpus / "tokenizer/tokenizer.json", *draw.choice(BEHAVIOURS))


CHANGES = (all_images, texts, one_image, tokenizer, bytes_of_images, all_images, texts)


def _images(corpus: Path) -> list[Path]:
    return sorted(path for path in corpus.rglob("*.jpg") if "20" in path.parent.name)


def _told(done: Finished) -> bool:
    """Whether it was refused or reported, by name."""
    lines = [line for line in done.text.splitlines() if line.startswith(("error", "changed: "))]
    if done.code == 2 and not any(_NAMES.search(line) for line in lines):
        raise LostError(f"refused without a name: {' '.join(lines)[:200]}")
    return any(_NAMES.search(line) for line in lines)


def _resumed(bench: Bench, draw: random.Random, folder: Path, replace: Callable[[Path], None]) -> None:
    task, allowed = draw.choice(("pretraining", "vqa")), draw.choice(([], ["--resume", "changed"]))
    output, own = bench.copy(f"{task}-half", folder / "run"), bench.private(folder / "bench")
    replace(own.corpus)
    done = run([*own.train(task, output, *_KEPT), *allowed]).expect(0, 2, where=task)
    if not _told(done):
        bench.compare(task, output)


def _on_a_rank(bench: Bench, draw: random.Random, folder: Path, replace: Callable[[Path], None]) -> None:
    own: list[list[str]] = [[], []]
    output, stages = folder / "run", ["--engine.zero_stage", "0"]
    replace(other := shutil.copytree(bench.corpus, folder / "other"))
    which = draw.randrange(2)
    own[which] = ["--data_roots.corpus", str(other)]
    done = end_ranks(start_ranks([*bench.train("pretraining", output, *_KEPT), *stages], [None, None], own))
    for rank, finished in enumerate(done):
        finished.expect(0, 2, where=f"rank {rank}")
    if any(map(_told, done)):
        return
    expected = undisturbed(bench, stages)
    if (
        which == 0
    ):  # It reads annotations for all ranks of a machine: the end has to be that of the other contents alone.
        alone = folder / "alone"
        arguments = [*bench.train("pretraining", alone, *_KEPT), *stages, *own[0]]
        for rank, finished in enumerate(end_ranks(start_ranks(arguments, [None, None]))):
            finished.expect(0, where=f"rank {rank} of two with the other contents")
        expected = digest(alone)
    if lines := differing(expected, digest(output)):
        raise LostError("two ranks of other contents: " + "; ".join(lines)[:300])


def _evaluated(bench: Bench, draw: random.Random, folder: Path, replace: Callable[[Path], None]) -> None:
    into, at, own = folder / "into", f"part-{draw.randint(1, 3):06d}", bench.private(folder / "bench")
    arguments = own.evaluate(own.folder / "vqa", into, *_KEPT)

    def act(number: int, event: str, path: str) -> None:
        if event == "open" and at in path:
            signal.raise_signal(signal.SIGKILL)

    run(arguments, before=watch(into, act)).expect(-signal.SIGKILL, where=f"at {at}")
    replace(own.corpus)
    done = run(arguments).expect(0, 2, where="evaluated further")
    if not _told(done):
        run(own.evaluate(own.folder / "vqa", folder / "anew", *_KEPT)).expect(0, where="evaluated anew")
        same_folders(folder / "anew", into)


def _asked(bench: Bench, draw: random.Random, folder: Path, replace: Callable[[Path], None]) -> None:
    corpus = shutil.copytree(bench.corpus, folder / "corpus")

    def ask(results: str) -> list[str]:
        names = [str(path.relative_to(corpus)) for path in _images(corpus)]
        content = json.loads((corpus / "vqa/v2_OpenEnded_mscoco_val2014_questions.json").read_text())
        lines = zip(names, content["questions"], strict=False)
        asked = [{"image": name, "question": question["question"]} for name, question in lines]
        (folder / "asked.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in asked))
        more = ["--images", str(corpus), "--batch_size", "1", "--workers", "0"]
        return ["ask", "many", str(bench.folder / "vqa"), str(folder / "asked.jsonl"), str(folder / results), *more]

    size = draw.randint(1500, 3000)
    run(ask("results.jsonl"), before=lambda: kill_beyond(size)).expect(-signal.SIGXFSZ, where=f"beyond {size} bytes")
    replace(corpus)
    done = run(ask("results.jsonl")).expect(0, 2, where="asked further")
    if not _told(done):
        run(ask("anew.jsonl")).expect(0, where="asked anew")
        if (folder / "anew.jsonl").read_bytes() != (folder / "results.jsonl").read_bytes():
            raise LostError("answers to other questions or images than those that are there")


def _on_shards(bench: Bench, draw: random.Random, folder: Path, replace: Callable[[Path], None]) -> None:
    """Tars that are written anew, of the same times, beside their old indexes."""
    sound, expected = shards.made(bench)
    shutil.copytree(sound / "shards", folder / "shards")
    arguments = shards.train(bench, folder / "shards", folder / "run")

    def act(number: int, event: str, path: str) -> None:
        if event == "open" and "step-00000004" in path:
            signal.raise_signal(signal.SIGKILL)

    run(arguments, before=watch(folder / "run", act)).expect(-signal.SIGKILL, where="before step 4 was saved")
    corpus = shutil.copytree(bench.corpus, folder / "corpus")
    replace(corpus)
    shards.write(folder / "written", corpus)
    for path in (folder / "written").glob("*.tar"):
        before = (folder / "shards" / path.name).stat()
        os.utime(path.replace(folder / "shards" / path.name), ns=(before.st_atime_ns, before.st_mtime_ns))
    own = ["--data.tokenizer", str(corpus / "tokenizer")]
    done = run([*arguments, *own]).expect(0, 2, where="resumed on shards")
    if done.code == 2 and "index" in done.text:
        return
    if not _told(done) and (lines := differing(expected, digest(folder / "run"))):
        raise LostError("on shards: another end than undisturbed: " + "; ".join(lines)[:300])


_COMMANDS = (_resumed, _asked, _evaluated, _on_a_rank, _on_shards)
