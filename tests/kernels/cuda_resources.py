"""What each CUDA kernel takes of a multiprocessor, as ptxas reports it, and the instructions in its PTX.

Where there is nvdisasm, the machine code of matrix kernels is counted as well, for MACHINE. Needs nvcc and no GPU.
"""

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = (80, 90, 100)
MACHINE = 90  # whose machine code is counted
FLAGS = ["-std=c++20", "-O3", "-fmad=false", "-I", str(ROOT / "csrc"), "-Xptxas", "-v", "--keep"]
ELEMENTS = {"0": "float32", "1": "bfloat16", "2": "float16"}  # of soho::Element

# What is counted in the PTX of a kernel.
INSTRUCTIONS = {
    "mma": r"\bmma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(?:bf16\.bf16|f16\.f16)\.f32\b",
    "ldmatrix": r"\bldmatrix\.sync\.aligned\.m8n8\.x4\b",
    "16-byte copy": r"\bcp\.async\.cg\.shared\.global \[[^]]*\], \[[^]]*\], 16\b",
    "8-byte load": r"\bld(?!\.param)(?:\.[a-z0-9_:]+)*\.(?:v2\.[a-z]*32|v4\.[a-z]*16)\b",
    "16-byte load": r"\bld(?!\.param)(?:\.[a-z0-9_:]+)*\.v4\.[a-z]*32\b",
    "16-byte store": r"\bst(?:\.[a-z0-9_:]+)*\.v4\.[a-z]*32\b",
    "local memory": r"\b(?:ld|st)\.local\b",
}


@dataclass
class Kernel:
    """One kernel compiled for one architecture. Sizes in bytes; `shared` is the static part."""

    file: str
    name: str
    architecture: int
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spills: int = 0
    instructions: dict[str, int] = field(default_factory=dict)
    machine_code: dict[str, int] = field(default_factory=dict)  # see _of_machine_code


def missing_compiler() -> str | None:
    """Why nothing can be compiled here, or None."""
    for program in ("nvcc", "c++filt"):
        if shutil.which(program) is None:
            return f"{program} was not found"
    return None


def disassembler() -> str | None:
    """Path of nvdisasm: the toolkit's, or the one that Triton brings; None where there is neither."""
    triton = importlib.util.find_spec("triton")
    brought = Path(triton.origin or "").parent / "backends/nvidia/bin/nvdisasm" if triton else None
    return shutil.which("nvdisasm") or (str(brought) if brought and brought.exists() else None)


def sources() -> list[Path]:
    """Every .cu file of the kernels."""
    return sorted((ROOT / "csrc" / "kernels").glob("*/*.cu"))


def short_name(symbol: str) -> str:
    """`add_members<float32, 4>` for the mangled name of that kernel."""
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"\(soho::Element\)(\d)", lambda found: ELEMENTS[found[1]], name)
    name = re.sub(r"\((?:int|bool|unsigned int)\)", "", name)
    name = re.sub(r"soho::(?:\w*_GLOBAL__N_\w*::|\(anonymous namespace\)::)?", "", name).removeprefix("void ")
    depth = 0
    for position, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:position]
    return name


def _from_report(file: str, report: str) -> dict[tuple[str, int], Kernel]:
    """The kernels in what `ptxas -v` printed, by symbol and architecture."""
    kernels = {}
    kernel = None
    for line in report.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)", line):
            kernel = kernels[found[1], int(found[2])] = Kernel(file, short_name(found[1]), int(found[2]))
        elif kernel is None:
            continue
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernel.stack, kernel.spills = int(found[1]), int(found[2]) + int(found[3])
        elif found := re.search(r"Used (\d+) registers", line):
            kernel.registers = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            kernel.shared = int(shared[1]) if shared else 0
            kernel = None
    return kernels


def _instructions(ptx: str) -> dict[str, dict[str, int]]:
    """How often each of INSTRUCTIONS stands in each kernel, by symbol."""
    bodies = re.split(r"^\.visible \.entry |^\.entry ", ptx, flags=re.MULTILINE)[1:]
    return {
        re.match(r"\w+", body)[0]: {name: len(re.findall(pattern, body)) for name, pattern in INSTRUCTIONS.items()}
        for body in bodies
    }


def _of_machine_code(sass: str) -> dict[str, dict[str, int]]:
    """What the kernels with matrix instructions consist of, by symbol: HMMA; the step from the barrier to the last HMMA
    without the start values of the sums, which are counted apart; the epilogue to the first vote on 32 scores."""
    counts = {}
    for body in re.split(r"^\.text\.", sass, flags=re.MULTILINE)[1:]:
        names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d]+ )?([A-Z][A-Z0-9]*)", body)
        matrix = [place for place, name in enumerate(names) if name == "HMMA"]
        if matrix:
            barrier = max(place for place in range(matrix[0]) if names[place] == "BAR")
            step = names[barrier : matrix[-1] + 1]
            start = step.count("FMUL") + step.count("LDS")
            counts[re.match(r"\w+", body)[0]] = {
                "HMMA": len(matrix),
                "step": len(step) - start,
                "start": start,
                "epilogue": names.index("VOTE", matrix[-1]) - matrix[-1],
            }
    return counts


def compile_kernels(source: Path) -> list[Kernel]:
    """Every kernel of `source` for every architecture; kept in build/ until a source, a flag or nvcc changes.

    Raises:
        RuntimeError: nvcc refuses the file or warns of it.
    """
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    disassembles = disassembler()
    digest = hashlib.sha256(f"{version} {FLAGS} {ARCHITECTURES} {disassembles} {Path(__file__).read_text()}".encode())
    headers = [*source.parent.glob("*.h"), *source.parent.glob("*.cuh"), *(ROOT / "csrc" / "common").glob("*.*h")]
    for path in [source, *sorted(headers)]:
        digest.update(f"{path.name}\n{path.read_text()}".encode())
    file = str(source.relative_to(ROOT / "csrc" / "kernels"))
    kept = ROOT / "build" / "cuda_resources" / f"{file.replace('/', '-')}-{digest.hexdigest()[:16]}.json"
    if kept.exists():
        return [Kernel(**kernel) for kernel in json.loads(kept.read_text())]
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in ARCHITECTURES]
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", *FLAGS, "--keep-dir", folder, *targets, "-c", str(source), "-o", f"{folder}/kernels.o"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        report = done.stdout + done.stderr
        if done.returncode != 0 or "warning" in report:
            raise RuntimeError(f"{' '.join(command)}\n{report}")
        kernels = _from_report(file, report)
        for number in ARCHITECTURES:
            ptx = Path(f"{folder}/{source.stem}.compute_{number}.ptx").read_text()
            for symbol, counts in _instructions(ptx).items():
                kernels[symbol, number].instructions = counts
        if disassembles and MACHINE in ARCHITECTURES:
            command = [disassembles, "-c", f"{folder}/{source.stem}.compute_{MACHINE}.cubin"]
            sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for symbol, counts in _of_machine_code(sass).items():
                kernels[symbol, MACHINE].machine_code = counts
    found = sorted(kernels.values(), key=lambda kernel: (kernel.name, kernel.architecture))
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps([asdict(kernel) for kernel in found]))
    return found
