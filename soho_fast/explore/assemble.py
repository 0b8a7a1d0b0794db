"""A bundle from a source: one pass over the images, statistics from what is kept of it on disk, small copies, files.

K codes, V words, N images, of which G are shown.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from soho_fast.common.checksums import write_checksums
from soho_fast.common.errors import UserError, print_line
from soho_fast.common.extras import from_extra
from soho_fast.common.files import new_folder
from soho_fast.common.progress import ProgressLines
from soho_fast.common.versions import program
from soho_fast.explore import bundle as layout
from soho_fast.explore import gallery, statistics, words
from soho_fast.explore.bundle import Bundle
from soho_fast.explore.figure import choose_codes
from soho_fast.explore.sources import ImageError, Source, digest_of
from soho_fast.explore.spool import Spool

with from_extra("explore"):
    from PIL import Image

MOST_MASKED = 500
"""Images of which masked visual modelling is shown at most."""

_IMAGES_AT_A_TIME = 4096  # whose words are counted together
_OF_WORD = ("word", "lift", "low", "high")


def check_folder(folder: Path) -> None:
    """Raises UserError: something other than an explorer is there, which is not overwritten."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"into: {folder} is a file; expected a folder for the explorer")
    if os.path.ismount(folder):
        raise UserError(f"into: {folder} is a disk of its own, which can't be replaced at the end; give a folder in it")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "data" / "meta.js").is_file():
        raise UserError(
            f"into: {folder} is not empty and holds no explorer, so it is not overwritten; give another folder"
        )


def assemble(
    source: Source,
    folder: Path,
    *,
    run: Mapping[str, Any] | None = None,
    most_shown: int = gallery.MOST_SHOWN,
    labels: Sequence[str | None] | None = None,
    decoded: Sequence[Any] | None = None,
    window: float | None = None,
    say: Callable[[str], None] = print_line,
) -> Path:
    """Write the explorer of a source.

    Args:
        source: The images, each with the code of every patch.
        folder: Where it goes; an explorer that is there is replaced at the end.
        run: Of which step of which run the model is.
        most_shown: Images that are shown at most.
        labels: What each code is called, None where it has no name.
        decoded: Of each code the image, a uint8 array (H, W, 3), that a decoder makes of it.
        window: Side of what tiles show of an image, in patches; `window_of` by default.
        say: Called with each line of what is done.

    Returns:
        The folder.

    Raises:
        UserError: the folder holds something else.
        ValueError: the source has no image that can be read, or features that are not finite.
    """
    folder = Path(os.path.abspath(folder))
    # What a link leads to is replaced, not the link.
    place = Path(os.path.realpath(folder))
    check_folder(place)
    with new_folder(place) as new:
        # In the scratch folder: what a killed build leaves there, the next one deletes (`delete_left`).
        with tempfile.TemporaryDirectory(dir=new.parent) as spooled, contextlib.closing(Spool(Path(spooled))) as spool:
            writer = _Writer(source, new, spool, _look(source, spool, say), labels, window, most_shown, say)
            writer.write(decoded, run)
        write_checksums(new)
        check_folder(place)  # A build takes a while, in which something else may have come.
    return folder


def _look(source: Source, spool: Spool, say: Callable[[str], None]) -> words.Words:
    """The pass over all images."""
    vocabulary = words.Vocabulary()
    progress = ProgressLines(say, "images")
    for image in source.images():
        if image.distance is not None and not np.isfinite(image.distance[image.index >= 0]).all():
            raise ValueError(f"{image.name}: its features are not all finite numbers")
        spool.add(image, vocabulary.numbers(image.captions))
        if source.num_images:
            progress(len(spool), source.num_images)
    if not len(spool):
        raise ValueError("images: no image; expected at least one that can be read")
    if spool.distance_range[0] == np.inf:
        raise ValueError("index: no patch of any image has a code; expected at least one")
    spool.finish()
    begins = range(0, len(spool), _IMAGES_AT_A_TIME)
    # Read once more: only now is it known which words are frequent, and which is another's plural.
    return vocabulary.choose(spool.words(first, min(first + _IMAGES_AT_A_TIME, len(spool))) for first in begins)


def window_of(spool: Spool) -> float:
    """The side, in patches, of what is recognised: five patches or 45 % of the median image's shorter edge."""
    return round(max(5.0, 0.45 * float(np.median(np.minimum(spool.rows_N, spool.columns_N)))), 2)


