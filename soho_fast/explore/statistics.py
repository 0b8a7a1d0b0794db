"""What all images together say of each code, counted from the tokens on disk in bounded memory.

K codes, T tokens of a chunk, H bins of the histogram, P positions of the heat map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from soho_fast import ops
from soho_fast.common.extras import from_extra
from soho_fast.explore.spool import Chunk, Spool

with from_extra("explore"):
    from scipy.sparse import csr_array, kron
    from scipy.stats import rankdata

HISTOGRAM_BINS = 32
MOST_POSITIONS = 16
"""Rows and columns of the heat map at most."""
MOST_LISTED = 8
"""Codes that are listed of those beside a code, of those near it, and of the next level's."""

# Entries of a table of counts, codes x columns, that are in memory at a time.
_TABLE_ENTRIES = 2**24


@dataclass
class Usage:
    """How often and where each code is used.

    tokens, images: int64 (K,); captioned: int64 (K,), of the images those with captions. mean, spread: float64 (K,), of
    the distances of a code's tokens, NaN where it has none. histogram: int64 (K, H) over `edges` (H + 1,), the last bin
    closed. positions: float64 (K, P), row by row; a token counts in each position by how much of its patch lies there.
    """

    tokens: np.ndarray
    images: np.ndarray
    captioned: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    edges: np.ndarray
    histogram: np.ndarray
    position_rows: int
    position_columns: int
    positions: np.ndarray

    def ranks(self, num_levels: int) -> np.ndarray:
        """The place of each code by tokens within its level, from 1; of equals the lower number comes first."""
        return rankdata(-self.tokens.reshape(num_levels, -1), method="ordinal", axis=1).ravel()


def code_images(chunk: Chunk, num_codes: int) -> tuple[np.ndarray, np.ndarray]:
    """(code, image) of each pair that occurs in a chunk, once, by code and then by image."""
    known = chunk.index >= 0
    num_images = chunk.last - chunk.first
    pairs = np.unique(chunk.index[known].astype(np.int64) * num_images + chunk.image[known])
    return pairs // max(num_images, 1), pairs % max(num_images, 1)


def count_usage(spool: Spool, num_codes: int) -> Usage:
    """Count tokens, images, distances and positions of each code."""
    edges = _edges(*spool.distance_range)
    rows, columns = (min(MOST_POSITIONS, int(sizes.max(initial=1))) for sizes in (spool.rows_N, spool.columns_N))
    tokens, images, captioned = (np.zeros(num_codes, dtype=np.int64) for _ in range(3))
    total, squares = np.zeros(num_codes), np.zeros(num_codes)
    histogram = np.zeros((num_codes, HISTOGRAM_BINS), dtype=np.int64)
    positions = np.zeros((num_codes, rows * columns))
    # Squares of what lies far from zero would lose what tells spread.
    centre = float(edges[0] + edges[-1]) / 2
    for chunk in spool.tokens():
        known = chunk.index >= 0
        code = chunk.index[known].astype(np.int64)
        distance = chunk.distance[known].astype(np.float64)
        tokens += np.bincount(code, minlength=num_codes)
        code_P, image_P = code_images(chunk, num_codes)
        images += np.bincount(code_P, minlength=num_codes)
        captioned += np.bincount(code_P[spool.captioned_N[chunk.first + image_P]], minlength=num_codes)
        total += np.bincount(code, distance - centre, minlength=num_codes)
        squares += np.bincount(code, (distance - centre) ** 2, minlength=num_codes)
        place = np.clip(np.searchsorted(edges, distance, side="right") - 1, 0, HISTOGRAM_BINS - 1)
        _count_into(histogram, code, place)
        _count_positions(chunk, positions, rows, columns)
    with np.errstate(invalid="ignore"):
        mean = total / tokens
        spread = np.sqrt(np.maximum(squares / tokens - mean**2, 0.0))
    return Usage(tokens, images, captioned, mean + centre, spread, edges, histogram, rows, columns, positions)


def _count_into(table: np.ndarray, row: np.ndarray, column: np.ndarray) -> None:
    # Counted first: `+=` by an index that comes twice adds once.
    keys, counts = np.unique(row * table.shape[1] + column, return_counts=True)
    table.reshape(-1)[keys] += counts


def _count_positions(chunk: Chunk, table: np.ndarray, rows: int, columns: int) -> None:
    """Add tokens to positions. A patch may lie in several: put into one, those of smaller grids would leave stripes."""
    # Both sizes in one number, to find tokens of like grids.
    shape_T = chunk.rows.astype(np.int64) << 32 | chunk.columns
    shape_T[chunk.index < 0] = -1
    for shape in np.unique(shape_T[shape_T >= 0]).tolist():
        here = np.flatnonzero(shape_T == shape)
        grid_rows, grid_columns = shape >> 32, shape & 0xFFFFFFFF
        patch = chunk.row[here].astype(np.int64) * grid_columns + chunk.column[here]
        codes, place = np.unique(chunk.index[here], return_inverse=True)
        cover = kron(_cover(grid_rows, rows), _cover(grid_columns, columns), format="csr")
        counts = csr_array((np.ones(len(here)), (place, patch)), shape=(len(codes), grid_rows * grid_columns))
        found = (counts @ cover).tocoo()
        table[codes[found.row], found.col] += found.data


def _cover(num_patches: int, num_positions: int) -> csr_array:
    """(patches, positions): which share of each of the patches along an edge lies in each of the positions along it."""
    # In units in which both divisions of the edge are whole numbers.
    patch, position = np.arange(num_patches)[:, None] * num_positions, np.arange(num_positions) * num_patches
    overlap = np.minimum(patch + num_positions, position + num_patches) - np.maximum(patch, position)
    return csr_array(np.maximum(overlap, 0) / num_positions)


