"""codebook_lookup against the float64 rule: sizes, types, layouts, adversarial inputs."""

import subprocess
import sys

import pytest
import torch
from hard_problems import ADVERSARIAL, random_pair

from soho_fast.ops import available_backends, build_info, codebook_lookup, triton_backend

SIZES = [
    (0, 5, 8), (1, 1, 1), (1, 2, 3), (5, 15, 7), (6, 16, 8), (7, 17, 9), (13, 33, 16), (25, 64, 31), (100, 130, 65),
    (3, 4, 0), (200, 7, 12), (40, 512, 8), (40, 513, 8), (70, 2048, 70), (70, 2049, 70),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size, check_lookup, metrics):
    check_lookup(*random_pair(*size), metrics)


@pytest.mark.parametrize("features_type", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("codebook_type", [torch.float32, torch.bfloat16, torch.float16])
def test_types_mix_freely(features_type, codebook_type, check_lookup, metrics):
    features, codebook = random_pair(70, 90, 19)
    check_lookup(features.to(features_type), codebook.to(codebook_type), metrics)


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

    noise, codebook = random_pair(100, 512, 512)
    size = 1 / torch.arange(1, 513)
    codebook *= size
    features = codebook[torch.arange(100) * 5] + 0.4 * size * noise
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

    noise, codebook = random_pair(80, 2600, num_channels)
    codebook[::20] *= length
    features = codebook[torch.arange(80) * 18 + 1005] + noise / 2
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
    noise, codebook = random_pair(70, 3000, 100)
    codebook[:600][torch.arange(600) % 8 > 0] *= 20
    first = torch.arange(70) * 8
    codebook[2000:2070] = codebook[first] + 0.3 * noise
    check_lookup(codebook[first] + 0.01 * noise, codebook, topk=2)


@pytest.mark.parametrize("family", ["cpu"], indirect=True)
@pytest.mark.skipif(triton_backend.INTERPRETING, reason="of the CPU kernels")
def test_a_pass_too_coarse_is_left_after_a_trial(at_every_level, exact_lookup):
    """Codes in pairs that int8 and bfloat16 cannot tell apart, and codes that they can."""
    from soho_fast import _C

    noise, codes = random_pair(4000, 200, 24)
    pairs = codes[:100].repeat_interleave(2, 0) + 2.0**-12 * codes
    problems = [(each[torch.arange(4000) % 200] + 2.0**-12 * noise, each) for each in (codes, pairs)]
    expected = [exact_lookup(*problem)[0] for problem in problems]

    def few_or_most(backend):
        counts = []
        for problem, index in zip(problems, expected, strict=True):
            before = _C.lookup_totals()["left"]
            assert torch.equal(codebook_lookup(*problem, backend=backend), index)
            counts.append(_C.lookup_totals()["left"] - before)
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
    features, codebook = random_pair(80, 90, 33)
    with torch.autocast(features.device.type, dtype=torch.bfloat16):
        check_lookup(features, codebook)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_type_changes_nothing(default, at_every_level, same_bits):
    features, codebook = random_pair(80, 90, 33)
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
