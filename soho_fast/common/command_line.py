"""What the commands share: a mistake is reported in one line, and ends the command with exit code 2."""

import argparse
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, NoReturn, Self

from soho_fast.common.errors import GONE_ERRORS, UserError, fail, is_gone, last_line, say_nothing_more
from soho_fast.common.extras import MissingExtraError, from_extra
from soho_fast.common.import_path import import_named
from soho_fast.common.limits import in_words, met_limit
from soho_fast.common.spelling import did_you_mean

# Needs torch, and has been imported where there are loader processes.
_WORKERS = "soho_fast.common.workers"


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse prints its usage and leaves; takes no abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def take_modules(self) -> None:
        """Take `--import`: a model of a user's own class can be loaded only where its module is imported."""
        words = "Module of your own that the model needs, such as own_cnn; may be given several times."
        self.add_argument("--import", action=_Import, metavar="MODULE", default=argparse.SUPPRESS, help=words)
        self.take_changes()

    def take_changes(self) -> None:
        """Take `--accept-changes`, for `cautions`."""
        words = "Go on with own code that has changed since the model was trained."
        self.add_argument("--accept-changes", action="store_true", help=words)

    def error(self, message: str) -> NoReturn:
        raise UserError(in_plain_words(message, flags_of(self)))

    def print_help(self, file: Any = None) -> None:
        """Print it now: what reads it may have ended."""
        super().print_help(file)
        sys.stdout.flush()


class _Import(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        import_named(values, "--import")


def as_text(arguments: Sequence[str] | None) -> list[str]:
    """The arguments, or those of the process where they are None; raises UserError where one is not text, and
    under python -OO."""
    if sys.flags.optimize > 1:
        raise UserError(
            "python -OO: expected python or python -O; transformers reads the docstrings that -OO leaves out"
        )
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(f"argument {argument!a}: not UTF-8 text; what it names needs another name") from None
    return arguments


def exit_code(run: Callable[[list[str]], int], arguments: Sequence[str] | None, when_stopped: str = "stopped") -> int:
    """That of a command: what `run` gives, 2 for a mistake of the user or a limit of the machine, in one line, 75 where
    a loader process was killed, or 128 + signal when stopped.

    Ctrl-C, SIGTERM and SIGHUP (but under nohup) raise KeyboardInterrupt, so that nothing half made is left; a second
    one ends the process at once. Where whoever reads the output has ended, as by `| head`, the command ends too.

    Args:
        run: takes the command line without the program's name.
        arguments: that; None: the process's own.
        when_stopped: what is printed then, unless the KeyboardInterrupt says something itself.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started the command
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    with Stopping() as stopping:
        try:
            code = run(as_text(arguments))
            sys.stdout.flush()
            return code
        except (ValueError, OSError, MissingExtraError) as error:
            if _is_of_output(error) and (is_gone(sys.stdout) or is_gone(sys.stderr)):
                say_nothing_more()
                return 128 + signal.SIGPIPE
            return fail(met_limit(error) or in_words(error))
        except (RuntimeError, MemoryError, ImportError, SystemError) as error:
            if limit := met_limit(error):
                return fail(limit)
            lost = from_workers.lost_worker(error) if (from_workers := sys.modules.get(_WORKERS)) else None
            if lost is None:
                raise
            return fail(lost, code=os.EX_TEMPFAIL)
        except KeyboardInterrupt as stopped:
            is_gone(sys.stdout)
            last_line(f"\n{str(stopped) or when_stopped}")
            return 128 + (stopping.number or signal.SIGINT)


def _is_of_output(error: BaseException | None) -> bool:
    """Whether it is, or tells in other words, that an output's reader has ended."""
    while error is not None and not (isinstance(error, OSError) and error.errno in GONE_ERRORS):
        error = error.__cause__
    return error is not None


class Stopping:
    """Context manager: signals that ask to stop raise KeyboardInterrupt. `number` is that of the first, or 0.

    Args:
        but: Signals that do what they did before.
    """

    def __init__(self, *but: signal.Signals) -> None:
        self.number, self._heard = 0, 0.0
        self._but = but
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                # As nohup has it for SIGHUP, cron and a script's `&` for SIGINT: what came ignored is none of ours.
                if number not in self._but and signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if not self.number:
            self.number, self._heard = number, time.monotonic()
            raise KeyboardInterrupt
        # A terminal that goes sends several at once, and what was asked for takes a moment.
        if time.monotonic() - self._heard > 0.5:
            last_line("\nstopped at once")
            os._exit(128 + number)


def quiet_transformers() -> None:
    """Leave out the progress bars and warnings of transformers: errors of ours report what could not be loaded."""
    with from_extra("train"):
        from transformers.utils import logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """The flags that a parser takes."""
    return ["--help", *re.findall(r"--[\w.-]+", parser.format_usage())]


def in_plain_words(message: str, flags: Iterable[str]) -> str:
    """What argparse or jsonargparse says, in one line that begins with the argument; a mistyped one may be one of
    `flags`."""
    message = " ".join(message.split())
    message = re.sub(r"^Group '(.*)' does not accept option '(.*)'$", r"unrecognized arguments: --\1.\2", message)
    message = re.sub(r'^(?:Parser key "(.*?)"|argument -*(\S+)): ', lambda found: f"{found[1] or found[2]}: ", message)
    if message.startswith("unrecognized arguments: "):
        message = _unknown(message.split(" ")[2:], flags)
    return f"{message} (--help says more)"


def _unknown(rest: Sequence[str], flags: Iterable[str]) -> str:
    """Of arguments that no parser took, the first flag: what follows it may be its value."""
    wrong = next((argument for argument in rest if argument.startswith("-") and len(argument) > 1), rest[0])
    name = wrong.partition("=")[0]
    if not wrong.startswith("-"):
        meant = f"; write --{name}" if f"--{name}" in flags else ", or quotes around a text with spaces"
        return f"{name}: expected a field as --NAME before its value{meant}"
    similar = did_you_mean(name.lstrip("-"), [flag.lstrip("-") for flag in flags])
    return f"{name}: there is no such argument{similar.replace('did you mean ', 'did you mean --')}"
