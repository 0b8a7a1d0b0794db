"""Builds the CUDA kernels, tests and measures every op on the GPU of this machine, and writes what came of it.

    python benchmarks/gpu/check.py

Needs no package index: torch, triton, cmake, ninja and pytest have to be there. What is missing beyond them
(hypothesis, compute-sanitizer, baselines) is left out and said.
"""

import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
OP_TESTS = (
    "codebook_lookup", "codebook_update", "derivatives", "group_mask", "straight_through", "prepared_codebook",
    "registration", "pruning",
)  # fmt: skip
SANITIZED = ("tests/ops/test_codebook_lookup.py", "-k", "cuda and (test_sizes or test_layouts)")


def refusal() -> str | None:
    """Why nothing can be checked here, in one sentence, or None."""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) was built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    for name in ("triton", "pytest"):
        if importlib.util.find_spec(name) is None:
            return f"the Python package {name} is missing"
    for program in ("cmake", "nvcc"):
        if shutil.which(program) is None and not (program == "nvcc" and Path("/usr/local/cuda/bin/nvcc").exists()):
            return f"{program} was not found"
    return None


def run_step(name: str, command: list[str], seconds: float, **environment: str) -> dict:
    """Runs a command for at most `seconds`. Returns name, seconds, `outcome` ("passed", "failed" or "out of time") and
    the last line that it printed; on failure its output is shown."""
    start = time.perf_counter()
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths, **environment}, timeout=max(1.0, seconds),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        outcome, text = "passed" if done.returncode == 0 else "failed", done.stdout
    except subprocess.TimeoutExpired as error:
        outcome, text = "out of time", (error.stdout or b"").decode(errors="replace")
    if outcome != "passed":
        print(text[-20000:], file=sys.stderr)
    last = text.strip().splitlines()[-1] if text.strip() else ""
    step = {"name": name, "outcome": outcome, "seconds": round(time.perf_counter() - start, 1), "last_line": last}
    print(f"{name}: {outcome} in {step['seconds']} s; {last}", flush=True)
    return step


def test_commands() -> list[tuple[str, list[str], dict[str, str]]]:
    """The steps before the benchmarks: name, command, and what they add to the environment."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    files = [f"tests/ops/test_{name}.py" for name in OP_TESTS]
    if importlib.util.find_spec("hypothesis"):
        files.append("tests/ops/test_fuzz.py")
    commands = [("op tests on the device", [*pytest, *files, "-k", "cuda or triton"], {})]
    if sanitizer := shutil.which("compute-sanitizer"):
        # torch's caching allocator hands out parts of large blocks, beyond whose ends a sanitizer sees nothing wrong.
        uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        commands.append(("compute-sanitizer", [sanitizer, "--error-exitcode", "9", *pytest, *SANITIZED], uncached))
    return commands


def result_path(folder: Path, card: str, day: datetime.date) -> Path:
    """`<card>-<date>.json`, the card's name in small letters and dashes."""
    return folder / f"{re.sub('[^a-z0-9]+', '-', card.lower()).strip('-')}-{day.isoformat()}.json"


def measure(device: str, end: float, budget: float) -> dict:
    """Limits, cases and exact rows, as far as the time until `end` (of time.perf_counter) reaches."""
    from benchmarks.gpu import cases

    measured = {"limits": cases.machine_limits(device, budget), "cases": [], "left_out": 0}
    for case in cases.all_cases(device, budget):
        if time.perf_counter() + 12 * budget > end:
            measured["left_out"] += 1
            continue
        measured["cases"].append(case())
        print(line_of(measured["cases"][-1], measured["limits"]), flush=True)
        torch.cuda.empty_cache()
    measured["exact_rows"] = cases.exact_rows(device, max(1.0, end - time.perf_counter()))
    print(f"exact rows: {measured['exact_rows']}", flush=True)
    return measured


def line_of(case: dict, limits: dict) -> str:
    """One line for a person: each method's time, and ours as a share of the card's limit."""
    parts = []
    for name, row in case["methods"].items():
        text = f"{name} {1e3 * row['seconds']:.3f} ms" if "seconds" in row else f"{name} failed"
        if "seconds" in row and "flops" in case:
            text += f" ({case['flops'] / row['seconds'] / limits['bf16_flops_per_second']:.0%} of bf16 product)"
        if "seconds" in row and "bytes" in case:
            text += f" ({case['bytes'] / row['seconds'] / limits['copy_bytes_per_second']:.0%} of copy)"
        parts.append(text)
    return f"{case['op']} {'x'.join(map(str, case['shape']))} {case['dtype']}: {', '.join(parts)}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all of it (default 9)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results", help="folder of the result")
    parser.add_argument("--skip-tests", action="store_true", help="build and measure only")
    chosen = parser.parse_args(arguments)
    if chosen.minutes <= 0:
        parser.error(f"--minutes: expected a positive number, got {chosen.minutes}")
    if reason := refusal():
        print(f"gpu-check: {reason}; nothing was measured.", file=sys.stderr)
        return 1
    end = time.perf_counter() + 60 * chosen.minutes
    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    steps = [run_step("build", build, 0.45 * 60 * chosen.minutes, SOHO_FAST_BUILD_EXTENSION="1", SOHO_FAST_CUDA="1")]
    if steps[0]["outcome"] != "passed":
        return 1
    for name, command, environment in [] if chosen.skip_tests else test_commands():
        steps.append(run_step(name, command, 0.5 * (end - time.perf_counter()), **environment))
    sys.path.insert(0, str(ROOT))
    properties = torch.cuda.get_device_properties(0)
    result = {
        "card": properties.name,
        "date": datetime.date.today().isoformat(),
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "steps": steps,
        **measure("cuda", end - 5, budget=0.5),
    }
    path = result_path(chosen.results, properties.name, datetime.date.today())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    failed = [step["name"] for step in steps if step["outcome"] != "passed"]
    if failed or result["exact_rows"]["different"]:
        print(f"gpu-check: failed: {', '.join(failed) or 'rows that differ from float64'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
