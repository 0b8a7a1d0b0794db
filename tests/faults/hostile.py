"""Images, texts and names made to do harm: decoded, or refused by name, in bounded time and memory; no program starts,
nothing that a terminal obeys comes out raw."""

import faulthandler
import json
import random
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hostile_images import bmp, gif, hostile_images, png, progressive_jpeg, sound_images, tiff, webp
from tiny_runs import Bench, Case, LostError, start

BATCH = 4000
_SECONDS, _MEGABYTES = 20, 1500
# Seconds of a processor, of which it takes some itself; megabytes beyond what it was forked with.
_OF_A_COMMAND = (30, 1000)
_PROGRAMS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.spawn", "os.fork", "os.forkpty")


class _TooSlowError(BaseException):
    """No `except Exception` catches it."""


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def images(bench: Bench) -> list[Case]:
    """Batches of damaged images of every format; those of the first are partly made by hand."""
    return [(f"batch {number}", partial(_decode, number)) for number in range(1000)]


def _decode(number: int, folder: Path, draw: random.Random) -> int:
    from soho_fast.common.errors import CorruptImageError
    from soho_fast.data.images import decode_image

    def too_slow(*_: Any) -> None:
        raise _TooSlowError

    sound_images()  # made before programs are watched for
    started: list[str] = []
    sys.addaudithook(lambda event, arguments: started.append(f"{event} {arguments}") if event in _PROGRAMS else None)
    signal.signal(signal.SIGPROF, too_slow)
    faulthandler.enable()
    before, losses = _memory(), []
    for place, (name, data) in enumerate(hostile_images(number, BATCH)):
        # The processor's time: other programs may keep this one waiting.
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        lost = None
        try:
            pixels = decode_image(data, shorter_edge=32 if place % 2 else None)
            if pixels.dtype.itemsize != 1 or pixels.ndim != 3 or pixels.shape[0] != 3:
                lost = f"decoded to {pixels.dtype} {tuple(pixels.shape)}"
        except CorruptImageError:
            pass
        except BaseException as error:
            lost = f"{type(error).__name__}: {error}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if started:
            lost = f"a program was started: {started.pop()}"
        elif (grown := _memory() - before) > _MEGABYTES:
            lost, before = f"{grown} MB of memory were taken", before + grown
        if lost:
            losses.append(f"image {place}, {name}: {lost}")
    if losses:
        raise LostError(f"{len(losses)} of {BATCH} images: {losses[0]}", BATCH)
    return BATCH


# Commands about a folder of one's own images, in which something is odd.
_COMMANDS = ("check", "answer", "train", "many", "tokenizer", "label", "rank", "retrieve", "suite")
_SIZES = ((30_000, 30_000), (65_500, 65_500), (9459, 9459), (12_000, 12_000), (65_500, 9), (20_000, 4000))
_BOMBS: dict[str, Callable[[int, int, random.Random], bytes]] = {
    "scans": lambda w, h, draw: progressive_jpeg(draw.choice((200, 5000))),
    "scans, large": lambda w, h, draw: progressive_jpeg(draw.choice((1, 90, 200, 5000)), w, h) + bytes(2**18),
    "png": lambda w, h, draw: png(w, h), "bmp": lambda w, h, draw: bmp(w, h), "gif": lambda w, h, draw: gif(w, h),
    "tiff": lambda w, h, draw: tiff(w, h), "ppm": lambda w, h, draw: b"P6 %d %d 255\n" % (w, h) + bytes(2**20),
    "webp": lambda w, h, draw: webp(min(w, 16_000), min(h, 16_000)),
    "comments": lambda w, h, draw: b"P1\n10 10\n" + draw.choice((b"#" * 2**24, b"#\n" * 2**23)) + b"\n" + b"0 " * 100,
}  # fmt: skip
_PARTS = ("a dog and ", "a", " ", "a\u0301", "\u4eba", "a.", "[MASK] ", "\U0001f600\u200d", "##", "\n")
_ODD = ("\x1b[2J", "\x1b]0;owned\x07", "\x07", "\x08\x08", "\r", "\x9b31m", "\u202egpj.exe", "\u2066", "\x7f", "\x0b",
        "\x1bP1$r\x1b\\", "\u2028", "\ufeff", "\x00")  # fmt: skip
# What no output may hold; progress bars begin lines anew by a carriage return, and move up and erase by some sequences.
_RAW = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]|\r(?=odd)")


def bombs(bench: Bench) -> list[Case]:
    """Small images and texts that cost minutes or gigabytes, through each command that meets them."""
    of_images = [
        (f"{command}, {kind}", partial(_costly, bench, command, kind, ""))
        for command in _COMMANDS
        for kind in _BOMBS
        if command != "tokenizer"
    ]
    texts = [  # an argument is no longer than 128 KiB
        (f"{command}, {part!r} of {size:,}", partial(_costly, bench, command, "", (part * size)[:size]))
        for command in ("check", "train", "many", "tokenizer", "label")
        for part in _PARTS
        for size in (10**5, 10**6, 10**7)
    ]
    return of_images + texts