@dataclass
class _Writer:
    source: Source
    folder: Path
    spool: Spool
    words: words.Words
    labels: Sequence[str | None] | None
    window: float | None
    most_shown: int
    say: Callable[[str], None]
    maps: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.num_codes = self.source.num_codes
        # Codes are numbered through all levels; a level's begin at a multiple of this.
        self.level_codes = self.num_codes // self.source.num_levels
        self.num_captioned = int(self.spool.captioned_N.sum())
        self.usage = statistics.count_usage(self.spool, self.num_codes)
        self.num_active = int((self.usage.tokens > 0).sum())
        self.images_G = gallery.choose_images(self.spool, self.usage.images, self.most_shown)
        # What the first page shows of each code, see `bundle`, data/wall.js.
        self.wall: list[dict[str, Any]] = []
        # Of each code in turn the `rank_words` of those that it is associated with.
        self.associated: list[np.ndarray] = []

    def write(self, decoded: Sequence[Any] | None, run: Mapping[str, Any] | None) -> None:
        """All files; see `assemble`."""
        layout.copy_pages(self.folder)
        (self.folder / "data").mkdir()
        for code, pixels in enumerate(decoded if decoded is not None else ()):
            path = self.folder / layout.decoded_path(code)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        # First: images that can't be read any more leave the gallery here, before anything refers to it by number.
        self._write_small_copies()
        layout.write_in_files(self.folder, "images", self._images(), layout.IMAGES_PER_FILE)
        layout.write_in_files(self.folder, "codes", self._codes(), layout.CODES_PER_FILE)
        # `wall` and `associated` are filled while `_codes` is read, so all that uses them comes after.
        columns = {name: [row[name] for row in self.wall] for name in self.wall[0]}
        layout.write_value(self.folder, "wall", columns)
        layout.write_value(self.folder, "words", self._words())
        layout.write_value(self.folder, "meta", self._meta(run=run, has_decoded=decoded is not None))
        # Read as any other: the figure is chosen from it, and meta.js is then written once more.
        bundle = Bundle(self.folder)
        layout.write_value(self.folder, "meta", {**bundle.meta, "figure": choose_codes(bundle)})

    def _write_small_copies(self) -> None:
        """Those of the gallery's images; one that can't be read any more is left out of it."""
        readable: list[int] = []
        self.sizes_G: list[dict[str, Any]] = []
        progress = ProgressLines(self.say, "images")
        for done, number in enumerate(self.images_G.tolist()):
            try:
                text = self.spool.texts(number)
                jpeg, width, height = self.source.small_copy(text["place"])
            except ImageError as error:
                self.say(f"left out: {error}")
                continue
            path = self.folder / layout.image_path(len(readable))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg)
            readable.append(number)
            in_patches = {name: _short(text[name]) for name in ("patches_high", "patches_wide")}
            self.sizes_G.append({"width": width, "height": height, **in_patches})
            progress(done + 1, len(self.images_G))
        if not readable:
            raise ValueError("images: no image can be read any more; have they been moved?")
        self.images_G = np.array(readable, dtype=np.int64)

    def _images(self) -> Iterator[dict[str, Any]]:
        masked = self._masked()
        for shown, number in enumerate(self.images_G.tolist()):
            text = self.spool.texts(number)
            yield {
                "image": shown,
                **{name: text[name] for name in ("name", "source", "licences", "captions")},
                **self.sizes_G[shown],
                "rows": int(self.spool.rows_N[number]),
                "columns": int(self.spool.columns_N[number]),
                "index": [None if code < 0 else code for code in self.spool.index(number).tolist()],
                "masked": masked.get(shown),
            }

    def _masked(self) -> dict[int, dict[str, Any]]:
        count = min(MOST_MASKED, len(self.images_G))
        chosen = np.unique(np.round(np.linspace(0, len(self.images_G) - 1, count)).astype(np.int64)).tolist()
        texts = [self.spool.texts(int(self.images_G[shown])) for shown in chosen]
        captioned = [(shown, text) for shown, text in zip(chosen, texts, strict=True) if text["captions"]]
        places = [text["place"] for _, text in captioned]
        found = self.source.masked(places, [text["captions"][0] for _, text in captioned])
        return {shown: value for (shown, _), value in zip(captioned, found, strict=False) if value is not None}

    def _codes(self) -> Iterator[dict[str, Any]]:
        near, near_distance, place = self._in_codebook()
        ranks = self.usage.ranks(self.source.num_levels)
        most_columns = max(self.num_codes, len(self.words.spelling))
        progress = ProgressLines(self.say, "codes")
        for first, last in statistics.blocks_of_codes(self.num_codes, most_columns):
            beside, both, following, assigned = self._count_block(first, last)
            # `assigned` is sorted by code: where each code's patches begin, and the last one's end.
            begins = np.searchsorted(assigned["code"], np.arange(first, last + 1))
            for code in range(first, last):
                block = code - first
                found = words.rank_words(
                    both[block], int(self.usage.captioned[code]), self.words.images, self.num_captioned, self.num_active
                )
                here = assigned[begins[block] : begins[block + 1]]
                shown = gallery.choose_occurrences(here, self.spool.has_distances)
                # What lies beside a code is of its level, so its level's columns alone are looked at.
                start = code // self.level_codes * self.level_codes
                level = slice(start, start + self.level_codes)
                neighbours = statistics.best_neighbours(beside[block][level], self.usage.tokens[level])
                near_row = list(zip(near[code].tolist(), near_distance[code].tolist(), strict=True))
                entry = {
                    "code": code,
                    "tokens": int(self.usage.tokens[code]),
                    "images": int(self.usage.images[code]),
                    "rank": int(ranks[code]),
                    **{kind: self._occurrences(patches) for kind, patches in shown.items()},
                    "histogram": self.usage.histogram[code].tolist(),
                    "positions": _counts(self.usage.positions[code]),
                    "words": self._words_of_code(found[: words.WORDS_PER_CODE]),
                    "neighbours": _dicts("code count lift", ((start + c, *rest) for c, *rest in neighbours)),
                    "near": _dicts("code distance", near_row),
                    "next": statistics.most_frequent(following[block]) if len(following) else [],
                }
                self.associated.append(found[found["low"] > 1])
                self.wall.append(self._on_wall(entry, near_row, place[code]))
                yield entry
            progress(last, self.num_codes)

    def _count_block(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of a block of codes how often each code is beside them, images with both them and each word, tokens with both
        them and each next-level code (none of one level), and the patches of the gallery that have them
        (`gallery.assigned_patches`), by code."""
        beside = np.zeros((last - first, self.num_codes), dtype=np.int32)
        # Empty where there is one level.
        following = np.zeros_like(beside if self.source.num_levels > 1 else beside[:0])
        both = np.zeros((last - first, len(self.words.spelling)), dtype=np.int32)
        # By number of all images, the number in the gallery.
        shown_N = np.full(len(self.spool), -1)
        shown_N[self.images_G] = np.arange(len(self.images_G))
        parts = []
        for chunk in self.spool.tokens():
            statistics.count_beside(chunk, first, last, beside)
            if len(following):
                statistics.count_next(chunk, first, last, self.level_codes, following)
            parts.append(gallery.assigned_patches(chunk, shown_N, first, last))
            if self.words.spelling:
                code, image = statistics.code_images(chunk, self.num_codes)
                wanted = (code >= first) & (code < last)
                table = self.words.table(*self.spool.words(chunk.first, chunk.last))
                both += words.count_both(code[wanted] - first, image[wanted], last - first, table).toarray()
        assigned = np.concatenate(parts)
        return beside, both, following, assigned[np.argsort(assigned["code"], kind="stable")]

    def _in_codebook(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nearest codes, their distances, and places in a plane: within each level; none without a codebook."""
        if self.source.codebook is None:
            none = np.empty((self.num_codes, 0))
            return none, none, np.full((self.num_codes, 2), np.nan)
        parts = []
        for start in range(0, self.num_codes, self.level_codes):
            codes, active = (x[start : start + self.level_codes] for x in (self.source.codebook, self.usage.tokens > 0))
            near, distance = statistics.near_codes(codes)
            # Numbers of all levels, as everywhere else.
            parts.append((near + start, distance, statistics.places_in_plane(codes, active)))
        near, distance, place = (np.concatenate(each) for each in zip(*parts, strict=True))
        return near, distance, place

    def _on_wall(
        self, entry: Mapping[str, Any], near: Sequence[tuple[int, float]], place: np.ndarray
    ) -> dict[str, Any]:
        code = entry["code"]
        # Only a word that the code is associated with stands for it.
        associated = [word for word in entry["words"] if word["low"] > 1]
        word: dict[str, Any] = next(
            (each for each in associated if words.leads(each["word"])), next(iter(associated), {})
        )
        return {
            "tokens": entry["tokens"],
            "images": entry["images"],
            "mean_distance": _short(self.usage.mean[code]) if self.spool.has_distances else None,
            "spread": _short(self.usage.spread[code]) if self.spool.has_distances else None,
            "label": self.labels[code] if self.labels is not None else None,
            **dict(zip(("word", "lift", "lift_low", "lift_high"), map(word.get, _OF_WORD), strict=True)),
            "precision": _short(word["both"] / self.usage.captioned[code]) if word else None,
            "near_code": near[0][0] if near else None,
            "near_distance": _short(near[0][1]) if near else None,
            **{name: _short(at) for name, at in zip(("x", "y"), place, strict=True)},
            "medoid": next(iter(entry["nearest"] or entry["random"]), None),
        }

    def _occurrences(self, assigned: np.ndarray) -> list[list[float | None]]:
        found = []
        for _, image, row, column, distance, *_ in assigned.tolist():
            size = self.sizes_G[image]
            found.append([image, row, column, _short(distance), size["patches_high"], size["patches_wide"]])
        return found

    def _words_of_code(self, ranked: np.ndarray) -> list[dict[str, Any]]:
        rows = ((self.words.spelling[c], both, int(self.words.images[c]), *rest) for c, both, *rest in ranked.tolist())
        return _dicts("word both images lift low high", rows)

    def _words(self) -> list[dict[str, Any]]:
        code = np.repeat(np.arange(self.num_codes), list(map(len, self.associated)))
        found = np.concatenate(self.associated)
        # By word; of each the surest codes first. The last key counts first.
        order = np.lexsort((code, -found["lift"], -found["low"], found["column"]))
        begins = np.searchsorted(found["column"][order], np.arange(len(self.words.spelling) + 1))
        values = []
        for column, (spelling, images) in enumerate(zip(self.words.spelling, self.words.images.tolist(), strict=True)):
            best = order[begins[column] : begins[column + 1]][: words.CODES_PER_WORD]
            of_code = zip(code[best].tolist(), found[["both", "lift", "low", "high"]][best].tolist(), strict=True)
            rows = ((c, both, int(self.usage.captioned[c]), *rest) for c, (both, *rest) in of_code)
            codes = _dicts("code both images lift low high", rows)
            values.append({"word": spelling, "images": images, "forms": self.words.forms[column], "codes": codes})
        return values

    def _meta(self, **about: Any) -> dict[str, Any]:
        codebook, names = self.source.codebook, self.source.data_sets
        counts = np.bincount([self.spool.texts(n)["source"] for n in range(len(self.spool))], minlength=len(names))
        share = float(np.mean([row["word"] is not None for row in self.wall if row["tokens"]]))
        return {
            "schema": layout.SCHEMA,
            "title": self.source.title,
            "model": self.source.model,
            # The first level alone, as `SeeingPipeline.weights` has it of a model.
            "weights": "" if codebook is None else digest_of(codebook[: self.level_codes]),
            "program": program(),
            "num_codes": self.num_codes,
            "num_levels": self.source.num_levels,
            "num_channels": 0 if codebook is None else int(codebook.shape[1]),
            "num_active": self.num_active,
            "num_images": len(self.spool),
            "num_tokens": int(self.usage.tokens.sum()),
            "num_shown": len(self.images_G),
            "has_captions": self.num_captioned > 0,
            "has_distances": self.spool.has_distances,
            **about,
            "window": self.window or window_of(self.spool),
            "sources": _dicts("name num_images", zip(names, counts.tolist(), strict=True)),
            "licences": self.source.licences,
            "position_rows": self.usage.position_rows,
            "position_columns": self.usage.position_columns,
            "histogram_edges": [_short(edge) for edge in self.usage.edges],
            "interval": {
                "level": words.LEVEL,
                "num_tests": max(len(self.words.spelling), 1) * self.num_active,
            },
            "measures": {"share of active codes associated with a word": share} if self.words.spelling else {},
            "figure": [],
        }


def _dicts(names: str, rows: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows by the names of their values, numbers `_short`."""
    return [dict(zip(names.split(), map(_short, row), strict=True)) for row in rows]


def _counts(values: np.ndarray) -> list[float]:
    """Whole numbers where all are, else hundredths."""
    return values.astype(np.int64).tolist() if (values % 1 == 0).all() else values.round(2).tolist()


def _short(value: Any) -> Any:
    """Of a float six significant digits, which is what a page can show; None where it is not finite."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if np.isfinite(value) else None