def _edges(low: float, high: float) -> np.ndarray:
    # All distances alike: bins need a width.
    if high - low < 1e-6 * max(abs(high), 1e-6):
        high = low + max(abs(low), 1.0) * 1e-3
    return np.linspace(low, high, HISTOGRAM_BINS + 1)


def blocks_of_codes(num_codes: int, num_columns: int) -> Iterator[tuple[int, int]]:
    """(first, last) of blocks of codes of which a table codes x columns fits into memory."""
    size = max(1, _TABLE_ENTRIES // num_columns)
    for first in range(0, num_codes, size):
        yield first, min(first + size, num_codes)


def count_beside(chunk: Chunk, first: int, last: int, table: np.ndarray) -> None:
    """Add to `table` int32 (last - first, K) how often a patch of each code of the block has a code beside it.

    Beside are the patches to the left, to the right, above and below.
    """
    right = np.flatnonzero(chunk.column + 1 < chunk.columns)
    below = np.flatnonzero(chunk.row + 1 < chunk.rows)
    # Tokens lie row by row, so that the next one is at the right, and a row further on is the one below.
    for one, other in ((right, right + 1), (below, below + chunk.columns[below])):
        for here, there in ((chunk.index[one], chunk.index[other]), (chunk.index[other], chunk.index[one])):
            wanted = (here >= first) & (here < last) & (there >= 0)
            _count_into(table, here[wanted].astype(np.int64) - first, there[wanted].astype(np.int64))


def count_next(chunk: Chunk, first: int, last: int, level_codes: int, table: np.ndarray) -> None:
    """Add to `table` int32 (last - first, K) how many tokens of each code of the block have each next-level code.

    level_codes: codes of a level. The next level's code of a token lies a grid further on.
    """
    here = np.flatnonzero((chunk.index >= first) & (chunk.index < min(last, table.shape[1] - level_codes)))
    code, other = chunk.index[here], chunk.index[here + chunk.rows[here] * chunk.columns[here]]
    wanted = other >= 0
    _count_into(table, code[wanted].astype(np.int64) - first, other[wanted].astype(np.int64))


def most_frequent(counts: np.ndarray) -> list[dict[str, int]]:
    """{code, tokens} of the next level's codes that most tokens of a code have, of `counts` int (K,); at most 8.

    Of equally frequent ones the lower number comes first.
    """
    order = np.argsort(-counts, kind="stable")[:MOST_LISTED]
    return [{"code": int(code), "tokens": int(counts[code])} for code in order if counts[code]]


def best_neighbours(counts: np.ndarray, tokens: np.ndarray) -> list[tuple[int, int, float]]:
    """(code, count, lift) of the codes that lie beside a code most often beyond chance.

    Args:
        counts: int (K,), how often each lies beside it.
        tokens: int64 (K,), how often each occurs.
    """
    expected = counts.sum() * tokens / max(tokens.sum(), 1)
    found = np.flatnonzero(counts)
    order = found[np.argsort(-(counts[found] - expected[found]), kind="stable")][:MOST_LISTED]
    return [(int(other), int(counts[other]), float(counts[other] / expected[other])) for other in order]


def near_codes(codebook: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other codes of each code: (number int64, distance float64), both (K, at most 8), nearest first.

    Of equally near ones the lower number comes first.
    """
    num_codes = len(codebook)
    num_near = min(MOST_LISTED, num_codes - 1)
    if not num_near:
        return np.zeros((num_codes, 0), dtype=np.int64), np.zeros((num_codes, 0))
    codes = torch.from_numpy(np.ascontiguousarray(codebook, dtype=np.float32))
    found = ops.codebook_lookup(codes, codes, topk=num_near + 1).numpy()
    # Each is mostly its own nearest; of many equal ones it may not be among them.
    is_itself = found == np.arange(num_codes)[:, None]
    number = np.take_along_axis(found, np.argsort(is_itself, axis=1, kind="stable")[:, :num_near], 1)
    exact = codebook.astype(np.float64)
    return number, np.stack([np.linalg.norm(exact - exact[near], axis=1) for near in number.T], axis=1)


def places_in_plane(codebook: np.ndarray, is_active: np.ndarray) -> np.ndarray:
    """float64 (K, 2) in [0, 1]: the codes along the two directions in which the active ones differ most (PCA).

    Both directions have the same scale; an unused code that lies outside is put on the border.
    """
    codes = codebook.astype(np.float64)
    active = codes[is_active] if is_active.any() else codes
    centred = active - active.mean(0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    # `eigh` gives the largest last: the two largest, the largest first.
    place = (codes - active.mean(0)) @ directions[:, :-3:-1]
    place = np.pad(place, ((0, 0), (0, 2 - place.shape[1])))  # Of one channel there is one direction.
    return _scaled(place, place[is_active] if is_active.any() else place)


def _scaled(place: np.ndarray, of_active: np.ndarray) -> np.ndarray:
    """Places in [0, 1], both directions alike; those far outside the bulk of `of_active` are put on the border."""
    low, high = of_active.min(0), of_active.max(0)
    inner = np.percentile(of_active, [5, 95], axis=0)
    reach = inner[1] - inner[0]  # Few that lie far away would press all others into a heap.
    low, high = np.maximum(low, inner[0] - reach), np.minimum(high, inner[1] + reach)
    extent = float((high - low).max())
    scale = extent if extent > np.finfo(np.float64).tiny else 1.0  # Codes that are all the same lie in the middle.
    return np.clip((place - (low + high) / 2) / scale + 0.5, 0.0, 1.0)
