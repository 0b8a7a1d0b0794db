"""Two explorers of the same images side by side: what became of each code of the first, by the patches that have both.

python -m soho_fast.explore compare runs/step_500 runs/step_1000 --into compared

K codes of a level of the first, L of the second.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from soho_fast.common.checksums import write_checksums
from soho_fast.common.command_line import Parser
from soho_fast.common.errors import UserError, print_line
from soho_fast.common.extras import from_extra
from soho_fast.explore import bundle as layout
from soho_fast.explore.assemble import check_folder, put_in_place
from soho_fast.explore.bundle import KINDS, Bundle

with from_extra("explore"):
    import numpy as np
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import entropy

STABLE = 0.5
"""Overlap from which on a code is called stable: patches with both it and its partner of those with either."""
PART = 0.1
"""Of a code's patches, from which on another code is said to have taken a part of it."""


def add_arguments(parser: Parser) -> None:
    """What `compare` takes."""
    for name in ("first", "second"):
        parser.add_argument(name, metavar=name.upper(), help=f"Folder of the {name} explorer, or of its run.")
    parser.add_argument("--into", default="compared", help="Folder for the explorer (default: compared).")


def run(options: argparse.Namespace) -> int:
    """Compare, and say where to look."""
    compare_explorers(options.first, options.second, options.into)
    print_line(f"open {Path(options.into) / 'index.html'}")
    return 0