def _costly(bench: Bench, command: str, kind: str, text: str, folder: Path, draw: random.Random) -> None:
    image = _BOMBS[kind](*draw.choice(_SIZES), draw) if kind else None
    started = _about(bench, command, folder / "own", text or "a dog", "hostile", image)
    before, done = _memory(), started.wait(300).expect(0, 1, 2, where=command)
    seconds, grown = started.used.ru_utime + started.used.ru_stime, started.used.ru_maxrss // 1024 - before
    if seconds > _OF_A_COMMAND[0] or grown > _OF_A_COMMAND[1]:
        raise LostError(f"took {seconds:.0f} s and {grown} MB")
    # JPEGs that are large, but within what is promised, are read.
    is_promised = kind == "scans, large" or (not kind and len(text.strip()) <= 200_000)
    if not is_promised and not re.search(r"hostile|line \d|labels", done.text):
        raise LostError(f"exit code {done.code} and no name: {done.text[-200:]}")


def controls(bench: Bench) -> list[Case]:
    """Names and texts that hold what a terminal obeys."""
    every = [(command, odd) for command in _COMMANDS for odd in _ODD]
    return [(f"{command}, {odd!r}", partial(_printed, bench, command, odd)) for command, odd in every]


def _printed(bench: Bench, command: str, odd: str, folder: Path, draw: random.Random) -> None:
    name, text = f"a {odd}odd dog".replace("\0", ""), f"a {odd}odd dog {draw.randrange(10**6)}"
    own = folder / draw.choice(("own", f"{name}s")) / "own"
    # Corrupt, it is named in more commands.
    done = (
        _about(bench, command, own, text, name, draw.choice((None, b"no image"))).wait().expect(0, 1, 2, where=command)
    )
    if found := _RAW.search(done.text):
        raise LostError(f"{found[0]!r} came out raw: {done.text[max(0, found.start() - 80) : found.end() + 40]!r}")


def _about(bench: Bench, command: str, own: Path, text: str, name: str, image: bytes | None) -> Any:
    """Start a command about some images of the corpus with captions and a tokenizer, of which the first has this text,
    name and content."""
    content = json.loads((bench.corpus / "dataset_coco.json").read_text())["images"][:8]
    own.mkdir(parents=True)
    shutil.copytree(bench.corpus / "tokenizer", own / "tokenizer")
    lines = []
    for number, entry in enumerate(content):
        file, captions = entry["filename"], [sentence["raw"] for sentence in entry["sentences"]]
        if not number:
            file, captions = f"{name}.jpg", [text]
        shutil.copyfile(bench.corpus / entry["filepath"] / entry["filename"], own / file)
        lines.append({"file": file, "captions": captions, "split": "val" if number > 5 else "train"})
    shown, labels, asked, out = own / f"{name}.jpg", own / f"{name}.txt", own / "asked.jsonl", own.with_name("out")
    if image is not None:
        shown.write_bytes(image)
    labels.write_text(f"{text}\n")
    (own / "images.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    asked.write_text(f"{json.dumps({'image': shown.name, 'texts': [text, 'a cat']})}\n")
    case = {"image_path": shown.name, "true_caption": text, "false_caption": "a cat", "relation_name": "of"}
    box = {"bbox_x": 0, "bbox_y": 0, "bbox_w": 8000, "bbox_h": 8000}
    (own / "relation.json").write_text(json.dumps([case | box]))
    recipe = yaml.safe_load(bench.recipes["pretraining"].read_text())
    shared = {"images": ["{images}"], "annotations": "{images}/images.jsonl", "format": "json_lines"}
    recipe["data"] |= {"sources": [{**shared, "splits": ["train"]}], "heldout": [{**shared, "splits": ["val"]}]}
    recipe["data"]["tokenizer"] = "{images}/tokenizer"
    recipe |= {"data_roots": {"images": ""}, "corpus": ""}
    (path := own.with_name("own.yaml")).write_text(yaml.safe_dump(recipe))
    model, short = str(bench.folder / "pretraining"), text[:100_000].replace("\0", "") or "a"
    # All images that are trained on are in a batch.
    once = ["--batch.global_batch_size", "6", "--max_steps", "1", "--output", str(out), "--data_roots.images", str(own)]
    return start({
        "check": ["check", str(own), "--recipe", str(path)],
        "train": ["train", "--recipe", str(path), *once],
        "answer": ["ask", "answer", str(bench.folder / "vqa"), str(shown), short],
        "rank": ["ask", "rank", model, str(shown), short, "a cat"],
        "many": ["ask", "many", model, str(asked), str(out), "--images", str(own), "--workers", "0"],
        "tokenizer": ["tokenizer", str(own / "images.jsonl"), str(out)],
        "label": ["ask", "label", model, str(own), "--labels", str(labels)],
        "suite": ["suite", "aro_relation", model, str(own / "relation.json"), "--images", str(own), "--workers", "0"],
        "retrieve": ["ask", "retrieve", model, short, "--images", str(own)],
    }[command])  # fmt: skip
