"""Ask a model about images, in one line of Python or on the command line.

python -m soho_fast.ask answer runs/mini_vqa photo.jpg "how many dogs are there?"
python -m soho_fast.ask rank runs/mini photo.jpg "two dogs" "a cat on a table"
python -m soho_fast.ask entails runs/mini_snli_ve photo.jpg "an animal is there"
python -m soho_fast.ask compare runs/mini_nlvr2 left.png right.png "both show a dog"
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

# Before torch loads OpenMP; see train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from soho_fast.extras import from_extra


def __getattr__(name: str) -> Any:
    """`SohoPipeline`, imported where it is asked for: the command line is read before torch is loaded."""
    if name != "SohoPipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from soho_fast.pipeline import SohoPipeline

    return SohoPipeline


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user."""
    parser = argparse.ArgumentParser(prog="ask.py", description="Ask a model about images.")
    parser.add_argument("--top_k", type=int, help="So many answers, best first.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    actions = parser.add_subparsers(dest="action", required=True)
    for action, inputs, what in (
        ("answer", ["image", "question"], "Answer a question about an image."),
        ("rank", ["image", "texts"], "Order texts by how well they describe an image."),
        ("entails", ["image", "text"], "Does an image entail a text?"),
        ("compare", ["left", "right", "text"], "Is a statement about two images true?"),
    ):
        sub = actions.add_parser(action, help=what, description=what)
        sub.add_argument("model", help="Folder of a run or of a model, or a name on the hub.")
        for name in inputs:
            sub.add_argument(name, nargs="+" if name == "texts" else None)
    options = vars(parser.parse_args(arguments))
    with from_extra("train"):
        from transformers.utils import logging as transformers_logging

        from soho_fast.pipeline import SohoPipeline

    transformers_logging.disable_progress_bar()
    action, folder, top_k, as_json = (options.pop(name) for name in ("action", "model", "top_k", "json"))
    try:
        limit = {} if top_k is None else {"top_k": top_k}
        found = getattr(SohoPipeline.from_pretrained(folder), action)(**options, **limit)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if as_json:
        print(json.dumps(found))
        return 0
    for row in found:
        *named, score = row.values()
        print(f"{100 * score:5.1f} %  {named[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
