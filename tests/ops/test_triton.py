"""The Triton backend without a GPU: the op tests under Triton's interpreter in a process of their own, every kernel
through the real compiler, the graph that torch.compile gets, and life without Triton."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from soho_fast.ops import triton_backend

HERE = Path(__file__).parent
OP_TESTS = (  # two processes, which take about as long
    ("test_codebook_lookup.py", "test_fuzz.py", "test_prepared_codebook.py"),
    ("test_codebook_update.py", "test_derivatives.py", "test_group_mask.py", "test_registration.py",
     "test_triton_self_check.py", "test_straight_through.py", "test_triton_interpreted.py"),
)  # fmt: skip

pytestmark = pytest.mark.skipif(triton_backend.INTERPRETING, reason="this process interprets Triton")


def _version_of(package):
    """Its first two numbers; (0, 0) where it is not installed."""
    try:
        return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return 0, 0


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def _python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


@needs_triton
@pytest.mark.skipif(
    _version_of("triton") < (3, 7) and _version_of("numpy") >= (2, 4), reason="Triton 3.6 interprets with numpy < 2.4"
)
def test_op_tests_pass_under_the_interpreter():
    # Left out: sizes and graphs that cost much and show nothing that others don't, and the CPU's ways with few rows.
    small = "triton and not 31 and not 200 and not 300 and not 5000 and not compile_in_one and not is_uniform"
    small += " and not few_rows and not permutations and not signs"

    def run(names):
        files = [str(HERE / name) for name in names]
        return _python("-m", "pytest", "-q", "-k", small, "-p", "no:cacheprovider", *files, TRITON_INTERPRET="1")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        both = list(pool.map(run, OP_TESTS))
    for done in both:
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert sum(int(re.search(r"(\d+) passed", done.stdout)[1]) for done in both) > 250, both


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from soho_fast import ops
assert "triton" not in ops.available_backends()
for call in (
    lambda: ops.codebook_lookup(torch.ones(2, 2), torch.ones(2, 2), backend="triton"),
    lambda: ops.prepare_codebook(torch.ones(2, 2), backend="triton"),
    lambda: ops.sample_group(torch.zeros(1, 1, dtype=torch.int64), backend="triton"),
):
    try:
        call()
    except ValueError as error:
        assert "Triton is not installed" in str(error) and "needs tensors on" in str(error), error
    else:
        raise AssertionError("an absent Triton must be refused when asked for")
print("done")
"""


def test_the_package_works_without_triton():
    done = _python("-c", WITHOUT_TRITON)
    assert done.stdout.strip() == "done", done.stderr


def test_the_package_does_not_import_triton_where_it_cannot_run():
    if not triton_backend.MISSING:
        pytest.skip("it can run here")
    done = _python("-c", "import sys, soho_fast.ops; print('triton' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


TRACE = """
import torch
torch.version.cuda = "13.0"  # as if this torch had GPU support: tracing runs no kernel
from torch._functorch.aot_autograd import aot_function
from torch._subclasses.fake_tensor import FakeTensorMode
from soho_fast import ops
from soho_fast.ops import triton_backend
triton_backend.DEVICE_TYPE = "cpu"  # autograd of this torch knows no cuda, not even for fake tensors
triton = {"backend": "triton"}

def step(features, codebook, mask_token, uniform):
    index, distance = ops.codebook_lookup(features, codebook, return_distance=True, **triton)
    quantized = ops.straight_through(features, codebook, index, **triton)
    counts, sums = ops.codebook_stats(features, index, codebook.shape[0], **triton)
    ops.codebook_ema_(codebook, counts, sums, 0.9, **triton)
    ops.scatter_mean_ema_(codebook, features, index, 0.9, **triton)
    target = ops.sample_group(index, uniform=uniform, **triton)
    masked, labels = ops.group_mask(quantized, index, mask_token, target, **triton)
    copy = masked.detach() * 2
    ops.group_mask(copy, index, mask_token.detach(), target, inplace=True, **triton)
    return masked, labels, distance, copy

graphs = []
def keep(graph, inputs):
    graphs.append(graph)
    return graph.forward

with FakeTensorMode():
    traced = aot_function(step, fw_compiler=keep, bw_compiler=keep)
    features, codebook = torch.empty(3, 40, 24, requires_grad=True), torch.empty(50, 24)
    outputs = traced(features, codebook, torch.empty(24), torch.empty(3, dtype=torch.float64))
assert [tuple(output.shape) for output in outputs] == [(3, 40, 24), (3, 40), (3, 40), (3, 40, 24)]
targets = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
assert not [target for target in targets if "soho_fast" in target], targets
print(sum("triton_kernel_wrapper" in target for target in targets))
"""


@needs_triton
def test_compiler_sees_the_kernels():
    """Nothing opaque is left in the graph: 5 kernels of the lookup with its distance and codes, two each of what adds
    members, and one or two each of the others."""
    done = _python("-c", TRACE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == 16, done.stdout


def _launches(monkeypatch):
    """(kernel, arguments by name) of every launch that the ops make, recorded and not run."""
    from soho_fast.ops.codebook_lookup import triton as lookup
    from soho_fast.ops.codebook_lookup import triton_pack
    from soho_fast.ops.codebook_update import triton as update
    from soho_fast.ops.group_mask import triton as mask

    recorded = []
    for module in (lookup, triton_pack, update, mask):
        monkeypatch.setattr(module, "launch", lambda kernel, num, **arguments: recorded.append((kernel, arguments)))
    index = torch.zeros(2, 160, dtype=torch.int64)
    for num_channels in (768, 64):
        features, codebook = torch.zeros(2, 160, num_channels), torch.zeros(2048, num_channels)
        lookup.codebook_lookup(features, codebook, True, True)
    lookup.straight_through(features.bfloat16(), codebook, index)
    counts, sums = update.codebook_stats(features, index, 2048, None)
    update.codebook_ema_(codebook, counts, sums, 0.9)
    update.scatter_mean_ema_(codebook, features, index, 0.9, index > 0)
    target = mask.sample_group(index, index > 0, torch.zeros(2, dtype=torch.float64))
    mask.group_mask(features, index, codebook[0], target, index > 0)
    mask.group_mask_(features, index, codebook[0], target, None)
    return recorded


TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64", torch.int64: "i64",
    torch.int32: "i32", torch.bool: "i1",
}  # fmt: skip


def _source(kernel, arguments):
    """What Triton's own launcher would compile for these arguments, and the options of its compiler among them."""
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    named = dict(arguments)
    for position, parameter in enumerate(kernel.params):
        value, key = named.pop(parameter.name), (position,)
        if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
            signature[parameter.name], constants[key] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        aligned = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
        if key not in constants and aligned and not parameter.do_not_specialize:
            attributes[key] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes), named


