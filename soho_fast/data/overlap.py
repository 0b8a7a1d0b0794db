"""What images' files hold: by what a set is known again, and which of it are also in another set, as a copy, a link or
under another name.

An image that was saved again, smaller or in another format, is another one here.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

from soho_fast.common.errors import listed
from soho_fast.data.readers.records import ImageRef

T = TypeVar("T")

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
        # Each held-out image is reported once, with the first copy of it that is trained on.
        others = [other for other in by_size.get(size, ()) if id(other) not in found]
        # Few of the same size begin alike: all bytes are read of those alone.
        mine = _beginning(image) if others else None
        for other in others:
            if _are_same(image, mine, other, contents):
                found[id(other)] = image, other
    return list(found.values())


def content_of(images: Iterable[ImageRef], every: int = 1) -> str:
    """Number and hash of the distinct images in their order: names, sizes, and all bytes of one in `every`, chosen by
    its name; then it says how many were read. A file that can't be read counts as that."""
    total, read, digest = 0, 0, hashlib.sha256()
    for _, (is_read, each) in _of_each(images, partial(_digest_of, every=every)):
        total, read = total + 1, read + is_read
        digest.update(each)
    sampled = "" if read == total else f", of which {read:,} were read"
    return f"{total:,} images{sampled}, {digest.hexdigest()[:12]}"


def _digest_of(image: ImageRef, every: int) -> tuple[bool, bytes]:
    # By its name: an image stays among those that are read when others are added.
    hashed = hashlib.blake2b(image.name.lower().encode(), digest_size=8).digest()
    whole = int.from_bytes(hashed, "big", signed=True) % every == 0
    try:
        content: Any = image.read() if whole else image.store.size(image.name)
    except OSError:  # whoever uses it says so
        content = None
    about = [len(content), hashlib.sha256(content).hexdigest()] if isinstance(content, bytes) else [content]
    return whole, hashlib.sha256(repr([image.name, *about]).encode()).digest()


def in_words(shared: Sequence[tuple[ImageRef, ImageRef]]) -> list[str]:
    """What `shared_images` found, as messages have it: each content once, what is held out most often first."""
    held_out_as: dict[str, list[str]] = defaultdict(list)
    for one, two in shared:
        held_out_as[str(one)].append(str(two))
    most_first = sorted(held_out_as.items(), key=lambda item: (-len(item[1]), item[0]))
    return [one if others == [one] else f"{one} (held out as {listed(others, 1)})" for one, others in most_first]


def _key(image: ImageRef) -> tuple[int, str]:
    return id(image.store), image.name


def _sizes(images: Iterable[ImageRef]) -> Iterator[tuple[int, ImageRef]]:
    """Size and image of each distinct file that can be read."""
    return ((size, image) for image, size in _of_each(images, _size_of) if size is not None)


def _of_each(images: Iterable[ImageRef], work: Callable[[ImageRef], T]) -> Iterator[tuple[ImageRef, T]]:
    """What `work` gives of each of the distinct images, in their order."""

    def of_share(share: Sequence[ImageRef]) -> list[tuple[ImageRef, T]]:
        return [(image, work(image)) for image in share]

    seen: set[tuple[int, str]] = set()
    distinct = (
        image
        for image in images
        if (key := _key(image)) not in seen and not seen.add(key)  # type: ignore[func-returns-value]
    )
    with ThreadPoolExecutor(_THREADS) as pool:
        # A part at a time: `pool.map` takes in all that it is given before it gives anything.
        while part := list(islice(distinct, _THREADS * _OF_A_THREAD)):
            shares = [part[begin : begin + _OF_A_THREAD] for begin in range(0, len(part), _OF_A_THREAD)]
            yield from chain.from_iterable(pool.map(of_share, shares))


def _size_of(image: ImageRef) -> int | None:
    try:
        return image.store.size(image.name)
    except OSError:
        return None


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