def compare_explorers(
    first: str | Path, second: str | Path, into: str | Path, say: Callable[[str], None] = print_line
) -> Path:
    """Write the second explorer with a page on what became of the codes of the first, see `bundle`, data/compare.js.

    Codes of the same level are matched one to one, so that the sum of their overlaps is the largest (Hungarian
    algorithm). The overlap is the share of patches that have both codes among those that have either, in images of the
    same name and grid that both show.
    Images of a name that an explorer shows more than once are left out.

    Args:
        first, second: Folders of explorers, or of runs that have one.
        into: Where it goes; an explorer that is there is replaced, but for the two themselves.
        say: Called with each line of what is found.

    Returns:
        The folder.

    Raises:
        FileNotFoundError, BundleError: an explorer is not there, or damaged.
        UserError: they share no patch with a code of both, or `into` holds something else, or lies in one of them.
    """
    one, other = Bundle(first), Bundle(second)
    folder = Path(into).resolve()
    for lies in (one.folder.resolve(), other.folder.resolve()):
        if folder.is_relative_to(lies) or lies.is_relative_to(folder):
            raise UserError(f"into: {folder} and the explorer in {lies} overlap; give another folder")
    check_folder(folder)
    if other.sums:
        other.check()  # The copy gets checksums of its own, which would hide what was altered.
    theirs = _by_name(other)
    pairs = [(image, there) for key, image in _by_name(one).items() if image and (there := theirs.get(key))]
    number_of = {image["image"]: there["image"] for image, there in pairs}
    tiles = [_tile(code, number_of) for code in one.codes()]
    rows: list[dict[str, Any]] = []
    codes_of = [bundle.meta["num_codes"] // bundle.meta["num_levels"] for bundle in (one, other)]
    for level in range(min(one.meta["num_levels"], other.meta["num_levels"])):
        counts_KL = _count(pairs, level, codes_of)
        for row in match(counts_KL):
            tile = None if row["first"] is None else tiles[level * codes_of[0] + row["first"]]
            rows.append({"level": level + 1, **row, "tile": tile})
        if not level:
            figures = _figures(one, other, counts_KL)
    if not rows:
        told = (
            "share no patch with a code of both, in images of the same name and grid; build both from the same images"
        )
        raise UserError(f"compare: {one.folder} and {other.folder} {told}")
    value = {"first": one.meta["title"], "num_images": len(pairs), "figures": figures, "rows": rows}
    with put_in_place(folder) as new:
        shutil.copytree(other.folder, new, dirs_exist_ok=True)
        layout.copy_pages(new)
        layout.write_value(new, "compare", value)
        layout.write_value(new, "meta", {**other.meta, "has_compare": True})
        write_checksums(new)
    kinds = [row["kind"] for row in rows]
    say(f"{len(pairs):,} {other.noun}s: " + ", ".join(f"{kinds.count(kind):,} {kind}" for kind in sorted(set(kinds))))
    return folder


def match(counts_KL: np.ndarray) -> list[dict[str, Any]]:
    """What became of each code of the first, and the new ones of the second.

    Args:
        counts_KL: int (K, L), patches that have both codes.

    Returns:
        `rows` of data/compare.js, but for level and tile.
    """
    tokens_K, tokens_L = counts_KL.sum(1), counts_KL.sum(0)
    overlap_KL = counts_KL / np.maximum(tokens_K[:, None] + tokens_L - counts_KL, 1)
    matched = zip(*linear_sum_assignment(overlap_KL, maximize=True), strict=True)
    partner = {code: there for code, there in matched if counts_KL[code, there]}
    # Parts that codes of the second are of a code of the first, and the other way round.
    parts_KL = (2 * counts_KL >= tokens_L) & (counts_KL >= PART * tokens_K[:, None]) & (counts_KL > 0)
    united_KL = (2 * counts_KL >= tokens_K[:, None]) & (counts_KL >= PART * tokens_L) & (counts_KL > 0)
    is_split_K = parts_KL.sum(1) > 1
    is_merged_K = (united_KL & (united_KL.sum(0) > 1)).any(1)
    rows: list[dict[str, Any]] = []
    for code in np.flatnonzero(tokens_K):
        found, counts_L = partner.get(code), counts_KL[code]
        overlap = 0.0 if found is None else round(float(overlap_KL[code, found]), 4)
        kind = "lost" if found is None else "stable" if overlap >= STABLE else "moved"
        kind = "split" if is_split_K[code] else "merged" if is_merged_K[code] else kind
        largest = np.argsort(-counts_L, kind="stable")[:4]
        to = [[int(there), int(counts_L[there])] for there in largest if counts_L[there] >= PART * tokens_K[code]]
        about = {"second": None if found is None else int(found), "overlap": overlap, "to": to}
        rows.append({"kind": kind, "first": int(code), "tokens": int(tokens_K[code]), **about})
    is_new_L = (tokens_L > 0) & ~parts_KL[is_split_K].any(0)
    is_new_L[list(partner.values())] = False
    for there in map(int, np.flatnonzero(is_new_L)):
        about = {"second": there, "overlap": 0.0, "to": [[there, int(tokens_L[there])]]}
        rows.append({"kind": "new", "first": None, "tokens": 0, **about})
    return rows


def _by_name(bundle: Bundle) -> dict[tuple[Any, ...], Mapping[str, Any] | None]:
    """The images that are shown, by data set, name and grid; None where several have these."""
    found: dict[tuple[Any, ...], Mapping[str, Any] | None] = {}
    for image in bundle.images():
        key = bundle.data_set(image), image["name"], image["rows"], image["columns"]
        found[key] = None if key in found else image
    return found


def _count(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], level: int, codes_of: list[int]) -> np.ndarray:
    """int64 (K, L), how many patches have both a code of the first and one of the second."""
    counts = np.zeros(codes_of, dtype=np.int64)
    for pair in pairs:
        size = pair[0]["rows"] * pair[0]["columns"]
        found = [np.array(image["index"][level * size : (level + 1) * size], dtype=float) for image in pair]
        known = ~np.isnan(found[0] + found[1])
        places = tuple(code[known].astype(int) - level * most for code, most in zip(found, codes_of, strict=True))
        np.add.at(counts, places, 1)
    return counts


def _figures(one: Bundle, other: Bundle, counts_KL: np.ndarray) -> list[list[Any]]:
    """[name, of the first, of the second]: usage of the first level's codes, and the `measures`."""
    levels = [bundle.meta["num_levels"] for bundle in (one, other)]
    of = ", level 1" if max(levels) > 1 else ""
    ends: list[dict[str, Any]] = []
    for bundle, axis, num_levels in zip((one, other), (1, 0), levels, strict=True):
        tokens = counts_KL.sum(axis)
        perplexity = round(float(np.exp(entropy(tokens))), 1) if tokens.any() else None
        end = {"levels": num_levels, f"codes in use{of}": int((tokens > 0).sum()), f"perplexity{of}": perplexity}
        ends.append(end | bundle.meta["measures"])
    return [[name, *(end.get(name) for end in ends)] for name in ends[0] | ends[1]]


def _tile(code: Mapping[str, Any], number_of: Mapping[int, int]) -> list[Any] | None:
    """An occurrence of a code of the first, in the second's image of the same name; None where that shows none."""
    for image, *rest in (patch for kind in KINDS for patch in code[kind]):
        if image in number_of:
            return [number_of[image], *rest]
    return None
