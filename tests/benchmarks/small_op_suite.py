"""Runs `pytest benchmarks/ops --benchmark-only --full` on small shapes. Argument: the JSON to write."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from benchmarks.ops import shapes  # noqa: E402

SMALL = {
    "SECONDS_PER_CASE": 0.002, "LOOKUP_NKC": [(300, 70, 24), (200, 33, 40)], "EVERY_LEVEL_NKC": (100, 20, 8),
    "SMALL_NKC": [(300, 70, 4), (1, 40, 24)],
    "FEW": [("photo windows", (300, 40, 8)), ("mobilenet_v2", (100, 30, 24))], "ONE_ROW_NKC": [(1, 40, 24)],
    "TINY_NKCT": [(1, 40, 24, 1), (1, 40, 24, 3)],
    "REAL": [("mobilenet_v2", (100, 30, 24)), ("demo model", (100, 30, 24)), ("photo windows", (300, 40, 27))],
    "REAL_ROWS_LEARNT": {"mobilenet_v2": 156, "demo model": 156, "photo windows": 400}, "HARD_NKC": [(200, 64, 16)],
    "GROWTH_BASE": {"N": 128, "K": 32, "C": 16}, "GROWTH_SIZES": {"N": (64, 128), "K": (32, 64), "C": (8, 16)},
    "MEMORY_NKC": [(16384, 1024, 64)], "UPDATE_NKC": [(400, 30, 24)], "RESIDUAL_NLKC": [(200, 3, 20, 16)],
    "GROUP_MASK_BLC": [(4, 16, 24)], "DICTIONARY_BLC": (2, 50, 24), "DICTIONARY_K": 30,
    "KMEANS": [("photo windows", (600, 20, 24))], "KMEANS_STEPS": 3, "KMEANS_FIT_NKC": [(300, 10, 16)],
    "PRODUCT_SIDE": 64, "BANDWIDTH_ELEMENTS": 1 << 12,
}  # fmt: skip

if __name__ == "__main__":
    for name, value in SMALL.items():
        assert hasattr(shapes, name), f"{name} is no constant of benchmarks/ops/shapes.py"
        setattr(shapes, name, value)
    options = ["--benchmark-only", "--full", f"--benchmark-json={sys.argv[1]}"]
    sys.exit(pytest.main([str(ROOT / "benchmarks/ops"), *options]))
