"""Every CUDA kernel compiles for three architectures without a warning and stays within its budget."""

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("cuda_resources", Path(__file__).with_name("cuda_resources.py"))
resources = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(resources)

needs_nvcc = pytest.mark.skipif(
    resources.missing_compiler() is not None, reason=f"CUDA kernels are not compiled: {resources.missing_compiler()}"
)

# Registers of a thread and bytes of static shared memory, by kernel. A multiprocessor has 65536 registers: 64 let four
# blocks of 256 threads live on it, 80 three, 32 fill it with blocks of 1024. No kernel may spill or use a stack.
BUDGETS = {
    "codebook_lookup/cuda.cu": {
        "insert_codes": (40, 0),
        "sum_codes": (40, 2048),
        "centre_codes": (32, 0),
        "measure_codes": (40, 0),
        "pack_codes": (48, 0),
        "convert_rows": (64, 0),
        "screen_rows": (255, 0),  # two blocks of 128 threads: 128 of them are sums
        "decide": (80, 0),
        "compare_all": (128, 2048),  # its grid is two blocks to a multiprocessor
        "finish_compared": (40, 0),
        "gather_rows": (32, 0),
    },
    "codebook_update/cuda.cu": {
        "rank_rows": (64, 0),
        "prefix_tiles": (32, 4096),
        "prefix_codes": (32, 128),
        "place_members": (32, 0),
        "add_members": (72, 0),  # eight float64 sums
        "add_popular": (64, 0),  # the ring of 32 KiB is dynamic: six blocks
        "move_codes": (40, 0),
    },
    "group_mask/cuda.cu": {"mask_tokens": (80, 0), "sample_labels": (32, 128)},
}

# Instructions that a kernel must have, at least so often, in the PTX of every architecture. A kernel that is not named
# has no matrix instruction and moves nothing by 16 bytes.
MEANT = {
    "codebook_lookup/cuda.cu": {
        "screen_rows<2>": {"mma": 64, "ldmatrix": 20, "16-byte copy": 12},
        "screen_rows<3>": {"mma": 64, "ldmatrix": 20, "16-byte copy": 12},
        "convert_rows<float32>": {"16-byte load": 2},
        "convert_rows<bfloat16>": {"8-byte load": 2},  # four elements at a time, too
        "convert_rows<float16>": {"8-byte load": 2},
        "gather_rows<uint4>": {"16-byte load": 1, "16-byte store": 1},
    },
    "codebook_update/cuda.cu": {
        "add_members<float32, 4>": {"16-byte load": 8, "16-byte store": 1},
        "add_members<bfloat16, 8>": {"16-byte load": 8, "16-byte store": 2},
        "add_members<float16, 8>": {"16-byte load": 8, "16-byte store": 2},
        **{f"add_popular<{element}, true>": {"16-byte copy": 16} for element in resources.ELEMENTS.values()},
        "move_codes<4>": {"16-byte load": 2, "16-byte store": 1},
    },
    "group_mask/cuda.cu": {"mask_tokens<uint4>": {"16-byte load": 8, "16-byte store": 8}},
}

FILES = [str(path.relative_to(resources.ROOT / "csrc/kernels")) for path in resources.sources()]


def excesses(kernels: list, budgets: dict[str, tuple[int, int]]) -> list[str]:
    """What of `kernels` is over its budget, in words."""
    wrong = []
    for kernel in kernels:
        name = f"{kernel.name} for sm_{kernel.architecture}"
        budget = budgets.get(kernel.name.split("<")[0])
        if budget is None:
            wrong.append(f"{name} has no budget")
            continue
        for what, got, allowed in (
            ("registers", kernel.registers, budget[0]),
            ("bytes of static shared memory", kernel.shared, budget[1]),
            ("bytes of spills", kernel.spills, 0),
            ("bytes of stack", kernel.stack, 0),
            ("local memory accesses", kernel.instructions["local memory"], 0),
        ):
            if got > allowed:
                wrong.append(f"{name}: {got} {what}, {allowed} allowed")
    return wrong


def test_every_file_has_budgets():
    assert set(BUDGETS) == set(FILES) and set(MEANT) <= set(BUDGETS)


@needs_nvcc
@pytest.mark.parametrize("file", FILES)
def test_budget(file):
    kernels = resources.compile_kernels(resources.ROOT / "csrc/kernels" / file)
    for number in resources.ARCHITECTURES:
        compiled = {kernel.name.split("<")[0] for kernel in kernels if kernel.architecture == number}
        assert compiled == set(BUDGETS[file])
    assert not (wrong := excesses(kernels, BUDGETS[file])), "\n".join(wrong)


@needs_nvcc
@pytest.mark.parametrize("file", MEANT)
def test_instructions(file):
    kernels = resources.compile_kernels(resources.ROOT / "csrc/kernels" / file)
    for name, meant in MEANT[file].items():
        found = [kernel.instructions for kernel in kernels if kernel.name == name]
        assert len(found) == len(resources.ARCHITECTURES), f"no kernel {name} among {sorted({k.name for k in kernels})}"
        for instructions in found:
            for instruction, least in meant.items():
                assert instructions[instruction] >= least, f"{name}: {instructions[instruction]} {instruction}"
    for kernel in kernels:
        wide = sum(
            count for what, count in kernel.instructions.items() if what in ("mma", "ldmatrix") or "16-byte" in what
        )
        assert kernel.name in MEANT[file] or not wide, f"{kernel.name} is not named: {kernel.instructions}"


@needs_nvcc
@pytest.mark.skipif(resources.disassembler() is None, reason="needs nvdisasm, of the CUDA toolkit or of Triton")
def test_machine_code_of_the_screening():
    """A warp takes 64 HMMA for 128 x 32 scores and 32 channels; they are a quarter of the step or more. A lane starts
    its 128 sums, and drops 32 of them, in one instruction and a quarter each."""
    kernels = resources.compile_kernels(resources.ROOT / "csrc/kernels/codebook_lookup/cuda.cu")
    found = {kernel.name: kernel.machine_code for kernel in kernels if kernel.machine_code}
    assert set(found) == {"screen_rows<2>", "screen_rows<3>"}
    for name, counts in found.items():
        assert counts["HMMA"] == 64 and counts["step"] <= 4 * 64, (name, counts)
        assert counts["start"] <= 1.25 * 128 and counts["epilogue"] <= 1.25 * 32, (name, counts)
