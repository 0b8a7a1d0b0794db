"""Tables of text, printed."""

import errno
import os
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable

from soho_fast.common.errors import printable


@dataclass
class Table:
    """A table to print at the end: header cells and rows of text."""

    title: str
    columns: list[str]
    rows: list[list[str]]


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """What reads the output has ended: the command says so, where rich would end it without a word."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def print_table(table: Table) -> None:
    """Print metrics beside their baselines."""
    drawn = RichTable(title=printable(table.title))
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(printable, row))
    console = _Output()
    # Without a terminal rich assumes 80 columns and would fold the table.
    _Output(width=max(console.width, 110) if not console.is_terminal else None).print(drawn)
