"""Tables of text, printed."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable


@dataclass
class Table:
    """A table to print at the end: header cells and rows of text."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def print_table(table: Table) -> None:
    """Print metrics beside their baselines."""
    drawn = RichTable(title=table.title)
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    console = Console()
    # Without a terminal rich assumes 80 columns and would fold the table.
    Console(width=max(console.width, 110) if not console.is_terminal else None).print(drawn)
