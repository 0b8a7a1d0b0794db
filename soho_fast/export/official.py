"""The authors' published checkpoint on the command line.

soho convert soho_res18_fp16_40-9441cdd3.pth soho_r18 --vocab vocab.txt
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from soho_fast.common.command_line import Parser, exit_code, quiet_transformers
from soho_fast.common.errors import UserError, print_line
from soho_fast.common.extras import from_extra


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 130 when stopped."""
    return exit_code(_run, arguments)


def _parser() -> Parser:
    parser = Parser(
        prog="soho convert",
        epilog="example: soho convert soho_res18_fp16_40-9441cdd3.pth soho --vocab vocab.txt",
        description="Write a published checkpoint, of pre-training or of VQA, as a folder that from_pretrained loads.",
    )
    parser.add_argument("checkpoint", help="The published file.")
    parser.add_argument("output", help="Folder to write.")
    parser.add_argument(
        "--vocab", help="vocab.txt of bert-base-uncased; without it, the hub is asked for that tokenizer."
    )
    parser.add_argument("--answers", help="JSON of a VQA model's answers: a list, or an object with their numbers.")
    parser.add_argument("--overwrite", action="store_true", help="Replace what is in the folder.")
    return parser


def _run(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    output = Path(options.output)
    if output.is_file():
        raise UserError(f"output: {output} is a file; expected the folder to write")
    if output.is_dir() and any(output.iterdir()) and not options.overwrite:
        raise UserError(f"output: {output} is not empty; give another folder, or --overwrite")
    quiet_transformers()
    with from_extra("train"):
        from soho_fast.export.conversion import write_converted

    for line in write_converted(Path(options.checkpoint), output, options.vocab, options.answers):
        print_line(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
