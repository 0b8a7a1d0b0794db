"""Many runs for one question: python -m benchmarks.studies table7|demo|FILE

--list      what is left to do
            (nothing else) makes the missing runs and reports; stopped or killed, the same command goes on
--report    what the rows so far say
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.studies.report import report
from benchmarks.studies.running import Runner
from benchmarks.studies.study import HERE, known, read_study, runs_of
from soho_fast.common.command_line import Parser, exit_code
from soho_fast.common.errors import UserError, print_line


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 1 runs failed, 2 a mistake of the user, 128 + signal when
    stopped."""
    return exit_code(_run, arguments, "stopped; the same command goes on from here")


def _options(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = Parser(
        prog="python -m benchmarks.studies",
        description="Make the runs of a study, and report what they show. Fields of its recipes can be given too.",
    )
    add = parser.add_argument
    add(
        "study", help=f"Study ({', '.join(sorted(file.stem for file in HERE.glob('*.yaml')))}), or path of a YAML file."
    )
    add("--into", type=Path, help="Folder of its runs and rows (default: runs/studies/NAME).")
    add("--results", type=Path, nargs="+", default=[], help="Files of rows that count as done.")
    add("--launcher", default="", help="Words before each command, such as 'deepspeed --num_gpus 8'.")
    add("--seeds", nargs="+", type=int, help="Only these seeds.")
    add("--conditions", nargs="+", help="Only these conditions.")
    add("--list", action="store_true", help="List what is left to do.")
    add("--report", action="store_true", help="Report the rows so far.")
    options, rest = parser.parse_known_args(arguments)
    words = [part for word in rest for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if len(words) % 2 or not all(name.startswith("--") for name in words[::2]):
        raise UserError(f"expected fields of the recipes as --NAME VALUE, got {' '.join(rest)}")
    return options, {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def _run(arguments: list[str]) -> int:
    options, fields = _options(arguments)
    name, study = read_study(options.study)
    known("seeds", options.seeds or [], study.seeds)
    known("conditions", options.conditions or [], study.conditions)
    runs = runs_of(study, fields)
    seeds, conditions = options.seeds or study.seeds, options.conditions or study.conditions
    asked = [run for run in runs if run.seed in seeds and run.condition in conditions]
    runner = Runner(name, asked, options.into or Path("runs/studies", name), options.results, options.launcher)
    if options.list:
        runner.check()
        print("\n".join(map(str, left := runner.left())))
        print_line(f"{len(left)} of {len(asked)} runs are left")
        return 0
    failed = 0 if options.report else runner.make()
    print(report(name, study, runs, runner.rows()))
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
