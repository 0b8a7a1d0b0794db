"""Hostile images: each decodes to pixels or is refused as broken, in bounded time and memory, and starts no program."""

import faulthandler
import io
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from runs import Bench, LostError

_BATCH = 2000
_SECONDS = 20
_MOST_MEGABYTES = 1500
_PROGRAMS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.spawn", "os.fork", "os.forkpty")


class _TooSlowError(BaseException):
    """No `except Exception` catches it."""


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """Two thousand images."""
    from soho_fast.data.images import BrokenImageError, decode_image

    images = _images(seed, _BATCH)
    started: list[str] = []
    sys.addaudithook(lambda event, arguments: started.append(f"{event} {arguments}") if event in _PROGRAMS else None)
    signal.signal(signal.SIGALRM, _too_slow)
    faulthandler.enable()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    losses = []
    for number, (name, data) in enumerate(images):
        began = time.monotonic()
        signal.alarm(_SECONDS)
        lost = None
        try:
            pixels = decode_image(data, shorter_edge=32 if number % 2 else None)
            if pixels.dtype.itemsize != 1 or pixels.ndim != 3 or pixels.shape[0] != 3:
                lost = f"decoded to {pixels.dtype} {tuple(pixels.shape)}"
        except BrokenImageError:
            pass
        except BaseException as error:
            lost = f"{type(error).__name__}: {error}"
        finally:
            signal.alarm(0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        if started:
            lost = f"a program was started: {started[0]}"
            started.clear()
        elif grown > _MOST_MEGABYTES:
            lost = f"{grown} MB of memory were taken"
            before += grown * 1024
        elif time.monotonic() - began > _SECONDS:
            lost = f"took {time.monotonic() - began:.0f} seconds"
        if lost:
            losses.append(f"image {number}, {name}: {lost}")
    if losses:
        kinds = sorted({loss.partition(": ")[2].partition(": ")[0] for loss in losses})
        raise LostError(f"{len(losses)} of {_BATCH} images ({', '.join(kinds)[:150]}): {losses[0]}", _BATCH)
    return _BATCH


def _too_slow(number: int, frame: object) -> None:
    raise _TooSlowError


def _images(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    draw = random.Random(seed)
    return _damaged(draw, _originals(draw), count)


def _damaged(draw: random.Random, originals: list[tuple[str, bytes]], count: int) -> Iterator[tuple[str, bytes]]:
    for _ in range(count):
        name, content = draw.choice(originals)
        data = bytearray(content)
        for _ in range(draw.choice((1, 1, 1, 2, 5, 20))):
            way = draw.randrange(6)
            # Headers say more than pixels do.
            at = draw.randrange(min(len(data), 200) if draw.random() < 0.6 else len(data)) if data else 0
            if way <= 1 and data:
                data[at] ^= 1 << draw.randrange(8)
            elif way == 2 and data:
                data[at] = draw.choice((0, 1, 127, 128, 255))
            elif way == 3 and data:
                data[at : at + 4] = draw.choice((bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", draw.randbytes(4)))
            elif way == 4:
                other = draw.choice(originals)[1]
                data[at : at + draw.randrange(50)] = other[: draw.randrange(100)]
            elif draw.random() < 0.3:
                del data[at:]
        yield name, bytes(data)


def _originals(draw: random.Random) -> list[tuple[str, bytes]]:
    """Small pictures in each format and mode that Pillow writes, and some by hand that it only reads."""
    from PIL import Image

    Image.init()
    found = []
    noise = Image.effect_noise((24, 17), 80)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "described" * 5
    for kind in sorted(kind for kind in Image.SAVE if kind not in ("PDF", "PALM")):
        for mode in ("RGB", "RGBA", "L", "P", "1", "I;16", "LA", "CMYK", "F"):
            for options in ({}, {"exif": exif}, {"save_all": True, "append_images": [noise.convert("L")]}):
                data = io.BytesIO()
                try:
                    noise.convert(mode).save(data, kind, **options)
                except Exception:
                    continue
                found.append((f"{kind} {mode}", data.getvalue()))
    found.append(("EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 moveto\nshowpage\n"))
    return found
