"""Tar shards from the command line.

    python -m soho_fast.data.shards index "cc3m/{00000..00331}.tar"
    python -m soho_fast.data.shards check "cc3m/{00000..00331}.tar"

Each can be stopped with Ctrl-C at any time: what is whole stays, and the same command goes on from there.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import Any, TypeVar

from tqdm import tqdm

from soho_fast.common.command_line import Parser, exit_code
from soho_fast.common.errors import UserError, print_line
from soho_fast.common.path_ranges import expand_range
from soho_fast.data.shards.index import read_index
from soho_fast.data.shards.indexing import build_index, check_shard
from soho_fast.data.shards.store import TarStore

T = TypeVar("T")

_MOST_SHOWN = 20
_GOES_ON = "the same command goes on from here"


def _in_processes(work: Callable[[str], T], paths: Sequence[str], workers: int, what: str) -> Iterator[T]:
    """What `work` gives of each path, in the order in which they come to be done; begun work is ended first where one
    fails or Ctrl-C is pressed. Raises what `work` raises."""
    import soho_fast.data.images  # noqa: F401 - torchvision is loaded once, before processes are forked

    context = get_context("fork")
    seconds = 0.5 if sys.stderr.isatty() else 15.0  # lines of a log would fill it
    with (
        tqdm(total=len(paths), desc=what, unit="shard", mininterval=seconds, maxinterval=seconds) as bar,
        ProcessPoolExecutor(max(1, min(workers, len(paths))), context, initializer=_begin_process) as pool,
    ):
        try:
            for future in as_completed([pool.submit(work, path) for path in paths]):
                result = future.result()
                bar.update()
                yield result
        except BrokenProcessPool:
            raise OSError(f"{what}: a process was killed, as where memory runs out; try fewer --workers") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin_process() -> None:
    from soho_fast.common.workers import end_with_parent

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # The parent's handler was inherited by the fork; a broken pool ends its processes by this signal.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()


def _expand(paths: Sequence[str]) -> list[str]:
    shards = [shard for path in paths for shard in expand_range(path)]
    missing = [shard for shard in shards if not os.path.isfile(shard)]
    if missing:
        raise UserError(f"{missing[0]}: there is no such shard ({len(missing):,} of {len(shards):,} are missing)")
    return shards


def _is_indexed(shard: str) -> bool:
    try:
        read_index(shard)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _index(options: argparse.Namespace) -> list[str]:
    shards = _expand(options.shards)
    wanted = [shard for shard in shards if options.again or not _is_indexed(shard)]
    began = time.monotonic()
    for _ in _in_processes(build_index, wanted, options.workers, "indexing") if wanted else ():
        pass
    seconds = time.monotonic() - began
    lines = [f"indexed {len(wanted):,} of {len(shards):,} shards in {seconds:.1f} s; the others had an index"]
    return lines + [_describe(path) for path in options.shards]


def _describe(path: str) -> str:
    store = TarStore(path)  # refuses names that come twice
    for line in store.left_out()[:_MOST_SHOWN]:
        print_line(f"left out: {line}", file=sys.stderr)
    return f"{path}: {store.counts}"


def _check(options: argparse.Namespace) -> list[str]:
    shards = _expand(options.shards)
    corrupt: list[str] = []
    work = partial(check_shard, decode=not options.quick)
    for problems in _in_processes(work, shards, options.workers, "checking"):
        corrupt += problems
    lines = [_describe(path) for path in options.shards]
    for line in sorted(corrupt)[:_MOST_SHOWN]:
        print_line(line, file=sys.stderr)
    if corrupt:
        raise UserError(f"{len(corrupt):,} images can't be decoded; first: {min(corrupt)}")
    return [
        *lines,
        f"{len(shards):,} shards match their indexes" + ("" if options.quick else ", and all images decode"),
    ]


def _parser() -> Parser:
    example = "example: soho shards index '/data/cc3m/{00000..00331}.tar'"
    parser = Parser(prog="soho shards", description="Index and verify tar shards.", epilog=example)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    defaults: dict[str, Any] = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    for name, about in (
        ("index", "write an index beside each shard"),
        ("check", "verify shards and decode their images"),
    ):
        command = commands.add_parser(name, help=about, **defaults)
        command.add_argument("shards", nargs="+", help='.tar files or ranges of them: "cc3m/{00000..00331}.tar"')
        command.add_argument(
            "--workers", type=int, default=os.cpu_count(), help="number of processes, each with one shard at a time"
        )
    commands.choices["index"].add_argument("--again", action="store_true", help="rebuild existing indexes too")
    commands.choices["check"].add_argument("--quick", action="store_true", help="do not decode the images")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 130 when stopped."""
    return exit_code(_run, arguments, when_stopped=f"stopped; {_GOES_ON}")


def _run(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    for line in {"index": _index, "check": _check}[options.command](options):
        print_line(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
