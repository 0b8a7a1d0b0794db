"""Which images of one set are also in another, by what their files hold: a copy, a link or another name is found too.

An image that was saved anew, smaller or in another format, is another one here.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from soho_fast.data.readers.records import ImageRef

# Where files lie on another machine, asking for a size takes long, and many can be asked for at a time.
_THREADS, _OF_A_THREAD = 16, 256
_BEGINNING = 4096


def shared_images(training: Iterable[ImageRef], held_out: Iterable[ImageRef]) -> list[tuple[ImageRef, ImageRef]]:
    """Images that are trained on and held out: (the one trained on, the held-out one) of each held-out one.

    Asks for every file's size, and reads those of one set alone that have a size of the other's: of 120,000 images and
    5,000 held-out ones some thousands. Files that can't be read are passed over: whoever uses them says so.
    """
    by_size: dict[int, list[ImageRef]] = defaultdict(list)
    for size, image in _sizes(held_out):
        by_size[size].append(image)
    if not by_size:
        return []
    found: dict[int, tuple[ImageRef, ImageRef]] = {}
    contents: dict[int, bytes | None] = {}
    for size, image in _sizes(training):
        others = [other for other in by_size.get(size, ()) if id(other) not in found]
        mine = _beginning(image) if others else None
        for other in others:
            if _are_same(image, mine, other, contents):
                found[id(other)] = image, other
    return list(found.values())


def in_words(shared: Sequence[tuple[ImageRef, ImageRef]]) -> list[str]:
    """What `shared_images` found, as messages have it."""
    return [str(one) if str(one) == str(two) else f"{one} (held out as {two})" for one, two in shared]


def _sizes(images: Iterable[ImageRef]) -> Iterator[tuple[int, ImageRef]]:
    """Size and image of each distinct file that can be read."""
    seen: set[tuple[int, str]] = set()
    distinct = (
        image
        for image in images
        if (key := (id(image.store), image.name)) not in seen and not seen.add(key)  # type: ignore[func-returns-value]
    )
    with ThreadPoolExecutor(_THREADS) as pool:
        while part := list(islice(distinct, _THREADS * _OF_A_THREAD)):
            shares = [part[begin : begin + _OF_A_THREAD] for begin in range(0, len(part), _OF_A_THREAD)]
            for sizes in pool.map(_sizes_of, shares):
                yield from sizes


def _sizes_of(images: Iterable[ImageRef]) -> list[tuple[int, ImageRef]]:
    found = []
    for image in images:
        with contextlib.suppress(OSError):
            found.append((image.store.size(image.name), image))
    return found


def _are_same(image: ImageRef, mine: bytes | None, other: ImageRef, beginnings: dict[int, bytes | None]) -> bool:
    if id(other) not in beginnings:
        beginnings[id(other)] = _beginning(other)
    if mine is None or mine != beginnings[id(other)]:
        return False
    try:
        return image.read() == other.read()
    except OSError:
        return False


def _beginning(image: ImageRef) -> bytes | None:
    try:
        with image.open() as file:
            return file.read(_BEGINNING)
    except Exception:  # a damaged archive fails in many ways; whoever reads the image says so
        return None
