"""Names and texts that hold what a terminal obeys, through every command that prints them: none of it comes out raw."""

import json
import random
import re
import shutil
from pathlib import Path

import shards
import yaml
from commands import made
from corruption import without_checkpoints
from own import COMMANDS, own_folder, reading_own
from tiny_runs import Bench, LostError, run

_ODD = ("\x1b[2J", "\x1b]0;owned\x07", "\x07", "\x08\x08", "\r", "\x9b31m", "\u202egpj.exe", "\u2066", "\x7f", "\x0b",
        "\x1bP1$r\x1b\\", "\u2028", "\ufeff", "\x00")  # fmt: skip
# What no output may hold; progress bars begin lines anew by a carriage return, and move up and erase by some sequences.
_RAW = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]|\r(?=odd)")
_OTHERS = ("shards", "recipe", "model", "figure", "arguments", "evaluate")


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """The seed counts through the commands and through what is odd."""
    every = (*COMMANDS, *_OTHERS)
    command, odd = every[seed % len(every)], _ODD[(seed // len(every) + seed) % len(_ODD)]
    draw = random.Random(seed)
    name, text = f"a {odd}odd dog".replace("\0", ""), f"a {odd}odd dog {draw.randrange(10**6)}"
    if command in COMMANDS:
        # Corrupt, it is named in more commands.
        image = None if seed // len(every) % 2 else b"no image"
        own = own_folder(bench, folder / draw.choice(("own", f"{name}s")) / "own", text, image, name)
        if draw.random() < 0.3:
            (own / f"{name}.jpg").unlink()
        arguments = reading_own(bench, command, own, text, name)
    else:
        arguments = _other(bench, command, folder, name, text, draw)
    done = run(arguments, timeout=120).expect(0, 1, 2, where=f"{command}, {odd!r}")
    if found := _RAW.search(done.text):
        line = done.text[max(0, found.start() - 80) : found.end() + 40]
        raise LostError(f"{command}, {odd!r}: {found[0]!r} came out raw: {line!r}")
    return 1


def _other(bench: Bench, command: str, folder: Path, name: str, text: str, draw: random.Random) -> list[str]:
    there, given = folder / f"there {name}", text.replace("\0", "")
    if command == "shards":
        shutil.copytree(shards.made(bench)[0] / "shards", there)
        tars = sorted(there.glob("*.tar"))
        tars[1].write_bytes(tars[1].read_bytes()[:-4000])
        return ["shards", draw.choice(("index", "check")), *map(str, tars), "--workers", "1"]
    if command == "recipe":
        content = yaml.safe_load(bench.recipes["vqa"].read_text())
        place = draw.choice([content, *(each for each in content.values() if isinstance(each, dict))])
        place[draw.choice((text, *place))] = draw.choice((text, {text: text}))
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return ["train", "--recipe", str(path), "--max_steps", "1", "--output", str(folder / "run")]
    if command == "figure":
        shutil.copytree(made(bench, "explore") / "explorer", there)
        (there / "SHA256SUMS").unlink()
        meta = there / "data/meta.js"
        meta.write_text(re.sub(r'("(title|model)": )"[^"]*"', lambda at: at[1] + json.dumps(text), meta.read_text()))
        return ["explore", "figure", str(there), "--into", str(folder / "codes.png")]
    if command == "evaluate":
        source, split = without_checkpoints(bench.folder / "vqa", there), draw.choice(("val", given))
        return ["evaluate", "--run", str(source), "--split", split, "--into", str(folder / name)]
    if command == "model":  # whose answers hold it
        source = without_checkpoints(bench.folder / "vqa", there)
        (source / "best/SHA256SUMS").unlink()
        path = source / "best/config.json"
        content = json.loads(path.read_text())
        content["id2label"] = {key: f"{text} {key}" for key in content["id2label"]}
        del content["label2id"]
        path.write_text(json.dumps(content))
        return ["ask", "answer", str(source), str(next(bench.corpus.rglob("*.jpg"))), "what is it?"]
    return draw.choice((
        ["ask", "answer", given, given, given], ["train", f"--{given}", "1"], ["check", given],
        ["explore", "build", given], ["tokenizer", given, given], ["import", "csv", given, given],
        ["corpus", f"--{given}"], ["export", given, given], ["suite", "aro", given, given, "--images", given],
    ))  # fmt: skip