@needs_triton
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_every_kernel_compiles(target, monkeypatch, tmp_path):
    import triton
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget

    nvidia = target.startswith("sm_")
    if ("nvidia" if nvidia else "amd") not in backends:
        pytest.skip("this Triton lacks the compiler")
    gpu = GPUTarget("cuda", int(target[3:]), 32) if nvidia else GPUTarget("hip", target, 64)
    seen, assembly_of = set(), {}
    for kernel, arguments in _launches(monkeypatch):
        source, compiler_options = _source(kernel, arguments)
        if str(source.signature) + str(source.constants) in seen:
            continue
        seen.add(str(source.signature) + str(source.constants))
        compiled = triton.compile(source, target=gpu, options=compiler_options)
        assembly = compiled.asm["ptx" if nvidia else "amdgcn"]
        assembly_of.setdefault(kernel.__name__, []).append(assembly)
        most = 99 * 1024 if nvidia else 64 * 1024  # a block's shared memory on the smallest card, LDS of a compute unit
        assert compiled.metadata.shared <= most, (kernel.__name__, compiled.metadata.shared)
        if nvidia:
            _check_fused(kernel.__name__, assembly)
    assert len(assembly_of) == 12
    matrix = {
        "sm_80": r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.f16\.f16\.f32",
        "sm_90": r"wgmma\.mma_async\S*\.f32\.f16\.f16|mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.f16\.f16\.f32",
        "gfx942": r"v_mfma_f32_\d+x\d+x\d+_?f16",
    }[target]
    for name in ("_screen", "_compare"):
        assert len(assembly_of[name]) == 2 and all(re.search(matrix, assembly) for assembly in assembly_of[name])
    # A score that is 0 carries its column as a subnormal.
    flushes = r"\.ftz" if nvidia else r"denorm_mode_32 [012]"
    assert not any(re.search(flushes, assembly) for assembly in assembly_of["_screen"])
    if nvidia:
        for assembly in assembly_of["_screen"]:
            _check_registers(assembly, tmp_path)
        assert all(re.search(r"cp\.async\.cg\.shared\.global \[[^]]*\], \[[^]]*\], (16|0x10)", assembly)
                   for assembly in assembly_of["_screen"])  # fmt: skip
        assert any("cvt.rn.bf16" in assembly for assembly in assembly_of["_gather_codes"])


def _check_fused(name, ptx):
    """Every fused product and sum takes the exact product by the argument `one`."""
    for precision, kernels in (("f64", ("_compare", "_chosen_distance")), ("f32", ("_move_codes", "_move_by_members"))):
        fused = re.findall(rf"fma\.rn\.{precision}\s+%\w+, (%\w+), (%\w+), %\w+;", ptx)
        if name in kernels:
            assert fused, f"{name} has no {precision} sum of products: what is looked for here?"
            common = set.intersection(*({first, second} for first, second in fused))
            assert common, f"{name} fuses a product that must be rounded: {fused}"


def _check_registers(ptx, folder):
    """The screening keeps everything in registers."""
    from triton.backends.nvidia.compiler import get_ptxas

    (folder / "kernel.ptx").write_text(ptx)
    architecture = re.search(r"\.target (sm_(\d+)\w*)", ptx)
    ptxas = get_ptxas(int(architecture[2])).path  # Triton brings two, and the PTX is for the one it would take
    command = [ptxas, "-v", "--gpu-name", architecture[1], "kernel.ptx", "-o", "kernel.cubin"]
    report = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in report, report
