"""`soho corpus --out data/soho-mini``: build the demo corpus."""

import argparse
import dataclasses
import sys

import docstring_parser

from soho_fast.common.command_line import Parser, exit_code

from .builder import build_corpus
from .options import CorpusOptions


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 130 when stopped."""
    return exit_code(_run, arguments)


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="soho corpus",
        epilog="example: soho corpus --out data/small --num-train 400 --num-heldout 100",
        description="Build the demo corpus from images in installed packages, unless it is there already.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", default="data/soho-mini", help="folder of the corpus")
    words = {each.arg_name: each.description for each in docstring_parser.parse(CorpusOptions.__doc__ or "").params}
    for field in dataclasses.fields(CorpusOptions):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=field.default, help=words[field.name])
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options = vars(parser.parse_args(arguments))
    build_corpus(options.pop("out"), progress=not options.pop("quiet"), **options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
