"""Semantic ids with and without a bound of the codes' sizes: the table of docs/kmeans.md, one thread.

The items are drawn from a tree of categories whose sizes follow Zipf's law; a category lies around the one above it.
"""

import argparse
import time

import torch

from soho_fast.cluster import ResidualKMeans, semantic_ids

CHANNELS, LEVELS, CODES = 64, 3, 256
TREE = ((20, 1.0), (10, 0.7), (10, 0.5))  # categories in each one above, and how far they lie around it
AROUND = 0.4  # the items around their category


def items(number: int, generator: torch.Generator) -> torch.Tensor:
    """float32 (number, CHANNELS)."""
    embedding = AROUND * torch.randn(number, CHANNELS, generator=generator)
    category, categories = torch.zeros(number, dtype=torch.int64), 1
    for parts, spread in TREE:
        part = torch.multinomial(1 / torch.arange(1, parts + 1), number, replacement=True, generator=generator)
        category, categories = category * parts + part, categories * parts
        embedding += spread * torch.randn(categories, CHANNELS, generator=generator)[category]
    return embedding


def far_items(number: int, generator: torch.Generator) -> torch.Tensor:
    """float32 (number, CHANNELS), of log-normal lengths: k-means gives the few long ones most of its centres."""
    direction = torch.randn(number, CHANNELS, generator=generator)
    return direction * torch.randn(number, 1, generator=generator).exp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=12_101, help="default: %(default)s, as many as TIGER's Beauty has")
    parser.add_argument("--far", action="store_true", help="items of log-normal lengths in place of the tree")
    asked = parser.parse_args()
    number = asked.items
    if number < CODES:
        parser.error(f"--items: expected at least {CODES}, one for each code of a level, got {number}")
    torch.set_num_threads(1)
    rows = (far_items if asked.far else items)(number, torch.Generator().manual_seed(0))
    print("| `balance` | CPU time | items of the most frequent codes | squared distance left | collisions | ids |")
    for balance in (None, 2.0, 1.2):
        start = time.process_time()
        codec = ResidualKMeans(LEVELS, CODES, balance=balance, max_iter=20, random_state=0).fit(rows)
        took, last = time.process_time() - start, semantic_ids(codec.labels_)[:, -1]
        sizes = ", ".join(str(int(torch.bincount(level).max())) for level in codec.labels_.T)
        left = f"{codec.inertia_ / number:.1f} | {int((last > 0).sum())} | 0 to {int(last.max())}"
        print(f"| {balance} | {took:.1f} s | {sizes} | {left} |", flush=True)


if __name__ == "__main__":
    main()
