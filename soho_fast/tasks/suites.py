"""Evaluates a model on a suite that needs no training: which text belongs to this image? By the ITM head.

    soho suite sugarcrepe runs/mini data/*.json --images val2017.zip
    soho suite winoground runs/mini examples.jsonl --images images.zip

The model is a pre-trained one, or one fine-tuned for image-text retrieval.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Before torch loads OpenMP, as training does; see soho_fast/train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from soho_fast.common.extras import from_extra

with from_extra("train"):
    from soho_fast.common.command_line import Parser, exit_code, quiet_transformers
    from soho_fast.common.errors import UserError, print_line
    from soho_fast.common.files import write_atomically
    from soho_fast.common.hub import check_name, model_folder, no_such_path
    from soho_fast.data.readers.records import ReadReport
    from soho_fast.data.readers.suites import SUITES, read_suite


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 130 when stopped."""
    return exit_code(_run, arguments)


def _parser() -> Parser:
    parser = Parser(
        prog="soho suite",
        description="Evaluate a model on a suite that needs no training: which text belongs to this image?",
        epilog="example: soho suite sugarcrepe runs/mini sugar-crepe/data/*.json --images val2017.zip",
    )
    parser.add_argument("suite", choices=list(SUITES), help="The suite whose published files these are.")
    parser.add_argument("model", help="Folder of a run or of a model, pre-trained or for retrieval, or a hub name.")
    parser.add_argument("files", nargs="+", help="The suite's annotation files.")
    parser.add_argument("--images", nargs="+", required=True, help="Folders, .zip or .tar files with the images.")
    parser.add_argument(
        "--missing_images",
        choices=["error", "skip"],
        default="error",
        help="skip leaves out examples whose image is missing (default: error).",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="Number of images encoded together (default: 32).")
    parser.add_argument("--workers", type=int, default=2, help="Number of processes that decode images (default: 2).")
    parser.add_argument("--results", type=Path, help="File to write: one JSON line per example, with its scores.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    parser.take_modules()
    return parser


def _run(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    say = (lambda line: print_line(line, sys.stderr)) if options.json else print_line
    for name, least in (("batch_size", 1), ("workers", 0)):
        if getattr(options, name) < least:
            raise UserError(f"{name}: expected at least {least}, got {getattr(options, name)}")
    if options.results and not options.results.absolute().parent.is_dir():
        raise UserError(f"results: {options.results} can't be written ({no_such_path(options.results.parent)})")
    check_name(options.model, needs_owner=True)
    records = []
    for path in options.files:
        report, missing = ReadReport(), options.missing_images
        records += read_suite(options.suite, path, options.images, missing_images=missing, report=report)
        for line in report.lines():
            say(line)
    quiet_transformers()
    with from_extra("train"):
        import torch

        from soho_fast.common.tables import Table, print_table
        from soho_fast.tasks.evaluation.loading import load_for_evaluation
        from soho_fast.tasks.evaluation.metrics.suites import RULES, suite_metrics
        from soho_fast.tasks.evaluation.suites import score_suite
        from soho_fast.tasks.retrieval import RetrievalTask
        from soho_fast.tasks.settings import RetrievalData

    task = RetrievalTask(RetrievalData(), say=lambda line: None)
    task.image_batch = options.batch_size
    task.workers = options.workers
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_for_evaluation(task, os.fspath(model_folder(options.model)), device)
    scores_NIT = score_suite(task, model, records, say)
    metrics = suite_metrics(options.suite, scores_NIT, [record.group for record in records])
    if options.results:
        lines = zip(records, scores_NIT.tolist(), strict=True)
        write_atomically(options.results, "".join(f"{json.dumps(each.line(scores))}\n" for each, scores in lines))
    chance = RULES[options.suite].chance
    if options.json:
        print_line(json.dumps({"examples": len(records), **metrics._asdict(), "chance": chance}))
        return 0
    shown = {**metrics.groups, f"mean of {len(metrics.groups)}": metrics.mean, "all": metrics.all, "chance": chance}
    rows = [[name, *(f"{100 * each[key]:.1f} %" for key in chance)] for name, each in shown.items() if each]
    title = f"{options.suite}: {len(records):,} examples"
    print_table(Table(title, ["", *(name.replace("_", " ") for name in chance)], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
