"""Makes a folder of a model that runs where torch alone is installed, without this package and its Python.

python -m soho_fast.export runs/mini exported
python exported/run.py photo.ppm 101 2054 102
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

# Before torch loads OpenMP; see train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from soho_fast.common.extras import from_extra

with from_extra("train"):
    from soho_fast.common.command_line import Parser, exit_code, quiet_transformers
    from soho_fast.common.errors import UserError
    from soho_fast.common.hub import check_name, no_such_path


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 130 when stopped."""
    return exit_code(_run, arguments)


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="soho export",
        description="Compile a model into a folder that needs torch alone, on this CPU.",
        epilog="example: soho export runs/mini exported",
    )
    parser.add_argument("model", help="Folder of a run or of a model, or a name on the hub.")
    parser.add_argument("output", help="Folder to create.")
    parser.take_modules()
    options = parser.parse_args(arguments)
    check_name(options.model, needs_owner=True)
    output = Path(options.output)
    if output.exists():
        raise UserError(f"output: {output} exists; give the name of a folder that is not there")
    if not output.parent.is_dir():
        raise UserError(f"output: {output} can't be made ({no_such_path(output.parent)})")
    compiler = os.environ.get("CXX", "g++")  # as torch's compiler takes it
    if shutil.which(compiler) is None:
        raise UserError(f"there is no C++ compiler {compiler}; install g++, or set CXX to one")
    with from_extra("train"):
        from soho_fast.export.package import export_model

        quiet_transformers()
    export_model(options.model, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
