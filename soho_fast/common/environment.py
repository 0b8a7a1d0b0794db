"""What a report of a bug needs: versions, processor, and what the ops run on.

soho env
soho env --json
"""

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import soho_fast
from soho_fast.common.command_line import Parser, exit_code
from soho_fast.common.errors import print_line
from soho_fast.common.versions import LIBRARIES, commit, installed


def environment() -> dict[str, object]:
    """Versions, machine, GPUs, `ops.available_backends()`, and what `ops.build_info()` says; loads torch."""
    import torch

    ops = import_module("soho_fast.ops")  # by name, as the commands: this package imports none of the others
    info = ops.build_info()
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        **installed((*LIBRARIES, "triton", "faiss-cpu")),
        "soho_fast": f"{soho_fast.__version__} {commit()}".strip(),
        "torch": info.pop("torch"),
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "GPUs": gpus or "none",
        "CUDA of torch": torch.version.cuda or "none",
        "backends": ops.available_backends(),
        **{name: value for name, value in info.items() if value != ""},
        **{name: value for name, value in sorted(os.environ.items()) if name.startswith("SOHO_FAST_")},
    }


def processor_name() -> str:
    """The processor's name as Linux has it; elsewhere what python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user."""
    return exit_code(_run, arguments)


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="soho env",
        description="Print versions, processor and backends, as a report of a bug needs them.",
        epilog="examples: soho env; soho env --json",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    found = environment()
    if options.json:
        for line in json.dumps(found, indent=1).splitlines():
            print_line(line)
    else:
        for name, value in found.items():
            print_line(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
