"""Ask a model about images, in one line of Python or on the command line.

soho ask answer runs/mini_vqa photo.jpg "how many dogs are there?"
soho ask rank runs/mini photo.jpg "two dogs" "a cat on a table"
soho ask entails runs/snli_ve photo.jpg "an animal is there"
soho ask compare runs/nlvr2 left.png right.png "both show a dog"
soho ask label runs/mini photos/ --labels dog,cat,horse
soho ask retrieve runs/mini "a red bus" --images photos/
soho ask many runs/mini questions.jsonl results.jsonl --images photos/
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from functools import partial
from pathlib import Path

from soho_fast.common.extras import from_extra

with from_extra("train"):
    from soho_fast.common.command_line import Parser, exit_code, quiet_transformers
    from soho_fast.common.errors import UserError, print_line
    from soho_fast.common.hub import check_name, model_folder, no_such_path
    from soho_fast.common.versions import cautions


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 130 when stopped."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print_line(str(message), sys.stderr)
        return exit_code(_run, arguments)


def _parser() -> Parser:
    # Taken before and after the action and what it is about.
    options = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    options.add_argument("--top_k", type=int, help="Answers to print (default: all; retrieve 10, answer 5, label 1).")
    options.add_argument("--json", action="store_true", help="Print JSON.")
    options.add_argument(
        "--precision",
        choices=["auto", "float32", "bf16", "fp16"],
        help="Prepare the model for inference in this precision.",
    )
    options.add_argument("--compile", action="store_true", help="Prepare the model for inference with torch.compile.")
    options.take_modules()
    example = "example: soho ask rank runs/mini photo.jpg 'two dogs' 'a cat'"
    parser = Parser(prog="soho ask", description="Ask a model about images.", parents=[options], epilog=example)
    actions = parser.add_subparsers(dest="action", required=True)

    def add(action: str, what: str, *inputs: str) -> Parser:
        sub = actions.add_parser(action, help=what, description=what, parents=[options])
        sub.add_argument("model", help="Folder of a run or of a model, or a name on the hub.")
        for name in inputs:
            sub.add_argument(name, nargs="+" if name == "texts" else None, help=help_of.get(name))
        if action in ("label", "retrieve", "many"):
            sub.add_argument("--batch_size", type=int, default=8, help="Images encoded together (default: 8).")
        return sub

    help_of = {
        "images": "Folder of images, also in folders below it; or one image.",
        "questions": 'JSON lines, such as {"image": "a.jpg", "question": "what is it?"}.',
        "results": "File to write: one JSON line per question, in order.",
    }
    add("answer", "Answer a question about an image.", "image", "question")
    add("rank", "Rank texts by how well they describe an image.", "image", "texts")
    add("entails", "Does an image entail a text?", "image", "text")
    add("compare", "Is a statement about two images true?", "left", "right", "text")
    label = add("label", "Label the images of a folder, without training.", "images")
    label.add_argument("--labels", required=True, help="Labels between commas, or a file with one a line.")
    label.add_argument(
        "--templates",
        nargs="+",
        default=argparse.SUPPRESS,
        help="Texts with {} for the label, or a file with one a line; they count alike (default: 'a photo of a {}.').",
    )
    retrieve = add("retrieve", "Find the images of a folder that a text describes best.", "texts")
    retrieve.add_argument("--images", required=True, help=help_of["images"])
    what = "Images that a contrastive head chooses for each text; the ITM head, where it is the better, ranks them "
    what += "(default: 64)."
    retrieve.add_argument("--candidates", type=int, default=64, help=what)
    what = "Answer a file of questions about many images; the same command resumes after a stop."
    many = add("many", what, "questions", "results")
    many.add_argument("--images", nargs="+", default=[], help="Folders, .zip or .tar files with the images.")
    what = "Processes that decode images; 0 decodes in the main one (default: 2)."
    many.add_argument("--workers", type=int, default=2, help=what)
    actions.metavar = "|".join(actions.choices)
    return parser


def _run(arguments: list[str]) -> int:
    options = vars(_parser().parse_args(arguments))
    action, folder = options.pop("action"), options.pop("model")
    as_json = options.pop("json", False)
    for name, least in (("top_k", 1), ("batch_size", 1), ("candidates", 1), ("workers", 0)):
        if options.get(name, least) < least:
            raise UserError(f"{name}: expected at least {least}, got {options[name]}")
    check_name(folder, needs_owner=True)
    for name in ("image", "left", "right", "questions"):
        if name in options and not Path(options[name]).is_file():
            is_there = Path(options[name]).exists()
            reason = "it is no regular file" if is_there else no_such_path(options[name])
            raise UserError(f"{name}: {options[name]} can't be read ({reason})")
    told = cautions(model_folder(folder), options.pop("accept_changes", False))
    quiet_transformers()
    with from_extra("train"):
        from soho_fast.ask.labels import image_paths, label_images
        from soho_fast.ask.many import ask_many
        from soho_fast.ask.pipeline import SohoPipeline
        from soho_fast.ask.retrieval import Retriever, print_retrieved

    if action == "many":
        ask_many(folder, **options)
    elif action == "label":
        label_images(folder, **options, as_json=as_json)
    else:
        paths = image_paths(options.pop("images")) if action == "retrieve" else []
        fast = {name: options.pop(name) for name in ("precision", "compile") if name in options}
        soho = SohoPipeline.from_pretrained(folder, **fast)
        if action == "retrieve":
            retriever = Retriever(soho, paths, options.pop("batch_size"), partial(print_line, file=sys.stderr))
            print_retrieved(retriever, **options, as_json=as_json)
        else:
            found = getattr(soho, action)(**options)
            if as_json:
                print_line(json.dumps(found))
            for row in [] if as_json else found:
                *named, score = row.values()
                print_line(f"{soho.shown(score)}  {named[0]}")
    for line in told:
        print_line(line, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
