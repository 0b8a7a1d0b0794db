"""Builds the corpus: small images without drawings and near-duplicates, of which a share is held out by content."""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from soho_fast.common.errors import UserError
from soho_fast.common.files import new_folder
from soho_fast.common.images import FORMATS
from soho_fast.common.progress import ProgressLines
from soho_fast.data.packages.fetching import fetch
from soho_fast.data.packages.reading import Found
from soho_fast.data.packages.sources import SOURCES
from soho_fast.data.readers.records import is_drawn

LICENCES = "licences.json"
"""Credits and licences of the images, as the explorer's pages read them."""

_LONGER_EDGE, _SHORTEST_EDGE = 256, 24
# Of a drawing most neighbouring pixels are equal, or its colours are few. Set by looking at all of Tux Paint's stamps:
# of 329 that are kept about ten are drawings, of 250 that are not about forty are photographs.
_MOST_EQUAL, _LEAST_BITS, _LEAST_PIXELS = 0.16, 4.8, 400
# Root mean square differences of thumbnails, of 255: images that differ less are the same; or too much alike to be held
# out.
_SAME, _ALIKE = 8.0, 16.0
_HELD_OUT_SHARE = 0.35
"""Of the images that may be held out, which are less than all."""


@dataclass(frozen=True, slots=True)
class _Kept:
    file: str
    source: str
    found: Found
    captions: list[str]
    image: Image.Image

    def words(self) -> frozenset[str]:
        """Those of the name, without articles, digits and plurals."""
        words = re.findall(r"[^\W\d_]+", self.captions[0].lower())
        return frozenset(word.rstrip("s") for word in words) - {"a", "an", "the", "of"}


def build(folder: Path, names: Sequence[str], cache: Path, say: Callable[[str], None]) -> None:
    """Write images.jsonl, licences.json and images/ into a new folder, all or nothing.

    Args:
        folder: Takes the place of one that is there.
        names: Some of `SOURCES`.
        cache: Where the packages' files are, or go.
        say: Called with each line on what is done, and in the end on what was kept and left out.

    Raises:
        UserError: a package can't be fetched or read, or has changed.
    """
    files = {name: [fetch(package, cache, say) for package in SOURCES[name].packages] for name in names}
    kept: list[_Kept] = []
    dropped: Counter[str] = Counter()
    for name, paths in files.items():
        say(f"reading {name}")
        found = list(SOURCES[name].read(*paths))
        progress = ProgressLines(say, name)
        for number, image in enumerate(found):
            progress(number, len(found))
            one = _keep(name, image)
            if isinstance(one, _Kept):
                kept.append(one)
            else:
                dropped[one] += 1
    if not kept:
        raise UserError(f"packages: no image of {', '.join(names)} can be used: {dict(dropped)}; name other packages")
    distances = _distances([each.image for each in kept])
    # Above the diagonal: of two that are alike the first one stays.
    distinct = np.flatnonzero(~np.triu(distances < _SAME, 1).any(0))
    dropped["nearly the same as another image"] = len(kept) - len(distinct)
    kept = [kept[number] for number in distinct]
    # Counted among those that are left; each is like itself.
    held_out = _held_out(kept, (distances < _ALIKE)[np.ix_(distinct, distinct)].sum(1).tolist())
    with new_folder(folder) as scratch:
        (scratch / "images").mkdir()
        lines: list[str] = []
        licences: dict[tuple[str, str, str], list[str]] = {}
        for each, is_held_out in zip(kept, held_out, strict=True):
            each.image.save(scratch / each.file, quality=90)
            split = "val" if is_held_out else "train"
            line = {"file": each.file, "captions": each.captions, "split": split}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            about = (each.source, each.found.credit, each.found.licence or SOURCES[each.source].licence)
            licences.setdefault(about, []).append(each.file)
        entries = [
            {"what": f"of package {what}", "credit": credit or what, "licence": licence, "images": images}
            for (what, credit, licence), images in licences.items()
        ]
        (scratch / "images.jsonl").write_text("".join(lines), encoding="utf-8")
        (scratch / LICENCES).write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding="utf-8")
    counts = Counter(each.source for each in kept)
    for name in names:
        say(f"{name}: {counts[name]:,} images")
    for why, count in dropped.items():
        if count:
            say(f"left out: {count:,} images: {why}")
    say(f"{len(kept):,} images, {sum(len(each.captions) for each in kept):,} captions; held out: {sum(held_out):,}")


