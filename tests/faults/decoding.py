"""Hostile images: each is decoded or refused as corrupt, in bounded time and memory, and starts no program."""

import faulthandler
import resource
import signal
import sys
import time
from pathlib import Path

from images import hostile_images, sound_images
from tiny_runs import Bench, LostError

BATCH = 4000
_SECONDS = 20
_MOST_MEGABYTES = 1500
_PROGRAMS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.spawn", "os.fork", "os.forkpty")


class _TooSlowError(BaseException):
    """No `except Exception` catches it."""


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """A batch of images."""
    from soho_fast.common.errors import CorruptImageError
    from soho_fast.data.images import decode_image

    sound_images()  # made before programs are watched for
    started: list[str] = []
    sys.addaudithook(lambda event, arguments: started.append(f"{event} {arguments}") if event in _PROGRAMS else None)
    signal.signal(signal.SIGPROF, _too_slow)
    faulthandler.enable()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    losses = []
    for number, (name, data) in enumerate(hostile_images(seed, BATCH)):
        # The processor's time: other programs may keep this one waiting.
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        lost = None
        try:
            pixels = decode_image(data, shorter_edge=32 if number % 2 else None)
            if pixels.dtype.itemsize != 1 or pixels.ndim != 3 or pixels.shape[0] != 3:
                lost = f"decoded to {pixels.dtype} {tuple(pixels.shape)}"
        except CorruptImageError:
            pass
        except BaseException as error:
            lost = f"{type(error).__name__}: {error}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        if started:
            lost = f"a program was started: {started[0]}"
            started.clear()
        elif grown > _MOST_MEGABYTES:
            lost = f"{grown} MB of memory were taken"
            before += grown * 1024
        elif time.process_time() - began > _SECONDS:
            lost = f"took {time.process_time() - began:.0f} seconds"
        if lost:
            losses.append(f"image {number}, {name}: {lost}")
    if losses:
        kinds = sorted({loss.partition(": ")[2].partition(": ")[0] for loss in losses})
        raise LostError(f"{len(losses)} of {BATCH} images ({', '.join(kinds)[:150]}): {losses[0]}", BATCH)
    return BATCH


def _too_slow(number: int, frame: object) -> None:
    raise _TooSlowError
