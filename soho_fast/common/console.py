"""The command `soho`: every command of this package by its name. `python -m` runs the same modules."""

import sys
from collections.abc import Sequence
from importlib import import_module

from soho_fast import __version__
from soho_fast.common.command_line import exit_code
from soho_fast.common.errors import UserError, print_line
from soho_fast.common.spelling import did_you_mean

# Name -> module with `main(arguments)`, and what it does.
COMMANDS = {
    "train": ("soho_fast.train", "train a recipe in one process (in several: deepspeed soho_fast/train.py)"),
    "evaluate": ("soho_fast.evaluate", "metrics of a run or a model on a split"),
    "suite": ("soho_fast.tasks.suites", "SugarCrepe, VALSE, ARO or Winoground, without training"),
    "ask": ("soho_fast.ask.__main__", "questions about images"),
    "app": ("soho_fast.explore.app_command", "ask a model in the browser; the codes and the attention of an image"),
    "explore": ("soho_fast.explore.__main__", "pages that show what each code means"),
    "export": ("soho_fast.export.__main__", "compile a model into a folder that needs PyTorch alone"),
    "check": ("soho_fast.tasks.check", "check your images and captions before training"),
    "tokenizer": ("soho_fast.data.tokenizer", "make a tokenizer of your texts"),
    "corpus": ("soho_fast.data.mini.__main__", "build the demo corpus"),
    "env": ("soho_fast.common.environment", "versions, processor and backends, as a report of a bug needs them"),
    "convert": ("soho_fast.export.official", "convert a checkpoint of the authors"),
}
_HELP = ("-h", "--help")
_VERSION = ("-V", "--version")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code of its command, 2 for a mistake of the user."""
    return exit_code(_run, arguments)


def _run(arguments: list[str]) -> int:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in _HELP:
        width = max(map(len, COMMANDS))
        print_line("usage: soho COMMAND ...")
        print_line("")
        for each, (_, about) in COMMANDS.items():
            print_line(f"  {each:{width}}  {about}")
        print_line("")
        print_line("example: soho train --recipe own --data_roots.images my_images")
        print_line("soho COMMAND --help explains a command, soho --version prints the version.")
        return 0
    if name in _VERSION:
        print_line(f"soho_fast {__version__}")
        return 0
    if name not in COMMANDS:
        meant = did_you_mean(name, [*COMMANDS, *_HELP, *_VERSION])
        raise UserError(f"soho: expected one of {', '.join(COMMANDS)}, got {name!r}{meant} (--help says more)")
    return import_module(COMMANDS[name][0]).main(rest)


if __name__ == "__main__":
    sys.exit(main())
