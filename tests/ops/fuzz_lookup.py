"""Long fuzz of codebook_lookup: every level against the scalar one (float64, direct differences, nothing screened).

    python tests/ops/fuzz_lookup.py --rows 10000000

Draws problems of random kind, shape and type until the rows are used up, each looked up by one metric after the other
in turn, a quarter of them with topk, and prints for each kind and level how many rows differed, which share
low-dimensional pruning decided, which was compared in float64, and which the first full pass left to a more exact one.
Where one code is asked for, the first rows are looked up once more, one to six a call, in the codebook as it is and
prepared. Two problems in three come with a subspace, a good, stale or wrong one, and half of those with a warm start.
One batch in 20 is checked against the plain-torch reference as well. Exits with 1 where a row differed.

Letters: N features, K codes, C channels, D dimensions of a subspace.
"""

import argparse
import sys
import time
from collections import defaultdict

import torch
from torch import Tensor

from soho_fast import _C, ops

TYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)
_FEW = 30  # rows that are looked up by few in a call
ELEMENTS = 1 << 25  # N x K x C of one problem at most
# K and C are drawn below one of these.
SIZES = ((48, 20), (48, 20), (48, 20), (600, 300), (1200, 20), (300, 1300), (40, 10000))


def _drawn(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Non-negative features with codes near some of them, as a trained codebook has."""
    features = features.relu()
    chosen = features[torch.arange(codebook.shape[0]) % features.shape[0]]
    return features, chosen + 0.05 * codebook


def _copies(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    codes = codebook[torch.randint(max(1, codebook.shape[0] // 8), codebook.shape[:1])]
    codes[torch.rand(codes.shape[0]) < 0.3] = 0.0
    return features, codes


def _one_ulp(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    codes = codebook[torch.randint(max(1, codebook.shape[0] // 4), codebook.shape[:1])]
    up = torch.nextafter(codes, torch.tensor(torch.inf))
    return features, torch.where(torch.rand(codes.shape) < 1 / codes.shape[1], up, codes)


def _orders(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    scale = [10.0 ** (torch.rand(t.shape[0], 1) * 30 - 15) for t in (features, codebook)]
    return features * scale[0], codebook * scale[1]


def _one_huge(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    codebook[torch.randint(codebook.shape[0], ())] *= 1e6
    return features, codebook


def _heavy_tails(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Cauchy numbers, at times on a grid; at times one row, one code and a channel far larger, some not finite."""
    drawn = [t / torch.randn(t.shape) for t in (features, codebook)]
    if torch.rand(()) < 0.3:
        drawn = [t.round() for t in drawn]
    for values in drawn:
        if torch.rand(()) < 0.3:
            values[torch.randint(values.shape[0], ())] *= 10.0 ** (torch.rand(()) * 20)
        if torch.rand(()) < 0.3:
            values[:, torch.randint(values.shape[1], ())] *= 1e3
        if torch.rand(()) < 0.2:
            values[torch.rand(values.shape) < 0.1 / values.shape[1]] = -torch.inf
    return drawn[0], drawn[1]


def _two_clusters(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Few codes of the first cluster, then many; rows near one of the two in turns."""
    share = torch.arange(codebook.shape[0]) / codebook.shape[0]
    first = (share > torch.rand(())) | (torch.rand(codebook.shape[0]) < torch.rand(()) / 4)
    near_first = torch.arange(features.shape[0]) // 20 % 2 == 0
    codes = torch.where(first, 1.0, 50.0)[:, None] + codebook * 2.0**-18
    return features + torch.where(near_first, 1.0, 50.0)[:, None], codes


def _directions(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of few directions and many lengths, some of them zero; rows of all sizes, some opposed to all codes."""
    codes = codebook[torch.randint(max(1, codebook.shape[0] // 6), codebook.shape[:1])]
    codes = codes * torch.randint(7, (codes.shape[0], 1)) * 2.0 ** torch.randint(-60, 50, (codes.shape[0], 1))
    features = torch.where(torch.rand(features.shape[0], 1) < 0.3, -codes.sum(0), features)
    return features * 2.0 ** torch.randint(-120, 60, (features.shape[0], 1)), codes


def _some_long(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Codes some of which are much longer than the others, rows near them."""
    is_long = torch.rand(codebook.shape[0], 1) < torch.rand(())
    codes = codebook * torch.where(is_long, 10.0 ** (3 * torch.rand(())), 1.0)
    chosen = codes[torch.randint(codes.shape[0], features.shape[:1])]
    return chosen + features * 10.0 ** (torch.rand(()) * 4 - 4), codes


def _few_directions(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Codes that differ in few directions, each feature near one of them, rest and offset of any size."""
    directions = int(torch.randint(1, 20, ()))
    turned = torch.randn(directions, codebook.shape[1]) * 4.0 ** torch.randn(directions, 1)
    codes = torch.randn(codebook.shape[0], directions) @ turned + codebook * 10.0 ** (torch.rand(()) * 6 - 6)
    chosen = codes[torch.randint(codebook.shape[0], features.shape[:1])]
    shift = 10.0 ** (torch.rand(()) * 8 - 4)
    return chosen + features * 10.0 ** (torch.rand(()) * 6 - 6) + shift, codes + shift


KINDS = {
    "normal": lambda features, codebook: (features, codebook),
    "offset 1e4": lambda features, codebook: (features + 1e4, codebook + 1e4),
    "integers with ties": lambda features, codebook: (features.round(), codebook.round()),
    "one tight cluster": lambda features, codebook: (features, 1 + codebook * 2.0**-20),
    "subnormal": lambda features, codebook: (features * 1e-39, codebook * 1e-39),
    "codes drawn from features": _drawn, "copies and zeros": _copies, "one ulp apart": _one_ulp, "30 orders": _orders,
    "one huge code": _one_huge, "two clusters": _two_clusters, "directions": _directions, "some long codes": _some_long,
    "few directions": _few_directions, "heavy tails": _heavy_tails,
}  # fmt: skip
METRICS = ("euclidean", "cosine", "dot")


def draw_problem(kind: str, most_rows: int) -> tuple[Tensor, Tensor]:
    """Features (N, C) and codebook (K, C): mostly small, so that there are many rows, sometimes large."""
    most_codes, most_channels = SIZES[int(torch.randint(len(SIZES), ()))]
    num_codes = int(torch.randint(1, most_codes, ()))
    num_channels = int(torch.randint(1, most_channels, ()))
    num_rows = min(most_rows, max(1, ELEMENTS // (num_codes * num_channels)), 20_000)
    features, codebook = KINDS[kind](torch.randn(num_rows, num_channels), torch.randn(num_codes, num_channels))
    types = torch.randint(len(TYPES), (2,)).tolist()
    return features.to(TYPES[types[0]]), codebook.to(TYPES[types[1]])


def draw_subspace(codebook: Tensor) -> Tensor | None:
    """A subspace (C, D) for the codebook, which may be of no use, or None."""
    num_channels = codebook.shape[1]
    kind = int(torch.randint(9, ()))
    if kind < 3:
        return None
    num_dimensions = int(torch.randint(1, min(num_channels, 128) + 1, ()))
    if kind < 6:
        subspace = ops.codebook_subspace(codebook, dimensions=num_dimensions)
        return subspace if kind == 3 else subspace + 10.0 ** -float(torch.randint(8, ())) * torch.randn(subspace.shape)
    subspace = torch.randn(num_channels, num_dimensions)
    if kind == 6:
        return subspace * 10.0 ** (torch.rand(num_dimensions) * 60 - 30)
    if kind == 7:  # channels, some twice
        return torch.eye(num_channels)[:, torch.randint(num_channels, (num_dimensions,))].contiguous()
    return subspace.masked_fill(torch.rand(subspace.shape) < 1e-3, torch.nan)


def _rows_that_differ(index: Tensor, expected: Tensor) -> Tensor:
    return (index != expected).reshape(expected.shape[0], -1).any(1)


def main() -> int:
    parser = argparse.ArgumentParser(description="Long fuzz of codebook_lookup at every level.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows to draw; each is looked up at every level")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    levels = [level for level in ops.build_info()["cpu_levels_available"] if level != "scalar"]
    totals = defaultdict(lambda: defaultdict(int))
    left, batch, start = arguments.rows, 0, time.perf_counter()
    while left > 0:
        kind = list(KINDS)[batch % len(KINDS)]
        metric = METRICS[batch // len(KINDS) % len(METRICS)]
        features, codebook = draw_problem(kind, left)
        most = min(16, codebook.shape[0])
        topk = int(torch.randint(2, most + 1, ())) if most > 1 and torch.rand(()) < 0.25 else None
        kind = f"{kind}, {metric}{', topk' if topk else ''}"
        ops.set_cpu_level("scalar")
        expected = ops.codebook_lookup(features, codebook, metric=metric, topk=topk)
        if batch % 20 == 7:
            totals[kind, "reference"]["rows"] += features.shape[0]
            got = ops.codebook_lookup(features, codebook, metric=metric, topk=topk, backend="reference")
            different = _rows_that_differ(got, expected)
            totals[kind, "reference"]["different"] += int(different.sum())
        subspace = draw_subspace(codebook)
        warm_start = None
        if subspace is not None and topk is None and torch.rand(()) < 0.5:
            wrong = torch.randint(-9, codebook.shape[0] + 9, expected.shape)
            warm_start = torch.where(torch.rand(expected.shape) < 0.7, expected, wrong)
        for level in levels:
            ops.set_cpu_level(level)
            before = _C.lookup_totals()
            found = ops.codebook_lookup(
                features, codebook, metric=metric, topk=topk, subspace=subspace, warm_start=warm_start
            )
            different = _rows_that_differ(found, expected)
            for name, value in _C.lookup_totals().items():
                totals[kind, level][name] += value - before[name]
            totals[kind, level]["different"] += int(different.sum())
            few = features[:_FEW].split(int(torch.randint(1, 7, ())))
            for codes in (codebook, ops.prepare_codebook(codebook, metric=metric)):
                found = torch.cat([ops.codebook_lookup(rows, codes, metric=metric, topk=topk) for rows in few])
                totals[kind, level]["different"] += int(_rows_that_differ(found, expected[:_FEW]).sum())
        left -= features.shape[0]
        batch += 1
    ops.set_cpu_level(None)
    print(f"{'kind':44}{'level':14}{'rows':>10}{'different':>11}{'pruning':>10}{'in float64':>12}{'left':>9}")
    for (kind, level), total in sorted(totals.items()):
        shares = [
            f"{total[name] / total['rows']:.2%}" if name in total else "" for name in ("pruning", "compared", "left")
        ]
        counts = f"{total['rows']:>10}{total['different']:>11}"
        print(f"{kind:44}{level:14}{counts}{shares[0]:>10}{shares[1]:>12}{shares[2]:>9}")
    wrong = sum(total["different"] for total in totals.values())
    print(f"{arguments.rows} rows in {batch} problems, {wrong} different, {time.perf_counter() - start:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
