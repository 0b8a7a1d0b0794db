"""How every command ends that is stopped, or whose output nobody reads any more: no stack trace, nothing left."""

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from soho_fast.common.errors import last_line, print_line
from soho_fast.common.tables import Table, print_table

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
import itertools, sys
from types import SimpleNamespace
from soho_fast.common import command_line
from soho_fast.common.command_line import Parser, exit_code

# A second goes by whenever it looks at the clock.
command_line.time = SimpleNamespace(monotonic=itertools.count().__next__)

def run(arguments):
    parser = Parser()
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args(arguments)
    numbers = range(10**6)
    if options.workers:
        from soho_fast.common.workers import loaded_ahead
        numbers = loaded_ahead(lambda number: number, numbers, workers=options.workers)
    while True:
        try:
            for number in numbers:
                print(number, flush=True)
            return 0
        except KeyboardInterrupt:
            if not options.stubborn:
                raise
            print("heard", file=sys.stderr, flush=True)
        except OSError as error:
            raise ValueError("results can't be written") from error

sys.exit(exit_code(run, None))
"""


def _start(*arguments, ignored=(), unbuffered=""):
    """The command as a terminal starts it, in a process group of its own, with default signals."""

    def begin():
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments], preexec_fn=begin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_to_all_processes_of_a_command_ends_it_in_one_line(name):
    with _start("--workers", "2") as process:
        process.stdout.readline()
        os.killpg(process.pid, getattr(signal, name))
        _, said = process.communicate(timeout=30)  # Until the last of its processes has left its outputs.
    assert (process.returncode, said.strip()) == (128 + getattr(signal, name), "stopped")


def test_a_loader_process_that_is_killed_is_told_in_one_line():
    with _start("--workers", "2") as process:
        process.stdout.readline()
        psutil.Process(process.pid).children()[0].kill()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 75 and said.count("\n") == 1 and "error: DataLoader worker" in said, said


@pytest.mark.parametrize(("arguments", "unbuffered"), [([], ""), ([], "1"), (["--help"], "")])
def test_a_command_whose_output_nobody_reads_any_more_ends_in_one_line(arguments, unbuffered):
    with _start(*arguments, unbuffered=unbuffered) as process:
        if not arguments:
            process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, "stopped: what read this command's output has ended\n")


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
def test_a_signal_that_was_ignored_when_a_command_began_does_not_stop_it(name):
    """Under nohup a closed terminal, in the background of a script Ctrl-C."""
    with _start(ignored=(getattr(signal, name),)) as process:
        process.stdout.readline()
        os.killpg(process.pid, getattr(signal, name))
        # More than a pipe holds: the last of it was written after the signal came.
        assert all(process.stdout.readline() for _ in range(20_000))
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[1].strip() == "stopped"


def test_a_second_ctrl_c_ends_what_does_not_come_to_its_end():
    with _start("--stubborn") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "heard\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1].strip() == "stopped at once"
        assert process.returncode == 130


def test_a_line_is_one_line_whatever_is_in_a_name(capsys):
    print_line("a\nerror: \x1b[2J.jpg\tb")
    assert capsys.readouterr().out == "a\\nerror: \\x1b[2J.jpg\tb\n"


def test_a_last_line_is_printed_by_a_signal_that_comes_while_another_is(monkeypatch, tmp_path):
    """Python's buffers refuse a second write within a write."""

    class Interrupted(io.RawIOBase):
        def writable(self):
            return True

        def fileno(self):
            return file.fileno()

        def write(self, text):
            last_line("\nstopped at once")
            return file.write(text)

    with open(tmp_path / "stderr", "wb", buffering=0) as file:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Interrupted()), "utf-8"))
        print("heard", file=sys.stderr, flush=True)
        monkeypatch.undo()
    assert (tmp_path / "stderr").read_text() == "\nstopped at once\nheard\n"


def test_a_table_whose_reader_has_ended_is_told_like_any_other_output(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(BrokenPipeError):  # rich itself would leave with code 1, without a word
        print_table(Table("metrics", ["metric", "value"], [["matching", "90 %"]]))
