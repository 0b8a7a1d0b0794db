"""The command: python -m soho_fast.plan --recipe paper --gpus 32 --card v100."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

from soho_fast.common.extras import from_extra

with from_extra("train"):
    from soho_fast.common.command_line import Parser, as_text
    from soho_fast.common.errors import UserError, fail

DESCRIPTION = """What a recipe needs on a cluster: operations of a step by part, memory of a GPU, bytes between GPUs,
what the readers must deliver, hours. No data is read, no GPU is needed. Any field of the recipe can be given beside
these, as to the training command (--batch.global_batch_size 512)."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 planned, 2 a mistake of the user."""
    try:
        print(planned(as_text(sys.argv[1:] if arguments is None else arguments)))
    except UserError as error:
        return fail(str(error), 0)
    return 0


def planned(arguments: list[str], known: dict[tuple, Any] | None = None) -> str:
    """What the command prints.

    Args:
        arguments: The command line without the program's name.
        known: Costs by what they depend on, kept here from call to call.

    Raises:
        UserError: a mistake on the command line or in the recipe.
    """
    options, rest = _read(arguments)
    return _plan(options, rest, {} if known is None else known)


def _read(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(prog="python -m soho_fast.plan", description=DESCRIPTION)
    parser.add_argument("--recipe", default="paper", help="name of a recipe of this package, or path of a YAML file")
    parser.add_argument("--gpus", type=_number(int, 1), default=1, help="how many, one process each (1)")
    parser.add_argument("--card", choices=("v100", "a100", "h100"), default="a100", help="which (a100)")
    parser.add_argument("--memory-gb", type=_number(float, 1), help="GiB of a card, for cards with another memory")
    parser.add_argument("--stage", type=int, choices=(0, 1, 2, 3), help="ZeRO stage instead of the recipe's")
    parser.add_argument(
        "--mfu", type=_number(float, 0.001, 1), help="share of the card's peak that a step reaches (0.3)"
    )
    parser.add_argument("--data-rate", type=_number(float, 0.001), help="images a second of one loader process")
    parser.add_argument("--file-kb", type=_number(float, 0.001), help="kilobytes of an image's file (157)")
    parser.add_argument(
        "--samples", type=_number(int, 1), help="training samples of an epoch; a run's first lines say it"
    )
    parser.add_argument("--words", type=_number(int, 8), help="words of the tokenizer (bert-base-uncased's)")
    parser.add_argument("--answers", type=_number(int, 2), help="answers of question answering (VQA v2's)")
    parser.add_argument("--text-length", type=_number(int, 3), help="tokens of a batch's longest text")
    parser.add_argument("--image", type=_size, metavar="HxW", help="a typical image before it is resized (480x640)")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    return parser.parse_known_args(arguments)


def _number(kind: type, smallest: float, largest: float = float("inf")) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a {'whole ' * (kind is int)}number, got {text!r}") from None
        if not smallest <= value <= largest or value == float("inf"):
            bound = f"{smallest:g} to {largest:g}" if largest < float("inf") else f"{smallest:g} or more"
            raise argparse.ArgumentTypeError(f"expected {bound}, got {text}")
        return value

    return number


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH in pixels, as 480x640, got {text!r}")
    return int(height), int(width)


def _plan(options: argparse.Namespace, rest: list[str], known: dict[tuple, Any]) -> str:
    # A mistake on the command line is reported before torch and DeepSpeed are loaded.
    with from_extra("train"):
        from soho_fast.plan import report
        from soho_fast.plan.cards import CARDS, GIB
        from soho_fast.plan.estimate import Costs, Rates, make_plan
        from soho_fast.plan.recipes import Given, Work
    card = CARDS[options.card]
    if options.memory_gb:
        card = dataclasses.replace(card, memory=round(options.memory_gb * GIB))
    given = Given(options.samples, options.words, options.answers, options.text_length, options.image)
    rates = {name: getattr(options, name) for name in ("mfu", "data_rate", "file_kb")}
    try:
        if options.stage is not None:
            rest = [*rest, "--engine.zero_stage", str(options.stage)]
        work = Work(["--recipe", options.recipe, *rest], options.gpus, given, flags=_FLAGS)
        precision = card.precision(work.recipe.engine.precision)
        key = (precision, options.recipe, options.gpus, *rest, *vars(given).items())
        if key not in known:
            known[key] = Costs(work, precision)
        plan = make_plan(known[key], card, Rates(**{name: value for name, value in rates.items() if value is not None}))
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    return json.dumps(report.as_json(plan), indent=1) if options.json else report.as_text(plan)


_FLAGS = [
    f"--{name}"
    for name in (
        *("recipe", "gpus", "card", "memory-gb", "stage", "mfu", "data-rate", "file-kb", "samples", "words", "answers"),
        *("text-length", "image", "json"),
    )
]

if __name__ == "__main__":
    sys.exit(main())
