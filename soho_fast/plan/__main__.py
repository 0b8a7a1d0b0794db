"""The command: python -m soho_fast.plan --recipe paper --gpus 32 --card v100."""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable
from typing import Any

from soho_fast.common.extras import from_extra

with from_extra("train"):
    from soho_fast.common.command_line import Parser, exit_code, flags_of
    from soho_fast.common.errors import UserError, print_line
    from soho_fast.plan.cards import CARDS, GIB, MACHINE, Rates

DESCRIPTION = """What a recipe needs on a cluster: operations of a step by part, memory of a GPU, bytes between GPUs,
what the readers must deliver, hours and what bounds them. No data is read, no GPU is needed. Any field of the recipe
can be given beside these, as to the training command (--batch.global_batch_size 512)."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 planned, 2 a mistake of the user, 130 when stopped."""
    return exit_code(_run, arguments)


def _run(arguments: list[str]) -> int:
    print_line(planned(arguments))
    return 0


def planned(arguments: list[str], known: dict[tuple, Any] | None = None) -> str:
    """What the command prints.

    Args:
        arguments: The command line without the program's name.
        known: Costs by what they depend on, kept here from call to call.

    Raises:
        UserError: a mistake on the command line or in the recipe.
    """
    parser = _parser()
    options, fields = parser.parse_known_args(arguments)
    return _plan(options, fields, flags_of(parser), {} if known is None else known)


def _parser() -> Parser:
    parser = Parser(prog="soho plan", description=DESCRIPTION, epilog="example: soho plan --gpus 32 --card v100")
    parser.add_argument("--recipe", default="paper", help="name of a recipe of this package, or path of a YAML file")
    parser.add_argument("--gpus", type=_number(int, 1), default=1, help="number of GPUs, one process each (default: 1)")
    parser.add_argument(
        "--card", type=str.lower, choices=list(CARDS), default="a100", help="model of the GPUs (default: a100)"
    )
    parser.add_argument(
        "--memory-gb", type=_number(float, 1), help="memory of a GPU in GiB, where it differs from the usual"
    )
    parser.add_argument("--stage", type=int, choices=(0, 1, 2, 3), help="ZeRO stage (default: the recipe's)")
    for flag, largest, default, about in (
        ("--efficiency", 1.0, None, "fraction of the peak that products reach (default: the card's, by part)"),
        ("--network-gbit", math.inf, None, f"gigabits a second of a machine of {MACHINE} GPUs (default: a DGX's)"),
        ("--data-rate", math.inf, Rates.data_rate, "images per second of one loader process (default: %(default)g)"),
        ("--file-kb", math.inf, Rates.file_kb, "kilobytes of an image file (default: %(default)g)"),
    ):
        parser.add_argument(flag, type=_number(float, 0.001, largest), default=default, help=about)
    parser.add_argument(
        "--samples", type=_number(int, 1), help="training samples in an epoch; printed at the start of a run"
    )
    parser.add_argument("--words", type=_number(int, 8), help="size of the vocabulary (default: bert-base-uncased's)")
    parser.add_argument(
        "--answers", type=_number(int, 2), help="number of answers in question answering (default: VQA v2's)"
    )
    parser.add_argument("--text-length", type=_number(int, 3), help="tokens of the longest text in a batch")
    parser.add_argument(
        "--image", type=_size, metavar="HxW", help="typical image size before resizing (default: 480x640)"
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    return parser


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


def _plan(options: argparse.Namespace, rest: list[str], flags: list[str], known: dict[tuple, Any]) -> str:
    # A mistake on the command line is reported before torch and DeepSpeed are loaded.
    with from_extra("train"):
        from soho_fast.plan import report
        from soho_fast.plan.estimate import Costs, make_plan
        from soho_fast.plan.recipes import Given, Work
    card = CARDS[options.card]
    if options.memory_gb:
        card = dataclasses.replace(card, memory=round(options.memory_gb * GIB))
    if options.efficiency:
        shares = dict.fromkeys(card.efficiency, options.efficiency)
        card = dataclasses.replace(card, efficiency=shares, efficiency_from="as given")
    if options.network_gbit:
        if options.gpus <= MACHINE:
            raise UserError(f"--network-gbit: {options.gpus} GPUs are in one machine; expected more than {MACHINE}")
        card = dataclasses.replace(card, network=options.network_gbit / 8 * 1e9)
    given = Given(options.samples, options.words, options.answers, options.text_length, options.image)
    rates = Rates(options.data_rate, options.file_kb)
    try:
        if options.stage is not None:
            rest = [*rest, "--engine.zero_stage", str(options.stage)]
        work = Work(["--recipe", options.recipe, *rest], options.gpus, given, flags)
        precision = card.precision(work.recipe.engine.precision)
        key = (precision, options.recipe, options.gpus, *rest, *vars(given).items())
        if key not in known:
            known[key] = Costs(work, precision)
        plan = make_plan(known[key], card, rates)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    return json.dumps(report.as_json(plan), indent=1) if options.json else report.as_text(plan)


if __name__ == "__main__":
    sys.exit(main())
