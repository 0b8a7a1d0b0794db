"""The command `soho`: every command of this package by its name. `python -m` runs the same modules."""

import sys
from collections.abc import Sequence
from importlib import import_module

from soho_fast import __version__
from soho_fast.common.command_line import exit_code
from soho_fast.common.errors import UserError, print_line
from soho_fast.common.extras import command_needs
from soho_fast.common.spelling import did_you_mean

# Name -> module with `main(arguments)`, what it does, and the extras that it needs.
COMMANDS = {
    "start": ("soho_fast.common.start", "from a folder of images with captions to a model in the browser", "train,app"),
    "train": (
        "soho_fast.train",
        "train a recipe in one process (in several: deepspeed soho_fast/train.py)",
        "train",
    ),
    "evaluate": ("soho_fast.evaluate", "metrics of a run or a model on a split", "train"),
    "suite": ("soho_fast.tasks.suites", "SugarCrepe, VALSE, ARO or Winoground, without training", "train"),
    "ask": ("soho_fast.ask.__main__", "questions about images", "train"),
    "app": (
        "soho_fast.explore.app_command",
        "ask a model in the browser; the codes and the attention of an image",
        "train,app",
    ),
    "explore": ("soho_fast.explore.__main__", "pages that show what each code means", "train,explore"),
    "export": ("soho_fast.export.__main__", "write a model as a folder that runs without this package", "train"),
    "check": ("soho_fast.tasks.check", "check your images and captions before training", "train"),
    "tokenizer": ("soho_fast.data.tokenizer", "make a tokenizer of your texts", "train"),
    "corpus": ("soho_fast.data.mini.__main__", "build the demo corpus", "demo"),
    "env": (
        "soho_fast.common.environment",
        "versions, processor and backends, as a report of a bug needs them",
        "train",
    ),
    "convert": ("soho_fast.export.official", "convert a checkpoint of the authors", "train"),
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
        for each, (_, about, _) in COMMANDS.items():
            print_line(f"  {each:{width}}  {about}")
        print_line("")
        print_line("example: soho start my_images")
        print_line("soho COMMAND --help explains a command, soho --version prints the version.")
        return 0
    if name in _VERSION:
        print_line(f"soho_fast {__version__}")
        return 0
    if name not in COMMANDS:
        meant = did_you_mean(name, [*COMMANDS, *_HELP, *_VERSION])
        raise UserError(f"soho: expected one of {', '.join(COMMANDS)}, got {name!r}{meant} (--help says more)")
    home, _, extras = COMMANDS[name]
    command_needs(extras)
    return import_module(home).main(rest)


if __name__ == "__main__":
    sys.exit(main())
