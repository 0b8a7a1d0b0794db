"""Ask a model about images, in one line of Python or on the command line.

python -m soho_fast.ask answer runs/mini_vqa photo.jpg "how many dogs are there?"
python -m soho_fast.ask rank runs/mini photo.jpg "two dogs" "a cat on a table"
python -m soho_fast.ask entails runs/mini_snli_ve photo.jpg "an animal is there"
python -m soho_fast.ask compare runs/mini_nlvr2 left.png right.png "both show a dog"
python -m soho_fast.ask many runs/mini questions.jsonl results.jsonl --images photos/
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

# Before torch loads OpenMP; see train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from soho_fast.common.extras import from_extra

with from_extra("train"):
    from soho_fast.common.command_line import Parser, exit_code
    from soho_fast.common.errors import UserError
    from soho_fast.common.hub import check_name, no_such_path


def __getattr__(name: str) -> Any:
    """`SohoPipeline`, imported where it is asked for: the command line is read before torch is loaded."""
    if name != "SohoPipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from soho_fast.ask.pipeline import SohoPipeline

    return SohoPipeline


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 130 when stopped."""
    return exit_code(_run, arguments)


def _parser() -> Parser:
    # Taken before and after the action and what it is about.
    options = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    options.add_argument("--top_k", type=int, help="So many answers, best first.")
    options.add_argument("--json", action="store_true", help="Print JSON.")
    options.add_argument(
        "--precision", choices=["auto", "float32", "bf16", "fp16"], help="Prepare the model for inference in it."
    )
    options.add_argument("--compile", action="store_true", help="Prepare the model, and let torch.compile compile it.")
    parser = Parser(prog="ask.py", description="Ask a model about images.", parents=[options])
    actions = parser.add_subparsers(dest="action", required=True)
    for action, inputs, what in (
        ("answer", ["image", "question"], "Answer a question about an image."),
        ("rank", ["image", "texts"], "Order texts by how well they describe an image."),
        ("entails", ["image", "text"], "Does an image entail a text?"),
        ("compare", ["left", "right", "text"], "Is a statement about two images true?"),
    ):
        sub = actions.add_parser(action, help=what, description=what, parents=[options])
        sub.add_argument("model", help="Folder of a run or of a model, or a name on the hub.")
        for name in inputs:
            sub.add_argument(name, nargs="+" if name == "texts" else None)
    what = "Answer a file of questions about many images, into a file; the same command goes on after a stop."
    many = actions.add_parser("many", help=what, description=what, parents=[options])
    many.add_argument("model", help="Folder of a run or of a model, or a name on the hub.")
    many.add_argument("questions", help='JSON lines, such as {"image": "a.jpg", "question": "what is it?"}.')
    many.add_argument("results", help="The file that is written: JSON lines, one of each question, in their order.")
    many.add_argument("--images", nargs="+", default=[], help="Folders, .zip or .tar files of the images.")
    many.add_argument("--batch_size", type=int, default=8, help="Images encoded at a time.")
    many.add_argument("--workers", type=int, default=2, help="Processes that decode images; 0: in the command's own.")
    return parser


def _run(arguments: list[str]) -> int:
    options = vars(_parser().parse_args(arguments))
    action, folder = options.pop("action"), options.pop("model")
    as_json = options.pop("json", False)
    for name, least in (("top_k", 1), ("batch_size", 1), ("workers", 0)):
        if options.get(name, least) < least:
            raise UserError(f"{name}: expected at least {least}, got {options[name]}")
    check_name(folder, needs_owner=True)
    for name in ("image", "left", "right", "questions"):
        if name in options and not Path(options[name]).is_file():
            is_there = Path(options[name]).exists()
            reason = "it is no regular file" if is_there else no_such_path(options[name])
            raise UserError(f"{name}: {options[name]} can't be read ({reason})")
    with from_extra("train"):
        from transformers.utils import logging as transformers_logging

        from soho_fast.ask.many import ask_many
        from soho_fast.ask.pipeline import SohoPipeline

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # What could not be loaded is reported by an error of ours, in a line.
    if action == "many":
        ask_many(folder, **options)
        return 0
    fast = {name: options.pop(name) for name in ("precision", "compile") if name in options}
    found = getattr(SohoPipeline.from_pretrained(folder, **fast), action)(**options)
    if as_json:
        print(json.dumps(found))
        return 0
    for row in found:
        *named, score = row.values()
        print(f"{100 * score:5.1f} %  {named[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
