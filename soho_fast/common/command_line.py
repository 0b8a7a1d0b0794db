"""What the commands share: an argument that can't be used is told in one line, in plain words."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from soho_fast.common.errors import UserError, fail
from soho_fast.common.spelling import did_you_mean


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse prints its usage and leaves; takes no abbreviated flags."""

    def __init__(self, **options: object) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{in_plain_words(message, self._flags())} (--help says more)")

    def _flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]


def as_text(arguments: Sequence[str]) -> list[str]:
    """The arguments; raises UserError where one is not text."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(f"argument {argument!a}: not UTF-8 text; what it names needs another name") from None
    return list(arguments)


def exit_code(run: Callable[[list[str]], int], arguments: Sequence[str] | None) -> int:
    """That of a command: what `run` gives, 2 for a mistake of the user, told in a line, or 130 when it was stopped.

    Args:
        run: takes the command line without the program's name.
        arguments: that; None: the process's own.
    """
    try:
        return run(as_text(sys.argv[1:] if arguments is None else arguments))
    except (ValueError, OSError) as error:
        if os.environ.get("SOHO_FAST_TRACEBACK") == "1":
            raise
        return fail(str(error))
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 128 + signal.SIGINT


# What jsonargparse and argparse say of a value, and the same in plain words.
_WORDS = [
    (r"could not convert string to float: (?P<came>.*)", "expected a number"),
    (r"invalid literal for int\(\).*?: (?P<came>.*)", "expected a whole number"),
    (r"(?P<came>\S+) does not conform to restriction v?(?P<rule>.*)", "expected a number {rule}"),
    (r"Unable to load config (?P<came>.*?) - ", "expected fields of its own, as --{field}.NAME VALUE"),
    (r"expected one argument", "expected a value after it"),
    (r"invalid int value: (?P<came>.*)", "expected a whole number"),
    (r"invalid choice: (?P<came>.*) \(choose from .*\)", "expected {kinds}"),
    (r"Expected an? (?:<class|typing\.Literal).*\. Got value: (?P<came>.*)", "expected {kinds}"),
    (r"Does not validate against any of the Union .* Given value: (?P<came>.*)", "expected {kinds}"),
    (r"Not of type \w+: (?P<came>.*) not a number", "expected a number"),
]
_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "list": "a list, [A, B]",
    "tuple": "a list, [A, B]",
    "dict": "names with their values, {NAME: VALUE}",
    "NoneType": "null",
}


def in_plain_words(message: str, known: Iterable[str]) -> str:
    """A parser's message in one line that names the argument.

    Args:
        message: What argparse or jsonargparse says.
        known: The flags there are.
    """
    message = " ".join(message.split()).replace(" (--help lists every field)", "")
    if message.startswith("unrecognized arguments: "):
        return _unknown(message.removeprefix("unrecognized arguments: ").split(" "), known)
    about = re.fullmatch(r'(?:Parser key "(.*?)"|argument -*(\S+)): (.*)', message)
    if about is None:
        return message
    field, rest = about[1] or about[2], about[3]
    for pattern, words in _WORDS:
        found = re.search(pattern, rest)
        if found is None:
            continue
        parts = found.groupdict()
        choices = _choices(rest)
        expected = words.format(field=field, rule=parts.get("rule"), kinds=" or ".join([*_kinds(rest), *choices]))
        if "came" not in parts:
            return f"{field}: {expected}"
        came = parts["came"].strip("'")
        return f"{field}: {expected}, got {came!r}{did_you_mean(came, choices)}"
    return f"{field}: {rest}"


def _choices(rest: str) -> list[str]:
    listed = re.search(r"typing\.Literal\[(.*?)\]|choose from (.*)\)", rest)
    return [choice.strip(" '\"") for choice in (listed[1] or listed[2]).split(",")] if listed else []


def _kinds(rest: str) -> list[str]:
    return [_KINDS.get(name, name) for name in re.findall(r"Expected an? <class '(\w+)'>", rest)]


def _unknown(rest: Sequence[str], known: Iterable[str]) -> str:
    """Of arguments that no parser took, the first flag: what follows it may be its value."""
    wrong = next((argument for argument in rest if argument.startswith("-") and len(argument) > 1), rest[0])
    name = wrong.partition("=")[0]
    names = [flag.lstrip("-") for flag in known]
    if not wrong.startswith("-"):
        meant = f"; write --{name}" if name in names else ""
        return f"{name}: expected a field as --NAME before its value{meant}"
    similar = did_you_mean(name.lstrip("-"), names)
    return f"{name}: there is no such argument{similar.replace('did you mean ', 'did you mean --')}"
