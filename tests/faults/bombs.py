"""Small files that would cost minutes or gigabytes: JPEGs of thousands of scans, images that say they are huge, texts
of megabytes, deep nesting. Every command that meets one refuses it by name, soon and in little memory."""

import io
import random
import re
import resource
from pathlib import Path

from images import bmp, gif, png, progressive_jpeg, tiff
from own import COMMANDS, own_folder, reading_own
from PIL import Image
from tiny_runs import Bench, LostError, start

_SECONDS = 30  # of a processor; a command itself takes some
_MEGABYTES = 1000  # beyond what the campaign has, from which a command is forked
_SIZES = ((30_000, 30_000), (65_500, 65_500), (9459, 9459), (12_000, 12_000), (65_500, 9), (20_000, 4000))
_PARTS = ("a dog and ", "a", " ", "a\u0301", "\u4eba", "a.", "[MASK] ", "\U0001f600\u200d", "##", "\n")
_NOT_OF_TEXTS = ("answer", "rank", "retrieve")  # an argument is no longer than 128 KiB
_NOT_OF_IMAGES = ("tokenizer", "csv", "text")


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """The seed counts through the commands, with an image in one round and a text in the next."""
    command, what, image, text = bomb(seed)
    own = own_folder(bench, folder / "own", text, image)
    if what == "nested" and command != "many":
        (own / "images.jsonl").write_text("[" * 10**6)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = start(reading_own(bench, command, own, text))
    done = started.wait(timeout=300)
    where = f"{command}, {what}"
    done.expect(0, 1, 2, where=where)
    assert started.used is not None
    seconds, grown = started.used.ru_utime + started.used.ru_stime, (started.used.ru_maxrss - before) // 1024
    if seconds > _SECONDS or grown > _MEGABYTES:
        raise LostError(f"{where}: took {seconds:.0f} s and {grown} MB")
    # JPEGs that are large, but within what is promised, are read.
    if (image and not what.startswith(("baseline", "scans, large"))) or len(text.strip()) > 200_000:
        told = re.search(r"hostile|line \d|labels", done.text)
        if not told:
            raise LostError(f"{where}: exit code {done.code} and no name: {done.text[-200:]}")
    return 1


def bomb(seed: int) -> tuple[str, str, bytes | None, str]:
    """The command, what it is, and the image and the text that are there."""
    draw, command = random.Random(seed), COMMANDS[seed % len(COMMANDS)]
    is_image = (seed // len(COMMANDS) % 2 == 0 or command in _NOT_OF_TEXTS) and command not in _NOT_OF_IMAGES
    return command, *(_image(draw) if is_image else _text(draw))


def _image(draw: random.Random) -> tuple[str, bytes, str]:
    (width, height), times = draw.choice(_SIZES), draw.choice((1, 90, 200, 5000))
    kinds = {
        "scans": lambda: progressive_jpeg(max(times, 101)),
        "scans, large": lambda: progressive_jpeg(times, width, height) + bytes(draw.choice((0, 2**18, 2**21))),
        "png": lambda: png(width, height),
        "bmp": lambda: bmp(width, height),
        "gif": lambda: gif(width, height),
        "tiff": lambda: tiff(width, height),
        "ppm": lambda: b"P6 %d %d 255\n" % (width, height) + bytes(2**20),
        "baseline": lambda: _baseline(width, height) + bytes(draw.choice((0, 2**21))),
    }
    kind = draw.choice(sorted(kinds))
    return f"{kind}, {width} x {height}, {times} scans", kinds[kind](), "a dog"


def _baseline(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(file, "JPEG")
    data = bytearray(file.getvalue())
    size = data.index(b"\xff\xc0") + 5
    data[size : size + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def _text(draw: random.Random) -> tuple[str, None, str]:
    if draw.random() < 0.15:
        return "nested", None, "a dog"
    part, size = draw.choice(_PARTS), draw.choice((10**5, 10**6, 10**7))
    return f"{size:,} characters of {part!r}", None, (part * size)[:size]
