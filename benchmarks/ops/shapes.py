"""What the op benchmarks run on: all sizes in one place, so that a test can run the whole suite in small.

The first of each list runs by default, the others with --full (`first_by_default`); growth and hard inputs with --full.

N features, K codes, C channels; B images of L tokens.
"""

SECONDS_PER_CASE = 0.5  # fast calls need many rounds: on a busy machine a few say nothing

LOOKUP_NKC = [(16384, 2048, 768), (65536, 1024, 64), (16384, 8192, 256), (65536, 512, 128)]
EVERY_LEVEL_NKC = (4096, 512, 64)  # small, for `scalar`
# Codes of image tokenizers have few channels; a stream has few rows at a time.
SMALL_NKC = [(64, 1024, 64), (65536, 4096, 4), (16384, 16384, 8), (65536, 8192, 16), (16, 8192, 256), (1, 2048, 768)]
# Where other libraries are fastest: few codes, or few channels. The kind of features (real_features.py), and N, K, C.
FEW = [
    ("photo windows", (16384, 16, 64)),
    ("photo windows", (16384, 8, 8)),
    ("photo windows", (16384, 64, 8)),
    ("photo windows", (16384, 64, 32)),
    ("photo windows", (16384, 64, 64)),
    ("photo windows", (16384, 512, 8)),
    ("photo windows", (16384, 1500, 48)),
    ("photo windows", (16384, 16384, 4)),
    ("mobilenet_v2", (16384, 16, 256)),
    ("mobilenet_v2", (16384, 64, 768)),
]
# Where a call takes longer than what it computes; the last is topk.
TINY_NKCT = [(1, 16, 8, 1), (1, 256, 64, 1), (1, 1024, 128, 1), (3, 8193, 16, 1), (1, 256, 64, 4), (1, 8192, 64, 10)]
ONE_ROW_NKC = [(1, 1024, 128), (1, 65536, 8), (1, 65536, 768)]
REAL = [
    ("photo windows", (65536, 1024, 192)),
    ("mobilenet_v2", (16384, 2048, 1280)),
    ("mobilenet_v2", (16384, 4096, 1280)),
    ("mobilenet_v2", (16384, 2048, 768)),
    ("mobilenet_v2", (16384, 4096, 256)),
    ("demo model", (16384, 1024, 128)),
    ("demo model", (16384, 4096, 128)),
    ("photo windows", (65536, 8192, 192)),
]
REAL_ROWS_LEARNT = {"mobilenet_v2": 49152, "demo model": 49152, "photo windows": 131072}  # other rows than those of N
HARD_NKC = [(4096, 1024, 128), (16384, 64, 128)]
GROWTH_BASE = {"N": 8192, "K": 1024, "C": 128}
GROWTH_SIZES = {"N": (2048, 4096, 8192, 16384), "K": (256, 512, 1024, 2048), "C": (32, 64, 128, 256)}
MEMORY_NKC = [(16384, 1024, 64), (65536, 1024, 64), (16384, 8192, 64)]
UPDATE_NKC = [(16384, 2048, 768), (65536, 1024, 64)]
RESIDUAL_NLKC = [(16384, 4, 256, 64), (16384, 8, 1024, 128)]
GROUP_MASK_BLC = [(64, 160, 768), (256, 64, 256)]
DICTIONARY_BLC, DICTIONARY_K = (16, 1024, 768), 2048
KMEANS = [
    ("photo windows", (50_000, 512, 64)),
    ("photo windows", (100_000, 1024, 128)),
    ("photo windows", (200_000, 4096, 512)),
    ("mobilenet_v2", (100_000, 4096, 1280)),
]
KMEANS_STEPS = 10
KMEANS_FIT_NKC = [(8000, 128, 64), (8000, 128, 256), (100_000, 1024, 128)]  # from the rows alone, until it settles
PRODUCT_SIDE = 3072
BANDWIDTH_ELEMENTS = 1 << 25  # 128 MiB of float32: beyond every cache


def text(case: tuple) -> str:
    """A shape as it is written in a table, such as 16384x2048x768; behind the name of its features where it has one."""
    if isinstance(case[0], str):
        return f"{case[0]} {text(case[1])}"
    return "x".join(map(str, case))
