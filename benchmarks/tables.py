"""Tables of results, the same for a page of docs/ and for the end of a run."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A head and rows of cells, which are Markdown."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def as_markdown(table: Table) -> str:
    head, *rows = (f"| {' | '.join(cells)} |" for cells in (table.columns, *table.rows))
    return "\n".join([head, "|---" * len(table.columns) + "|", *rows])


def as_text(table: Table) -> str:
    """For a terminal, in columns."""
    lines = [[cell.replace("<br>", ", ").replace("**", "") for cell in cells] for cells in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in lines
    )
