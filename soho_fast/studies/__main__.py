"""Studies on the command line.

python -m soho_fast.studies dictionary --list     the runs, and how long they will take
python -m soho_fast.studies dictionary            makes them; killed or stopped, the same command goes on
python -m soho_fast.studies dictionary --report   what the rows so far say
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch loads OpenMP; see train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from soho_fast.common.extras import from_extra

with from_extra("train"):
    import yaml

    from soho_fast.common.command_line import Parser, exit_code
    from soho_fast.common.errors import UserError, print_line
    from soho_fast.studies.study import STUDIES, Study, find_study, read_study

if TYPE_CHECKING:
    from soho_fast.studies.matrix import Run
    from soho_fast.studies.results import Row
    from soho_fast.studies.running import Place


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 1 some runs failed, 2 a mistake of the user, 128 + signal when
    stopped."""
    return exit_code(_run, arguments)


def _options(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    names = ", ".join(sorted(file.stem for file in STUDIES.glob("*.yaml")))
    parser = Parser(
        prog="soho studies",
        description="Make the runs of a study and report what they show.",
        epilog="Any field of the recipes can be given too, for all runs: --data_roots.corpus FOLDER. Example: "
        "soho studies planted",
    )
    parser.add_argument("study", help=f"Name of a study ({names}), or path of a YAML file.")
    parser.add_argument("--into", help="Folder of its runs, rows and report (default: runs/studies/NAME).")
    parser.add_argument(
        "--results", action="append", default=[], help="File of rows that count as done; may be given several times."
    )
    parser.add_argument("--jobs", type=int, default=1, help="Number of runs at a time (default: 1).")
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads of each run (default: an equal share of the cores)."
    )
    parser.add_argument(
        "--launcher", default="", help="Prefix of the training command, such as 'deepspeed --num_gpus 8'."
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="Only these seeds.")
    parser.add_argument("--conditions", nargs="+", default=[], help="Only these conditions.")
    parser.add_argument("--stages", nargs="+", default=[], help="Only these stages, and those they start from.")
    parser.add_argument(
        "--trust-file", action="store_true", help="Take launchers and trackers that the study's file names."
    )
    parser.add_argument("--list", action="store_true", help="List the runs and how long they will take.")
    parser.add_argument("--report", action="store_true", help="Make no runs; report on the rows so far.")
    options, rest = parser.parse_known_args(arguments)
    for name, least in (("jobs", 1), ("threads", 0)):
        if getattr(options, name) < least:
            raise UserError(f"{name}: expected {least} or more, got {getattr(options, name)}")
    return options, _fields(rest)


def _fields(rest: Sequence[str]) -> dict[str, Any]:
    """--NAME VALUE or --NAME=VALUE, as fields with their values."""
    fields: dict[str, Any] = {}
    words = iter(rest)
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or len(name) < 3:
            raise UserError(f"{word}: expected a field of the recipes as --NAME before its value")
        given = value if equals else next(words, None)
        if given is None:
            raise UserError(f"{name}: expected a value after it")
        try:
            fields[name.removeprefix("--")] = yaml.safe_load(given)
        except yaml.YAMLError as error:
            raise UserError(f"{name}: expected a value as in YAML, got {given!r}") from error
    return fields


def _run(arguments: list[str]) -> int:
    options, fields = _options(arguments)
    path = find_study(options.study)
    study = read_study(path)
    # A mistake is reported before torch and DeepSpeed are loaded.
    from soho_fast.studies.matrix import chosen, refuse_foreign_code, runs_of
    from soho_fast.studies.running import Place, Runner, build_corpora

    runs = runs_of(study, fields)
    if not options.trust_file:
        refuse_foreign_code(runs, path, fields)
    folder = Path(options.into or f"runs/studies/{path.stem}")
    place = Place(folder, [Path(name) for name in options.results], options.jobs, options.threads, options.launcher)
    rows = place.rows()
    asked = runs
    for what in ("seed", "condition", "stage"):
        if names := getattr(options, f"{what}s"):
            asked = chosen(asked, what, names)
    if options.list:
        _list(study, asked, rows, place)
        return 0
    code = 0
    if not options.report:
        build_corpora(asked, folder)
        code = Runner(path.stem, asked, place, print_line).make()
    if options.report or not code:
        from soho_fast.studies.report import write_report

        print_line(f"in {', '.join(map(str, write_report(folder, path.stem, study, runs, place.rows())))}")
    return code


def _list(study: Study, runs: list[Run], rows: list[Row], place: Place) -> None:
    from soho_fast.common.tables import Table, print_table
    from soho_fast.studies.results import by_digest
    from soho_fast.studies.running import Estimate, clock, needed

    done, left = by_digest(rows), needed(runs, rows, place.folder)
    estimate = Estimate(runs, rows)
    table = Table(f"{study.title}: {len(runs)} runs", ["condition", "stage", "seeds", "done", "a run takes"], [])
    cells: dict[tuple[str, str], list[tuple[int, Run]]] = {}
    for run in runs:
        for cell in run.cells:
            cells.setdefault((cell.condition, cell.stage), []).append((cell.seed, run))
    for (condition, stage), here in cells.items():
        took = estimate.seconds(here[0][1])
        seeds = " ".join(str(seed) for seed, _ in here)
        num_done = f"{sum(run.digest in done for _, run in here)} of {len(here)}"
        table.rows.append([condition, stage, seeds, num_done, "" if took is None else clock(took)])
    print_table(table)
    print_line(f"{len(left)} of {len(runs)} runs to make: {estimate.total(left, place.jobs)} with --jobs {place.jobs}")


if __name__ == "__main__":
    sys.exit(main())
