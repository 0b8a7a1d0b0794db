"""The dictionary explorer on the command line.

soho explore build runs/mini
soho explore figure runs/mini --codes 191,107
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

# Before torch loads OpenMP; see train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from soho_fast.common.extras import from_extra

with from_extra("explore"):
    from soho_fast.common.command_line import Parser, exit_code

COMMANDS = {
    "build": ("soho_fast.explore.build", "Make the explorer of a model and its data."),
    "figure": ("soho_fast.explore.figure", "Draw rows of codes, as the paper's figures, as PNG and PDF."),
}
"""Each sub-command's module, which has `add_arguments(parser)` and `run(options) -> exit code`.

One with `TAKES_FIELDS` gets what the parser does not know, fields of a recipe, as `options.fields`."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 130 when stopped."""
    return exit_code(_run, arguments)


def _run(arguments: list[str]) -> int:
    example = "example: soho explore build runs/mini"
    parser = Parser(prog="soho explore", description="The dictionary explorer.", epilog=example)
    commands = parser.add_subparsers(dest="command", metavar="|".join(COMMANDS), required=True)
    for name, (_, what) in COMMANDS.items():
        commands.add_parser(name, help=what, add_help=False)
    name, rest = parser.parse_args(arguments[:1]).command, arguments[1:]
    home, what = COMMANDS[name]
    module = import_module(home)
    parser = Parser(prog=f"soho explore {name}", description=what)
    module.add_arguments(parser)
    if getattr(module, "TAKES_FIELDS", False):
        options, fields = parser.parse_known_args(rest)
        options.fields = fields
    else:
        options = parser.parse_args(rest)
    return module.run(options)


if __name__ == "__main__":
    sys.exit(main())
