"""codebook_lookup against the float64 rule: sizes, types, layouts, adversarial inputs."""

import subprocess
import sys

import pytest
import torch

from soho_fast.ops import available_backends, build_info, codebook_lookup, triton_backend

SIZES = [
    (0, 5, 8), (1, 1, 1), (1, 2, 3), (5, 15, 7), (6, 16, 8), (7, 17, 9), (13, 33, 16), (25, 64, 31), (100, 130, 65),
    (3, 4, 0), (200, 7, 12), (40, 512, 8), (40, 513, 8), (70, 2048, 70), (70, 2049, 70),
]  # fmt: skip


def _random(num_rows, num_codes, num_channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(num_rows, num_channels, generator=generator),
        torch.randn(num_codes, num_channels, generator=generator),
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size, check_lookup, metrics):
    check_lookup(*_random(*size), metrics)


@pytest.mark.parametrize("features_type", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("codebook_type", [torch.float32, torch.bfloat16, torch.float16])
def test_types_mix_freely(features_type, codebook_type, check_lookup, metrics):
    features, codebook = _random(70, 90, 19)
    check_lookup(features.to(features_type), codebook.to(codebook_type), metrics)


def _duplicates():
    features, codebook = _random(50, 12, 20)
    return features, torch.cat([torch.zeros(300, 20), codebook, codebook.repeat(40, 1), -torch.zeros(200, 20)])


def _one_ulp():
    features, codebook = _random(60, 8, 24)
    near = codebook.repeat(20, 1)
    near[torch.arange(160), torch.arange(160) % 24] = torch.nextafter(
        near[torch.arange(160), torch.arange(160) % 24], torch.tensor(torch.inf)
    )
    return torch.cat([features, codebook]), torch.cat([near, codebook])


def _one_cluster():
    """More near ties than a survivor list holds."""
    features, codebook = _random(20, 700, 16)
    return features, torch.ones(700, 16) + codebook * 2.0**-22


def _ties(where, num_codes=900, num_channels=24):
    """Rows and codes of full precision: the codes where(K) says are as near to the first 20 rows as each other, and all
    but as near to the others, whose nearest is one of every seventh codes; the codes between are further off.

    The near codes differ in the sign of channels where a row is zero, or 1e-7 of the channels of its nearest code.
    """
    features, codebook = _random(20 + num_codes // 7, num_codes, num_channels)
    shared, tied = torch.arange(num_channels) < 12, where(torch.arange(num_codes))
    near = torch.where(shared, codebook[0], codebook[0] * codebook.sign())
    others = torch.zeros(20, num_channels), near[torch.arange(num_codes // 7) * 7] * 1e-7
    return torch.where(shared, features, torch.cat(others)), torch.where(
        tied[:, None], near, torch.where(shared, near + 9.0, codebook)
    )


def _two_places():
    """Rows that tie with the first half of the codes alternate with rows that tie with the second half, for which code
    0 rules the first half out."""
    features, codebook = _ties(lambda code: code >= 0)
    place = (torch.arange(24) < 12) * 50.0
    features[1::2] += place
    codebook[450:] += place
    codebook[0] += place * 1.02
    return features, codebook


def _rounded_one_way(least, largest, num_channels=64):
    """Channels that a screening type with the numbers least, least + 1, ..., largest rounds all by 0.49 in one
    direction: their sum, 0.04 for each, becomes -0.45. So the bound on what rounding loses has nothing to spare."""
    half = num_channels // 2
    channels = torch.cat([torch.full((half,), least + 0.49), torch.full((half,), -least + 0.49)])
    channels[half : half + int(0.45 * num_channels)] -= 1.0
    channels[0], channels[-1] = float(largest), -float(largest)
    return channels


def _rows_rounded_one_way(least, largest):
    scales = torch.tensor([1.0, -1.0, 0.25, -4.0])[:, None]
    codes = torch.ones(1, 64)
    return scales * _rounded_one_way(least, largest), torch.cat([codes, -codes])


def _codes_rounded_one_way(least, largest):
    scales = torch.tensor([1.0, -1.0, 0.25, -4.0])[:, None]
    code = _rounded_one_way(least, largest)[None]
    return scales * torch.ones(1, 64), torch.cat([code, -code])


def _many_rows_rounded_one_way(least, largest, scale, longer, num_channels=512):
    """As above of many channels, and more candidates than are worth no distance: those that screening prefers, all
    beside -1, come before those beside 1, one of which is the nearest. The other codes are too long to be near."""
    ones = torch.ones(17, num_channels)
    for filler in range(1, 17):
        ones[filler, [filler, num_channels // 2 + filler]] = 0.0
    others = _random(0, 150, num_channels)[1].sign() * longer
    features = torch.tensor([scale, -scale] * 70)[:, None] * _rounded_one_way(least, largest, num_channels)
    return features, torch.cat([-ones, ones, others, -others])


def _many_near_ties(features_type, num_channels=300, num_places=10):
    """40 codes around each row, which differ by less than int8 and bfloat16 tell apart."""
    features, codebook = _random(num_places, 40 * num_places, num_channels)
    features = features.to(features_type)
    codebook *= (0.1 + 1e-5 * _random(40 * num_places, 1, 1, seed=1)[0]) / codebook.norm(dim=1, keepdim=True)
    return features.repeat(14, 1), features.repeat_interleave(40, 0) + codebook


def _permuted(bits=None):
    """Codes that are permutations of one, for rows of equal channels: they differ by the rounding of float64 sums."""
    features, codebook = _random(60, 1, 40)
    if bits is not None:
        features, codebook = ((t * 2.0**bits).round() for t in (features, codebook))
    order = torch.rand(500, 40, generator=torch.Generator().manual_seed(1)).argsort(1)
    return features[:, :1].expand(60, 40).contiguous(), codebook[0][order]


def _improving():
    """Each code is closer than the one before: the worst order for a running threshold."""
    return torch.zeros(9, 10), torch.linspace(5, 1, 400)[:, None].expand(400, 10) * 1.0


def _offset(size):
    features, codebook = _random(60, 100, 33)
    return features + size, codebook + size


def _norms():
    features, codebook = _random(60, 100, 12)
    return (
        features * 10.0 ** torch.linspace(-15, 15, 60)[:, None],
        codebook * 10.0 ** torch.linspace(15, -15, 100)[:, None],
    )


def _far_rows():
    features, codebook = _random(40, 50, 12)
    return features * 10.0 ** torch.linspace(0, 37, 40)[:, None], codebook * 1e-6


def _many_far_rows(num_channels=300):
    """Rows whose float32 distance errs by more than screening does, in the direction of 20 codes that are near ties."""
    features, codebook = _random(140, 300, num_channels)
    codebook[:20] = codebook[0] + 1e-3 * codebook[:20]
    features = codebook[0] + 1e-3 * features
    return features * 10.0 ** torch.linspace(0, 8, 140)[:, None], codebook


def _dense_then_few():
    """Near ties in an order that rounding makes: a hundred at the beginning, and one in forty of the others."""
    features, codebook = _random(120, 2400, 72)
    near = (torch.arange(2400) < 100) | (torch.arange(2400) % 40 == 0)
    codebook[near] = codebook[0] + 2.0**-21 * codebook[near]
    return codebook[0] + 2.0**-21 * features, codebook


def _not_finite():
    features, codebook = _random(40, 60, 17)
    features[3, 5] = torch.nan
    features[4, 0] = torch.inf
    features[5, 16] = -torch.inf
    features[6, 1], features[6, 2] = torch.inf, torch.nan
    codebook[0, 3], codebook[7, 0], codebook[9, 9] = torch.nan, torch.inf, -torch.inf
    return features, codebook


ADVERSARIAL = {
    "duplicates by hundreds": _duplicates,
    "one ulp apart": _one_ulp,
    "one cluster of near ties": _one_cluster,
    "each code nearer": _improving,
    "ties everywhere": lambda: _ties(lambda code: code >= 0),
    "ties at the end": lambda: _ties(lambda code: code >= 650),
    "every third code ties": lambda: _ties(lambda code: code % 3 == 1),
    "every tenth code ties": lambda: _ties(lambda code: code % 10 == 7),
    "ties become dense": lambda: _ties(lambda code: (code % 10 == 7) | (code > 500)),
    "dense ties come and go": lambda: _ties(lambda code: code % 300 > 150),
    "dense near ties, then few": _dense_then_few,
    "rows tie in two places": _two_places,
    "few codes that all tie": lambda: _ties(lambda code: code >= 0, num_codes=35),
    "ties of 300 codes everywhere": lambda: _ties(lambda code: code >= 0, num_codes=300),
    "dense ties of long codes": lambda: _ties(lambda code: code % 300 > 150, num_channels=72),
    "dense ties of many long codes": lambda: _ties(lambda code: code % 300 > 150, num_codes=2100, num_channels=72),
    "signs for zeros": lambda: (torch.zeros(30, 12), _random(30, 600, 12)[1].sign()),
    "permutations of one code": _permuted,
    "permutations of large integers": lambda: _permuted(bits=25),  # their squares do not fit float64
    "rows int8 rounds one way": lambda: _rows_rounded_one_way(50, 127),
    "codes int8 rounds one way": lambda: _codes_rounded_one_way(50, 127),
    "rows bfloat16 rounds one way": lambda: _rows_rounded_one_way(150, 254),  # of 128 to 256, all whole numbers
    "codes bfloat16 rounds one way": lambda: _codes_rounded_one_way(150, 254),
    "many rows int8 rounds one way": lambda: _many_rows_rounded_one_way(50, 127, 2**-6, 127 / 106),
    "many rows bfloat16 rounds one way": lambda: _many_rows_rounded_one_way(150, 254, 2**-8, 19 / 16),
    "many near ties": lambda: _many_near_ties(torch.float32),
    "many near ties of float16 rows": lambda: _many_near_ties(torch.float16),
    "offset 1e2": lambda: _offset(1e2),
    "offset 1e4": lambda: _offset(1e4),
    "offset 1e7": lambda: _offset(1e7),
    "norms over 30 orders": _norms,
    "rows far from all codes": _far_rows,
    "many rows far from all codes": _many_far_rows,
    "not finite": _not_finite,
    "not finite, few codes": lambda: tuple(t[:k] for t, k in zip(_not_finite(), (12, 10), strict=True)),
    "NaN, then infinite": lambda: (_not_finite()[0][:12], _not_finite()[1][[0, 7]]),
    "no finite code": lambda: (_random(5, 4, 9)[0], torch.full((4, 9), torch.nan)),
    "zeros": lambda: (torch.zeros(9, 8), torch.zeros(20, 8)),
    "subnormal codes": lambda: tuple(t * 1e-42 for t in _random(20, 30, 9)),
    "subnormal and normal": lambda: (_random(20, 30, 9)[0] * 1e-42, _random(20, 30, 9)[1] * 1e-3),
    "largest floats": lambda: tuple(t.sign() * 3.4e38 for t in _random(20, 30, 9)),
    "squares overflow": lambda: tuple(t * 1e25 for t in _random(20, 30, 9)),
    "integers with ties": lambda: tuple(t.round() for t in _random(200, 60, 4)),
    "codes on a line": lambda: (torch.full((30, 1), 0.5), torch.arange(40.0)[:, None]),
}


# How a pass of the CPU kernels leaves rows of many ties and takes them up. Triton's kernels have no such passes, and
# under the interpreter these take minutes.
OF_CPU_PASSES = (
    "ties everywhere", "ties at the end", "every third code ties", "ties become dense", "dense ties come and go",
    "dense ties of long codes", "dense ties of many long codes", "dense near ties, then few", "rows tie in two places",
)  # fmt: skip


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.skipif(triton_backend.INTERPRETING, reason="of the CPU kernels")
def test_few_adversarial_rows(name, check_lookup):
    features, codebook = ADVERSARIAL[name]()
    for some in (slice(0, 1), slice(1, 4), slice(4, None, 3)):
        check_lookup(features[some][:32], codebook)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial(name, check_lookup, metrics):
    if triton_backend.INTERPRETING and name in OF_CPU_PASSES:
        pytest.skip("of the CPU kernels' passes")
    check_lookup(*ADVERSARIAL[name](), metrics)


@pytest.mark.parametrize("family", ["cpu"], indirect=True)
@pytest.mark.skipif(triton_backend.INTERPRETING, reason="of the CPU kernels")
def test_the_distance_of_one_candidate_spares_a_pass(at_every_level, exact_lookup):
    """Channels of very different size: int8 alone leaves half of these rows to the float32 pass."""
    from soho_fast import _C

    noise, codebook = _random(200, 512, 512)
    size = 1 / torch.arange(1, 513)
    codebook *= size
    features = codebook[torch.arange(200) * 2] + 0.4 * size * noise
    expected = exact_lookup(features, codebook)[0]

    def left(backend):
        before = _C.lookup_totals()["left"]
        index = codebook_lookup(features, codebook, backend=backend)
        assert torch.equal(index, expected)
        return (_C.lookup_totals()["left"] - before) / len(features) <= 0.1

    assert at_every_level(left)


@pytest.mark.parametrize("family", ["cpu"], indirect=True)
@pytest.mark.skipif(triton_backend.INTERPRETING, reason="of the CPU kernels")
@pytest.mark.parametrize(
    ("num_channels", "length", "topk", "too_coarse"),
    [
        (300, 12, None, ()),
        (300, 40, None, ("avx512_vnni",)),
        (300, 80, None, ("avx512_bf16", "avx512_vnni", "amx")),
        (100, 20, 2, ("avx512_vnni",)),
    ],
)
def test_long_codes_leave_no_rows_of_the_others(num_channels, length, topk, too_coarse, at_every_level, exact_lookup):
    """Bounds are of the longest code: a row has most others in reach, but not any more when it has met its own."""
    from soho_fast import _C

    noise, codebook = _random(150, 2600, num_channels)
    codebook[::20] *= length
    features = codebook[torch.arange(150) * 10 + 1005] + noise / 2
    expected = exact_lookup(features, codebook, topk=topk)[0]

    def left(backend):
        before = _C.lookup_totals()["left"]
        index = codebook_lookup(features, codebook, backend=backend, topk=topk)
        assert torch.equal(index, expected)
        few = (_C.lookup_totals()["left"] - before) / len(features) <= 0.1
        return few or (backend == "cpu" and build_info()["cpu_level"] in too_coarse)

    assert at_every_level(left)


@pytest.mark.skipif(triton_backend.INTERPRETING, reason="of the CPU kernels' passes")
def test_of_two_codes_the_second_comes_late(check_lookup):
    """Of the first codes few are in reach, then all: the list is full, is compared, and is full at once."""
    noise, codebook = _random(70, 3000, 100)
    codebook[:600][torch.arange(600) % 8 > 0] *= 20
    first = torch.arange(70) * 8
    codebook[2000:2070] = codebook[first] + 0.3 * noise
    check_lookup(codebook[first] + 0.01 * noise, codebook, topk=2)


@pytest.mark.parametrize("family", ["cpu"], indirect=True)
@pytest.mark.skipif(triton_backend.INTERPRETING, reason="of the CPU kernels")
def test_a_pass_too_coarse_is_left_after_a_trial(at_every_level, exact_lookup):
    """Codes in pairs that int8 and bfloat16 cannot tell apart, and codes that they can."""
    from soho_fast import _C

    noise, codes = _random(4000, 200, 24)
    pairs = codes[:100].repeat_interleave(2, 0) + 2.0**-12 * codes

    def left(codebook, backend):
        features = codebook[torch.arange(4000) % 200] + 2.0**-12 * noise
        before = _C.lookup_totals()["left"]
        index = codebook_lookup(features, codebook, backend=backend)
        assert torch.equal(index, exact_lookup(features, codebook)[0])
        return _C.lookup_totals()["left"] - before

    def few_or_most(backend):
        counts = left(codes, backend), left(pairs, backend)
        coarse = backend == "cpu" and build_info()["cpu_level"] in ("avx512_bf16", "avx512_vnni", "amx")
        return counts[0] < 100 and (counts[1] > 3900) == coarse

    assert at_every_level(few_or_most)


@pytest.mark.parametrize("shape", [(2, 3, 11), (4, 0), (0, 5), (2, 2, 2, 6)], ids=str)
def test_shared_codebook_takes_any_leading_shape(shape, at_every_level, exact_lookup):
    features, codebook = torch.randn(*shape, 9), torch.randn(20, 9)
    index = at_every_level(codebook_lookup, features, codebook)
    assert index.shape == shape
    assert torch.equal(index.flatten(), exact_lookup(features.reshape(-1, 9), codebook)[0])


def test_batched_codebooks(check_lookup, metrics):
    check_lookup(torch.randn(2, 3, 14, 9), torch.randn(2, 3, 20, 9), metrics)


def test_layouts(laid_out, at_every_level):
    features, codebook = torch.randn(3, 10, 12), torch.randn(31, 12)
    expected = at_every_level(codebook_lookup, features, codebook)
    assert torch.equal(at_every_level(codebook_lookup, laid_out(features), codebook), expected)
    assert torch.equal(at_every_level(codebook_lookup, features, codebook.t().contiguous().t()), expected)
    of_one = at_every_level(codebook_lookup, features[:1, :1].expand(3, 10, 12), codebook)
    assert torch.equal(of_one, expected[:1, :1].expand(3, 10))


def test_offsets_beyond_32_bits(at_every_level, family):
    stride = 2**31 + 8
    num_bytes = 2 * (2 * stride + 16)
    if family in ("triton", "cuda") and torch.cuda.is_available() and torch.cuda.mem_get_info()[0] < 1.1 * num_bytes:
        pytest.skip("not enough free memory on this GPU")
    memory = torch.empty(num_bytes // 2, dtype=torch.bfloat16)  # untouched pages of a CPU cost nothing
    features = memory.as_strided((3, 4), (stride, 1))
    codebook = torch.eye(4)[:3] * 2
    features.copy_(codebook[[2, 0, 1]])
    assert at_every_level(codebook_lookup, features, codebook).tolist() == [2, 0, 1]


def test_autocast_changes_nothing(check_lookup):
    features, codebook = _random(80, 90, 33)
    with torch.autocast(features.device.type, dtype=torch.bfloat16):
        check_lookup(features, codebook)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_type_changes_nothing(default, at_every_level, same_bits):
    features, codebook = _random(80, 90, 33)
    expected = at_every_level(codebook_lookup, features, codebook, return_distance=True)
    torch.set_default_dtype(default)
    try:
        got = at_every_level(codebook_lookup, features, codebook, return_distance=True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same_bits(got, expected)


MEMORY_SCRIPT = """
import resource, torch
from soho_fast.ops import codebook_lookup
features, codebook = torch.randn(200_000, 4), torch.randn(4096, 4)
codebook_lookup(features[:64], codebook, backend="cpu")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
codebook_lookup(features, codebook, backend="cpu")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif("cpu" not in available_backends(), reason="the compiled extension is absent")
def test_memory_does_not_grow_with_rows_times_codes():
    output = subprocess.run([sys.executable, "-c", MEMORY_SCRIPT], capture_output=True, text=True, check=True)
    assert int(output.stdout) < 64, "MiB; the N x K matrix would take 3125"
