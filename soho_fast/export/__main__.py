"""Makes a folder of a model that runs without this package.

soho export runs/mini exported
python exported/run.py photo.jpg "a dog"
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

# Before torch loads OpenMP; see train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from soho_fast.common.extras import from_extra, install_command

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
        description="Write a model, in float32, as a folder that runs without this package.",
        epilog="example: soho export runs/mini exported",
    )
    parser.add_argument("model", help="Folder of a run or of a model, or a name on the hub.")
    parser.add_argument("output", help="Folder to create.")
    parser.add_argument("--onnx", action="store_true", help="Graphs for ONNX in place of torch.export's.")
    parser.take_modules()
    options = parser.parse_args(arguments)
    check_name(options.model, needs_owner=True)
    output = Path(options.output)
    if output.exists():
        raise UserError(f"output: {output} exists; give the name of a folder that is not there")
    if not output.parent.is_dir():
        raise UserError(f"output: {output} can't be made ({no_such_path(output.parent)})")
    missing = [name for name in ("onnx", "onnxscript") if options.onnx and not find_spec(name)]
    if missing:
        raise UserError(f"--onnx needs {' and '.join(missing)}; install with: {install_command('onnx')}")
    with from_extra("train"):
        from soho_fast.export.package import export_model

        quiet_transformers()
    export_model(options.model, output, onnx=options.onnx, accept_changes=options.accept_changes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
