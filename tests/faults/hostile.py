"""Images, archives, texts and names made to do harm: decoded, or refused by name, in bounded time and memory; no
program starts, nothing outside a folder is read, nothing that a terminal obeys comes out raw."""

import faulthandler
import io
import json
import random
import re
import resource
import shutil
import signal
import struct
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from campaign import Case
from images import bmp, gif, hostile_images, png, progressive_jpeg, sound_images, tiff
from PIL import Image
from tiny_runs import Bench, LostError, start

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


def archives(bench: Bench) -> list[Case]:
    """Zip archives that are damaged, encrypted, far larger than they look, or that name files outside."""
    return [(kind.__name__[1:], partial(_read, kind)) for kind in _KINDS]


def _read(kind: Callable, folder: Path, draw: random.Random) -> int:
    from soho_fast.common.errors import CorruptImageError
    from soho_fast.data.images import SohoImageProcessor
    from soho_fast.data.readers.records import ImageRef
    from soho_fast.data.stores import open_stores

    processor, picture = SohoImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}), io.BytesIO()
    Image.effect_noise((40, 30), 60).convert("RGB").save(picture, "PNG")
    (inside := folder / "inside").mkdir()
    (outside := folder / "secret.png").write_bytes(picture.getvalue())
    path, before = inside / "an.zip", _memory()
    for _ in range(times := 1 if kind is _bomb else 5):
        names = kind(path, picture.getvalue(), draw) or ["a.png", "b/c.png", "d.png", "absent.png"]
        for name in [*names, "../secret.png", str(outside), "a/../../secret.png"]:
            for where in (path, inside):
                try:
                    pixels = processor.load(ImageRef(open_stores([str(where)])[0], name))
                except (CorruptImageError, OSError, ValueError):
                    continue
                except BaseException as error:
                    raise LostError(f"{name!r}: {type(error).__name__}: {error}") from error
                if where is inside and "secret" in name:
                    raise LostError(f"{name!r} was read from outside its folder {tuple(pixels.shape)}")
        if (grown := _memory() - before) > _MEGABYTES:
            raise LostError(f"{grown} MB of memory were taken")
    return times


def _zip(path: Path, picture: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytearray:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in ("a.png", "b/c.png", "d.png"):
            archive.writestr(name, picture)
    return bytearray(path.read_bytes())


def _lying(path: Path, picture: bytes, draw: random.Random) -> None:
    """In its headers: encrypted, an unknown compression, another size, place or checksum. By the field's place in local
    headers (none: -1) and in central ones."""
    content = _zip(path, picture)
    local, central, value = draw.choice((
        (6, 8, b"\x01\x00"), (8, 10, struct.pack("<H", draw.choice((1, 6, 12, 14, 93, 95, 97, 98, 99)))),
        (22, 24, struct.pack("<I", draw.choice((0, 1, 2**31, 2**32 - 2)))), (14, 16, draw.randbytes(4)),
        (-1, 42, struct.pack("<I", draw.choice((1, 2**20, 2**32 - 2)))),
    ))  # fmt: skip
    for signature, at in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        for found in re.finditer(re.escape(signature), bytes(content)) if at >= 0 else ():
            content[found.start() + at : found.start() + at + len(value)] = value
    path.write_bytes(content)


def _damaged(path: Path, picture: bytes, draw: random.Random) -> None:
    content = _zip(
        path, picture, draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    )
    for _ in range(draw.choice((1, 3, 30))):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    cut = content[: draw.randrange(len(content))]
    path.write_bytes(
        draw.choice(
            (content, content, cut, draw.choice((b"", picture, draw.randbytes(1000), b"PK\x05\x06" + bytes(18))))
        )
    )


def _outside(path: Path, picture: bytes, draw: random.Random) -> list[str]:
    names = ["../secret.png", "/etc/passwd", "a/../../x.png", "\\windows.png", "nul\x00.png", "\udc80.png", "x" * 5000]
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*names[:4], "twice.png"):
            archive.writestr(name, picture)
        archive.writestr("folder.png/", b"")
        (link := zipfile.ZipInfo("link.png")).external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return [*names, "folder.png/", "folder.png", "twice.png", "link.png", "", ".", "b"]


def _bomb(path: Path, picture: bytes, draw: random.Random) -> list[str]:
    """Gigabytes of zeros in three megabytes."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.png", "w", force_zip64=True) as file,
    ):
        for _ in range(draw.choice((16, 192))):
            file.write(bytes(2**24))
    return ["a.png"]


_KINDS = (_lying, _damaged, _outside, _bomb)


# Commands about a folder of one's own images, in which something is odd.
_COMMANDS = ("check", "answer", "train", "many", "tokenizer", "label", "rank", "retrieve")
_SIZES = ((30_000, 30_000), (65_500, 65_500), (9459, 9459), (12_000, 12_000), (65_500, 9), (20_000, 4000))
_BOMBS: dict[str, Callable[[int, int, random.Random], bytes]] = {
    "scans": lambda w, h, draw: progressive_jpeg(draw.choice((200, 5000))),
    "scans, large": lambda w, h, draw: progressive_jpeg(draw.choice((1, 90, 200, 5000)), w, h) + bytes(2**18),
    "png": lambda w, h, draw: png(w, h), "bmp": lambda w, h, draw: bmp(w, h), "gif": lambda w, h, draw: gif(w, h),
    "tiff": lambda w, h, draw: tiff(w, h), "ppm": lambda w, h, draw: b"P6 %d %d 255\n" % (w, h) + bytes(2**20),
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
        "retrieve": ["ask", "retrieve", model, short, "--images", str(own)],
    }[command])  # fmt: skip