def _keep(name: str, found: Found) -> _Kept | str:
    """The image as it will be, or why it is left out."""
    captions = list(dict.fromkeys(text.strip() for text in found.captions if _is_latin(text)))
    if not captions:
        return "no text in Latin letters"
    try:
        image = _small(found.content)
    except (OSError, ValueError, Image.DecompressionBombError):
        return "its file can't be read"
    if min(image.size) < _SHORTEST_EDGE or (SOURCES[name].has_drawings and _is_drawing(image)):
        return "a drawing, or too small"
    ground = Image.new("RGBA", image.size, "white")
    # A JPEG has no transparency.
    ground.alpha_composite(image)
    path = re.sub(r"[^\w.-]+", "_", f"{name}/{Path(found.path).with_suffix('')}".strip("@"), flags=re.ASCII)
    return _Kept(f"images/{path}.jpg", name, found, captions, ground.convert("RGB"))


def _small(content: bytes) -> Image.Image:
    """An RGBA image of at most 256 pixels, cut to what shows."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
        image = opened.convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox())
    image.thumbnail((_LONGER_EDGE, _LONGER_EDGE), Image.Resampling.LANCZOS)
    return image


def _is_drawing(image: Image.Image) -> bool:
    small = image.copy()
    small.thumbnail((128, 128))
    pixels = np.asarray(small).astype(int)
    opaque = pixels[..., 3] > 200
    if opaque.sum() < _LEAST_PIXELS:
        return True
    # Where both neighbours show; summed over the three colours.
    differences = np.abs(np.diff(pixels[..., :3], axis=1)).sum(-1)[opaque[:, 1:] & opaque[:, :-1]]
    _, counts = np.unique(pixels[opaque][:, :3] // 8, axis=0, return_counts=True)
    shares = counts / counts.sum()
    return bool((differences <= 2).mean() > _MOST_EQUAL or -(shares * np.log2(shares)).sum() < _LEAST_BITS)


def _is_latin(text: str) -> bool:
    letters = [letter for letter in text if letter.isalpha()]
    return bool(letters) and all(letter < "\u0250" for letter in letters)


def _distances(images: Sequence[Image.Image]) -> np.ndarray:
    """Root mean square difference of each two images' thumbnails, of which one may be mirrored: [images, images]."""
    small = np.stack([np.asarray(image.resize((16, 16), Image.Resampling.BOX), np.float64) for image in images])
    flat, mirrored = (each.reshape(len(small), -1) for each in (small, small[:, :, ::-1]))
    squares = (flat**2).sum(1)
    # Mirroring changes no square, so the larger product is the smaller distance.
    products = np.maximum(flat @ flat.T, flat @ mirrored.T)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0) / flat.shape[1])


def _held_out(images: Sequence[_Kept], num_alike: Sequence[int]) -> list[bool]:
    """A share of the images that look like no other, and of whose name no other image's is a part, or the other way
    round, but for names of a word; the same in every build."""
    names = [each.words() for each in images]
    return [
        alike == 1  # itself
        and not any(
            name == other or (min(len(name), len(other)) > 1 and (name <= other or other <= name))
            for each, other in enumerate(names)
            if each != number
        )
        and is_drawn(" ".join(sorted(name)), _HELD_OUT_SHARE)
        for number, (name, alike) in enumerate(zip(names, num_alike, strict=True))
    ]
